"""Which folder of this machine holds the weights that a concept was learned on.

A pack names a folder's last part only, because a path tells of the machine that it was made on. So
that the next command opens the same folder, its path is kept here, in the data folder, by the
fingerprint that the slot is bound to; it never enters a pack. Whatever is wrong with the file, the
folder is not known: the command then says which option names it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from omnipersona_cli.concepts.container import write_file
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.config import data_folder
from omnipersona_cli.errors import PersonaError
from omnipersona_cli.reading import Origin, read_json

FILE = "bases.json"

MOST = 200
"""How many folders are remembered; the one that was used longest ago goes first."""

LONGEST = 4096
"""The most characters of a path."""


def remember_base(fingerprint: str, model: str | None) -> None:
    """Keep ``model`` by the fingerprint of its weights where it is a folder or a file of this
    machine, or two of them ("A+B"). A disk that cannot be written is nobody's trouble: the folder
    can be named."""
    where = _placed(model or "")
    if not where or len(where) > LONGEST:
        return
    known = _read()
    if next(reversed(known.items()), None) == (fingerprint, where):
        return
    known.pop(fingerprint, None)
    known[fingerprint] = where
    _write(dict(list(known.items())[-MOST:]))


def known_base(fingerprint: str) -> str | None:
    """What ``--model`` takes for the weights with this fingerprint; None where they are not known
    or not there any more."""
    where = _read().get(fingerprint, "")
    return where if where and _placed(where) == where else None


def forget_bases(library: Library) -> None:
    """Forget folders that no concept of the library needs, nor an undo copy of one."""
    known = _read()
    if not known:
        return
    needed = _needed(library)
    if needed is not None and not known.keys() <= needed:
        _write({key: where for key, where in known.items() if key in needed})


def _needed(library: Library) -> set[str] | None:
    """The fingerprints of all slots; None where one of the packs cannot be read."""
    from omnipersona_cli.concepts import undo
    from omnipersona_cli.concepts.pack import read_header

    found: set[str] = set()
    try:
        paths = [library.path(name) for name in library.names()]
        for path in (*paths, *(copy.path for copy in undo.copies(library.folder))):
            header = read_header(path)
            found |= {str(slot.about.get("fingerprint", "")) for slot in header.slots.values()}
    except (PersonaError, OSError):
        return None
    return found


def _placed(model: str) -> str:
    """``model`` with whole paths, links as they are; "" where it is not on this machine."""
    parts = [model] if os.path.exists(os.path.expanduser(model)) else model.split("+")
    paths = [os.path.abspath(os.path.expanduser(part)) for part in parts if part]
    there = len(paths) == len(parts) and all(map(os.path.exists, paths))
    return "+".join(paths) if there else ""


def _read() -> dict[str, str]:
    origin = Origin(name=FILE)
    with suppress(PersonaError, OSError):
        found = read_json(data_folder() / FILE, origin)
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if isinstance(value, str)}
    return {}


def _write(known: dict[str, str]) -> None:
    text = json.dumps(known, ensure_ascii=False, indent=2) + "\n"
    with suppress(PersonaError, OSError):
        data_folder().mkdir(parents=True, exist_ok=True)
        write_file(data_folder() / FILE, text.encode("utf-8", "surrogatepass"), overwrite=True)
