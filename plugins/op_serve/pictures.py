"""Pictures that come in and go out.

What comes in is a stranger's: its size is read before it is decoded, and the limit is lower than
the command line's, because many may come at once.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import OrderedDict
from io import BytesIO
from typing import TYPE_CHECKING, Literal, get_args

from omnipersona_cli.errors import MissingError, PhotoError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnipersona_cli.engine import Picture
    from omnipersona_cli.engine.picture import Metadata

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)

MOST_PIXELS = 40_000_000
"""The most pixels of a picture that is sent here."""

MOST_THUMBNAIL_PIXELS = 4_000_000

MOST_KEPT = 64 << 20
"""Bytes of painted pictures that are kept for clients that ask for an address."""

_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40}(?:;[\w=.+-]{1,40})*;base64,", re.IGNORECASE)


def opened(data: bytes, *, most_pixels: int = MOST_PIXELS) -> Image:
    """A picture, upright and RGB. Raises PhotoError."""
    from omnipersona_cli.data.decode import decode

    check_pixels(data, most_pixels)
    try:
        return decode(BytesIO(data), long_side=None).image
    except PhotoError as error:
        raise PhotoError(f"the picture is {error}", hint=error.hint) from error


def opened_mask(data: bytes) -> Image:
    """A mask in mode L, white where the picture may change.

    A transparent part says the same in OpenAI's way (alpha 0: change here); a mask without one is
    read by its brightness. Raises PhotoError.
    """
    from omnipersona_cli.data.decode import open_mask

    check_pixels(data)
    try:
        mask = open_mask(BytesIO(data))
    except PhotoError as error:
        raise PhotoError(
            "the mask cannot be read", hint="send a PNG, white or transparent where it may change"
        ) from error
    if mask.has_transparency_data:
        alpha = mask.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha.point([255] + [0] * 255)
    return mask.convert("L")


def from_base64(text: str, *, what: str = "the picture") -> bytes:
    """The bytes of a data URL, or of bare base64. Raises UsageError; nothing is ever fetched."""
    if text[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise UsageError(
            f"{what} is an address, and nothing is fetched here",
            hint="send the picture itself: data:image/png;base64,...",
        )
    if text[:5].lower() == "data:":
        start = _DATA_URL.match(text)
        if start is None:
            raise UsageError(
                f"{what} is no data URL of a picture", hint="data:image/png;base64,..."
            )
        text = text[start.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{what} is not base64", hint="data:image/png;base64,...") from error


def to_base64(data: bytes) -> str:
    """Bytes as JSON takes them."""
    return base64.b64encode(data).decode("ascii")


def encoded(
    picture: Picture, *, kind: Format = "png", quality: int = 90, metadata: Metadata = "full"
) -> bytes:
    """The file of a painted picture. JPEG and WebP carry the mark of a painted picture too; only
    PNG carries how it was made."""
    from omnipersona_cli.engine.picture import png_bytes

    if kind == "png":
        return png_bytes(picture, metadata=metadata)
    from omnipersona_cli.data.decode import opened as stored

    marks = png_bytes(picture, metadata=_at_most_minimal(metadata))
    with stored(BytesIO(marks)) as (marked, _):
        marked.load()
        xmp = str(marked.info.get("XML:com.adobe.xmp", "")).encode()
    buffer = BytesIO()
    if xmp:
        picture.image.save(buffer, format=kind.upper(), quality=quality, xmp=xmp)
    else:
        picture.image.save(buffer, format=kind.upper(), quality=quality)
    return buffer.getvalue()


def png_of(image: Image) -> bytes:
    """A bare PNG, for pictures that are shown and not kept."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class KeptPictures:
    """Painted pictures under names that nobody guesses, the oldest dropped first."""

    def __init__(self, most_bytes: int = MOST_KEPT) -> None:
        self.most_bytes = most_bytes
        self._pictures: OrderedDict[str, tuple[bytes, Format]] = OrderedDict()

    def keep(self, data: bytes, kind: Format) -> str:
        """Its name."""
        import secrets

        name = f"{secrets.token_urlsafe(16)}.{kind}"
        self._pictures[name] = (data, kind)
        while sum(len(kept) for kept, _ in self._pictures.values()) > self.most_bytes:
            self._pictures.popitem(last=False)
        return name

    def get(self, name: str) -> tuple[bytes, Format]:
        """Its bytes. Raises MissingError."""
        if name not in self._pictures:
            raise MissingError("there is no such picture any more", hint="ask for b64_json")
        return self._pictures[name]


def _at_most_minimal(metadata: Metadata) -> Metadata:
    return "none" if metadata == "none" else "minimal"


def check_pixels(data: bytes, most: int = MOST_PIXELS) -> bool:
    """Whether this is a picture that can be opened; nothing is decoded. Raises PhotoError for one
    that has too many pixels."""
    from omnipersona_cli.data.decode import opened as stored

    try:
        with stored(BytesIO(data)) as (file, _):
            width, height = file.size
    except PhotoError as error:
        if "pixels" in str(error):
            raise _too_large(most) from error
        return False
    if width * height > most:
        raise _too_large(most)
    return True


def _too_large(most: int) -> PhotoError:
    return PhotoError(
        f"the picture has more than {most // 1_000_000} million pixels", hint="scale it down first"
    )
