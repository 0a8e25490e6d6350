"""Edits keep the source's size and everything outside their region."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnipersona_cli import registry
from omnipersona_cli.data.decode import open_mask
from omnipersona_cli.engine import edit
from omnipersona_cli.engine.region import (
    box_mask,
    checked_mask,
    mask_remarks,
    mask_understood,
    paste_back,
)
from omnipersona_cli.errors import PhotoError, TaskError, UsageError
from omnipersona_cli.hookspecs import Region
from omnipersona_cli.testing import drawing


@pytest.fixture
def change(learned):
    return lambda image, prompt, **more: edit(
        image, prompt, backend=learned.backend, library=learned.library, seed=1, **more
    )[0]


def test_the_result_has_the_size_of_the_source(change):
    source = drawing("blue", 5).resize((71, 53))
    picture = change(source, "add <bo>")
    assert picture.image.size == (71, 53)
    assert (picture.about["how"], picture.about["region"]) == ("native", "none")
    assert set(picture.about["recognised"]) == {"bo"}


def test_an_addition_is_tried_and_the_best_recognised_is_kept(change, learned):
    source = drawing("blue", 5)
    alone = [
        edit(
            source, "add <bo>", tries=1, seed=seed, backend=learned.backend, library=learned.library
        )[0]
        for seed in (1, 2, 3)
    ]
    kept = change(source, "add <bo>")
    assert kept.about["tries"] == 3 and [one.about["tries"] for one in alone] == [1, 1, 1]
    best = max(alone, key=lambda one: one.about["recognised"]["bo"])
    assert len({one.about["recognised"]["bo"] for one in alone}) > 1, "else nothing was chosen"
    assert (kept.seed, kept.image.tobytes()) == (best.seed, best.image.tobytes())
    gone = change(source, "remove <bo>", tries=3)
    assert gone.about["recognised"]["bo"] <= kept.about["recognised"]["bo"]


@pytest.mark.parametrize(
    ("prompt", "tries"),
    [
        ("replace the cat with <bo>", 3),
        ("give <bo> a red hat", 3),
        ("make <bo> blue", 3),
        ("put <bo> in the snow", 3),
        ("remove <bo>", 1),
        ("replace <bo> with a cat", 1),
        ("make <bo> bigger", 1),
        ("add a cat", 1),
    ],
)
def test_an_edit_is_tried_where_something_tells_the_best(change, prompt, tries):
    assert change(drawing("red", 5), prompt).about["tries"] == tries


def test_tries_of_which_nothing_tells_the_best_are_not_painted(change):
    beats = []
    asked = {"tries": 3, "on_progress": beats.append}
    assert change(drawing("red", 5), "make <bo> bigger", **asked).about["tries"] == 1
    assert [it.note for it in beats if "first try is kept" in it.note]
    assert change(drawing("red", 5), "remove <bo>", tries=3).about["tries"] == 3


def test_a_replacement_is_kept_in_which_what_comes_is_seen_and_what_goes_is_not(change, learned):
    source = drawing("red", 5)
    alone = [
        edit(
            source,
            "replace <bo> with <mam>",
            tries=1,
            seed=seed,
            backend=learned.backend,
            library=learned.library,
        )[0].about["recognised"]
        for seed in (1, 2, 3)
    ]
    kept = change(source, "replace <bo> with <mam>").about["recognised"]
    assert kept == max(alone, key=lambda odds: min(odds["mam"], 1 - odds["bo"]))


def test_what_is_put_somewhere_is_moved_where_it_is_and_added_where_it_is_not(change):
    about = change(drawing("red", 5), "put <bo> on the left").about
    assert about["understood"] == "<bo> is there: it is taken out and added again on the left"
    assert (
        about["rewritten"] == "add <bo>, on the left" and about["prompt"] == "put <bo> on the left"
    )
    about = change(drawing("blue", 5), "put <bo> on the left").about
    assert about["understood"] == "<bo> is added on the left"
    assert about["rewritten"] == "put <bo> on the left"


def test_a_move_takes_out_first_and_its_seed_paints_it_again(change, learned, monkeypatch):
    asked = []
    whole = learned.backend.edit

    def watched(image, prompt, **more):
        asked.append((prompt.text, more["seeds"]))
        return whole(image, prompt, **more)

    monkeypatch.setattr(learned.backend, "edit", watched)
    kept = change(drawing("red", 5), "move <bo> to the right")
    texts = [text for text, _ in asked]
    assert texts == ["remove <bo>", *["add <bo>, to the right"] * 3]
    again = edit(
        drawing("red", 5), "move <bo> to the right", tries=1, seed=kept.seed,
        backend=learned.backend, library=learned.library,
    )[0]  # fmt: skip
    assert again.image.tobytes() == kept.image.tobytes()


def test_where_it_is_to_stand_is_not_guessed_beside_a_mask(change):
    source = drawing("red", 5)
    about = change(source, "put <bo> on the left", box=(0, 0, 32, 64)).about
    assert (about["region"], about["rewritten"]) == ("box", "put <bo> on the left")


def test_the_trace_says_what_was_understood(change, learned):
    traces = []
    change(drawing("red", 5), "make <bo> blue", on_trace=traces.append)
    (trace,) = traces
    assert trace.to_dict()["instruction"] == "<bo> looks different, where it stands"


def test_pictures_with_several_tries_never_share_a_seed(change, learned):
    pictures = edit(
        drawing("blue", 5),
        "add <bo>",
        count=2,
        seed=10,
        backend=learned.backend,
        library=learned.library,
    )
    first, second = (picture.seed for picture in pictures)
    assert first in (10, 12, 14) and second in (11, 13, 15)


def test_outside_a_box_the_source_stays_bit_for_bit(change):
    source = drawing("blue", 5)
    picture = change(source, "add <bo>", box=(10, 10, 40, 40))
    old, new = np.asarray(source), np.asarray(picture.image)
    outside = np.ones(old.shape[:2], dtype=bool)
    outside[10:40, 10:40] = False
    assert np.array_equal(old[outside], new[outside])
    assert not np.array_equal(old[~outside], new[~outside])
    assert picture.about["region"] == "box"


def test_a_mask_limits_the_change(change):
    source = drawing("blue", 5)
    mask = box_mask((0, 0, 20, 64), source.size)
    picture = change(source, "make it red", mask=mask)
    old, new = np.asarray(source), np.asarray(picture.image)
    assert np.array_equal(old[:, 20:], new[:, 20:])
    assert picture.about["region"] == "mask"


def test_a_masked_backend_is_given_a_region_or_says_that_it_needs_one(learned, change, monkeypatch):
    masked = replace(learned.backend.info, tasks={**learned.backend.info.tasks, "edit": "masked"})
    monkeypatch.setattr(learned.backend, "info", masked)
    assert change(drawing("blue", 5), "remove <bo>").about["region"] == "finder"
    about = change(drawing("blue", 5), "add <bo>").about
    assert (about["region"], about["tries"]) == ("tried", 3), "one try at each of three places"
    opened = {"backend": learned.backend, "library": learned.library}
    for picture in edit(drawing("blue", 5), "add <bo>", count=3, seed=4, **opened):
        (alone,) = edit(drawing("blue", 5), "add <bo>", seed=picture.seed, **opened)
        assert alone.image.tobytes() == picture.image.tobytes()
    assert change(drawing("blue", 5), "add <bo> on the left").about["region"] == "place"
    with pytest.raises(TaskError) as caught:
        change(drawing("blue", 5), "sharpen it")
    assert "--box" in caught.value.hint


def test_a_masked_backend_changes_it_where_it_stands_and_a_scene_around_it(
    learned, change, monkeypatch
):
    masked = replace(learned.backend.info, tasks={**learned.backend.info.tasks, "edit": "masked"})
    monkeypatch.setattr(learned.backend, "info", masked)
    box = (20, 30, 44, 60)
    found = Region(box=box, mask=box_mask(box, (64, 64)))
    monkeypatch.setattr(registry, "find_subject", lambda photo, kind: found)
    source = drawing("red", 5)
    inside = np.zeros((64, 64), dtype=bool)
    inside[30:60, 20:44] = True

    def changed(prompt):
        picture = change(source, prompt)
        assert picture.about["region"] == "finder"
        return (np.asarray(source) != np.asarray(picture.image)).any(axis=2)

    for prompt in ("make <bo> blue", "give <bo> a red hat"):
        assert changed(prompt)[inside].any() and not changed(prompt)[:10].any()
    assert changed("give <bo> a red hat")[22:26].any(), "a hat needs room above"
    assert changed("put <bo> in the snow")[~inside].any()
    assert not changed("put <bo> in the snow")[inside].any(), "who stays is kept to the bit"


@pytest.mark.parametrize(("box", "region"), [((0, 0, 64, 64), "finder"), ((0, 0, 64, 32), "none")])
def test_a_native_edit_is_not_cut_where_the_finder_missed_a_part(change, monkeypatch, box, region):
    found = Region(box=box, mask=box_mask(box, (64, 64)))
    monkeypatch.setattr(registry, "find_subject", lambda photo, kind: found)
    assert change(drawing("red", 5), "remove <bo>").about["region"] == region


def test_the_seam_fades_inside_the_region():
    black, white = (Image.new("RGB", (200, 200), colour) for colour in ("black", "white"))
    result = np.asarray(paste_back(black, white, box_mask((50, 50, 150, 150), (200, 200))))
    row = result[100, :, 0].astype(int)
    assert row[49] == 0 and 0 < row[50] < row[52] < 255 and row[100] == 255
    edge = np.asarray(paste_back(black, white, box_mask((0, 0, 150, 150), (200, 200))))
    assert edge[0, 0, 0] == 255, "the picture's own edge is no seam"


@pytest.mark.parametrize(
    "wrong",
    [
        {"box": (100, 100, 120, 120)},
        {"mask": Image.new("L", (64, 64), 0)},
        {"mask": Image.new("L", (64, 64), 255), "box": (0, 0, 5, 5)},
        {"strength": 0.0},
        {"tries": 0},
        {"tries": 65},
    ],
)
def test_regions_that_make_no_sense_are_refused(change, wrong):
    with pytest.raises(UsageError):
        change(drawing("blue", 5), "add <bo>", **wrong)


def test_a_transparent_mask_is_read_as_is_said_and_never_guessed():
    mask = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 4, 8))
    with pytest.raises(UsageError, match="part of the mask is transparent") as raised:
        checked_mask(mask, (8, 8))
    assert "--mask-means transparent" in raised.value.hint
    assert checked_mask(mask, (8, 8), "white").getbbox() == (0, 0, 4, 8)
    assert checked_mask(mask, (8, 8), "transparent").getbbox() == (4, 0, 8, 8)


INPUTS = Path(__file__).parent.parent / "data" / "inputs"


def test_masks_of_other_programs_are_read_by_the_rule():
    one_soft_pixel = open_mask(INPUTS / "bw_rgba_1px.png")
    size = one_soft_pixel.size
    half = (0, 0, size[0] // 2, size[1])
    assert checked_mask(one_soft_pixel, size).getbbox() == half
    assert checked_mask(open_mask(INPUTS / "exif6.jpg"), size).getbbox() == half
    for file in ("openai.png", "P_trns.png"):
        with pytest.raises(UsageError, match="transparent"):
            checked_mask(open_mask(INPUTS / file), size)
    assert checked_mask(open_mask(INPUTS / "openai.png"), size, "transparent").getbbox() == half
    assert checked_mask(open_mask(INPUTS / "P_trns.png"), size, "white").getbbox() == half


@pytest.mark.parametrize("deep", [np.uint16(65535), np.float32(1)])
def test_a_deep_mask_is_white_where_it_is_brightest(deep):
    values = np.zeros((8, 8), deep.dtype)
    values[:, :4] = deep
    assert checked_mask(Image.fromarray(values), (8, 8)).getbbox() == (0, 0, 4, 8)


def test_a_mask_of_labels_says_how_dark_it_is():
    with pytest.raises(UsageError, match="its brightest pixel is 1 of 255"):
        checked_mask(Image.new("L", (8, 8), 1), (8, 8))


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((0, 0, 50, 100), "mask: 50 % of the picture may change, the left half"),
        ((0, 50, 100, 100), "mask: 50 % of the picture may change, the bottom half"),
        ((60, 0, 90, 30), "mask: 9 % of the picture may change, at the top right"),
        ((40, 40, 60, 60), "mask: 4 % of the picture may change, in the middle"),
        ((0, 0, 100, 100), "mask: 100 % of the picture may change"),
        ((5, 5, 10, 10), "mask: less than 1 % of the picture may change, at the top left"),
    ],
)
def test_what_was_understood_of_a_mask_is_said(box, said):
    assert mask_understood(box_mask(box, (100, 100))) == said


def test_what_a_picture_carries_beside_its_colours_survives_an_edit(change):
    profile = Image.open(INPUTS / "adobe_rgb_card.png").info["icc_profile"]
    source = drawing("blue", 3).convert("RGBA")
    source.putpixel((60, 60), (1, 2, 3, 0))
    source.putpixel((2, 2), (1, 2, 3, 0))
    source.info["icc_profile"] = profile
    picture = change(source, "make it red", mask=box_mask((0, 0, 20, 64), source.size)).image
    assert picture.mode == "RGBA" and picture.info["icc_profile"] == profile
    outside = (20, 0, 64, 64)
    assert picture.crop(outside).tobytes() == source.crop(outside).tobytes()
    assert picture.crop((0, 0, 20, 64)).tobytes() != source.crop((0, 0, 20, 64)).tobytes()


def test_a_mask_of_another_size_is_stretched_and_that_is_said():
    half = box_mask((0, 0, 20, 10), (20, 20))
    for size in ((64, 40), (7, 5)):
        stretched = checked_mask(half, size)
        assert stretched.size == size and stretched.getbbox() == (0, 0, size[0], -(-size[1] // 2))
        assert (
            f"20x20 pixels and was stretched to the picture's {size[0]}x{size[1]}"
            in (mask_remarks(half, size)[0])
        )
    assert mask_remarks(half, half.size) == []


def test_a_speck_on_a_large_mask_is_still_a_place():
    speck = box_mask((500, 500, 501, 501), (1000, 1000))
    assert checked_mask(speck, (64, 64)).getbbox() == (32, 32, 33, 33)


def test_a_mask_that_is_white_everywhere_is_remarked_upon():
    (said,) = mask_remarks(Image.new("L", (8, 8), 255), (8, 8))
    assert "white everywhere" in said


def test_a_picture_of_one_pixel_is_refused(change):
    with pytest.raises(PhotoError):
        change(Image.new("RGB", (1, 1)), "add <bo>")


def test_less_strength_changes_less(change):
    source = drawing("blue", 5)

    def moved(strength):
        picture = change(source, "add <bo>", strength=strength)
        return float(np.abs(np.asarray(picture.image, float) - np.asarray(source, float)).mean())

    assert change(source, "add <bo>", strength=0.2).image.size == source.size
    assert moved(0.2) != moved(1.0)
