"""The one door through which pictures come in.

Whatever reads a picture file reads it here: with the decoders named in `FORMATS` and no others
(Pillow would start Ghostscript for an EPS under any name), after its size was checked, and only
from regular files. A file that is no picture, is cut short, changes while it is read, or would
unfold to more than memory holds ends in a PhotoError that gives the reason alone; the caller names
the file.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omnipersona_cli.data.colour import alpha_of, normalised, remarks_on, stored_form
from omnipersona_cli.errors import PhotoError
from omnipersona_cli.filetypes import LOOKED_AT, file_type
from omnipersona_cli.reading import BINARY

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "TGA")
"""The decoders that are used, by Pillow's names; HEIC too where pillow-heif is installed."""

LONG_SIDE = 1024
"""Pixels; what learning keeps of a photo's longer side."""

MIN_SIDE = 16
"""Pixels; below this there is nothing to look at."""

MOST_PIXELS = 64_000_000
"""Pixels that are decoded at most; JPEGs are scaled down while decoding, so that cameras stay far
below it in learning. A pixel takes up to 12 bytes of memory on its way."""

MOST_BYTES = 512 << 20
"""The largest file that is opened."""

PICTURE_HINT = "give a JPEG, PNG or WebP picture"
HEIC_HINT = "pip install pillow-heif, or save the photos as JPEG"

FRAMES = "several frames or pages, the first is used"
ODD = "unusual or damaged data inside, read as well as it can be"

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)
_DEFLATED_MOST = 1032  # bytes that one byte of a PNG can unfold to
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF

_recording = threading.RLock()  # Python's warnings are recorded for the whole process


class TooLargeError(PhotoError):
    """A picture that says it has more pixels than may be decoded."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upright ``image``; ``cutout`` (mode L, white = opaque, same size) where the file is
    transparent around its subject; ``remarks`` on what had to be converted, a few words each."""

    image: Image.Image
    cutout: Image.Image | None = None
    remarks: tuple[str, ...] = ()


def open_photo(source: Path | BinaryIO) -> Image.Image:
    """One picture as models see it: upright, RGB, sRGB, full size. Raises PhotoError."""
    with _named(source):
        return decode(source, long_side=None).image


def open_stored(source: Path | BinaryIO) -> Decoded:
    """One picture as `op ask` and `op edit` take it: upright, full size, RGB or RGBA, in its own
    colours with its profile, so that an edit can give them back. Raises PhotoError."""
    with _named(source):
        return decode_stored(source)


def decode_stored(source: Path | BinaryIO, *, most_pixels: int | None = None) -> Decoded:
    """What `open_stored` gives. Raises PhotoError with the reason, TooLargeError for more than
    ``most_pixels``."""
    with opened(source, most_pixels=most_pixels) as (file, remarks):
        _load(file)
        remarks += remarks_on(file)
        image = stored_form(ImageOps.exif_transpose(file))
        if image.mode == "RGBA":
            remarks.append("transparent parts are seen as white")
    return Decoded(image=image, remarks=tuple(dict.fromkeys(remarks)))


def open_mask(source: Path | BinaryIO) -> Image.Image:
    """A mask, upright, as it is stored: grey, coloured or transparent. Raises PhotoError."""
    with _named(source):
        return decode_mask(source)


def decode_mask(source: Path | BinaryIO, *, most_pixels: int | None = None) -> Image.Image:
    """What `open_mask` gives. Raises PhotoError with the reason, TooLargeError for more than
    ``most_pixels``."""
    with opened(source, most_pixels=most_pixels) as (file, _):
        file.load()
        mask = ImageOps.exif_transpose(file)
        return mask.convert("RGBA") if mask.has_transparency_data else mask.copy()


def decode(source: Path | BinaryIO, *, long_side: int | None = LONG_SIDE) -> Decoded:
    """Read one picture, at most ``long_side`` pixels long. Raises PhotoError with the reason."""
    with opened(source, long_side=long_side) as (file, remarks):
        _load(file)
        remarks += remarks_on(file)
        alpha = alpha_of(ImageOps.exif_transpose(file)) if file.has_transparency_data else None
        image = normalised(file)
        if long_side is not None and max(image.size) > long_side:
            image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
            alpha = alpha and alpha.resize(image.size)
        image.info = {}
    return Decoded(
        image=image, cutout=alpha and _cutout(alpha), remarks=tuple(dict.fromkeys(remarks))
    )


@contextmanager
def opened(
    source: Path | BinaryIO, *, long_side: int | None = None, most_pixels: int | None = None
) -> Iterator[tuple[Image.Image, list[str]]]:
    """A picture whose size is known and allowed and whose pixels are not read yet, and what is to
    be remarked on it; more remarks may come while it is read, until the block is left.

    ``long_side`` lets a JPEG be scaled down while it is decoded. Raises PhotoError with the reason,
    also for what goes wrong inside the block; TooLargeError where the file says that it has more
    than ``most_pixels`` (`MOST_PIXELS` unless said), even where it could not be read anyway.
    """
    remarks: list[str] = []
    most = MOST_PIXELS if most_pixels is None else most_pixels
    with _in_words(source, most), _opened_file(source) as file, _remarked(remarks):
        _check_canvas(file, most)
        with _identified(file) as image:
            if long_side is not None:
                image.draft("RGB", (long_side, long_side))
            _check_size(image, file, most)
            if image.format != "MPO" and getattr(image, "is_animated", False):
                remarks.append(FRAMES)
                image.seek(0)
            yield image, remarks


@contextmanager
def _named(source: Path | BinaryIO) -> Iterator[None]:
    """Errors with the name of the picture in front."""
    try:
        yield
    except PhotoError as error:
        name = source.name if isinstance(source, Path) else "the picture on stdin"
        raise PhotoError(f"{name}: {error}", hint=error.hint) from error


@contextmanager
def _in_words(source: Path | BinaryIO, most: int) -> Iterator[None]:
    """What decoders and the file system raise, as PhotoError."""
    try:
        yield
    except PhotoError:
        raise
    except PermissionError as error:
        raise PhotoError(
            "may not be read (permission denied)", hint="chmod u+r the file, then try again"
        ) from error
    except FileNotFoundError as error:
        raise PhotoError("not there", hint="ls the folder to see what is") from error
    except Image.DecompressionBombError as error:
        raise _too_large(most) from error
    except MemoryError as error:
        raise PhotoError("too large for this machine's memory", hint="scale it down") from error
    except (*_BROKEN, struct.error, zlib.error) as error:
        raise PhotoError("cut short or damaged", hint="copy the file again") from error


@contextmanager
def _opened_file(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    """The bytes of a regular file; reading a pipe or a device could wait for ever. PhotoError where
    they change in the meantime."""
    if not isinstance(source, Path):
        yield source
        return
    flags = os.O_RDONLY | BINARY | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(source, flags)
    except IsADirectoryError:
        raise _folder() from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PhotoError("a link that leads nowhere", hint="name the file itself") from error
        raise
    with open(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        if stat.S_ISDIR(before.st_mode):
            raise _folder()
        if not stat.S_ISREG(before.st_mode):
            raise PhotoError("not a regular file", hint="give a picture file")
        if before.st_size == 0:
            raise PhotoError("empty", hint="copy the file again")
        if before.st_size > MOST_BYTES:
            raise PhotoError(f"larger than {MOST_BYTES >> 20} MiB", hint="scale it down first")
        try:
            yield file
        finally:
            after = os.fstat(descriptor)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise PhotoError("changed while it was read", hint="try again when it is complete")


@contextmanager
def _remarked(remarks: list[str]) -> Iterator[None]:
    """What decoders warn of becomes one of our remarks instead of a line on stderr."""
    with _recording, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if any(not _harmless(warning) for warning in caught):
        remarks.append(ODD)


def _harmless(warning: warnings.WarningMessage) -> bool:
    """Of the size (which is checked here) and of how Pillow is used rather than of the file."""
    kind = warning.category
    return issubclass(
        kind, Image.DecompressionBombWarning | DeprecationWarning | ResourceWarning
    ) or "Palette images with Transparency" in str(warning.message)


def _identified(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=_decoders())
    except UnidentifiedImageError:
        start = _start(file)
        if _is_heic(start):
            if not _can_read_heic():
                raise PhotoError("HEIC, which needs pillow-heif", hint=HEIC_HINT) from None
            return Image.open(file, formats=("HEIF",))
        kind = file_type(start)
        if kind is None:
            raise PhotoError("not a picture", hint=PICTURE_HINT) from None
        raise PhotoError(f"not a picture but {kind.what}", hint=kind.hint) from None


def _decoders() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_canvas(file: BinaryIO, most: int) -> None:
    """The size that a WebP announces: its decoder takes memory for it before Pillow knows it."""
    start = _start(file)
    if start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and len(start) >= 30:
        width, height = (1 + int.from_bytes(start[at : at + 3], "little") for at in (24, 27))
        if width * height > most:
            raise _too_large(most)


def _check_size(image: Image.Image, file: BinaryIO, most: int) -> None:
    """PhotoError where the pixels would take too much memory, or cannot be in so small a file."""
    pixels = image.width * image.height
    if pixels > most:
        raise _too_large(most)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        tile = [tags.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > most:
            raise _too_large(most)
    if image.format == "PNG":
        place = file.tell()
        length = file.seek(0, os.SEEK_END)
        file.seek(place)
        if pixels // 8 > length * _DEFLATED_MOST:
            raise PhotoError("cut short or damaged", hint="copy the file again")


def _load(file: Image.Image) -> None:
    """Read the pixels."""
    file.load()
    if min(file.size) < MIN_SIDE:
        raise PhotoError(
            f"only {file.width} x {file.height} pixels",
            hint=f"give a picture of at least {MIN_SIDE} x {MIN_SIDE} pixels",
        )


def _cutout(alpha: Image.Image) -> Image.Image | None:
    """The opaque part, where it is neither next to nothing nor nearly everything."""
    opaque = np.asarray(alpha) > 127
    if not 0.02 < opaque.mean() < 0.95:
        return None
    return Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))


def _start(file: BinaryIO) -> bytes:
    file.seek(0)
    start = file.read(LOOKED_AT)
    file.seek(0)
    return start


def _folder() -> PhotoError:
    return PhotoError("a folder, not a picture", hint="give one of the pictures in it")


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(
        f"larger than {most // 1_000_000} million pixels", hint="scale it down first"
    )


def _is_heic(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS


def _can_read_heic() -> bool:
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True
