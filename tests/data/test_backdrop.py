"""The photo without its subject."""

import numpy as np
from PIL import Image, ImageDraw

from omnipersona_cli.data.backdrop import backdrop, widened


def scene(with_subject):
    image = Image.new("RGB", (64, 64), "skyblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 40, 63, 63), fill="green")
    mask = Image.new("L", image.size)
    if with_subject:
        draw.ellipse((20, 20, 44, 56), fill="red")
        ImageDraw.Draw(mask).ellipse((20, 20, 44, 56), fill=255)
    return image, mask


def test_a_layered_scene_comes_back_as_it_was():
    image, mask = scene(True)
    assert np.array_equal(backdrop(image, mask), scene(False)[0])


def test_nothing_outside_the_widened_mask_changes():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    mask = scene(True)[1]
    outside = np.asarray(widened(mask)) == 0
    before, after = np.asarray(image), np.asarray(backdrop(image, mask))
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(before, after)


def test_rows_that_are_all_subject_are_filled_too():
    image, mask = Image.new("RGB", (32, 32), "blue"), Image.new("L", (32, 32))
    for picture, fill in ((image, "red"), (mask, 255)):
        ImageDraw.Draw(picture).rectangle((0, 10, 31, 20), fill=fill)
    assert np.array_equal(backdrop(image, mask), Image.new("RGB", (32, 32), "blue"))


def test_a_mask_of_everything_leaves_the_photo_alone():
    image = scene(True)[0]
    assert np.array_equal(backdrop(image, Image.new("L", image.size, 255)), image)
