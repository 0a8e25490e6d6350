"""Pictures and masks that a person names, opened from a file or stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def read_picture(source: str) -> Image:
    """The picture in a file, or on stdin for "-". Raises PhotoError or MissingError."""
    from io import BytesIO

    from omnipersona_cli.data.decode import open_photo
    from omnipersona_cli.errors import MissingError, nearest

    if source == "-":
        return open_photo(BytesIO(sys.stdin.buffer.read()))
    path = Path(source)
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else Path()
        near = nearest(path.name, [entry.name for entry in folder.iterdir()])
        hint = f"did you mean {path.parent / near}?" if near else f"ls {path.parent}"
        raise MissingError(f"there is no picture {source}", hint=hint)
    return open_photo(path)


def read_mask(file: str) -> Image:
    """The mask in a file, with its transparency where it has one."""
    from PIL import Image as images

    from omnipersona_cli.errors import MissingError, PhotoError

    try:
        with images.open(file) as mask:
            mask.load()
            return mask.copy()
    except FileNotFoundError as error:
        raise MissingError(f"there is no mask {file}", hint="--mask FILE") from error
    except (OSError, ValueError, SyntaxError, images.DecompressionBombError) as error:
        raise PhotoError(
            f"the mask {file} cannot be read", hint="save it as PNG, white where change is allowed"
        ) from error
