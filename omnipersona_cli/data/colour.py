"""What a picture holds beside sRGB colours: a colour profile, transparency, more than 8 bits.

Models see 8 bits a channel, sRGB, on white. What an edit gives back has the profile and the
transparency of its source again, and pixels that the edit left alone are the source's own bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps

from omnipersona_cli.errors import PhotoError

PROFILE = "icc_profile"
"""Where Pillow keeps a picture's colour profile, in ``info``."""

NOTICEABLE = 12
"""Mean difference of a pixel's channels above which a transparent place that was painted on becomes
opaque. An autoencoder's error stays below."""

DEEP = "more than 8 bits a pixel, reduced to 8"
PRINT = "print colours (CMYK), converted to RGB"
LAB = "Lab colours, converted to RGB"
DAMAGED_PROFILE = "its colour profile is damaged and was left out"

_STRIP = 1 << 22  # pixels; conversions take several copies, so large pictures go in strips


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a picture has to get back after an edit. ``stored`` is RGB or RGBA in its own colours,
    ``shown`` (RGB, sRGB, on white) what the model saw; both of one size."""

    stored: Image.Image
    shown: Image.Image
    profile: bytes


def normalised(image: Image.Image) -> Image.Image:
    """``image`` as every model gets it: turned as its EXIF says, 8 bits a channel, in sRGB, on
    white where it is transparent, RGB. One that is so already comes back itself. The only place
    that does this: files pass it when they are read, pictures given to the engine when they are
    taken in."""
    plain = image.mode == "RGB" and not image.has_transparency_data
    if plain and not image.getexif() and PROFILE not in image.info:
        return image
    image = eight_bits(ImageOps.exif_transpose(image))
    to_srgb = _to_srgb(image)

    def shown(part: Image.Image) -> Image.Image:
        alpha = alpha_of(part)
        part = to_srgb(part)
        if alpha is not None:
            part.putalpha(alpha)
            part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part)
        return part.convert("RGB")

    return _in_strips(image, shown)


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating point greys as 8 bits; floats in 0..1 are taken as such. Other
    pictures come back as they are. Raises PhotoError for values that are no brightness."""
    if not image.mode.startswith(("I", "F")):
        return image
    low, top = _range(image)
    if not np.isfinite([low, top]).all():
        raise PhotoError("holds numbers that are no brightness", hint="save it as PNG or JPEG")
    if image.mode.startswith("F") and top <= 1.0:
        scale = 255.0
    else:
        scale = 1.0 if top <= 255 else 255.0 / max(top, 65535.0)

    def scaled(part: Image.Image) -> Image.Image:
        values = np.asarray(part).astype(np.float64) * scale
        return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))

    return _in_strips(image, scaled, mode="L")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is (mode L); None where all are."""
    if not image.has_transparency_data:
        return None
    return image.getchannel("A") if "A" in image.getbands() else image.convert("RGBA").getchannel(3)


def stored_form(image: Image.Image) -> Image.Image:
    """An upright ``image`` as it can be given back: RGB or RGBA in its own colours, with its
    profile; colours that a PNG does not hold (print, Lab) and deep greys are converted."""
    profile = profile_of(image)
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV") or image.mode.startswith(("I", "F")):
        kept, profile = normalised(image), None
    elif profile is not None and _space(profile) != "RGB":
        kept, profile = normalised(image), None
    else:
        mode = "RGBA" if image.has_transparency_data else "RGB"
        kept = image if image.mode == mode else _in_strips(image, lambda part: part.convert(mode))
        kept = kept.copy() if kept is image else kept
    kept.info = {} if profile is None else {PROFILE: profile}
    return kept


def carried_by(image: Image.Image, shown: Image.Image) -> Carried | None:
    """What ``image`` is to get back after an edit of ``shown``, its normalised form; None where it
    carries nothing beside sRGB colours."""
    if image is shown:
        return None
    stored = stored_form(ImageOps.exif_transpose(image))
    profile = stored.info.get(PROFILE, b"")
    if stored.size != shown.size or (stored.mode == "RGB" and not profile):
        return None
    return Carried(stored=stored, shown=shown, profile=profile)


def given_back(painted: Image.Image, carried: Carried) -> Image.Image:
    """``painted`` (RGB, sRGB) with the profile and the transparency of what was edited.

    A pixel that the edit left alone is the source's own. A transparent pixel stays as it is unless
    the edit changed it noticeably; then it is opaque, so that what was painted is seen.
    """
    new, old = np.asarray(painted), np.asarray(carried.shown)
    result = np.asarray(carried.stored).copy()
    difference = np.abs(new.astype(np.int16) - old)
    changed = difference.any(axis=2)
    if result.shape[2] == 4:
        noticed = difference.mean(axis=2) > NOTICEABLE
        changed &= noticed | (result[..., 3] == 255)
        result[changed, 3] = 255
    colours = np.asarray(_from_srgb(painted, carried.profile)) if carried.profile else new
    result[changed, :3] = colours[changed]
    image = Image.fromarray(result)
    if carried.profile:
        image.info[PROFILE] = carried.profile
    return image


def profile_of(image: Image.Image) -> bytes | None:
    """The colour profile of a picture, where it has one that can be read."""
    profile = image.info.get(PROFILE)
    return profile if isinstance(profile, bytes) and profile and _space(profile) else None


def remarks_on(image: Image.Image) -> list[str]:
    """What of a picture's colours could not be kept, a few words each."""
    remarks = []
    if image.mode == "CMYK":
        remarks.append(PRINT)
    elif image.mode == "LAB":
        remarks.append(LAB)
    elif image.mode.startswith(("I", "F")):
        remarks.append(DEEP)
    if image.info.get(PROFILE) and profile_of(image) is None:
        remarks.append(DAMAGED_PROFILE)
    return remarks


def _to_srgb(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """A conversion of parts of ``image`` to RGB in sRGB."""
    profile = profile_of(image)
    source = None if profile is None or _is_srgb(profile) else _opened(profile)
    space = "" if profile is None else _space(profile)
    if image.mode == "LAB":
        source, space = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB"
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}.get(space, "")
    fits = (image.mode == "CMYK") == (mode == "CMYK")
    if source is None or not mode or not fits:
        return lambda part: part.convert("RGB")
    try:
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImageCms.PyCMSError:
        return lambda part: part.convert("RGB")

    def converted(part: Image.Image) -> Image.Image:
        part = part if part.mode == mode else part.convert("RGB").convert(mode)
        result = ImageCms.applyTransform(part, transform)
        assert result is not None  # only in place it returns nothing
        return result

    return converted


def _from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    if _is_srgb(profile):
        return image
    try:
        transform = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), _opened(profile), "RGB", "RGB"
        )
    except ImageCms.PyCMSError:  # one that can only be read: the inverse does not exist
        return image
    result = ImageCms.applyTransform(image, transform)
    assert result is not None
    return result


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _space(profile: bytes) -> str:
    """ "RGB", "GRAY", "CMYK" or another colour space; empty where the profile is damaged."""
    try:
        return _opened(profile).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return ""


def _is_srgb(profile: bytes) -> bool:
    """True for sRGB by name: converting it to itself would only round."""
    try:
        return "srgb" in (_opened(profile).profile.profile_description or "").lower()
    except (OSError, ImageCms.PyCMSError):
        return False


def _range(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)
    if not values.size:
        return 0.0, 0.0
    return float(values.min()), float(values.max())


def _in_strips(
    image: Image.Image,
    convert: Callable[[Image.Image], Image.Image],
    *,
    mode: str = "",
) -> Image.Image:
    """``convert``, which works pixel by pixel, on strips of a large picture."""
    if image.width * image.height <= _STRIP:
        return convert(image)
    rows = max(1, _STRIP // image.width)
    result: Image.Image | None = None
    for top in range(0, image.height, rows):
        strip = convert(image.crop((0, top, image.width, min(top + rows, image.height))))
        if result is None:
            result = Image.new(mode or strip.mode, image.size)
        result.paste(strip, (0, top))
    assert result is not None
    return result
