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
from typing import TYPE_CHECKING, Any, Literal, get_args

from omnipersona_cli.errors import MissingError, PhotoError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnipersona_cli.engine import Picture
    from omnipersona_cli.engine.picture import Metadata
    from omnipersona_cli.engine.region import MaskMeans

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)

MOST_PIXELS = 40_000_000
"""The most pixels of a picture that is sent here."""

MOST_THUMBNAIL_PIXELS = 4_000_000

MOST_KEPT = 64 << 20
"""Bytes of painted pictures that are kept for clients that ask for an address."""

_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40}(?:;[\w=.+-]{1,40})*;base64,", re.IGNORECASE)


def opened(data: bytes, *, most_pixels: int = MOST_PIXELS) -> Image:
    """A picture as a person's own file is read: upright, in its own colours. Raises PhotoError."""
    from omnipersona_cli.data.decode import decode_stored

    try:
        return decode_stored(BytesIO(data), most_pixels=most_pixels).image
    except PhotoError as error:
        raise PhotoError(f"the picture is {error}", hint=error.hint) from error


def opened_mask(data: bytes) -> Image:
    """A mask, as it is stored. Raises PhotoError."""
    from omnipersona_cli.data.decode import decode_mask

    try:
        return decode_mask(BytesIO(data), most_pixels=MOST_PIXELS)
    except PhotoError as error:
        raise PhotoError(
            f"the mask is {error}", hint="send a PNG, white or transparent where it may change"
        ) from error


def in_the_dialect(mask: Image) -> MaskMeans | None:
    """What a mask means where its sender does not say: in OpenAI's dialect what is transparent may
    change, and a mask that is transparent nowhere is read by its brightness (None)."""
    from omnipersona_cli.data.colour import alpha_of

    alpha = alpha_of(mask)
    clear = None if alpha is None else alpha.point([255] * 128 + [0] * 128).getbbox()
    return None if clear is None else "transparent"


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
    from omnipersona_cli.data.colour import PROFILE, normalised
    from omnipersona_cli.data.decode import opened as stored

    marks = png_bytes(picture, metadata=_at_most_minimal(metadata))
    with stored(BytesIO(marks)) as (marked, _):
        marked.load()
        xmp = str(marked.info.get("XML:com.adobe.xmp", "")).encode()
    buffer = BytesIO()
    kept: dict[str, Any] = {"xmp": xmp} if xmp else {}
    if kind == "jpeg":  # which holds no transparency
        normalised(picture.image).save(buffer, format="JPEG", quality=quality, **kept)
    else:
        profile = picture.image.info.get(PROFILE)
        kept |= {} if profile is None else {PROFILE: profile}
        picture.image.save(buffer, format="WEBP", quality=quality, **kept)
    return buffer.getvalue()


def encoded_estimate(
    image: Image,
    *,
    edited: bool = False,
    kind: Format = "png",
    quality: int = 90,
    metadata: Metadata = "full",
) -> bytes:
    """The file of a picture on its way: a model painted that too, and it says so."""
    from omnipersona_cli.engine import Picture, Trace
    from omnipersona_cli.engine.picture import EDITED, GENERATED

    nothing = Trace(request="", rewritten="")
    source = EDITED if edited else GENERATED
    picture = Picture(image=image, seed=0, trace=nothing, source=source)
    return encoded(picture, kind=kind, quality=quality, metadata=_at_most_minimal(metadata))


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


def check_pixels(data: bytes) -> None:
    """PhotoError for a picture that says it has too many pixels, whether or not it can be read;
    nothing is decoded, and what is no picture passes."""
    from omnipersona_cli.data.decode import TooLargeError
    from omnipersona_cli.data.decode import opened as stored

    try:
        with stored(BytesIO(data), most_pixels=MOST_PIXELS):
            pass
    except TooLargeError as error:
        raise PhotoError(f"a photo is {error}", hint=error.hint) from error
    except PhotoError:
        pass
