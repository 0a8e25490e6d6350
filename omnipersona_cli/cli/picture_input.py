"""Pictures and masks that a person names, opened from a file or stdin."""

from __future__ import annotations

import os
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from omnipersona_cli.cli import output

if TYPE_CHECKING:
    from PIL.Image import Image


def read_picture(source: str) -> Image:
    """The picture in a file, or on stdin for "-", in its own colours; what of it cannot be kept is
    told. Raises PhotoError or MissingError."""
    return _read(source)[0]


def sent_picture(source: str) -> bytes:
    """The bytes of the picture as they are stored, after all that `read_picture` does."""
    _, data = _read(source)
    return data if isinstance(data, bytes) else data.read_bytes()


def sent_mask(file: str) -> bytes:
    """The bytes of the mask, as they are stored, after the checks of `read_mask`."""
    read_mask(file)
    return Path(file).read_bytes()


def read_mask(file: str) -> Image:
    """The mask in a file, upright, with its transparency where it has one."""
    from omnipersona_cli.data.decode import open_mask

    return open_mask(_existing(file, "mask"))


def _read(source: str) -> tuple[Image, bytes | Path]:
    """The picture, and where its bytes are."""
    from omnipersona_cli.data.decode import open_stored

    data: bytes | Path
    if source == "-":
        data, name = _from_stdin(), "the picture on stdin"
        decoded = open_stored(BytesIO(data))
    else:
        data = _existing(source, "picture")
        decoded, name = open_stored(data), data.name
    for remark in decoded.remarks:
        output.note(f"{name}: {remark}")
    return decoded.image, data


def _from_stdin() -> bytes:
    from omnipersona_cli.data.decode import MOST_BYTES
    from omnipersona_cli.errors import PhotoError

    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise PhotoError(
            f"the picture on stdin is larger than {MOST_BYTES >> 20} MiB", hint="scale it down"
        )
    return data


def _existing(source: str, what: str) -> Path:
    """The path; MissingError, with the nearest name, where there is no such file."""
    from omnipersona_cli.errors import MissingError, PhotoError, shell_word
    from omnipersona_cli.reading import where_to_look

    path = Path(source)
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"there is no {what} {source}", hint=where_to_look(source)) from None
    if path.is_dir():
        raise PhotoError(
            f"{source} is a folder, and a {what} is asked for",
            hint=f"name one that is in it: ls {shell_word(source)}",
        )
    return path
