"""This user's packs by name: one file ``<name>.opconcept`` each, in one folder.

Reading takes no lock: a file is replaced whole, so a reader sees the old one or the new one.
Changes are made under a file lock, leave an undo copy, and can be repeated after a cut at any
place. Nothing here imports numpy unless it checks values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from omnipersona_cli.concepts import container, pack, undo
from omnipersona_cli.concepts.facts import FACT_COUNT, Fact
from omnipersona_cli.concepts.pack import SUFFIX, Pack, PackHeader
from omnipersona_cli.errors import (
    MissingError,
    PackError,
    PersonaError,
    ResourceError,
    TakenError,
    UsageError,
    nearest,
    shell_word,
)
from omnipersona_cli.language.mentions import NAME_PATTERN, check_name

LOCK_SECONDS = 10.0
"""How long a change waits for another process to finish its own."""


class NoConceptError(MissingError):
    """There is no concept of that ``name``; ``near`` is the known name most like it, or ""."""

    def __init__(self, name: str, known: Iterable[str], *, hint: str) -> None:
        self.name, self.near = name, nearest(name, known)
        suggested = f"did you mean <{self.near}>? {hint}" if self.near else hint
        super().__init__(f"there is no concept <{name}>", hint=suggested)


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
        with self._readable():
            try:
                with os.scandir(self.folder) as found:
                    files = [file.name for file in found if file.is_file()]
            except (FileNotFoundError, NotADirectoryError):
                return ()
        stems = (name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX))
        return tuple(sorted(stem for stem in stems if re.fullmatch(NAME_PATTERN, stem)))

    def path(self, name: str) -> Path:
        """Where the pack of an existing concept lies."""
        name = check_name(name)
        path = self._file(name)
        with self._readable():
            here = path.is_file()
        if not here:
            names = self.names()
            hint = "op concepts" if names else f"teach it first: op learn PHOTOS --name {name}"
            raise NoConceptError(name, names, hint=hint)
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
        with self.changing():
            return self._put(concept.name, data, force=force)

    def save_learned(
        self,
        learned: Pack,
        *,
        before: PackHeader | None,
        slots: Sequence[str],
        large: bool = False,
    ) -> tuple[Path, str]:
        """Keep what was learned in ``slots``, whatever happened to the concept meanwhile.

        ``before`` is the header as it was when learning began, None where there was no concept.
        What changed since is merged (`omnipersona_cli.concepts.merge`). Returns the path, and a
        sentence where something had changed, else "". Raises PersonaError, with the library as it
        was, where the concept was removed or another has taken its name: the caller still has
        ``learned``, and keeps it elsewhere.
        """
        from omnipersona_cli.concepts.merge import merge

        with self.changing():
            now = self.today(learned.name, before)
            if before is None or now is None or now.hash == before.hash:
                data = pack.to_bytes(learned, large=large)
                return self._put(learned.name, data, force=before is not None), ""
            merged = merge(learned, before=before, now=self.load(now.name), slots=slots)
            path = self._put(merged.name, pack.to_bytes(merged, large=large), force=True)
            if merged.name != learned.name:
                return path, f"<{learned.name}> has become <{merged.name}> while it was learned"
            return path, f"<{merged.name}> was changed while it was learned; both are kept"

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
        with self.changing():
            return self._put(chosen, kept, force=force)

    def export(self, name: str, to: Path | None = None, *, force: bool = False) -> Path:
        """Copy a pack out of the library: to a file, into a folder, or into the current one.

        A symbolic link at the target is replaced, not followed, and only with ``force``.
        """
        data = self.read_bytes(name)
        target = to or Path()
        if os.path.isdir(target):
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

    def change(self, name: str, change: Callable[[Pack], Pack], *, large: bool = False) -> Path:
        """Replace a concept by what ``change`` makes of it, under the lock; ``large`` as in
        `write_pack`."""
        with self.changing():
            changed = change(self.load(name))
            return self._put(changed.name, pack.to_bytes(changed, large=large), force=True)

    def change_facts(
        self, name: str, change: Callable[[tuple[Fact, ...]], Sequence[Fact]]
    ) -> PackHeader:
        """Replace the facts of a concept by what ``change`` makes of them, under the lock.

        The tensors stay as they are, to the bit.
        """
        with self.changing():
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
                self._put(header.name, data, force=True)
            return self.header(name)

    def rename(self, old: str, new: str) -> Path:
        """Give a concept another name; the mentions in its own facts follow.

        A renaming that was cut is finished, and one that is done already is no error.
        """
        old, new = check_name(old), check_name(new)
        if old == new:
            raise UsageError(f"<{old}> has that name already", hint="op concepts")
        with self.changing():
            done = [copy for copy in undo.copies(self.folder) if copy.name == old]
            if not container.is_taken(self._file(old)) and done and done[-1].renamed == new:
                return self.path(new)
            return self._rename(old, new)

    def remove(self, name: str) -> None:
        """Take a concept out of the library, even one whose file is broken. `undo` brings it
        back; `omnipersona_cli.concepts.upkeep.forget` leaves nothing of it."""
        with self.changing():
            undo.take_away(self.folder, self.path(name))

    def was_removed(self, name: str) -> bool:
        """True where the last that happened to ``name`` was its removal."""
        name = check_name(name)
        with self._readable():
            mine = [copy for copy in undo.copies(self.folder) if copy.name == name]
            here = container.is_taken(self._file(name))
        return bool(mine) and not mine[-1].renamed and not here

    def undo(self, name: str = "") -> tuple[str, str]:
        """Take back the last change, or the last of one concept. Returns the name of the concept
        and what was done. Doing it again brings the newer state back.

        Raises MissingError where there is nothing to take back.
        """
        with self.changing():
            return self.undo_under_lock(check_name(name) if name else "")

    def undo_under_lock(self, name: str) -> tuple[str, str]:
        """`undo` for one who holds the lock already."""
        for copy in reversed(undo.copies(self.folder)):
            if name and not copy.concerns(name):
                continue
            here = container.is_taken(self._file(copy.name))
            if copy.renamed == copy.name:
                if here:
                    undo.take_away(self.folder, self._file(copy.name))
                    return copy.name, f"<{copy.name}> is removed again"
                continue
            if copy.renamed:
                if container.is_taken(self._file(copy.renamed)) and not here:
                    self._rename(copy.renamed, copy.name)
                    return copy.name, f"<{copy.renamed}> is <{copy.name}> again"
                continue
            data = container.read_file(copy.path)
            if here and container.read_file(self._file(copy.name)) == data:
                continue
            self._put(copy.name, data, force=True)
            if not here:
                undo.brought_back(self.folder, copy)
            return copy.name, f"<{copy.name}> is {'as it was' if here else 'back'}"
        about = f" about <{name}>" if name else ""
        raise MissingError(f"there is nothing to undo{about}", hint="op concepts")

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _put(self, name: str, data: bytes, *, force: bool) -> Path:
        """Write the pack under the lock; the same pack again is no change."""
        path = self._file(name)
        here = container.is_taken(path)
        if here:
            with suppress(PersonaError):
                if container.read_file(path) == data and not path.is_symlink():
                    return path
            if not force:
                raise _taken(name, hint="--force replaces it; another --name keeps both")
            undo.keep(self.folder, path)
        container.write_file(path, data, overwrite=force)
        if here:
            undo.drop_older(self.folder, name)
        return path

    def _rename(self, old: str, new: str) -> Path:
        path = self.path(old)
        with pack.named(path.name):
            data = pack.rewrite(container.read_file(path), name=new)
        target = self._file(new)
        if container.is_taken(target) and container.read_file(target) != data:
            raise _taken(new, hint=f"op concepts rm {new}, or choose another name")
        self._put(new, data, force=False)
        undo.take_away(self.folder, path, renamed=new)
        return target

    def today(self, name: str, before: PackHeader | None) -> PackHeader | None:
        """What the concept of ``before`` is now, perhaps under another name; None where there was
        none and ``name`` is still free. Raises PersonaError for one that was removed, and for a
        name that was taken."""
        if before is None:
            if container.is_taken(self._file(name)):
                raise _taken(name, hint="--force replaces it; another --name keeps both")
            return None
        if container.is_taken(self._file(before.name)):
            return self.header(before.name)
        mine = {slot: entry.hash for slot, entry in before.slots.items()}
        for copy in reversed(undo.copies(self.folder)):
            if copy.name == before.name and copy.renamed in self.names():
                now = self.header(copy.renamed)
                if mine.items() <= {k: entry.hash for k, entry in now.slots.items()}.items():
                    return now
        raise PersonaError(
            f"<{before.name}> was removed while it was learned",
            hint=f"op concepts undo {before.name}",
        )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """What the system says while the library is read is a ResourceError."""
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"the library {self.folder} cannot be read: {_reason(error)}",
                hint=f"ls -ld {shell_word(self.folder)}",
            ) from error

    @contextmanager
    def changing(self) -> Iterator[None]:
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
        except (OSError, NotImplementedError) as error:
            raise self._unwritable(error) from error
        try:
            for folder in (self.folder, self.folder / undo.FOLDER):
                with suppress(OSError):
                    for left in container.temporaries(folder):  # nobody writes here without a lock
                        with suppress(OSError):
                            left.unlink()
            yield
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            with suppress(OSError):
                held.release()

    def _unwritable(self, error: Exception) -> ResourceError:
        return ResourceError(
            f"the library {self.folder} cannot be written: {_reason(error)}",
            hint="choose another place: export OMNIPERSONA_HOME=FOLDER",
        )


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else ""
    return (reason or type(error).__name__).lower()


def _taken(name: str, *, hint: str) -> TakenError:
    return TakenError(f"there is another concept <{name}> already", hint=hint)


def _check_same(inside: str, path: Path) -> None:
    """A file that somebody renamed by hand must not answer to a name that is not its own."""
    if inside != path.name.removesuffix(SUFFIX):
        raise PackError(
            f"{path.name} holds the concept <{inside}>",
            hint=f"op concepts import {shell_word(path)} "
            f"--name {path.name.removesuffix(SUFFIX)} --force",
        )
