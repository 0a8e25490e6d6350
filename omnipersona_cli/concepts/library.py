"""This user's packs by name: one file ``<name>.opconcept`` each, in one folder.

Reading takes no lock: a file is replaced whole, so a reader sees the old one or the new one.
Changes are made under a file lock. Nothing here imports numpy unless it checks values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from omnipersona_cli.concepts import container, pack
from omnipersona_cli.concepts.facts import FACT_COUNT, Fact
from omnipersona_cli.concepts.pack import SUFFIX, Pack, PackHeader
from omnipersona_cli.errors import (
    MissingError,
    PackError,
    PersonaError,
    ResourceError,
    UsageError,
    nearest,
)
from omnipersona_cli.language.mentions import NAME_PATTERN, check_name

LOCK_SECONDS = 10.0
"""How long a change waits for another process to finish its own."""


class Library:
    """The packs in ``folder``, or in the user's own library. The folder is made when needed.

    Names may be given as "bo" or "<bo>". A name that is not here is a MissingError that suggests
    the nearest; a name that is taken by another concept is a PersonaError unless ``force`` is
    given, while saving the very same pack again changes nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            from omnipersona_cli.config import data_folder

            folder = data_folder() / "concepts"
        self.folder = folder

    def names(self) -> tuple[str, ...]:
        """The names of all concepts, sorted."""
        try:
            files = [file.name for file in os.scandir(self.folder) if file.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise ResourceError(
                f"the library {self.folder} cannot be read", hint=f"ls -ld {self.folder}"
            ) from error
        stems = (name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX))
        return tuple(sorted(stem for stem in stems if re.fullmatch(NAME_PATTERN, stem)))

    def path(self, name: str) -> Path:
        """Where the pack of an existing concept lies."""
        name = check_name(name)
        path = self._file(name)
        if not path.is_file():
            names = self.names()
            guess = nearest(name, names)
            hint = f"did you mean <{guess}>? op concepts" if guess else "op concepts"
            if not names:
                hint = f"teach it first: op learn PHOTOS --name {name}"
            raise MissingError(f"there is no concept <{name}>", hint=hint)
        return path

    def header(self, name: str) -> PackHeader:
        """All of the concept but its tensors; light."""
        path = self.path(name)
        header = pack.read_header(path)
        _check_same(header.name, path)
        return header

    def load(self, name: str, *, norm_limit: float | None = None) -> Pack:
        """The concept, verified."""
        path = self.path(name)
        loaded = pack.read_pack(path, norm_limit=norm_limit)
        _check_same(loaded.name, path)
        return loaded

    def save(self, concept: Pack, *, force: bool = False, large: bool = False) -> Path:
        """Keep a concept under its name; ``large`` as in `write_pack`."""
        data = pack.to_bytes(concept, large=large)
        with self._changing():
            return self._put(concept.name, data, force=force)

    def add_file(self, path: Path, name: str | None = None, *, force: bool = False) -> Path:
        """Import a pack from elsewhere, verified, under its own name or another."""
        with pack.named(path.name):
            data = container.read_file(path)
            return self.add_bytes(data, name, force=force)

    def add_bytes(self, data: bytes, name: str | None = None, *, force: bool = False) -> Path:
        """`add_file` for the bytes of a pack. It is kept in canonical form, its facts cleaned."""
        concept = pack.parse_pack(data)  # checks every value
        chosen = check_name(name) if name else concept.name
        kept = pack.rewrite(data, name=chosen)
        with self._changing():
            return self._put(chosen, kept, force=force)

    def export(self, name: str, to: Path | None = None, *, force: bool = False) -> Path:
        """Copy a pack out of the library: to a file, into a folder, or into the current one.

        A symbolic link at the target is replaced, not followed, and only with ``force``.
        """
        data = self.read_bytes(name)
        target = to or Path()
        if target.is_dir():
            target = target / f"{check_name(name)}{SUFFIX}"
        container.write_file(target, data, overwrite=force)
        return target

    def read_bytes(self, name: str) -> bytes:
        """The pack's file, its hashes checked."""
        path = self.path(name)
        with pack.named(path.name):
            data = container.read_file(path)
            pack.rewrite(data)
        return data

    def change_facts(
        self, name: str, change: Callable[[tuple[Fact, ...]], Sequence[Fact]]
    ) -> PackHeader:
        """Replace the facts of a concept by what ``change`` makes of them, under the lock.

        The tensors stay as they are, to the bit.
        """
        with self._changing():
            header = self.header(name)
            facts = tuple(change(header.facts))
            if len(facts) > FACT_COUNT:
                raise UsageError(
                    f"a concept keeps at most {FACT_COUNT} facts",
                    hint=f"make room: op concepts facts {header.name} rm 1",
                )
            if facts != header.facts:
                path = self.path(name)
                with pack.named(path.name):
                    data = pack.rewrite(container.read_file(path), facts=facts)
                container.write_file(path, data, overwrite=True)
            return self.header(name)

    def rename(self, old: str, new: str) -> Path:
        """Give a concept another name; the mentions in its own facts follow."""
        old, new = check_name(old), check_name(new)
        if old == new:
            raise UsageError(f"<{old}> has that name already", hint="op concepts")
        with self._changing():
            path = self.path(old)
            with pack.named(path.name):
                data = pack.rewrite(container.read_file(path), name=new)
            if os.path.lexists(self._file(new)):
                raise _taken(new, hint=f"op concepts rm {new}, or choose another name")
            target = self._put(new, data, force=False)
            _unlink(path)
            return target

    def remove(self, name: str) -> None:
        """Delete a concept, even one whose file is broken."""
        with self._changing():
            _unlink(self.path(name))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _put(self, name: str, data: bytes, *, force: bool) -> Path:
        """Write the pack under the lock; the same pack again is no change."""
        path = self._file(name)
        if os.path.lexists(path) and not force:
            with suppress(PersonaError):
                if container.read_file(path) == data:
                    return path
            raise _taken(name, hint="--force replaces it; another --name keeps both")
        container.write_file(path, data, overwrite=force)
        return path

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the library's lock, and clear away what a killed process left half-written."""
        from filelock import FileLock, Timeout

        lock = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = FileLock(lock, timeout=LOCK_SECONDS)
            held.acquire()
        except Timeout:
            raise ResourceError(
                "another op has been changing the library for a while", hint="try again"
            ) from None
        except OSError as error:
            raise ResourceError(
                f"the library {self.folder} cannot be written",
                hint="choose another place: export OMNIPERSONA_HOME=FOLDER",
            ) from error
        try:
            for left in self.folder.glob(f".*{SUFFIX}.*.tmp"):
                with suppress(OSError):
                    left.unlink()
            yield
        finally:
            held.release()


def _taken(name: str, *, hint: str) -> PersonaError:
    return PersonaError(f"there is another concept <{name}> already", hint=hint)


def _check_same(inside: str, path: Path) -> None:
    """A file that somebody renamed by hand must not answer to a name that is not its own."""
    if inside != path.name.removesuffix(SUFFIX):
        raise PackError(
            f"{path.name} holds the concept <{inside}>",
            hint=f"op concepts import {path} --name {path.name.removesuffix(SUFFIX)} --force",
        )


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise ResourceError(f"cannot remove {path}", hint=f"ls -ld {path.parent}") from error
