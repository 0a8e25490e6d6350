"""Prompts become pictures that say how they were made."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from omnipersona_cli.backend import FreeSizes
from omnipersona_cli.data.about import settings_of
from omnipersona_cli.engine import Opening, gen, read_about, save_png
from omnipersona_cli.engine.calibrate import recognition_score
from omnipersona_cli.engine.request import check_size
from omnipersona_cli.engine.tokens import from_slot
from omnipersona_cli.errors import (
    MissingError,
    PersonaError,
    PhotoError,
    SlotError,
    TaskError,
    UsageError,
)
from omnipersona_cli.testing import drawing


@pytest.fixture
def paint(learned):
    return lambda prompt, **more: gen(
        prompt, **{"backend": learned.backend, "library": learned.library, **more}
    )


def test_one_picture_for_each_seed_in_a_row(paint):
    pictures = paint("<bo> at the beach", count=3, seed=7)
    assert [picture.seed for picture in pictures] == [7, 8, 9]
    assert pictures[1].image.tobytes() == paint("<bo> at the beach", seed=8)[0].image.tobytes()


def test_of_several_tries_the_best_recognised_is_kept(paint, learned):
    kept = paint("<bo> at the beach", count=2, tries=3, seed=7)
    alone = {seed: paint("<bo> at the beach", seed=seed)[0] for seed in range(7, 13)}
    tokens = from_slot(learned.library.load("bo"), learned.backend)
    worth = {
        seed: recognition_score(learned.backend, tokens, picture.image)
        for seed, picture in alone.items()
    }
    assert len(set(worth.values())) > 1, "else nothing was chosen"
    for first, picture in zip((7, 8), kept, strict=True):
        best = max((first, first + 2, first + 4), key=worth.__getitem__)
        assert picture.seed == best and picture.about["tries"] == 3
        assert picture.image.tobytes() == alone[best].image.tobytes()


def test_without_a_concept_the_first_try_is_kept_and_that_is_said(paint):
    said = []
    picture = paint("a forest", tries=3, seed=7, on_progress=lambda event: said.append(event.note))[
        0
    ]
    assert picture.seed == 7 and picture.about["tries"] == 1
    assert any("first try" in note for note in said if note)


def test_a_seed_is_chosen_where_none_is_given(paint):
    assert 0 <= paint("<bo>")[0].seed < 2**31


def test_facts_are_replayed_before_painting(paint):
    traces = []
    picture = paint("<bo> with its toy", on_trace=traces.append)[0]
    assert picture.about["rewritten"] == "<bo> with a red ball"
    assert traces == [picture.trace]
    assert paint("<bo> with its toy", replayed=False)[0].about["rewritten"] == "<bo> with its toy"


def test_the_packs_choose_the_backend(learned):
    picture = gen("<bo> and <mam>", library=learned.library, seed=1)[0]
    assert picture.about["backend"] == "sketch"
    assert set(picture.about["packs"]) == {"bo", "mam"}


def test_a_backend_without_a_slot_is_refused(learned, monkeypatch):
    monkeypatch.setattr(learned.backend, "fingerprint", "outline@1:0")
    with pytest.raises(SlotError):
        gen("<bo>", library=learned.library, backend=learned.backend)


def test_a_concept_can_be_named_without_brackets(paint):
    assert paint("at the beach", concepts=["bo"])[0].about["prompt"] == "<bo> at the beach"


def test_a_prompt_that_forgets_the_only_concept_gets_a_hint(learned):
    learned.library.remove("mam")
    notes = []
    gen(
        "at the beach",
        library=learned.library,
        backend=learned.backend,
        on_progress=lambda event: notes.append(event.note),
    )
    assert any("--concept bo" in note for note in notes)


def test_a_picture_says_how_it_was_made_and_can_be_made_again(paint, tmp_path):
    picture = paint("<bo> with its toy", seed=3, steps=2, guidance=2.0, size=(64, 64))[0]
    path = save_png(picture, tmp_path / "bo.png")
    recipe = settings_of(read_about(path))
    again = paint(
        recipe.prompt,
        seed=recipe.seed,
        steps=recipe.steps,
        guidance=recipe.guidance,
        size=recipe.size,
        replayed=False,
        expected=recipe.packs,
    )[0]
    assert again.image.tobytes() == picture.image.tobytes()


def test_a_backend_without_a_faster_way_says_which_have_one_before_it_is_opened(paint):
    with pytest.raises(TaskError, match="no faster way") as raised:
        paint("<bo>", seed=1, fast=True)
    assert "--fast" in raised.value.hint and "nano" in raised.value.hint
    with pytest.raises(TaskError, match="no faster way"):  # its weights are not here
        gen("a cat", opening=Opening(backend="showo"), fast=True)


def test_a_picture_that_was_painted_fast_says_so_and_is_made_again_fast(tmp_path):
    (usual,), (quick,) = (gen("a red cat in the snow", seed=3, fast=fast) for fast in (False, True))
    assert "fast" not in usual.about and not settings_of(usual.about).fast
    assert quick.about["steps"] < usual.about["steps"] and quick.about["backend"] == "nano"
    near = np.abs(np.asarray(quick.image, dtype=int) - np.asarray(usual.image)).mean()
    assert 0 < near < 8
    recipe = settings_of(read_about(save_png(quick, tmp_path / "quick.png")))
    again = gen(recipe.prompt, seed=recipe.seed, steps=recipe.steps, fast=recipe.fast)
    assert again[0].image.tobytes() == quick.image.tobytes()


def test_metadata_can_be_little_or_nothing(paint, tmp_path):
    picture = paint("<bo> in secret", seed=3)[0]
    sizes = {}
    for metadata in ("full", "minimal", "none"):
        path = save_png(picture, tmp_path / f"{metadata}.png", metadata=metadata)
        sizes[metadata] = path.read_bytes()
    assert b"trainedAlgorithmicMedia" in sizes["full"] and b"secret" in sizes["full"]
    assert b"trainedAlgorithmicMedia" in sizes["minimal"] and b"secret" not in sizes["minimal"]
    assert b"trainedAlgorithmicMedia" not in sizes["none"] and b"secret" not in sizes["none"]
    with pytest.raises(PhotoError, match="does not say"):
        read_about(tmp_path / "none.png")


def test_a_file_is_never_written_over_unasked(paint, tmp_path):
    picture = paint("<bo>", seed=1)[0]
    (tmp_path / "bo.png").write_text("mine")
    with pytest.raises(PersonaError, match="already there"):
        save_png(picture, tmp_path / "bo.png")
    assert (tmp_path / "bo.png").read_text() == "mine"
    save_png(picture, tmp_path / "bo.png", force=True)
    with Image.open(tmp_path / "bo.png") as image:
        assert image.size == (32, 32)


def test_what_a_strangers_picture_says_is_checked(tmp_path):
    with pytest.raises(PhotoError):
        settings_of({"task": "generate", "prompt": 3})
    recipe = settings_of({"task": "generate", "prompt": "x", "seed": -1, "size": ["a", 2]})
    assert recipe.seed is None and recipe.size is None
    drawing("red", 1).save(tmp_path / "photo.jpg")
    with pytest.raises(PhotoError):
        read_about(tmp_path / "photo.jpg")
    with pytest.raises(MissingError):
        read_about(tmp_path / "nothing.png")


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"steps": 0}, {"guidance": float("nan")}, {"size": (0, 5)}, {"seed": -1}],
)
def test_numbers_that_paint_nothing_are_refused(paint, wrong):
    with pytest.raises(UsageError):
        paint("<bo>", **wrong)


def test_an_unknown_backend_is_missing(learned):
    with pytest.raises(MissingError):
        gen("<bo>", library=learned.library, opening=Opening(backend="skatch"))


@pytest.mark.parametrize("size", [(100, 64), (33, 33)])
def test_a_size_that_the_backend_does_not_paint_is_refused(learned, size):
    with pytest.raises(TaskError, match=f"sketch cannot paint {size[0]}x{size[1]}") as caught:
        gen("<bo>", size=size, backend=learned.backend, library=learned.library)
    assert caught.value.hint == "--size takes 32x32, 64x64"


@pytest.mark.parametrize("size", [(0, 64), (-16, 64), (65, 64), (128, 64)])
def test_free_sizes_have_a_step_and_a_limit(sketch, size):
    free = replace(sketch.info, free_sizes=FreeSizes(step=16, largest=80))
    for allowed in (None, (16, 80), (32, 32)):
        check_size(free, allowed)
    with pytest.raises(TaskError, match="cannot paint") as caught:
        check_size(free, size)
    assert "or sides in steps of 16 up to 80" in caught.value.hint


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_that_is_none_is_refused(learned, steps):
    with pytest.raises(UsageError, match=f"{steps} steps"):
        gen("<bo>", steps=steps, backend=learned.backend, library=learned.library)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("deepseek-ai/Janus-Pro-1B", "deepseek-ai/Janus-Pro-1B"),
        ("/home/someone/models/janus", "janus"),
        ("C:\\Users\\someone\\janus", "janus"),
        ("~/models/janus", "janus"),
        ("../secret/janus", "janus"),
        ("here/janus", "janus"),
    ],
)
def test_a_picture_names_its_model_but_no_folder_of_this_machine(
    paint, learned, monkeypatch, tmp_path, model, said
):
    (tmp_path / "here" / "janus").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learned.backend, "model", model)
    assert paint("<bo>", seed=1)[0].about["model"] == said
