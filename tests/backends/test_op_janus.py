"""Janus as a backend, on a tiny checkpoint in the released layout, opened as a person opens it."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as images
from PIL.Image import Image
from tiny_janus import BOI, BOS, write
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, Opening, Prompt
from omnipersona_cli.engine.request import check_size
from omnipersona_cli.engine.tokens import copy_of, from_named_tensors, named_tensors
from omnipersona_cli.errors import MissingError, TaskError, UsageError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import BackendContract, drawing
from op_janus import pictures, prompts
from op_janus.backend import JanusBackend
from op_janus.loading import open_backend
from op_janus.sampling import guided, sample, sampled

SCENE = Prompt(turns=(to_turn("a red ball at the beach"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("janus"))


@pytest.fixture(scope="module")
def janus(folder: Path) -> JanusBackend:
    return opened(folder)


def opened(folder: Path, dtype: str | None = None) -> JanusBackend:
    backend = open_backend(Opening(model=str(folder), device="cpu", dtype=dtype))
    assert isinstance(backend, JanusBackend)
    return backend


def photos() -> list[Image]:
    return [drawing("red", seed) for seed in range(4)]


def taught(backend: JanusBackend, name: str = "bo") -> ConceptTokens:
    return backend.new_tokens(name, understand=4, generate=3, photos=photos(), seed=0)


def with_experts(backend: JanusBackend) -> ConceptTokens:
    tokens = copy_of(taught(backend))
    named = named_tensors(tokens) | backend.new_experts(seed=0)
    return copy_of(from_named_tensors("bo", named), trainable=True)


def lesson(task: str, image: Image | None = None, target: Image | None = None) -> Lesson:
    text = {"understand": "is <bo> here?", "generate": "a picture of <bo>", "edit": "add <bo>"}
    return Lesson(
        task=task,  # type: ignore[arg-type]
        kind="recognise",
        request=to_turn(text[task]),
        image=image,
        target=target,
        answer="yes",
    )


class TestContract(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, janus: JanusBackend) -> Backend:
        return janus

    @pytest.fixture
    def photos(self) -> list[Image]:
        return photos()

    @pytest.fixture
    def others(self) -> list[Image]:
        return [drawing("blue", seed) for seed in range(2)]

    @pytest.fixture
    def weights(self, janus: JanusBackend) -> Mapping[str, Tensor]:
        return janus.janus.state_dict()

    @pytest.fixture
    def text_table(self, janus: JanusBackend) -> Tensor:
        return janus.llm.table.weight

    @pytest.fixture
    def again(self, folder: Path) -> Callable[[Opening], Backend]:
        return lambda opening: open_backend(replace(opening, model=str(folder)))

    @pytest.fixture
    def encoder_calls(self, janus: JanusBackend) -> Callable[[], int]:
        calls: list[int] = []
        for module in (janus.janus.model.vision_model, janus.janus.model.vqmodel.encoder):
            module.register_forward_hook(lambda *_: calls.append(1))
        return lambda: len(calls)


# -- painting --------------------------------------------------------------------------------------


def prompt_rows(janus: JanusBackend, prompt: Prompt) -> Tensor:
    rows = prompts.request(janus.llm, prompt.turns[-1], prompt.concepts, "generate")
    return torch.stack([rows, prompts.without(janus.llm, rows)])


def greedy(janus: JanusBackend, rows: Tensor, **more: Tensor | bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return sample(
        janus.janus,
        lambda rows, **more: janus.llm.run("generate", (), rows, **more),
        rows,
        weights=guided(5.0),
        generator=generator,
        temperature=0.0,
        **more,  # type: ignore[arg-type]
    )


def test_greedy_codes_equal_those_of_transformers(janus: JanusBackend) -> None:
    text = (
        "<｜begin▁of▁sentence｜><|User|>: a red ball at the beach\n\n<|Assistant|>:<begin_of_image>"  # noqa: RUF001
    )
    ids = torch.tensor([janus.llm.ids(text)])
    # trap: what `save_pretrained` wrote of this is lost on the way back
    janus.janus.generation_config.generation_kwargs = {"boi_token_id": int(ids[0, -1])}
    theirs = janus.janus.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        do_sample=False,
        guidance_scale=5,
    )
    assert torch.equal(greedy(janus, prompt_rows(janus, SCENE)), theirs.flatten()[-janus.count :])


def test_the_loss_equals_the_scores_of_the_sampler_step_by_step(janus: JanusBackend) -> None:
    tokens = taught(janus)
    (one,) = janus.prepare([lesson("generate", target=photos()[0])])
    loss = janus.loss([one], tokens, seed=0)["generate"]
    rows = prompts.request(janus.llm, one.request, (tokens,), "generate")[None]
    found = []
    with torch.no_grad():
        for code in one.codes:
            states = janus.llm.run("generate", (tokens,), rows, use_cache=False)
            logits = janus.janus.model.generation_head(states[0, -1]).float()
            found.append(F.cross_entropy(logits, code))
            rows = torch.cat([rows, pictures.code_rows(janus.janus, code[None])[None]], dim=1)
    assert loss.item() == pytest.approx(torch.stack(found).mean().item(), abs=1e-5)


def test_codes_outside_the_region_stay_and_are_read_at_once(janus: JanusBackend) -> None:
    known = janus._encode(photos()[0])
    free = torch.zeros(janus.count, dtype=torch.bool)
    free[[6, 7, 10]] = True
    rows = prompt_rows(janus, SCENE)
    runs: list[int] = []
    handle = janus.llm.decoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        fast = greedy(janus, rows, known=known, free=free)
    finally:
        handle.remove()
    assert torch.equal(fast[~free], known[~free]) and len(runs) == 3
    slow = known.clone()
    for place in free.nonzero()[:, 0].tolist():
        before = pictures.code_rows(janus.janus, slow[:place])[None].expand(2, -1, -1)
        states = janus.llm.run("generate", (), torch.cat([rows, before], 1))
        one, without = janus.janus.model.generation_head(states[:, -1])
        slow[place] = (without + 5.0 * (one - without)).argmax()
    assert torch.equal(fast, slow)


def test_both_caches_give_the_same_codes(janus: JanusBackend) -> None:
    rows = prompt_rows(janus, SCENE)
    assert torch.equal(greedy(janus, rows, static=True), greedy(janus, rows, static=False))


def test_codes_that_are_drawn_ahead_are_the_best_ones_too(janus: JanusBackend) -> None:
    rows = prompt_rows(janus, SCENE)
    region = torch.zeros(janus.count, dtype=torch.bool)
    region[[6, 7, 10]] = True
    for free in (torch.ones_like(region), region):
        some = {"known": janus._encode(photos()[0]), "free": free}
        ahead = greedy(janus, rows, window=5, **some)  # type: ignore[arg-type]
        assert torch.equal(ahead, greedy(janus, rows, **some))


def test_another_size_is_refused(janus: JanusBackend) -> None:
    with pytest.raises(TaskError, match="cannot paint"):
        check_size(janus.info, (512, 512))


# -- traps of the family ---------------------------------------------------------------------------


def test_trap_codes_are_nearest_by_direction_not_by_distance(janus: JanusBackend) -> None:
    vq = janus.janus.model.vqmodel
    weight = vq.quantize.embedding.weight
    kept = weight.detach().clone()
    pixels = pictures.to_tensor(photos()[0], janus.side)
    try:
        before = pictures.encode(janus.janus, pixels)
        with torch.no_grad():
            weight.mul_(torch.linspace(0.5, 1.5, len(weight))[:, None])
        assert torch.equal(pictures.encode(janus.janus, pixels), before)
        theirs = vq.encode(pixels).image_tokens.flatten()
        assert not torch.equal(theirs, before.flatten()), "the trap is gone: simplify"
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_trap_heads_are_not_tied_although_the_configuration_says_so(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text())
    config.pop("tie_word_embeddings", None)
    path.write_text(json.dumps(config))
    opened = open_backend(Opening(model=str(path.parent), device="cpu"))
    assert isinstance(opened, JanusBackend)
    head, table = opened.janus.lm_head.weight, opened.llm.table.weight
    assert head.data_ptr() != table.data_ptr() and not torch.equal(head, table)


def test_trap_an_image_lesson_never_runs_the_text_head(janus: JanusBackend) -> None:
    calls = []
    handle = janus.janus.lm_head.register_forward_hook(lambda *_: calls.append(1))
    try:
        tokens = taught(janus)
        batch = janus.prepare([lesson("generate", target=photos()[0])])
        janus.loss(batch, tokens, seed=0)
        assert calls == []
        janus.loss(janus.prepare([lesson("understand", photos()[0])]), tokens, seed=0)
        assert calls == [1]
    finally:
        handle.remove()


def test_trap_the_image_tokenizer_stays_in_float32(folder: Path) -> None:
    half = open_backend(Opening(model=str(folder), device="cpu", dtype="bfloat16"))
    assert isinstance(half, JanusBackend)
    assert {it.dtype for it in half.janus.model.vqmodel.parameters()} == {torch.float32}
    assert half.llm.table.weight.dtype == torch.bfloat16
    tokens = taught(half)
    assert tokens.und.dtype == torch.float32
    batch = half.prepare([lesson("generate", target=photos()[0])])
    assert torch.isfinite(half.loss(batch, tokens, seed=0)["generate"])


def test_trap_special_tokens_are_found_by_their_strings(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "copy" / name
        path.write_text(path.read_text().replace("<begin_of_image>", "<another>"))
    with pytest.raises(MissingError, match="begin_of_image"):
        open_backend(Opening(model=str(tmp_path / "copy"), device="cpu"))


def test_trap_a_code_is_drawn_from_the_whole_codebook() -> None:
    """transformers' own sampling keeps the best 50 without being asked."""
    flat = torch.zeros(64)
    chances = (torch.arange(64) + 0.5) / 64
    assert [int(sampled(flat, it)) for it in chances] == list(range(64))
    assert int(sampled(flat, torch.tensor(1.0))) == 63
    none = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0])
    assert [int(sampled(none, torch.tensor(it))) for it in (0.0, 0.49, 0.51)] == [1, 1, 3]


def test_drawn_codes_come_as_often_as_their_chances() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, -1.0])
    chance = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    found = torch.tensor([int(sampled(scores, it)) for it in chance])
    shares = torch.bincount(found, minlength=4) / len(found)
    assert torch.allclose(shares, scores.softmax(0), atol=0.025)


def test_trap_guidance_of_one_is_no_error_and_runs_one_branch(janus: JanusBackend) -> None:
    rows = prompt_rows(janus, SCENE)
    widths: list[int] = []

    def run(rows: Tensor, **more: Any) -> Tensor:
        widths.append(len(rows))
        return janus.llm.run("generate", (), rows, **more)

    given: dict[str, Any] = {"weights": guided(1.0), "temperature": 0.0}
    generator = torch.Generator().manual_seed(0)
    alone = sample(janus.janus, run, rows, **given, generator=generator)
    assert set(widths) == {1}
    given["weights"] = (1.0, 1e-9)  # as good as nothing, and yet computed
    assert torch.equal(alone, sample(janus.janus, run, rows, **given, generator=generator))
    assert set(widths) == {1, 2}


def test_trap_pixels_come_channels_last_and_are_not_left_to_the_processor(
    janus: JanusBackend,
) -> None:
    codes = janus._encode(photos()[0])
    found = np.asarray(pictures.to_image(pictures.decode(janus.janus, codes)), dtype=np.float32)
    plain = janus.janus.model.vqmodel.decode(codes[None])[0].clamp(-1, 1)
    wanted = (plain.permute(1, 2, 0).numpy() + 1) * 127.5
    assert found.shape == (janus.side, janus.side, 3)
    assert np.abs(found - wanted).max() <= 0.51


def test_trap_wide_pictures_get_no_grey_bars() -> None:
    white = images.new("RGB", (200, 50), "white")
    assert bool((pictures.to_tensor(white, 32) == 1).all())


def test_trap_a_row_like_the_placeholder_is_a_row_like_any_other(janus: JanusBackend) -> None:
    """transformers finds where a picture goes by comparing rows with the placeholder's."""
    tokens = taught(janus)
    row = janus.llm.table.weight[janus.llm.tokenizer.convert_tokens_to_ids("<image_placeholder>")]
    like = replace(tokens, id=row.detach().clone()[None])
    prompt = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(like,))
    assert torch.isfinite(janus.score(prompt, ["yes", "no"], image=photos()[0])).all()


def test_a_picture_is_read_once_for_all_answers_and_for_the_next_question(
    janus: JanusBackend,
) -> None:
    tokens, photo = taught(janus), drawing("red", 50)
    read: list[tuple[int, int]] = []

    def note(module: object, words: object, inputs: Mapping[str, Tensor]) -> None:
        read.append(tuple(inputs["inputs_embeds"].shape[:2]))

    hook = janus.llm.decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        first, second = (
            janus.score(Prompt(turns=(to_turn(asked),), concepts=(tokens,)), answers, image=photo)
            for asked, answers in (("is <bo> here?", ("yes", "no")), ("do you see <bo>?", ("no",)))
        )
        "".join(
            janus.say(Prompt(turns=(to_turn("what is <bo>?"),), concepts=(tokens,)), image=photo)
        )
    finally:
        hook.remove()
    assert len(first) == 2 and len(second) == 1
    whole = [(rows, length) for rows, length in read if length > 1]
    assert [rows for rows, _ in whole] == [1, 2, 1, 1], "the picture, and three questions"
    assert whole[0][1] > janus.count
    janus.llm.prefix._last = None
    again = janus.score(
        Prompt(turns=(to_turn("do you see <bo>?"),), concepts=(tokens,)), ("no",), image=photo
    )
    assert torch.equal(again, second), "what is remembered has no say"


def test_trap_answers_start_with_a_space_and_requests_with_none(janus: JanusBackend) -> None:
    said = janus.llm.tokenizer.decode(janus.llm.answer("yes"))
    assert said == f" yes{janus.llm.tokenizer.eos_token}"
    turn = to_turn("a red ball")
    asked = f"{BOS}<|User|>: a red ball\n\n<|Assistant|>:"
    for rows, text in (
        (prompts.question(janus.llm, (turn,), (), None)[1], asked),
        (prompts.request(janus.llm, turn, (), "generate"), f"{asked}{BOI}"),
    ):
        ids = janus.llm.tokenizer.encode(text, add_special_tokens=False)
        assert torch.equal(rows, janus.llm.table.weight[ids])


def test_trap_rows_of_the_table_that_are_no_token_are_never_said(folder: Path) -> None:
    janus = opened(folder)
    with torch.no_grad():
        janus.janus.lm_head.weight[len(janus.llm.tokenizer) :] *= 100.0
    ids = janus.llm.tokenizer.encode(
        "".join(janus.say(SCENE, max_tokens=4)), add_special_tokens=False
    )
    assert all(it < len(janus.llm.tokenizer) for it in ids)


def test_trap_experts_stay_float32_on_a_bfloat16_model(folder: Path) -> None:
    half = opened(folder, "bfloat16")
    tokens = with_experts(half)
    (one,) = half.prepare([lesson("generate", target=photos()[0])])
    half.loss([one], tokens, seed=1)["generate"].backward()
    moved = [it for key, it in tokens.extra.items() if key.startswith("lora.gen.") and "B" in key]
    assert all(it.dtype == torch.float32 and it.grad is not None for it in moved)
    assert any(bool(it.grad.any()) for it in moved if it.grad is not None)


def test_trap_experts_are_of_the_language_model_alone(janus: JanusBackend) -> None:
    """A list of names would reach into SigLIP, "all-linear" into the heads."""
    found = {key.split(".", 2)[2].rpartition(".")[0] for key in janus.new_experts(seed=0)}
    layers = janus.janus.config.text_config.num_hidden_layers
    assert len(found) == 7 * layers
    assert all(it.startswith("layers.") for it in found)


# -- learning --------------------------------------------------------------------------------------


def test_fifty_steps_leave_the_backbone_as_it_was(janus: JanusBackend) -> None:
    before = {key: value.clone() for key, value in janus.janus.state_dict().items()}
    tokens = taught(janus)
    batch = janus.prepare(
        [lesson("understand", photos()[0]), lesson("generate", None, photos()[1])]
    )
    optimiser = torch.optim.AdamW(tokens.parameters(), lr=1e-2)
    losses = []
    for step in range(50):
        optimiser.zero_grad()
        found = janus.loss(batch, tokens, seed=step)
        total = found["understand"] + found["generate"]
        total.backward()
        optimiser.step()
        losses.append(total.item())
    assert losses[-1] < 0.8 * losses[0]
    after = janus.janus.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(value.grad is None for value in janus.janus.parameters())


def test_an_understanding_lesson_moves_only_the_understanding_expert(folder: Path) -> None:
    janus = open_backend(Opening(model=str(folder), device="cpu"))
    assert isinstance(janus, JanusBackend)
    bare = janus.score(SCENE, ["yes", "no"])
    tokens = with_experts(janus)
    assert {key.split(".")[1] for key in tokens.extra} == {"und", "gen", "edit"}
    assert not any("vision" in key or "vq" in key for key in tokens.extra)
    for task, adapter in (("understand", "und"), ("generate", "gen"), ("edit", "edit")):
        image, target = photos()[0], drawing("blue", 5)
        (one,) = janus.prepare([lesson(task, image, target)])
        for value in tokens.parameters():
            value.grad = None
        janus.loss([one], tokens, seed=3)[task].backward()  # type: ignore[index]
        moved = {
            key.split(".")[1]
            for key, value in tokens.extra.items()
            if value.grad is not None and bool(value.grad.any())
        }
        assert moved == {adapter}
    assert torch.equal(janus.score(SCENE, ["yes", "no"]), bare), "an expert was left on"


# -- bad input -------------------------------------------------------------------------------------


def test_weights_that_are_not_here_name_the_command_that_fetches_them() -> None:
    with pytest.raises(MissingError) as caught:
        open_backend(Opening(device="cpu"))
    assert caught.value.hint == "op backends fetch janus"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("what", ["family", "shard", "head", "cut"])
def test_broken_checkpoints_are_named(what: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    if what == "family":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    elif what == "shard":
        weights.unlink()
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        save_file({k: v for k, v in tensors.items() if "generation_head" not in k}, weights)
    words = {"family": "llama", "shard": "missing", "head": "image head", "cut": "broken"}
    with pytest.raises((MissingError, UsageError), match=words[what]):
        open_backend(Opening(model=str(copy), device="cpu"))
