"""Colour profiles, transparency and depth: seen as people see them, and given back."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from omnipersona_cli.data.colour import carried_by, given_back, normalised
from omnipersona_cli.data.decode import decode, open_photo, open_stored

INPUTS = Path(__file__).parent / "inputs"
ADOBE = Image.open(INPUTS / "adobe_rgb_card.png").info["icc_profile"]


def card(mode="RGB"):
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def in_adobe_rgb(image):
    """The same colours, stored with the other profile."""
    to = ImageCms.ImageCmsProfile(io.BytesIO(ADOBE))
    stored = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), to)
    stored.info["icc_profile"] = ADOBE
    return stored


def test_colours_with_a_profile_are_seen_as_they_look():
    dull = Image.new("RGB", (32, 32), (120, 160, 90))
    seen = np.asarray(normalised(in_adobe_rgb(dull))).astype(int)
    assert np.abs(seen - np.asarray(dull)).max() <= 2
    assert np.abs(np.asarray(in_adobe_rgb(dull)).astype(int) - np.asarray(dull)).max() > 5


def test_a_stored_file_with_a_profile_is_converted_wherever_it_comes_in(tmp_path):
    stored = in_adobe_rgb(Image.new("RGB", (32, 32), (120, 160, 90)))
    stored.save(tmp_path / "a.png", icc_profile=ADOBE)
    for image in (open_photo(tmp_path / "a.png"), decode(tmp_path / "a.png").image):
        assert np.abs(np.asarray(image).astype(int) - (120, 160, 90)).max() <= 2
    taken = open_stored(tmp_path / "a.png").image
    assert taken.tobytes() == stored.tobytes() and taken.info == {"icc_profile": ADOBE}


def test_srgb_by_name_is_not_converted_and_not_lost():
    image = card()
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    shown = normalised(image)
    assert shown.tobytes() == image.tobytes()
    carried = carried_by(image, shown)
    assert carried is not None
    assert given_back(shown, carried).info["icc_profile"] == image.info["icc_profile"]


def test_what_an_edit_left_alone_comes_back_to_the_bit_and_the_rest_in_its_colours():
    source = in_adobe_rgb(card())
    shown = normalised(source)
    carried = carried_by(source, shown)
    painted = shown.copy()
    painted.paste((120, 160, 90), (0, 0, 16, 32))
    back = given_back(painted, carried)
    assert back.crop((16, 0, 32, 32)).tobytes() == source.crop((16, 0, 32, 32)).tobytes()
    seen = np.asarray(normalised(back))[:, :16].astype(int)
    assert np.abs(seen - (120, 160, 90)).max() <= 2


def test_transparency_stays_except_where_something_was_painted():
    source = open_stored(INPUTS / "cutout.png").image
    shown = normalised(source)
    carried = carried_by(source, shown)
    painted = shown.copy()
    painted.paste("red", (0, 0, 6, 6))
    back = given_back(painted, carried)
    assert back.getpixel((2, 2)) == (255, 0, 0, 255)
    rest = np.ones((source.height, source.width), bool)
    rest[:6, :6] = False
    assert np.array_equal(np.asarray(back)[rest], np.asarray(source)[rest])


@pytest.mark.parametrize(
    ("mode", "format", "said"),
    [
        ("CMYK", "JPEG", "print colours (CMYK), converted to RGB"),
        ("I;16", "PNG", "more than 8 bits a pixel, reduced to 8"),
        ("F", "TIFF", "more than 8 bits a pixel, reduced to 8"),
        ("LAB", "TIFF", "Lab colours, converted to RGB"),
        ("RGBA", "PNG", "transparent parts are seen as white"),
    ],
)
def test_ask_and_edit_are_told_what_learn_is_told(mode, format, said):
    image = card("L") if mode in ("I;16", "F") else card()
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), lab, outputMode=mode
        )
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "RGBA":
        image.putalpha(Image.new("L", image.size, 100))
    else:
        image = image.convert(mode)
    data = io.BytesIO()
    image.save(data, format)
    taken = open_stored(data)
    assert taken.remarks == (said,) and taken.image.mode in ("RGB", "RGBA")
    if mode != "RGBA":
        assert decode(data).remarks == (said,)
    if mode != "CMYK":
        wanted = np.asarray(card() if mode in ("LAB", "RGBA") else card("L").convert("RGB"))
        stored = np.asarray(taken.image.convert("RGB")).astype(int)
        assert np.abs(stored - wanted).mean() <= (3 if mode == "LAB" else 0)


def test_a_damaged_profile_is_told_and_left_out(tmp_path):
    card().save(tmp_path / "a.png", icc_profile=b"\0" * 64)
    assert decode(tmp_path / "a.png").remarks == ("its colour profile is damaged and was left out",)
    assert open_photo(tmp_path / "a.png").tobytes() == card().tobytes()


def test_large_pictures_are_converted_in_strips_with_the_same_result(monkeypatch):
    source = in_adobe_rgb(card())
    source.putalpha(card("L"))
    source.info["icc_profile"] = ADOBE
    whole = normalised(source)
    monkeypatch.setattr("omnipersona_cli.data.colour._STRIP", 100)
    assert normalised(source).tobytes() == whole.tobytes()
