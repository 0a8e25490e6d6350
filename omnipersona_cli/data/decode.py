"""One picture file, whatever made it, as an upright RGB image.

EXIF rotation, transparency on white, CMYK, 16 bits, animations (first frame), HEIC where
pillow-heif is installed. A file that is no picture, is cut short, or would unfold to more than
memory holds ends in a PhotoError that gives the reason alone; the caller names the file.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omnipersona_cli.errors import PhotoError

LONG_SIDE = 1024
"""Pixels; what learning keeps of a photo's longer side."""

MIN_SIDE = 16
"""Pixels; below this there is nothing to look at."""

MOST_PIXELS = 120_000_000
"""Decoded size limit; JPEGs are scaled down while decoding, so cameras stay far below it."""

HEIC_HINT = "pip install pillow-heif, or save the photos as JPEG"

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)
_TOO_LARGE = f"larger than {MOST_PIXELS // 1_000_000} million pixels"


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upright RGB ``image``; ``cutout`` (mode L, white = opaque, same size) where the file is
    transparent around its subject; ``remarks`` on what had to be converted."""

    image: Image.Image
    cutout: Image.Image | None = None
    remarks: tuple[str, ...] = ()


def open_photo(source: Path | BinaryIO) -> Image.Image:
    """One picture as `op ask` and `op edit` take it: upright, RGB, full size. Raises PhotoError."""
    name = source.name if isinstance(source, Path) else "the picture on stdin"
    try:
        return decode(source, long_side=None).image
    except PhotoError as error:
        hint = error.hint or "give a JPEG, PNG or WebP picture, for example photos/1.jpg"
        raise PhotoError(f"{name}: {error}", hint=hint) from error


def decode(source: Path | BinaryIO, *, long_side: int | None = LONG_SIDE) -> Decoded:
    """Read one picture, at most ``long_side`` pixels long. Raises PhotoError with the reason."""
    try:
        with warnings.catch_warnings(), _open(source) as file:
            warnings.simplefilter("ignore")  # decoders chatter about oddities that they survive
            return _upright(file, long_side)
    except PhotoError:
        raise
    except PermissionError as error:
        raise PhotoError(
            "may not be read (permission denied)", hint="chmod u+r the file, then try again"
        ) from error
    except FileNotFoundError as error:
        raise PhotoError("not there", hint="ls the folder to see what is") from error
    except IsADirectoryError as error:
        raise PhotoError(
            "a folder, not a picture", hint="give one of the pictures in it"
        ) from error
    except UnidentifiedImageError as error:
        raise _not_a_picture(source) from error
    except Image.DecompressionBombError as error:
        raise PhotoError(_TOO_LARGE, hint="scale it down first") from error
    except MemoryError as error:
        raise PhotoError("too large for this machine's memory", hint="scale it down") from error
    except (*_BROKEN, struct.error, zlib.error) as error:
        raise PhotoError("cut short or damaged", hint="copy the file again") from error


def normalised(image: Image.Image) -> Image.Image:
    """``image`` as every model gets it: turned as its EXIF says, 8 bits a channel, on white where
    it is transparent, RGB. One that is so already comes back itself. The only place that does
    this: files pass it when they are read, pictures given to the engine when they are taken in."""
    if image.mode == "RGB" and not image.has_transparency_data and not image.getexif():
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is (mode L); None where all are."""
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _open(source: Path | BinaryIO) -> Image.Image:
    if isinstance(source, Path) and source.exists() and not source.is_file():
        if source.is_dir():
            raise IsADirectoryError(str(source))
        raise PhotoError("not a regular file")  # reading a pipe or a device could wait for ever
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if not _is_heic(source) or not _can_read_heic():
            raise
        return Image.open(source)


def _upright(file: Image.Image, long_side: int | None) -> Decoded:
    remarks = []
    if long_side is not None:
        file.draft("RGB", (long_side, long_side))
    if file.width * file.height > MOST_PIXELS:
        raise PhotoError(_TOO_LARGE, hint="scale it down first")
    if getattr(file, "n_frames", 1) > 1 and file.format != "MPO":
        remarks.append("several frames or pages, the first is used")
        file.seek(0)
    file.load()
    if min(file.size) < MIN_SIDE:
        raise PhotoError(
            f"only {file.width} x {file.height} pixels",
            hint=f"give a picture of at least {MIN_SIDE} x {MIN_SIDE} pixels",
        )
    if file.mode == "CMYK":
        remarks.append("print colours (CMYK), converted to RGB")
    elif file.mode.startswith(("I", "F")):
        remarks.append("more than 8 bits a pixel, reduced to 8")
    alpha = _alpha(ImageOps.exif_transpose(file))
    image = normalised(file)
    if long_side is not None and max(image.size) > long_side:
        image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
        alpha = alpha and alpha.resize(image.size)
    image.info = {}
    return Decoded(image=image, cutout=alpha and _cutout(alpha), remarks=tuple(remarks))


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating point greys as 8 bits; floats in 0..1 are taken as such."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise PhotoError("holds numbers that are no brightness")
    top = float(values.max(initial=0.0))
    if image.mode.startswith("F") and top <= 1.0:
        scale = 255.0
    else:
        scale = 1.0 if top <= 255 else 255.0 / max(top, 65535.0)
    return Image.fromarray(np.clip(values * scale, 0, 255).round().astype(np.uint8))


def _cutout(alpha: Image.Image) -> Image.Image | None:
    """The opaque part, where it is neither next to nothing nor nearly everything."""
    opaque = np.asarray(alpha) > 127
    if not 0.02 < opaque.mean() < 0.95:
        return None
    return Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))


def _not_a_picture(source: Path | BinaryIO) -> PhotoError:
    if _is_heic(source):
        return PhotoError("HEIC, which needs pillow-heif", hint=HEIC_HINT)
    if isinstance(source, Path) and source.stat().st_size == 0:
        return PhotoError("empty", hint="copy the file again")
    return PhotoError("not a picture")


def _is_heic(source: Path | BinaryIO) -> bool:
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(12)
    else:
        source.seek(0)
        start = source.read(12)
        source.seek(0)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS


def _can_read_heic() -> bool:
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True
