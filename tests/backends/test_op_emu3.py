"""Emu3 as a backend, on a tiny checkpoint in the released layout, opened as a person opens it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image as images
from PIL.Image import Image
from tiny_emu3 import write
from torch import Tensor
from transformers import Emu3Processor

from omnipersona_cli.backend import TASKS, Backend, ConceptTokens, Lesson, Prompt, Task
from omnipersona_cli.concepts.mentions import to_turn
from omnipersona_cli.engine.tokens import copy_of, from_named_tensors, named_tensors
from omnipersona_cli.errors import MissingError, TaskError, UsageError
from omnipersona_cli.testing import BackendContract, drawing
from op_autoregressive.region import kept_codes
from op_emu3 import INFO, layout, lessons, pictures, prompts
from op_emu3.backend import Emu3Backend, open_backend
from op_emu3.loading import Checkpoint, tasks_of
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
def model(emu3: Emu3Backend) -> Checkpoint:
    return emu3.opened("generate")


def opened(folder: Path | str, dtype: str | None = None) -> Emu3Backend:
    backend = open_backend(str(folder), "cpu", dtype)
    assert isinstance(backend, Emu3Backend)
    return backend


def photos() -> list[Image]:
    return [drawing("red", seed) for seed in range(4)]


def taught(backend: Emu3Backend, name: str = "bo") -> ConceptTokens:
    return backend.new_tokens(name, understand=4, generate=3, photos=photos(), seed=0)


def with_experts(backend: Emu3Backend) -> ConceptTokens:
    named = named_tensors(copy_of(taught(backend))) | backend.new_experts(seed=0)
    return copy_of(from_named_tensors("bo", named), trainable=True)


def lesson(task: Task, image: Image | None = None, target: Image | None = None) -> Lesson:
    text = {"understand": "is <bo> here?", "generate": "a picture of <bo>", "edit": "add <bo>"}
    return Lesson(
        task=task,
        kind="recognise",
        request=to_turn(text[task]),
        image=image,
        target=target,
        answer="yes",
    )


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
    def weights(self, model: Checkpoint) -> Mapping[str, Tensor]:
        return model.emu3.state_dict()

    @pytest.fixture
    def encoder_calls(self, model: Checkpoint) -> Callable[[], int]:
        calls: list[int] = []
        model.emu3.model.vqmodel.encoder.register_forward_hook(lambda *_: calls.append(1))
        return lambda: len(calls)


# -- painting --------------------------------------------------------------------------------------


def both(model: Checkpoint, prompt: Prompt, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    wanted = prompts.request(model, prompt.turns[-1], prompt.concepts, "generate", grid)
    return wanted, prompts.wordless(model, grid, layout.UNWANTED)


def greedy(model: Checkpoint, grid: tuple[int, int], **more: object) -> Tensor:
    return sample(
        model,
        both(model, SCENE, grid),
        grid,
        guidance=3.0,
        generator=torch.Generator().manual_seed(0),
        temperature=0.0,
        **more,  # type: ignore[arg-type]
    )


def constrained(model: Checkpoint, folder: Path, grid: tuple[int, int]) -> Tensor:
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
    line, frame, end, text_end = model.tokenizer.convert_tokens_to_ids(list(names))
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
    size: tuple[int, int], model: Checkpoint, folder: Path
) -> None:
    grid = (size[1] // 8, size[0] // 8)
    theirs = constrained(model, folder, grid)
    lines = prompts.lines_of(model, greedy(model, grid))
    assert torch.equal(lines, theirs[:-3])
    assert len(theirs) == layout.length(grid)


def test_the_cache_of_fixed_size_changes_nothing(model: Checkpoint) -> None:
    grid = (4, 4)
    assert torch.equal(greedy(model, grid, static=True), greedy(model, grid, static=False))


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
        list(emu3.gen(SCENE, size=(512, 512), steps=None, guidance=None, seeds=[0]))
    assert caught.value.hint == "--size takes 32x32, 40x24, 24x40"


def test_a_request_that_leaves_no_room_for_the_picture_is_refused(emu3: Emu3Backend) -> None:
    long = Prompt(turns=(to_turn("a red ball " * 100),))
    with pytest.raises(TaskError, match="too long"):
        list(emu3.gen(long, size=None, steps=None, guidance=None, seeds=[0]))


def test_guidance_one_leaves_the_other_branch_out(model: Checkpoint) -> None:
    grid = (4, 4)
    read: list[int] = []
    hook = model.language.layers[0].register_forward_hook(lambda *it: read.append(len(it[1][0])))
    try:
        generator = torch.Generator().manual_seed(0)
        sample(model, both(model, SCENE, grid), grid, guidance=1.0, generator=generator)
    finally:
        hook.remove()
    assert read == [1] * 16


def test_the_loss_equals_the_scores_of_the_sampler_step_by_step(
    emu3: Emu3Backend, model: Checkpoint
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
                states = model.language(inputs_embeds=rows, use_cache=False).last_hidden_state
                logits = model.emu3.lm_head(states[0, -1])[model.first :][: model.source.codes]
                found.append(F.cross_entropy(logits, id - model.first))
            rows = torch.cat([rows, model.table(id)[None, None]], dim=1)
    assert len(found) == one.codes.numel()
    assert loss.item() == pytest.approx(torch.stack(found).mean().item(), abs=1e-5)


# -- editing ---------------------------------------------------------------------------------------


def test_codes_outside_the_region_stay_and_a_step_is_a_free_code(model: Checkpoint) -> None:
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
    # read one by one, nothing comes out differently: each free code is the best after its prefix
    rows = both(model, SCENE, grid)
    for index in free.flatten().nonzero()[:, 0].tolist():
        row, column = divmod(index, grid[1])
        read = model.table(prompts.lines_of(model, fast)[: row * (grid[1] + 1) + column])
        logits = [
            model.language(inputs_embeds=torch.cat([it, read])[None]).last_hidden_state[0, -1]
            @ model.head.T
            for it in rows
        ]
        best = int((logits[1] + 3.0 * (logits[0] - logits[1])).argmax())
        assert best == int(fast[row, column])


def test_an_edit_without_a_region_or_with_an_empty_one_is_refused(emu3: Emu3Backend) -> None:
    source = drawing("blue", 3)
    empty = images.new("L", source.size, 0)
    for mask, error in ((None, TaskError), (empty, UsageError)):
        with pytest.raises(error):
            list(emu3.edit(source, SCENE, mask=mask, steps=None, guidance=None, seeds=[0]))


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
    theirs = model.tokenizer.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    prompt = Prompt(turns=(to_turn("what is it?"),))
    ours = "".join(emu3.say(prompt, image=photo, max_tokens=6))
    assert ours == theirs.lstrip().rstrip("\ufffd")
    with torch.no_grad():
        rows = prompts.question(model, prompt.turns, (), emu3_codes(model, photo))
        logits = model.emu3(**inputs).logits[0, -1]
        found = model.language(inputs_embeds=rows[None]).last_hidden_state[0, -1]
    assert torch.allclose(model.emu3.lm_head(found), logits, atol=1e-4)


def emu3_codes(model: Checkpoint, image: Image) -> Tensor:
    grid = layout.grid_for(image.size, min(model.source.areas))
    return pictures.encode(model.emu3, pictures.to_tensor(image, grid, model.processor))


def test_scores_are_one_forward_and_those_of_each_answer_alone(emu3: Emu3Backend) -> None:
    model = emu3.opened("understand")
    calls: list[int] = []
    hook = model.language.norm.register_forward_hook(lambda *_: calls.append(1))
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


# -- traps of the family ---------------------------------------------------------------------------


def test_trap_image_codes_are_those_of_the_released_processor(
    model: Checkpoint, folder: Path
) -> None:
    processor = Emu3Processor.from_pretrained(folder)
    photo = photos()[1]
    inputs = processor.image_processor([photo.resize((32, 32))], return_tensors="pt")
    ids = model.emu3.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
    ours = prompts.lines_of(model, emu3_codes(model, photo.resize((32, 32))))
    assert torch.equal(ids.long(), ours)
    codes = emu3_codes(model, photo)
    theirs = processor.postprocess(
        list(pictures.decode(model.emu3, codes)[None].float()), return_tensors="PIL.Image.Image"
    )["pixel_values"][0]
    mine = pictures.to_image(pictures.decode(model.emu3, codes), model.processor)
    gap = torch.tensor(list(mine.tobytes())) - torch.tensor(list(theirs.tobytes()))
    assert int(gap.abs().max()) <= 1, "transformers cuts the fraction off, and does not round"


def test_trap_the_image_tokenizer_is_in_float32_as_in_the_file(
    folder: Path, model: Checkpoint
) -> None:
    half = opened(folder, "bfloat16").opened("generate")
    assert half.table.weight.dtype == torch.bfloat16
    whole = model.emu3.model.vqmodel.state_dict()
    for name, value in half.emu3.model.vqmodel.state_dict().items():
        assert torch.equal(value, whole[name]), f"{name} went through bfloat16"


def test_trap_learning_in_bfloat16_keeps_tokens_in_float32(folder: Path) -> None:
    half = opened(folder, "bfloat16")
    tokens = taught(half)
    assert tokens.und.dtype == torch.float32
    batch = half.prepare([lesson("generate", target=photos()[0])])
    loss = half.loss(batch, tokens, seed=0)["generate"]
    loss.backward()
    assert torch.isfinite(loss) and tokens.gen.grad is not None
    assert tokens.gen.grad.dtype == torch.float32


def test_trap_training_mode_has_no_dropout_and_leaves_the_image_tokenizer_alone(
    emu3: Emu3Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["attention_dropout"] > 0, "the checkpoint sets the trap"
    model = emu3.opened("generate")
    tokens = taught(emu3)
    batch = emu3.prepare([lesson("generate", target=photos()[0])])
    plain = emu3.loss(batch, tokens, seed=0)["generate"]
    (wanted,) = torch.autograd.grad(plain, tokens.gen)
    monkeypatch.setattr("op_emu3.backend.LONG", 1)
    modes: list[tuple[bool, bool]] = []
    vq = model.emu3.model.vqmodel
    hook = model.language.layers[0].self_attn.register_forward_hook(
        lambda *_: modes.append((model.language.training, vq.training))
    )
    try:
        frugal = emu3.loss(batch, tokens, seed=0)["generate"]
    finally:
        hook.remove()
    (found,) = torch.autograd.grad(frugal, tokens.gen)
    assert modes == [(True, False), (False, False)], "once forth, once more on the way back"
    assert torch.allclose(plain, frugal, atol=1e-6) and torch.allclose(wanted, found, atol=1e-6)
    assert not any(module.training for module in model.emu3.modules())


def test_trap_pictures_of_several_sizes_are_encoded_one_at_a_time(
    emu3: Emu3Backend, model: Checkpoint
) -> None:
    wide, high = photos()[0].resize((80, 40)), photos()[1].resize((40, 80))
    ready = emu3.prepare([lesson("understand", wide), lesson("understand", high)])
    for one, image in zip(ready, (wide, high), strict=True):
        assert one.seen is not None
        assert torch.equal(one.seen, emu3_codes(model, image))
    assert ready[0].seen is not None and ready[1].seen is not None
    assert ready[0].seen.shape == ready[1].seen.T.shape


def test_trap_an_image_lesson_scores_codes_alone_and_never_the_whole_head(
    emu3: Emu3Backend, model: Checkpoint
) -> None:
    calls: list[torch.Size] = []
    handle = model.emu3.lm_head.register_forward_hook(lambda *it: calls.append(it[2].shape))
    try:
        tokens = taught(emu3)
        emu3.loss(emu3.prepare([lesson("generate", target=photos()[0])]), tokens, seed=0)
        assert calls == []
        emu3.loss(emu3.prepare([lesson("understand", photos()[0])]), tokens, seed=0)
        assert [shape[0] for shape in calls] == [len(" yes") + 1], "labelled rows alone"
    finally:
        handle.remove()
    assert model.head.data_ptr() == model.emu3.lm_head.weight[model.first :].data_ptr()


def test_trap_the_unwanted_prompt_opens_a_picture_too(model: Checkpoint) -> None:
    rows = prompts.wordless(model, (4, 4), layout.UNWANTED)
    text = layout.BOS + layout.UNWANTED + "<|image start|>4*4<|image token|>"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert torch.equal(rows, model.table(torch.tensor(ids)))


def test_trap_heads_are_not_tied(model: Checkpoint) -> None:
    head, table = model.emu3.lm_head.weight, model.table.weight
    assert head.data_ptr() != table.data_ptr() and not torch.equal(head, table)


def test_trap_special_tokens_are_found_by_their_strings(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = copy / name
        path.write_text(path.read_text().replace("<|image start|>", "<|another|>"))
    with pytest.raises(MissingError, match="image start"):
        opened(copy).opened("generate")


def test_trap_an_expert_reaches_no_linear_of_the_image_tokenizer(emu3: Emu3Backend) -> None:
    names = {key.split(".", 2)[2].rpartition(".")[0] for key in emu3.new_experts(seed=0)}
    assert len(names) == 2 * 7 and all(name.startswith("layers.") for name in names)


# -- learning --------------------------------------------------------------------------------------


def test_fifty_steps_leave_the_backbone_as_it_was(emu3: Emu3Backend, model: Checkpoint) -> None:
    before = {key: value.clone() for key, value in model.emu3.state_dict().items()}
    tokens = taught(emu3)
    batch = emu3.prepare([lesson("understand", photos()[0]), lesson("generate", None, photos()[1])])
    optimiser = torch.optim.AdamW(tokens.parameters(), lr=1e-2)
    losses = []
    for step in range(50):
        optimiser.zero_grad()
        found = emu3.loss(batch, tokens, seed=step)
        total = found["understand"] + found["generate"]
        total.backward()
        optimiser.step()
        losses.append(total.item())
    assert losses[-1] < 0.8 * losses[0]
    after = model.emu3.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(value.grad is None for value in model.emu3.parameters())


def test_a_settled_loss_has_the_gradients_of_the_plain_one(
    emu3: Emu3Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = taught(emu3)
    edit = lesson("edit", drawing("blue", 1), photos()[2])
    batch = emu3.prepare([lesson("understand", photos()[0]), lesson("understand"), edit])
    found = {}
    for way in ("settled", "plain"):
        if way == "plain":
            monkeypatch.setattr("op_emu3.backend.settled", lambda loss, parameters: loss)
        for value in tokens.parameters():
            value.grad = None
        losses = emu3.loss(batch, tokens, seed=0)
        torch.stack(list(losses.values())).sum().backward()
        found[way] = (losses, [value.grad for value in tokens.parameters()])
    for task in ("understand", "edit"):
        assert torch.allclose(found["settled"][0][task], found["plain"][0][task])
    for ours, plain in zip(found["settled"][1], found["plain"][1], strict=True):
        assert ours is not None and plain is not None and torch.allclose(ours, plain, atol=1e-6)


def test_groups_stay_below_the_positions_that_fit() -> None:
    found = list(lessons.few_at_a_time("abcdef", [1, 1, 9, 2, 2, 2], 6))
    assert found == ["ab", "c", "def"]


def test_each_lesson_moves_only_the_expert_of_its_task(folder: Path) -> None:
    emu3 = opened(folder)
    bare = emu3.score(SCENE, ["yes", "no"])
    tokens = with_experts(emu3)
    assert {key.split(".")[1] for key in tokens.extra} == {"und", "gen", "edit"}
    adapters: tuple[tuple[Task, str], ...] = (
        ("understand", "und"),
        ("generate", "gen"),
        ("edit", "edit"),
    )
    for task, adapter in adapters:
        (one,) = emu3.prepare([lesson(task, photos()[0], drawing("blue", 5))])
        for value in tokens.parameters():
            value.grad = None
        emu3.loss([one], tokens, seed=3)[task].backward()
        moved = {
            key.split(".")[1]
            for key, value in tokens.extra.items()
            if value.grad is not None and bool(value.grad.any())
        }
        assert moved == {adapter}
    assert torch.equal(emu3.score(SCENE, ["yes", "no"]), bare), "an expert was left on"


def test_experts_are_learned_without_activations_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emu3 = opened(folder)
    tokens = with_experts(emu3)
    (one,) = emu3.prepare([lesson("generate", target=photos()[0])])
    found = []
    for long in (10_000, 1):
        monkeypatch.setattr("op_emu3.backend.LONG", long)
        for value in tokens.parameters():
            value.grad = None
        emu3.loss([one], tokens, seed=3)["generate"].backward()
        found.append({key: value.grad for key, value in tokens.extra.items()})
    for key, plain in found[0].items():
        frugal = found[1][key]
        assert (plain is None) == (frugal is None)
        assert plain is None or frugal is None or torch.allclose(plain, frugal, atol=1e-5)


def test_a_few_image_lessons_lose_their_prompt_where_experts_learn(emu3: Emu3Backend) -> None:
    tokens = with_experts(emu3)
    batch = emu3.prepare([lesson("generate", target=photos()[0])])
    seen = []
    for seed in range(60):
        for value in tokens.parameters():
            value.grad = None
        emu3.loss(batch, tokens, seed=seed)["generate"].backward()
        seen.append(tokens.gen.grad is not None)
    assert 0 < seen.count(False) < 15


# -- which checkpoint does what --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("BAAI/Emu3-Chat-hf", ("understand",)),
        ("BAAI/Emu3-Gen-hf", ("generate", "edit")),
        ("/models/emu3-gen/", ("generate", "edit")),
        ("BAAI/Emu3-Stage1", TASKS),
        ("generic-chatter", TASKS),
        ("/chat/Emu3-mine", TASKS),
    ],
)
def test_a_name_tells_what_a_checkpoint_can_do(name: str, tasks: tuple[Task, ...]) -> None:
    assert tasks_of(name) == tasks


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    write(folder / "Emu3-Chat-hf", seed=1)
    write(folder / "Emu3-Gen-hf", seed=2)
    return folder


def test_a_pair_is_one_backend_and_each_of_it_is_read_when_needed(pair: Path) -> None:
    emu3 = opened(pair)
    assert set(emu3.info.tasks) == set(TASKS) and emu3._read == {}
    assert (
        emu3.fingerprint.startswith("emu3-chat-gen@") and emu3.norm_limit > 0 and emu3._read == {}
    )
    emu3.score(SCENE, ["yes"])
    assert [path.name for path in emu3._read] == ["Emu3-Chat-hf"]
    list(emu3.gen(SCENE, size=None, steps=None, guidance=None, seeds=[0]))
    assert [path.name for path in emu3._read] == ["Emu3-Chat-hf", "Emu3-Gen-hf"]


def test_a_pair_answers_as_the_one_and_paints_as_the_other(pair: Path) -> None:
    whole = opened(pair)
    spelled = opened(f"{pair}/Emu3-Chat-hf+{pair}/Emu3-Gen-hf")
    chat, gen = opened(pair / "Emu3-Chat-hf"), opened(pair / "Emu3-Gen-hf")
    assert whole.fingerprint == spelled.fingerprint, "the same files, wherever they are named"
    assert spelled.model == "Emu3-Chat-hf+Emu3-Gen-hf"
    assert tuple(chat.info.tasks) == ("understand",)
    assert tuple(gen.info.tasks) == ("generate", "edit")
    for emu3 in (whole, spelled):
        assert torch.equal(emu3.score(SCENE, ["yes"]), chat.score(SCENE, ["yes"]))
        ours, theirs = (
            next(it.gen(SCENE, size=None, steps=None, guidance=None, seeds=[4])).tobytes()
            for it in (emu3, gen)
        )
        assert ours == theirs


def test_a_pair_learns_each_task_on_its_own_checkpoint(pair: Path) -> None:
    emu3 = opened(pair)
    tokens = with_experts(emu3)
    batch = emu3.prepare(
        [
            lesson("understand", photos()[0]),
            lesson("generate", target=photos()[0]),
            lesson("edit", drawing("blue", 1), photos()[0]),
        ]
    )
    torch.stack(list(emu3.loss(batch, tokens, seed=3).values())).sum().backward()
    assert all(value.grad is not None for value in (tokens.id, tokens.und, tokens.gen))


def test_half_a_pair_refuses_what_the_other_half_does(pair: Path) -> None:
    chat, gen = opened(pair / "Emu3-Chat-hf"), opened(pair / "Emu3-Gen-hf")
    with pytest.raises(TaskError, match="does not generate"):
        list(chat.gen(SCENE, size=None, steps=None, guidance=None, seeds=[0]))
    with pytest.raises(TaskError, match="does not understand"):
        gen.score(SCENE, ["yes"])
    tokens = taught(gen)
    assert "generate" in gen.loss(
        gen.prepare([lesson("generate", target=photos()[0])]), tokens, seed=0
    )


def test_pairs_that_do_not_fit_are_refused(pair: Path, folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "Emu3-Gen-wide", hidden=64)
    with pytest.raises(UsageError, match="32 wide and Emu3-Gen-wide is 64 wide"):
        opened(f"{pair}/Emu3-Chat-hf+{tmp_path}/Emu3-Gen-wide")
    shutil.copytree(pair / "Emu3-Gen-hf", tmp_path / "another-gen")
    with pytest.raises(UsageError, match="both claim"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="two checkpoints"):
        opened("a+b+c")


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BAAI/Emu3-Chat-hf", "BAAI/Emu3-Gen-hf", None])
def test_weights_that_are_not_here_name_the_command_that_fetches_them(model: str | None) -> None:
    with pytest.raises(MissingError) as caught:
        open_backend(model, "cpu", None)
    which = f" --model {model}" if model else ""
    assert caught.value.hint == f"op backends fetch emu3{which}"
    assert caught.value.exit_code == 3
    if model is None:
        assert "BAAI/Emu3-Chat-hf and BAAI/Emu3-Gen-hf are not" in str(caught.value)


BREAKAGES = {
    "family": (UsageError, "llama"),
    "authors": (UsageError, "authors' own format"),
    "words": (MissingError, "vocabulary_map of .* is missing"),
    "code": (MissingError, "visual token 000005"),
    "text": (MissingError, "lacks the tensor text_model.model.layers.10.input_layernorm.weight"),
    "width": (MissingError, "describes no model"),
    "weights": (MissingError, "model.safetensors is missing"),
    "shard": (MissingError, "model-00002-of-00002.safetensors is missing"),
    "cut": (MissingError, "broken"),
    "codebook": (MissingError, "image tokenizer"),
    "processor": (MissingError, "preprocessor_config.json is missing"),
    "pixels": (MissingError, "image processor in .* is broken"),
    "tokenizer": (MissingError, "tokenizer.json is missing"),
    "config": (MissingError, "config.json is missing"),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_broken_checkpoints_are_named(what: str, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    break_it(copy, what)
    error, words = BREAKAGES[what]
    with pytest.raises(error, match=words) as caught:
        opened(copy)
    assert "op backends" in caught.value.hint or "--model" in caught.value.hint


def break_it(copy: Path, what: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = copy / "model.safetensors"
    config = json.loads((copy / "config.json").read_text())
    if what in ("weights", "processor", "tokenizer", "config"):
        name = {"weights": "model.safetensors"}.get(what)
        (copy / (name or {"processor": "processor_config.json"}.get(what, f"{what}.json"))).unlink()
        return
    if what == "pixels":
        (copy / "processor_config.json").write_text("{")
        return
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
        return
    if what == "shard":
        index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        tensors = load_file(weights)
        whole = dict.fromkeys(tensors, "model.safetensors")
        index["weight_map"] = whole | index["weight_map"]
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        return
    if what == "codebook":
        save_file({k: v for k, v in load_file(weights).items() if "quantize" not in k}, weights)
        return
    changes = {
        "family": lambda: config.update(model_type="llama"),
        "authors": lambda: config.update(model_type="Emu3"),
        "words": lambda: config.pop("vocabulary_map"),
        "code": lambda: config["vocabulary_map"].pop("<|visual token 000005|>"),
        "text": lambda: config.pop("text_config"),
        "width": lambda: config["text_config"].update(hidden_size="wide"),
    }
    changes[what]()
    (copy / "config.json").write_text(json.dumps(config))
