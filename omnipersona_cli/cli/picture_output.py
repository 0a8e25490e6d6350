"""Where pictures go as they are made: files with numbered names, one file, or stdout."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnipersona_cli.cli import output
from omnipersona_cli.cli.options import is_folders_name
from omnipersona_cli.concepts.container import place_file, sweep_temporaries
from omnipersona_cli.errors import ResourceError, TakenError, UsageError, shell_word

if TYPE_CHECKING:
    from omnipersona_cli.engine.picture import Metadata, Picture


LONGEST_FILE_NAME = 230
"""Bytes; a temporary file beside the picture has a few more."""

_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A painted picture: its PNG file, and what there is to say of it, in plain values."""

    png: bytes
    about: Mapping[str, Any]
    trace: Mapping[str, Any]


@dataclass(kw_only=True)
class PictureOutput:
    """Where pictures go as they are made: ``-o`` a file, a folder, or "-".

    Without ``-o`` they get numbered names in the current folder. A numbered name is the next free
    one, whatever another run does, and never replaces a file.
    Names of several pictures in one file's place are numbered too (``bo.png``, ``bo-2.png``).
    """

    out: str | None
    words: str
    metadata: Metadata
    force: bool
    as_json: bool
    explain: bool = False
    kept: list[dict[str, Any]] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)

    def check(self, count: int) -> None:
        """Refuse before painting what could not be kept."""
        if self.out == "-":
            if count > 1 or self.as_json:
                raise UsageError(
                    "stdout takes one picture and nothing else",
                    hint="name a folder: -o pictures/",
                )
            if sys.stdout.isatty():
                output.answer_bytes(b"")
            return
        target = self.out
        if target and not self._is_folder(target):
            if Path(target).suffix.lower() != ".png":
                raise UsageError(
                    f"pictures are written as PNG, not {Path(target).suffix or 'without a suffix'}",
                    hint=f"-o {shell_word(Path(target).with_suffix('.png'))}, or a folder: "
                    f"-o {shell_word(target + '/')}",
                )
            paths = [_in_a_row(Path(target), number) for number in range(1, count + 1)]
            sweep_temporaries(Path(target).parent, {path.name for path in paths}.__contains__)
            check_folder(Path(target).parent)
            check_name(paths[-1])
            there = next((path for path in paths if os.path.lexists(path)), None)
            if there is not None and there.is_dir():
                raise UsageError(f"{there} is a folder", hint=f"-o {shell_word(f'{there}/')}")
            if there is not None and not self.force:
                raise TakenError(f"{there} is already there", hint="add --force to replace it")
        else:
            sweep_temporaries(Path(target or ""), _is_numbered)
            check_folder(Path(target or ""))

    def put(self, picture: Picture) -> None:
        """Keep one picture that was painted here, and say where."""
        from omnipersona_cli.engine.picture import png_bytes

        png = png_bytes(picture, metadata=self.metadata)
        self.put_made(Made(png=png, about=picture.about, trace=picture.trace.to_dict()))

    def put_made(self, made: Made) -> None:
        """Keep one picture that is a file already, and say where."""
        if self.out == "-":
            output.answer_bytes(made.png)
            return
        path = self._saved(made.png)
        if self.as_json:
            data = {"path": str(path), **made.about}
            if self.explain:
                data["trace"] = {key: made.trace[key] for key in ("request", "rewritten", "steps")}
            self.kept.append(data)
        else:
            output.answer(path)

    def finish(self) -> None:
        """The JSON, when that was asked for."""
        if self.as_json:
            output.answer_json(self.kept[0] if len(self.kept) == 1 else self.kept)

    def _saved(self, png: bytes) -> Path:
        """Save the picture under its name: the one that was given, or the next free number, which
        another run may take in the meantime."""
        if self.out and not self._is_folder(self.out):
            path = Path(self.out)
            number = self.used.get(path.stem, 0) + 1
            self.used[path.stem] = number
            path = _in_a_row(path, number)
            place_file(path, png, force=self.force)
            return path
        folder, stem = Path(self.out) if self.out else Path(), slug(self.words)
        number = self.used.get(stem, 0) + 1
        while True:
            path = folder / _numbered(stem, number)
            self.used[stem] = number
            if not os.path.lexists(path):
                with suppress(TakenError):
                    place_file(path, png, force=False)
                    return path
            number += 1

    @staticmethod
    def _is_folder(target: str) -> bool:
        return is_folders_name(target) or Path(target).is_dir()


def check_folder(folder: Path) -> None:
    """ResourceError where no picture could be put into ``folder``, or the folder not be made. It is
    tried beside the nearest folder that is there; nothing is left behind."""
    from tempfile import TemporaryFile

    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with TemporaryFile(dir=there) as file:
            file.write(b"\0")
    except OSError as error:
        reason = "not a folder" if there.is_file() else error.strerror or str(error)
        raise ResourceError(
            f"{there} cannot be written: {reason}", hint="choose another place with -o"
        ) from error


def check_name(path: Path) -> None:
    """UsageError for a file name that some system cannot hold."""
    stem = path.name.split(".")[0].rstrip().lower()
    problem = ""
    if len(os.fsencode(path.name)) > LONGEST_FILE_NAME:
        problem = f"is longer than {LONGEST_FILE_NAME} bytes"
    elif stem in _DEVICES:
        problem = "is the name of a device on Windows"
    elif found := re.search(r'[<>:"|?*\x00-\x1f]', path.name):
        problem = f"has {found[0]!a} in it, which Windows cannot hold"
    elif not path.stem.strip(" .") or path.name.endswith((" ", ".")):
        problem = "begins or ends with what no file name should"
    if problem:
        raise UsageError(f"the file name {path.name[:40]!a} {problem}", hint="-o picture.png")


def _in_a_row(path: Path, number: int) -> Path:
    """The name of the picture with this number: bo.png, bo-2.png, bo-3.png."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def slug(words: str) -> str:
    """A short file name from a prompt: "<bo> at the beach!" -> "bo-at-the-beach"."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40].rstrip("-") or "picture"


def _is_numbered(name: str) -> bool:
    """True for what `_numbered` makes of any prompt."""
    return re.fullmatch(r"[a-z0-9-]+-\d{3,}\.png", name) is not None


def _numbered(stem: str, number: int) -> str:
    return f"{stem}-{number:03d}.png"
