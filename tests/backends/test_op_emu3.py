"""Emu3 as a backend, on a tiny checkpoint in the released layout, opened as a person opens it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image as images
from PIL.Image import Image
from tiny_emu3 import codes_of, lesson, opened, photos, taught, write
from torch import Tensor
from transformers import Emu3Processor

from omnipersona_cli.backend import Backend, Opening, Prompt
from omnipersona_cli.engine.request import check_size
from omnipersona_cli.errors import TaskError
from omnipersona_cli.family.codes import kept_codes
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import BackendContract, drawing
from op_emu3 import INFO, layout, prompts
from op_emu3.backend import Emu3Backend, open_backend
from op_emu3.loading import LoadedCheckpoint
from op_emu3.sampling import sample

SCENE = Prompt(turns=(to_turn("a red ball at the beach"),))
SIZES = ((32, 32), (40, 24), (24, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("emu3") / "tiny")


@pytest.fixture(scope="module")
def emu3(folder: Path) -> Emu3Backend:
    return opened(folder)


@pytest.fixture(scope="module")
def model(emu3: Emu3Backend) -> LoadedCheckpoint:
    return emu3.opened("generate")


class TestContract(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, emu3: Emu3Backend) -> Backend:
        return emu3

    @pytest.fixture
    def photos(self) -> list[Image]:
        return photos()

    @pytest.fixture
    def others(self) -> list[Image]:
        return [drawing("blue", seed) for seed in range(2)]

    @pytest.fixture
    def weights(self, model: LoadedCheckpoint) -> Mapping[str, Tensor]:
        return model.emu3.state_dict()

    @pytest.fixture
    def text_table(self, model: LoadedCheckpoint) -> Tensor:
        return model.llm.table.weight

    @pytest.fixture
    def again(self, folder: Path) -> Callable[[Opening], Backend]:
        return lambda opening: open_backend(replace(opening, model=str(folder)))

    @pytest.fixture
    def encoder_calls(self, model: LoadedCheckpoint) -> Callable[[], int]:
        calls: list[int] = []
        model.emu3.model.vqmodel.encoder.register_forward_hook(lambda *_: calls.append(1))
        return lambda: len(calls)


# -- painting --------------------------------------------------------------------------------------


def both(model: LoadedCheckpoint, prompt: Prompt, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    wanted = prompts.request(model, prompt.turns[-1], prompt.concepts, "generate", grid)
    return wanted, prompts.wordless(model, grid, layout.UNWANTED)


def greedy(model: LoadedCheckpoint, grid: tuple[int, int], **more: object) -> Tensor:
    return sample(
        model,
        both(model, SCENE, grid),
        grid,
        guidance=3.0,
        generator=torch.Generator().manual_seed(0),
        temperature=0.0,
        **more,  # type: ignore[arg-type]
    )


def constrained(model: LoadedCheckpoint, folder: Path, grid: tuple[int, int]) -> Tensor:
    """What transformers' own generation paints, greedily: ids up to the end of the text."""
    processor = Emu3Processor.from_pretrained(folder)
    ratio = f"{grid[1]}:{grid[0]}"
    area = grid[0] * grid[1] * 64
    ours = SCENE.text + layout.QUALITY
    inputs, negative = (
        processor(
            text=[text],
            return_for_image_generation=True,
            ratio=ratio,
            image_area=area,
            return_tensors="pt",
        )
        for text in (ours, layout.UNWANTED)
    )
    assert inputs["image_sizes"] == [list(grid)]
    names = (layout.EOL, layout.EOF, layout.EOI, layout.EOS)
    line, frame, end, text_end = model.llm.tokenizer.convert_tokens_to_ids(list(names))
    start = inputs["input_ids"].shape[1]
    visual = list(range(model.first, model.first + model.source.codes))

    def allowed(row: int, ids: Tensor) -> list[int]:
        place = len(ids) - start + 1
        count = grid[0] * (grid[1] + 1)
        if place > count:
            return [(frame, end, text_end)[place - count - 1]]
        return [line] if place % (grid[1] + 1) == 0 else visual

    found = model.emu3.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=layout.length(grid),
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        guidance_scale=3.0,
        negative_prompt_ids=negative["input_ids"],
        negative_prompt_attention_mask=negative["attention_mask"],
    )
    ids: Tensor = found[0, start:]
    return ids


@pytest.mark.parametrize("size", SIZES)
def test_greedy_codes_equal_transformers_constrained_generation_in_every_size(
    size: tuple[int, int], model: LoadedCheckpoint, folder: Path
) -> None:
    grid = (size[1] // 8, size[0] // 8)
    theirs = constrained(model, folder, grid)
    lines = prompts.lines_of(model, greedy(model, grid))
    assert torch.equal(lines, theirs[:-3])
    assert len(theirs) == layout.length(grid)


def test_the_cache_of_fixed_size_changes_nothing(model: LoadedCheckpoint) -> None:
    grid = (4, 4)
    assert torch.equal(greedy(model, grid, static=True), greedy(model, grid, static=False))


def test_codes_that_are_drawn_ahead_are_the_best_ones_too(model: LoadedCheckpoint) -> None:
    grid = (4, 6)
    known = torch.randint(0, 64, grid, generator=torch.Generator().manual_seed(1))
    region = torch.zeros(grid, dtype=torch.bool)
    region[1:3, 2:4] = True
    for free in (torch.ones_like(region), region):
        ahead = greedy(model, grid, known=known, free=free, window=5)
        assert torch.equal(ahead, greedy(model, grid, known=known, free=free))


def test_the_sizes_offered_are_those_of_the_description(emu3: Emu3Backend) -> None:
    assert layout.sizes(layout.areas_within(512 * 512, 1024 * 1024), 9216) == INFO.sizes
    assert emu3.info.sizes == SIZES
    assert all(layout.length((high // 8, wide // 8)) + 256 <= 9216 for wide, high in INFO.sizes)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_offered_is_painted(size: tuple[int, int], emu3: Emu3Backend) -> None:
    steps = []
    (painted,) = emu3.gen(
        SCENE,
        size=size,
        steps=None,
        guidance=None,
        seeds=[3],
        on_step=lambda done, total: steps.append((done, total)),
    )
    count = size[0] * size[1] // 64
    assert painted.size == size
    assert steps == [(done, count) for done in range(1, count + 1)]


def test_another_size_is_refused_with_those_that_are_painted(emu3: Emu3Backend) -> None:
    with pytest.raises(TaskError, match="cannot paint 512x512") as caught:
        check_size(emu3.info, (512, 512))
    assert caught.value.hint == "--size takes 32x32, 40x24, 24x40"


def test_a_request_that_leaves_no_room_for_the_picture_is_refused(emu3: Emu3Backend) -> None:
    long = Prompt(turns=(to_turn("a red ball " * 100),))
    with pytest.raises(TaskError, match="too long"):
        list(emu3.gen(long, size=None, steps=None, guidance=None, seeds=[0]))


def test_guidance_one_leaves_the_other_branch_out(model: LoadedCheckpoint) -> None:
    grid = (4, 4)
    read: list[int] = []
    hook = model.llm.decoder.layers[0].register_forward_hook(lambda *it: read.append(len(it[1][0])))
    try:
        generator = torch.Generator().manual_seed(0)
        sample(model, both(model, SCENE, grid), grid, guidance=1.0, generator=generator)
    finally:
        hook.remove()
    assert read == [1] * 16


def test_the_loss_equals_the_scores_of_the_sampler_step_by_step(
    emu3: Emu3Backend, model: LoadedCheckpoint
) -> None:
    tokens = taught(emu3)
    (one,) = emu3.prepare([lesson("generate", target=photos()[0])])
    loss = emu3.loss([one], tokens, seed=0)["generate"]
    assert one.codes is not None
    grid = (one.codes.shape[0], one.codes.shape[1])
    rows = prompts.request(model, one.request, (tokens,), "generate", grid)[None]
    found = []
    with torch.no_grad():
        for id in prompts.lines_of(model, one.codes):
            if id != model.end_of_line:
                states = model.llm.decoder(inputs_embeds=rows, use_cache=False).last_hidden_state
                logits = model.emu3.lm_head(states[0, -1])[model.first :][: model.source.codes]
                found.append(F.cross_entropy(logits, id - model.first))
            rows = torch.cat([rows, model.llm.table(id)[None, None]], dim=1)
    assert len(found) == one.codes.numel()
    assert loss.item() == pytest.approx(torch.stack(found).mean().item(), abs=1e-5)


# -- editing ---------------------------------------------------------------------------------------


def test_codes_outside_the_region_stay_and_a_step_is_a_free_code(model: LoadedCheckpoint) -> None:
    grid = (5, 6)
    known = torch.randint(0, 64, grid, generator=torch.Generator().manual_seed(1))
    mask = images.new("L", (48, 40), 0)
    mask.paste(255, (20, 20, 28, 28))
    free = ~kept_codes(mask, grid, spread=0).view(grid)
    assert 0 < int(free.sum()) < 30
    steps: list[tuple[int, int]] = []
    fast = greedy(model, grid, known=known, free=free, on_step=lambda *step: steps.append(step))
    assert torch.equal(fast[~free], known[~free])
    assert not torch.equal(fast[free], known[free])
    assert len(steps) == int(free.sum()) + 1 and steps[-1] == (30, 30)
    roomy = greedy(model, grid, known=known, free=free, static=True)
    assert torch.equal(roomy, fast)
    # read one by one, nothing comes out differently: each free code is the best after its prefix
    rows = both(model, SCENE, grid)
    for index in free.flatten().nonzero()[:, 0].tolist():
        row, column = divmod(index, grid[1])
        read = model.llm.table(prompts.lines_of(model, fast)[: row * (grid[1] + 1) + column])
        logits = [
            model.llm.decoder(inputs_embeds=torch.cat([it, read])[None]).last_hidden_state[0, -1]
            @ model.head.T
            for it in rows
        ]
        best = int((logits[1] + 3.0 * (logits[0] - logits[1])).argmax())
        assert best == int(fast[row, column])


def test_a_picture_of_one_pixel_and_a_strip_are_squeezed(emu3: Emu3Backend) -> None:
    for size in ((1, 1), (4000, 1), (1, 4000)):
        source = images.new("RGB", size, "red")
        mask = images.new("L", size, 255)
        (edited,) = emu3.edit(source, SCENE, mask=mask, steps=None, guidance=None, seeds=[0])
        assert edited.size == size
        assert torch.isfinite(emu3.score(SCENE, ["yes"], image=source)).all()


# -- answering -------------------------------------------------------------------------------------


def test_an_answer_about_a_picture_is_that_of_transformers(emu3: Emu3Backend, folder: Path) -> None:
    model = emu3.opened("understand")
    processor = Emu3Processor.from_pretrained(folder)
    photo = photos()[0].resize((32, 32))
    said = [
        {"role": "system", "content": [{"type": "text", "text": layout.SYSTEM.strip()}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
    ]
    text = processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = processor(images=[photo], text=[text], return_tensors="pt")
    ids = model.emu3.generate(**inputs, max_new_tokens=6, do_sample=False)
    theirs = model.llm.tokenizer.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    prompt = Prompt(turns=(to_turn("what is it?"),))
    ours = "".join(emu3.say(prompt, image=photo, max_tokens=6))
    assert ours == theirs.lstrip().rstrip("\ufffd")
    with torch.no_grad():
        rows = torch.cat(prompts.question(model, prompt.turns, (), codes_of(model, photo)))
        logits = model.emu3(**inputs).logits[0, -1]
        found = model.llm.decoder(inputs_embeds=rows[None]).last_hidden_state[0, -1]
    assert torch.allclose(model.emu3.lm_head(found), logits, atol=1e-4)


def test_scores_are_one_forward_and_those_of_each_answer_alone(emu3: Emu3Backend) -> None:
    model = emu3.opened("understand")
    calls: list[int] = []
    hook = model.llm.decoder.norm.register_forward_hook(lambda *_: calls.append(1))
    answers = ["yes", "no", "a rather long answer"]
    try:
        together = emu3.score(SCENE, answers, image=photos()[0])
        assert calls == [1]
    finally:
        hook.remove()
    alone = torch.cat([emu3.score(SCENE, [answer], image=photos()[0]) for answer in answers])
    assert torch.allclose(together, alone, atol=1e-4)


def test_an_answer_comes_piece_by_piece(emu3: Emu3Backend) -> None:
    pieces = list(emu3.say(SCENE, max_tokens=24))
    assert len(pieces) > 1
