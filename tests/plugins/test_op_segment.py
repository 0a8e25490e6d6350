"""GrabCut finds what stands out, where it is, and says so when nothing does."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from omnipersona_cli.hookspecs import Region
from op_segment import op_find_subject


def cartoon(place, scale=1):
    """A two-coloured figure with an outline in a layered scene, and its true mask."""
    size = 64 * scale
    image, mask = Image.new("RGB", (size, size), "skyblue"), Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 44 * scale, size, size), fill="khaki")
    head = [(place - 8) * scale, 16 * scale, (place + 8) * scale, 32 * scale]
    body = [(place - 10) * scale, 30 * scale, (place + 10) * scale, 56 * scale]
    for box, fill in ((body, "firebrick"), (head, "orange")):
        draw.ellipse(box, fill=fill, outline="black", width=scale)
        ImageDraw.Draw(mask).ellipse(box, fill=255)
    return image, mask


@pytest.mark.parametrize("place", [14, 32, 50])
@pytest.mark.parametrize("scale", [1, 10])
def test_a_figure_is_outlined_wherever_it_stands(place, scale):
    image, truth = cartoon(place, scale)
    found = op_find_subject(image, "")
    assert isinstance(found, Region) and found.mask is not None
    ours, true = np.asarray(found.mask) > 0, np.asarray(truth) > 0
    assert (ours & true).sum() / (ours | true).sum() > 0.85
    assert found.mask.size == image.size
    assert found.box == found.mask.getbbox()


def test_a_textured_photograph_gives_up_its_subject():
    noise = np.random.default_rng(0).normal(0, 12, (240, 320, 3))
    base = np.full((240, 320, 3), (90, 120, 80.0))
    ys, xs = np.mgrid[:240, :320]
    truth = (xs - 220) ** 2 / 50**2 + (ys - 120) ** 2 / 80**2 < 1
    base[truth] = (190, 140, 60)
    found = op_find_subject(Image.fromarray((base + noise).clip(0, 255).astype(np.uint8)), "")
    assert found is not None and found.mask is not None
    ours = np.asarray(found.mask) > 0
    assert (ours & truth).sum() / (ours | truth).sum() > 0.85


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (200, 3)])
def test_nothing_is_found_where_nothing_stands_out(size):
    assert op_find_subject(Image.new("RGB", size, "grey"), "") is None


def test_nothing_is_found_in_noise():
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    assert op_find_subject(Image.fromarray(noise), "") is None


def test_the_same_photo_has_the_same_subject():
    image = cartoon(40)[0]
    first, second = op_find_subject(image, ""), op_find_subject(image, "")
    assert first is not None and second is not None
    assert first.box == second.box
    assert np.array_equal(first.mask, second.mask)


def test_the_plugin_is_light_until_it_looks():
    code = "import op_segment, sys; sys.exit(bool({'cv2', 'numpy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
