"""Where pictures go as they are made: files with numbered names, one file, or stdout."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnipersona_cli.cli import output
from omnipersona_cli.errors import PersonaError, ResourceError, UsageError

if TYPE_CHECKING:
    from omnipersona_cli.engine.picture import Metadata, Picture
    from omnipersona_cli.engine.replay import Trace


@dataclass(kw_only=True)
class PictureOutput:
    """Where pictures go as they are made: ``-o`` a file, a folder, or "-".

    Without ``-o`` they get numbered names in the current folder, and never replace a file.
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
                    hint=f"-o {Path(target).with_suffix('.png')}, or a folder: -o {target}/",
                )
            if Path(target).exists() and not self.force:
                raise PersonaError(f"{target} is already there", hint="add --force to replace it")
            check_folder(Path(target).parent)
        else:
            check_folder(Path(target or ""))

    def put(self, picture: Picture) -> None:
        """Keep one picture and say where."""
        from omnipersona_cli.engine.picture import png_bytes, save_png

        if self.out == "-":
            output.answer_bytes(png_bytes(picture, metadata=self.metadata))
            return
        path = save_png(picture, self._next(), metadata=self.metadata, force=self.force)
        if self.as_json:
            about: Mapping[str, Any] = picture.about
            data = {"path": str(path), **about}
            if self.explain:
                data["trace"] = trace_data(picture.trace)
            self.kept.append(data)
        else:
            output.answer(path)

    def finish(self) -> None:
        """The JSON, when that was asked for."""
        if self.as_json:
            output.answer_json(self.kept[0] if len(self.kept) == 1 else self.kept)

    def _next(self) -> Path:
        if self.out and not self._is_folder(self.out):
            path = Path(self.out)
            number = self.used.get(path.stem, 0) + 1
            self.used[path.stem] = number
            return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        folder = Path(self.out) if self.out else Path()
        stem = slug(self.words)
        number = self.used.get(stem, 0) + 1
        while not self.force and (folder / _numbered(stem, number)).exists():
            number += 1
        self.used[stem] = number
        return folder / _numbered(stem, number)

    @staticmethod
    def _is_folder(target: str) -> bool:
        return target.endswith(("/", "\\")) or Path(target).is_dir()


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


def slug(words: str) -> str:
    """A short file name from a prompt: "<bo> at the beach!" -> "bo-at-the-beach"."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40].rstrip("-") or "picture"


def trace_data(trace: Trace) -> dict[str, Any]:
    """The trace as plain values."""
    return {
        "request": trace.request,
        "rewritten": trace.rewritten,
        "steps": [vars(step) for step in trace.steps],
    }


def _numbered(stem: str, number: int) -> str:
    return f"{stem}-{number:03d}.png"
