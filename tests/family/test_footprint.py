"""The memory plan: released shapes, arithmetic that moves the right way, refusals with a way out.

How far predictions are from processes is measured by benchmarks/memory.py, not here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_bagel
import tiny_emu3
import tiny_janus
import tiny_showo
from PIL import Image as images

from omnipersona_cli import registry
from omnipersona_cli.backend import BackendInfo, Opening, Work
from omnipersona_cli.errors import ResourceError, UsageError
from omnipersona_cli.family import room
from omnipersona_cli.family.footprint import (
    Footprint,
    Means,
    counted,
    needed,
    shares,
    stored_shapes,
)
from omnipersona_cli.family.room import describe, fitted, table
from op_bagel.config import BagelConfig
from op_bagel.loading import fit_of

BACKENDS = ("bagel", "emu3", "janus", "lance", "nano", "showo")
RELEASED = (
    ("bagel", None, 14_607_260_128 + 83_819_683),
    ("janus", "deepseek-community/Janus-Pro-1B", 2_076_636_619),
    ("janus", "deepseek-community/Janus-Pro-7B", 7_407_775_819),
    ("showo", None, 1_448_176_770 + 95_493_513),
    ("emu3", "BAAI/Emu3-Gen-hf", 8_762_751_879),
    ("lance", None, 6_185_205_808 + 668_684_288 + 252_125_020),
)
"""Numbers in the released checkpoints."""
WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "bagel": tiny_bagel.write_tiny,
    "emu3": tiny_emu3.write,
    "janus": tiny_janus.write,
    "showo": tiny_showo.write_tiny,
}


def described(name: str, model: str | None = None) -> Footprint:
    found = describe(registry.backend_info(name), Opening(backend=name, model=model), None)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "model", "numbers"), RELEASED)
def test_a_model_that_is_not_here_has_its_released_size(
    name: str, model: str | None, numbers: int
) -> None:
    what = described(name, model)
    assert not what.here
    assert sum(part.numbers for part in what.parts) == pytest.approx(numbers, rel=2e-4)


@pytest.mark.parametrize("name", WRITERS)
def test_a_checkpoint_is_counted_by_its_files(name: str, tmp_path: Path) -> None:
    folder = WRITERS[name](tmp_path / "model")
    shapes = stored_shapes(folder)
    what = described(name, str(folder))
    assert what.here and what.layers.count == 3 if name == "bagel" else 2
    own = [part for part in what.parts if name != "showo" or "image" not in part.name]
    assert sum(part.numbers for part in own) == counted(shapes)  # Show-o's tokenizer is a pickle


@pytest.mark.parametrize("name", BACKENDS)
def test_every_means_takes_less_and_every_wish_more(name: str) -> None:
    what = described(name)
    plain = Means(kind="cuda", card=48.0, dtype=what.dtypes[0], batch=8)
    learn = needed(what, "learn", plain)
    assert learn >= max(needed(what, verb, plain) for verb in ("open", "ask", "gen", "edit"))  # type: ignore[arg-type]
    assert needed(what, "learn", replace(plain, batch=2)) <= learn
    deep = needed(what, "learn", replace(plain, depth=3))
    assert deep > learn and needed(what, "learn", replace(plain, depth=6)) > deep
    if what.checkpoints:
        frugal = replace(plain, activation_checkpointing=True)
        assert needed(what, "learn", frugal) < learn
    assert needed(what, "gen", replace(plain, dtype="float32")) >= needed(what, "gen", plain)


def test_what_is_read_once_of_a_mapped_file_needs_no_room() -> None:
    what = described("bagel")
    (expert,) = (it for it in what.parts if it.once)
    kept = replace(what, parts=tuple(replace(it, once=()) for it in what.parts))
    for verb, means, less in (
        ("ask", Means(), expert.numbers * 2),
        ("gen", Means(), 0),
        ("ask", Means(dtype="float32"), 0),
        ("ask", Means(kind="cuda"), 0),
    ):
        saved = needed(kept, verb, means) - needed(what, verb, means)  # type: ignore[arg-type]
        assert saved == pytest.approx(less / 2**30)


def test_a_batch_is_shared_as_learning_shares_it() -> None:
    from omnipersona_cli.engine import batches

    groups = {"understand": "yes", "generate": "generate", "edit": "edit"}
    for tasks in (tuple(groups), ("understand",), ("generate", "edit"), ("understand", "edit")):
        held = {groups[task]: [None] for task in tasks}
        for size in (1, 2, 3, 8, 16):
            assert shares(size, tasks) == batches.shares(size, held)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_place_that_is_larger_takes_what_a_smaller_one_takes(name: str) -> None:
    cells = table(registry.backend_info(name), Opening(backend=name))
    assert {cell.verb for cell in cells} == {"ask", "gen", "edit", "learn"}
    for kind in ("cuda", "mps"):
        for verb in ("ask", "gen", "edit", "learn"):
            fits = [it.fits for it in cells if it.verb == verb and it.place.kind == kind]
            assert fits == sorted(fits)
    assert all(cell.fits for cell in cells if cell.place.kind == "cpu")


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_janus.write(tmp_path_factory.mktemp("janus") / "tiny", hidden=64, layers=8))


@pytest.fixture(autouse=True)
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not multiply in bfloat16, so that float32 is the usual dtype there."""
    monkeypatch.setattr("omnipersona_cli.family.device.has_bfloat16", lambda: False)


def opened(janus: str, **how: object) -> tuple[Opening, str]:
    opening = Opening(backend="janus", model=janus, device="cpu", **how)  # type: ignore[arg-type]
    return fitted(registry.backend_info("janus"), opening, Work(verb="learn", batch=64))


def test_what_fits_is_opened_as_asked(janus: str) -> None:
    assert opened(janus, memory=64.0) == (
        Opening(backend="janus", model=janus, device="cpu", memory=64.0),
        "",
    )


def test_a_limit_chooses_the_first_means_that_keep_it(janus: str) -> None:
    what = described("janus", janus)
    frugal = Means(dtype="bfloat16", batch=64, activation_checkpointing=True)
    limit = needed(what, "learn", frugal) + 0.001
    found, note = opened(janus, memory=limit)
    assert found.dtype == "bfloat16" and found.activation_checkpointing
    assert "--dtype bfloat16 --activation-checkpointing" in note


def test_without_a_limit_what_does_not_fit_is_refused_with_the_flags_that_do(
    janus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, plain = described("janus", janus), Means(dtype="bfloat16", batch=64)
    both = [needed(what, "learn", replace(plain, at_once=count)) for count in (0, 1)]
    monkeypatch.setattr(room, "free", lambda kind, device: sum(both) / 2)
    with pytest.raises(ResourceError, match=r"to learn, and .* GB are free") as caught:
        opened(janus)
    assert caught.value.hint.startswith("--dtype bfloat16 --lessons-at-once 1 takes")


@pytest.mark.parametrize("name", ["bagel", "emu3"])
def test_smaller_lessons_take_less(name: str) -> None:
    info = registry.backend_info(name)
    steps = []
    for side in (256, 384, 512, 0):
        what = describe(info, Opening(lesson_size=side), None)
        assert what is not None
        lone = replace(what, passes={}, pictures={})  # the report card paints at full size
        steps.append(needed(lone, "learn", Means(kind="cuda", card=24.0, batch=8, at_once=1)))
    assert steps[0] < steps[1] < steps[2] == steps[3]


@pytest.mark.parametrize("name", ["bagel", "emu3", "lance"])
def test_smaller_lessons_are_hinted_at_where_nothing_else_makes_learning_fit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, opening = registry.backend_info(name), Opening(backend=name, device="cpu")

    def here(info: BackendInfo, opening: Opening, size: tuple[int, int] | None) -> Footprint | None:
        what = describe(info, opening, size)
        return what and replace(what, here=True, passes={}, pictures={})  # no report card

    monkeypatch.setattr(room, "describe", here)
    what = here(info, opening, None)
    assert what is not None
    ways = list(room._choices(info, what, opening, Work(verb="learn"), "cpu", 0.0))
    limit = min(way.takes for way in ways) - 0.001
    with pytest.raises(ResourceError, match="GB to learn") as caught:
        fitted(info, replace(opening, memory=limit), Work(verb="learn"))
    assert re.search(r"--size 256 takes [0-9.]+ GB$", caught.value.hint)
    smaller = replace(opening, memory=limit, lesson_size=256)
    with pytest.raises(ResourceError) as caught:
        fitted(info, replace(smaller, memory=0.1), Work(verb="learn"))
    assert "--size" not in caught.value.hint, "it is small already"


@pytest.mark.parametrize("name", BACKENDS)
def test_an_edit_takes_what_the_size_it_is_edited_at_takes(name: str) -> None:
    info = registry.backend_info(name)
    takes = []
    for size in ((1024, 1024), (4032, 3024), (40_320, 30_240)):
        what = describe(info, Opening(), size)
        assert what is not None
        takes.append(needed(what, "edit", Means(kind="cuda", dtype=what.dtypes[0])))
    assert takes[2] == takes[1] == pytest.approx(takes[0], rel=0.3)


def test_a_lesson_of_a_wide_photo_is_planned_as_large_as_it_is() -> None:
    what = describe(registry.backend_info("bagel"), Opening(), None)
    assert what is not None
    prompt = what.passes["gen"][0].cached - what.passes["gen"][0].positions  # of two branches
    fit = fit_of(BagelConfig())
    for size in ((1200, 1200), (4032, 3024), (1080, 1920)):
        photo = images.new("RGB", size)
        latents, seen = fit.learn_vae(photo), fit.learn_vit(photo)
        positions = 3 * (latents.width * latents.height // 16**2) + prompt // 2
        positions += seen.width * seen.height // 14**2
        planned = what.stretched(max(size) / min(size)).lessons["edit"].positions
        assert planned == pytest.approx(positions, rel=0.05)
    assert what.stretched(9.0) == what.stretched(2.0)  # no side is longer than 1024 pixels


def test_a_batch_is_cut_by_the_card_and_not_by_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = registry.backend_info("janus")
    what = replace(described("janus"), here=True)
    monkeypatch.setattr(room, "describe", lambda *_: what)
    monkeypatch.setattr(room, "_kind", lambda device, what: "cuda")
    monkeypatch.setattr(room, "free", lambda kind, device: 64.0)
    monkeypatch.setattr(room, "whole_card", lambda kind, device: 48.0)
    takes = needed(what, "learn", Means(kind="cuda", card=48.0, dtype=what.dtypes[0]))
    assert takes > 7 > needed(what, "learn", Means(kind="cuda", card=7.0, dtype=what.dtypes[0]))
    found, _ = fitted(info, Opening(backend="janus", memory=7.0), Work(verb="learn"))
    assert found.activation_checkpointing


def test_layers_wait_in_the_computers_memory_where_that_has_room(
    janus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_kind", lambda device, what: "cuda")
    monkeypatch.setattr(room, "whole_card", lambda kind, device: 64.0)
    info, work = registry.backend_info("janus"), Work(verb="gen")
    least = needed(described("janus", janus), "gen", Means(kind="cuda", offload=True))
    asked = Opening(backend="janus", model=janus, memory=least)
    monkeypatch.setattr(room, "free", lambda kind, device: 64.0)
    found, note = fitted(info, asked, work)
    assert found.offload and "wait in the computer's memory" in note
    monkeypatch.setattr(room, "free", lambda kind, device: 1e-6)
    with pytest.raises(ResourceError, match="GB to paint"):
        fitted(info, asked, work)
    with pytest.raises(ResourceError, match="would wait in the computer's memory"):
        fitted(info, replace(asked, offload=True, memory=8.0), work)


@pytest.mark.parametrize("means", [{"quantize": "nf4"}, {"offload": True}])
def test_means_that_are_not_to_be_had_are_told_before_memory(
    janus: str, means: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match=r"no large expert|spares a card") as caught:
        opened(janus, memory=0.01, **means)
    assert caught.value.hint.startswith("leave out --")


def test_what_nothing_can_make_fit_says_what_the_least_is(janus: str) -> None:
    with pytest.raises(ResourceError, match="are allowed") as caught:
        opened(janus, memory=0.01)
    assert "is the least" in caught.value.hint and "--memory 1G tries" in caught.value.hint
    assert "op backends show janus" in caught.value.hint


def test_pickled_weights_are_counted_by_the_size_of_their_file(tmp_path: Path) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "showo", kind="bin")
    info, opening = registry.backend_info("showo"), Opening(backend="showo", model=str(folder))
    with pytest.raises(ResourceError, match=r"0\.1 GB are allowed"):
        fitted(info, replace(opening, device="cpu", memory=0.1), Work(verb="ask"))
    with (folder / "pytorch_model.bin").open("r+b") as file:
        file.truncate(4 << 30)  # a hole
    small, large = tiny_showo.write_tiny(tmp_path / "small", kind="bin"), folder
    figures = [
        needed(_described(info, replace(opening, model=str(one))), "ask", Means())
        for one in (small, large)
    ]
    assert 1.8 < figures[1] - figures[0] < 2.2, "in half of the file's bytes"


def _described(info: BackendInfo, opening: Opening) -> Footprint:
    what = describe(info, opening, None)
    assert what is not None and what.here
    return what
