"""What Emu3 learns and what it leaves alone, and the traps of the family on the way."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_emu3 import codes_of, lesson, opened, photos, taught, with_experts, write
from transformers import Emu3Processor, Emu3VQVAE

from omnipersona_cli.backend import Prompt, Task
from omnipersona_cli.errors import MissingError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing
from op_emu3 import layout, pictures, prompts
from op_emu3.backend import Emu3Backend
from op_emu3.loading import LoadedCheckpoint

SCENE = Prompt(turns=(to_turn("a red ball at the beach"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("emu3") / "tiny")


@pytest.fixture(scope="module")
def emu3(folder: Path) -> Emu3Backend:
    return opened(folder)


@pytest.fixture(scope="module")
def model(emu3: Emu3Backend) -> LoadedCheckpoint:
    return emu3.opened("generate")


# -- traps of the family ---------------------------------------------------------------------------


def test_trap_image_codes_are_those_of_the_released_processor(
    model: LoadedCheckpoint, folder: Path
) -> None:
    processor = Emu3Processor.from_pretrained(folder)
    photo = photos()[1]
    inputs = processor.image_processor([photo.resize((32, 32))], return_tensors="pt")
    ids = model.emu3.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
    ours = prompts.lines_of(model, codes_of(model, photo.resize((32, 32))))
    assert torch.equal(ids.long(), ours)
    codes = codes_of(model, photo)
    theirs = processor.postprocess(
        list(pictures.decode(model.emu3, codes)[None].float()), return_tensors="PIL.Image.Image"
    )["pixel_values"][0]
    mine = pictures.to_image(pictures.decode(model.emu3, codes), model.processor)
    gap = torch.tensor(list(mine.tobytes())) - torch.tensor(list(theirs.tobytes()))
    assert int(gap.abs().max()) <= 1, "transformers cuts the fraction off, and does not round"


def test_a_picture_is_one_frame_to_the_convolutions_in_space(model: LoadedCheckpoint) -> None:
    config = deepcopy(model.emu3.config.vq_config)
    config.temporal_downsample_factor = 4  # as released
    torch.manual_seed(0)
    vq = Emu3VQVAE(config).eval()
    whole: Any = SimpleNamespace(model=SimpleNamespace(vqmodel=vq))
    frames: list[int] = []
    for half in (vq.encoder, vq.decoder):
        half.conv_out.register_forward_pre_hook(lambda _, inputs: frames.append(len(inputs[0])))
    pixels = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        (theirs,) = vq.encode(pixels, torch.tensor([[32, 48]])).image_tokens
        painted = vq.decode(theirs[None])[0]
    assert frames == [4, 4]
    assert torch.equal(pictures.encode(whole, pixels), theirs)
    assert torch.allclose(pictures.decode(whole, theirs), painted, atol=1e-5)
    assert frames[2:] == [1, 1]


def test_trap_the_image_tokenizer_is_in_float32_as_in_the_file(
    folder: Path, model: LoadedCheckpoint
) -> None:
    half = opened(folder, "bfloat16").opened("generate")
    assert half.llm.table.weight.dtype == torch.bfloat16
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


def test_long_lessons_keep_no_activations_and_leave_the_image_tokenizer_alone(
    emu3: Emu3Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["attention_dropout"] > 0, "training mode would drop some"
    monkeypatch.setattr("op_emu3.loading.LONG", 1)
    frugal = opened(folder)
    tokens = taught(emu3)
    found, modes = [], []
    for backend in (emu3, frugal):
        model = backend.opened("generate")
        layer, vq = model.llm.decoder.layers[0], model.emu3.model.vqmodel
        hook = layer.self_attn.register_forward_hook(
            lambda *_, layer=layer, vq=vq: modes.append((layer.training, vq.training))
        )
        batch = backend.prepare([lesson("generate", target=photos()[0])])
        loss = backend.loss(batch, tokens, seed=0)["generate"]
        found.append((loss, *torch.autograd.grad(loss, tokens.gen)))
        hook.remove()
    assert modes == [(False, False)] * 3, (
        "once, and where nothing is kept once more on the way back"
    )
    assert all(torch.equal(plain, other) for plain, other in zip(*found, strict=True))


def test_trap_pictures_of_several_sizes_are_encoded_one_at_a_time(
    emu3: Emu3Backend, model: LoadedCheckpoint
) -> None:
    wide, high = photos()[0].resize((80, 40)), photos()[1].resize((40, 80))
    ready = emu3.prepare([lesson("understand", wide), lesson("understand", high)])
    for one, image in zip(ready, (wide, high), strict=True):
        assert one.picture is not None
        assert torch.equal(one.picture, codes_of(model, image))
    assert ready[0].picture is not None and ready[1].picture is not None
    assert ready[0].picture.shape == ready[1].picture.T.shape


def test_trap_an_image_lesson_scores_codes_alone_and_never_the_whole_head(
    emu3: Emu3Backend, model: LoadedCheckpoint
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


def test_trap_the_unwanted_prompt_opens_a_picture_too(model: LoadedCheckpoint) -> None:
    rows = prompts.wordless(model, (4, 4), layout.UNWANTED)
    text = layout.BOS + layout.UNWANTED + "<|image start|>4*4<|image token|>"
    ids = model.llm.tokenizer.encode(text, add_special_tokens=False)
    assert torch.equal(rows, model.llm.table(torch.tensor(ids)))


def test_trap_heads_are_not_tied(model: LoadedCheckpoint) -> None:
    head, table = model.emu3.lm_head.weight, model.llm.table.weight
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


def test_a_picture_in_several_lessons_is_encoded_once(
    emu3: Emu3Backend, model: LoadedCheckpoint
) -> None:
    calls: list[int] = []
    hook = model.emu3.model.vqmodel.encoder.register_forward_hook(lambda *_: calls.append(1))
    one, other = drawing("red", 40), drawing("red", 41)  # seen by no other test
    try:
        emu3.prepare(
            [
                lesson("understand", one),
                lesson("generate", target=one),
                lesson("edit", other, one),
                lesson("edit", one, other),
            ]
        )
    finally:
        hook.remove()
    assert len(calls) == 2


def test_lessons_show_smaller_pictures_where_that_is_asked_for(
    emu3: Emu3Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = photos()[0]
    (usual,) = emu3.prepare([lesson("generate", target=photo)])
    monkeypatch.setattr(emu3, "lesson_size", 16)
    (small,) = emu3.prepare([lesson("generate", target=photo)])
    assert small.codes is not None and usual.codes is not None
    assert small.codes.shape == (2, 2) and usual.codes.numel() > 4


def test_fifty_steps_leave_the_backbone_as_it_was(
    emu3: Emu3Backend, model: LoadedCheckpoint
) -> None:
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
            for module in ("op_emu3.lessons", "omnipersona_cli.family.language"):
                monkeypatch.setattr(f"{module}.settled", lambda loss, parameters: loss)
        for value in tokens.parameters():
            value.grad = None
        losses = emu3.loss(batch, tokens, seed=0)
        torch.stack(list(losses.values())).sum().backward()
        found[way] = (losses, [value.grad for value in tokens.parameters()])
    for task in ("understand", "edit"):
        assert torch.allclose(found["settled"][0][task], found["plain"][0][task])
    for ours, plain in zip(found["settled"][1], found["plain"][1], strict=True):
        assert ours is not None and plain is not None and torch.allclose(ours, plain, atol=1e-6)


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
    tokens = with_experts(opened(folder))
    found = []
    for long in (10_000, 1):
        monkeypatch.setattr("op_emu3.loading.LONG", long)
        emu3 = opened(folder)
        (one,) = emu3.prepare([lesson("generate", target=photos()[0])])
        for value in tokens.parameters():
            value.grad = None
        emu3.loss([one], tokens, seed=3)["generate"].backward()
        found.append({key: value.grad for key, value in tokens.extra.items()})
    for key, plain in found[0].items():
        frugal = found[1][key]
        assert (plain is None) == (frugal is None)
        assert plain is None or frugal is None or torch.allclose(plain, frugal, atol=1e-5)


def test_a_few_image_lessons_lose_their_prompt_where_experts_learn(emu3: Emu3Backend) -> None:
    first = [float(torch.rand((), generator=torch.Generator().manual_seed(it))) for it in range(99)]
    low, high = first.index(min(first)), first.index(max(first))
    tokens = with_experts(emu3)
    batch = emu3.prepare([lesson("generate", target=photos()[0])])
    for seed, lost in ((low, True), (high, False)):
        for value in tokens.parameters():
            value.grad = None
        emu3.loss(batch, tokens, seed=seed)["generate"].backward()
        assert (tokens.gen.grad is None) == lost
    plain = taught(emu3)
    emu3.loss(batch, plain, seed=low)["generate"].backward()
    assert plain.gen.grad is not None, "tokens alone would learn nothing from it"
