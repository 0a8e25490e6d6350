"""What packs were before their last change: one undo copy for each name.

A copy is a file ``<number>.<name>.opconcept`` in the folder ``.undo`` of the library, and
``<number>.<old>.<new>.opconcept`` where a pack was renamed, or, with the same name twice, brought
back after it was removed; names have no dots. Numbers grow with every change, so the newest copy is
that of the last change. A copy is there before the change is made and older ones go afterwards, so
a cut at any place loses nothing.

All of this is done under the library's lock. Functions may raise OSError.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from omnipersona_cli.concepts import container
from omnipersona_cli.language.mentions import NAME_PATTERN

FOLDER = ".undo"

_FILE = re.compile(rf"([0-9]{{8}})\.({NAME_PATTERN})(?:\.({NAME_PATTERN}))?\.opconcept")


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One undo copy: of ``name``, which became ``renamed`` unless that is empty."""

    number: int
    name: str
    renamed: str
    path: Path

    def concerns(self, name: str) -> bool:
        """True where undoing it changes what ``name`` is."""
        return name in (self.name, self.renamed)


def copies(library: Path) -> tuple[Copy, ...]:
    """All copies, the oldest first."""
    try:
        names = os.listdir(library / FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    found = [(match, name) for name in sorted(names) if (match := _FILE.fullmatch(name))]
    return tuple(
        Copy(
            number=int(match[1]),
            name=match[2],
            renamed=match[3] or "",
            path=library / FOLDER / name,
        )
        for match, name in found
    )


def keep(library: Path, path: Path) -> None:
    """Make a copy of the pack at ``path``, which is about to be replaced."""
    target = _next(library, path.name)
    _dated(path)
    try:
        os.link(path, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system without hard links
        container.write_file(target, container.read_file(path))
    container.sync_folder(target.parent)


def take_away(library: Path, path: Path, *, renamed: str = "") -> None:
    """Turn the pack at ``path`` into a copy: it is removed, or lives on as ``renamed``."""
    stem = path.name.removesuffix(".opconcept")
    target = _next(library, f"{stem}.{renamed}.opconcept" if renamed else path.name)
    _dated(path)
    os.rename(path, target)
    container.sync_folder(target.parent)
    container.sync_folder(library)
    drop_older(library, stem)


def brought_back(library: Path, copy: Copy) -> None:
    """Note that the removed pack of ``copy`` is back: that is the last change now."""
    os.rename(copy.path, _next(library, f"{copy.name}.{copy.name}.opconcept"))
    container.sync_folder(library / FOLDER)


def of_concept(library: Path, name: str, *, before: Copy | None = None) -> tuple[Copy, ...]:
    """All copies of the concept that is called ``name``, also from when it had other names; with
    ``before`` of the one that was called so then."""
    found = []
    for copy in reversed(copies(library)):
        if copy.concerns(name) and (before is None or copy.number < before.number):
            found.append(copy)
            if copy.renamed == name:
                name = copy.name  # until then
    return tuple(found)


def drop_older(library: Path, name: str) -> None:
    """Leave the newest copy of ``name`` alone. A renaming that goes takes along what only it leads
    to: older copies of the concept that has another name now."""
    for copy in [copy for copy in copies(library) if copy.name == name][:-1]:
        for older in (copy, *(of_concept(library, name, before=copy) if copy.renamed else ())):
            with suppress(OSError):
                older.path.unlink()


def _dated(path: Path) -> None:
    """Make the file of today: a copy is as old as the change that made it, whatever the pack's."""
    with suppress(OSError, NotImplementedError):  # links, where they cannot be told from files
        os.utime(path, follow_symlinks=False)


def _next(library: Path, file: str) -> Path:
    """Where the next copy goes."""
    folder = library / FOLDER
    folder.mkdir(exist_ok=True)
    number = max((copy.number for copy in copies(library)), default=0) + 1
    return folder / f"{number:08d}.{file}"
