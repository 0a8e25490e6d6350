"""A new folder, drawn whole or not at all, so that a drawing that was cut can be repeated."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omnipersona_cli.errors import PersonaError, shell_word


@contextmanager
def new_folder(folder: Path, *, again: str) -> Iterator[Path]:
    """A folder to draw into, which becomes ``folder`` at the end. What killed runs left half-drawn
    beside it is removed.

    Raises PersonaError where ``folder`` is there and not empty (``again`` is the command that takes
    another one) or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise PersonaError(
                f"{folder} is already there and not empty",
                hint=f"{again} {shell_word(f'{folder}-2')}",
            )
        place = folder.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        half = place.with_name(f".{place.name}.{secrets.token_hex(6)}.tmp")
        half.mkdir()
        held = _claimed(half)
        try:
            yield half
            if place == Path.cwd():  # whoever works in a folder would lose it
                for path in sorted(half.iterdir()):
                    path.rename(place / path.name)
            else:
                with suppress(FileNotFoundError):
                    place.rmdir()  # it is empty, and Windows renames onto nothing
                half.rename(place)
        finally:
            shutil.rmtree(half, ignore_errors=True)
            if held is not None:
                os.close(held)
    except OSError as error:
        raise PersonaError(
            f"cannot write to {folder}: {error.strerror}", hint="name a folder of your own"
        ) from error


def _sweep(place: Path) -> None:
    shape = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{12}}\.tmp")
    for left in [path for path in place.parent.iterdir() if shape.fullmatch(path.name)]:
        with suppress(OSError):
            held = _claimed(left)
            if held is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)


def _claimed(folder: Path) -> int | None:
    """Hold a folder for as long as the number is open; None where another draws into it, or where
    the system cannot say."""
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held
