"""Show-o's arithmetic against the recorded outputs of the released modules (a tiny random model).

Every dimension, count and setting is read from the fixtures. OMNIPERSONA_GOLDENS names another
folder of the same form: one that holds config.json, or one with a `showo` folder that does.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from op_showo import prompts
from op_showo.config import (
    NEW_TOKENS,
    ShowoConfig,
    TokenizerConfig,
    decoder_config,
    tokenizer_config,
)
from op_showo.magvit import Magvit, Quantiser, fit, to_tensor, token_mask
from op_showo.model import ExtraVocabulary, Prefix, Showo
from op_showo.sampling import DecodingStep, Seeded, decode_masked, training_mask

SHIPPED = Path(__file__).parent.parent / "goldens" / "showo"
LOGITS = 1e-5  # absolute tolerance of one forward
LOSS = 2e-6  # of a loss and of gradients
PIXELS = 5e-5  # of the image decoder
MANIFESTS = (
    "show-o",
    "show-o-512x512",
    "show-o-w-clip-vit",
    "show-o-w-clip-vit-512x512",
)


def folder() -> Path:
    """Where the fixtures are."""
    place = Path(os.environ.get("OMNIPERSONA_GOLDENS") or SHIPPED)
    return place if (place / "config.json").exists() else place / "showo"


def close(found: Tensor, wanted: Tensor, atol: float = LOGITS) -> None:
    torch.testing.assert_close(found.detach().float(), wanted, rtol=1e-5, atol=atol)


class Case:
    """One recorded case: its settings, and its tensors by name."""

    def __init__(self, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.params: dict[str, Any] = described["params"]
        self.tensors = {
            name: tensors[it["key"]]
            for side in ("inputs", "outputs")
            for name, it in described[side].items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder() / "config.json").read_text())
    return found


@pytest.fixture(scope="module")
def config(values: dict[str, Any]) -> ShowoConfig:
    released = {
        **values["vocab"],
        "num_vq_tokens": values["prompting"]["num_vq_tokens"],
        "max_seq_length": values["prompting"]["max_seq_length"],
        "w_clip_vit": True,
    }
    clip_width = values["clip_variant"]["feature_dim"]
    return ShowoConfig.from_released(
        released,
        llm=decoder_config(values["llm"]),
        vq=tokenizer_config(values["vq"]),
        clip_width=clip_width,
    )


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder() / "cases.json").read_text())
    return found


@pytest.fixture(scope="module")
def case(recorded: dict[str, Any]) -> Callable[[str], Case]:
    described = {it["name"]: it for it in recorded["cases"]}
    tensors = load_file(folder() / "cases.safetensors")
    return lambda name: Case(described[name], tensors)


def part(*starts: str) -> dict[str, Tensor]:
    tensors = load_file(folder() / "weights.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith(starts)}


@pytest.fixture
def model(config: ShowoConfig) -> Showo:
    model = Showo(config)
    model.load_state_dict(part("showo.", "mm_projector."))
    return model.eval()


@pytest.fixture(scope="module")
def magvit(config: ShowoConfig) -> Magvit:
    magvit = Magvit(config.vq)
    magvit.load_state_dict(part("encoder.", "decoder.", "quantize."))
    return magvit.eval().requires_grad_(False)


# --- vocabulary and pictures ----------------------------------------------------------------


def test_golden_showo_vocabulary(values: dict[str, Any], config: ShowoConfig) -> None:
    listed = values["vocab"]
    vocab = config.vocab
    assert (vocab.size, vocab.image_offset) == (listed["vocab_size"], listed["image_offset"])
    assert (vocab.mask, vocab.eos) == (listed["mask_token_id"], listed["eos_token_id"])
    ids = listed["special_token_ids"]
    for token in NEW_TOKENS:
        assert vocab.special(token) == ids["<|pad|>" if token == "[PAD]" else token]
    assert config.resolution == values["vq"]["image_resolution"]
    assert config.text_length + config.image_tokens + 3 == values["prompting"]["t2i_length"]


def test_golden_showo_vq_encode(case: Callable[[str], Case], magvit: Magvit) -> None:
    vectors = case("vq_encode")
    z = magvit.encoder(vectors["pixels"])
    close(z, vectors["z"])
    codes = magvit.encode(vectors["pixels"])
    assert torch.equal(codes, vectors["indices"])
    grid = (z.shape[2], z.shape[3])
    assert torch.equal(magvit.quantize.signs(codes, grid), vectors["z_q"])


def test_golden_showo_vq_decode(case: Callable[[str], Case], magvit: Magvit) -> None:
    vectors = case("vq_decode")
    close(magvit.decode(vectors["indices"]), vectors["pixels"], PIXELS)
    vectors = case("vq_decode_rect")
    height, width = vectors.params["shape"]
    close(magvit.decode(vectors["indices"], (height, width)), vectors["pixels"], PIXELS)


def test_golden_showo_vq_roundtrip(case: Callable[[str], Case], magvit: Magvit) -> None:
    vectors = case("vq_roundtrip")
    codes = magvit.encode(case("vq_encode")["pixels"][:1])
    assert torch.equal(codes, vectors["indices"])
    close(magvit.decode(codes), vectors["pixels"], PIXELS)


def test_golden_showo_quantiser_of_the_released_width(case: Callable[[str], Case]) -> None:
    vectors = case("lfq13")
    z = vectors["z"]
    quantiser = Quantiser(z.shape[1])
    codes = quantiser.codes(z)
    assert torch.equal(codes, vectors["indices"])
    assert torch.equal(quantiser.signs(codes, (z.shape[2], z.shape[3])), vectors["codes"])


def test_golden_showo_preprocess(case: Callable[[str], Case]) -> None:
    vectors = case("preprocess")
    image = Image.fromarray(vectors["image"].numpy())
    close(to_tensor(fit(image, vectors.params["resolution"])), vectors["pixels"], 1e-6)


def test_golden_showo_inpaint_mask(case: Callable[[str], Case], config: ShowoConfig) -> None:
    vectors = case("inpaint_mask")
    small, codes = token_mask(vectors["mask"], (config.side, config.side))
    close(small, vectors["resized"], 1e-6)
    assert torch.equal(codes.to(torch.uint8), vectors["token_mask"])


# --- rows and masks -------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["t2i_forward", "t2i_forward_partial"])
def test_golden_showo_painting_rows(case: Callable[[str], Case], model: Showo, name: str) -> None:
    vectors, config = case(name), model.config
    ids = vectors["input_ids"]
    blocks = torch.tensor([prompts.text_block(it, config) for it in vectors.params["text_ids"]])
    codes = ids[:, -config.image_tokens - 1 : -1] - config.vocab.image_offset
    hidden = codes == config.vocab.codebook_size
    mine = torch.cat((blocks, prompts.picture_ids(codes.clamp(min=0), hidden, config)), dim=1)
    assert torch.equal(mine, ids)
    attend = prompts.painting_attend(mine, config)
    assert torch.equal(attend.to(torch.uint8), vectors["attend"])
    states, _ = model(model.embed(mine), attend)
    close(model.logits(states), vectors["logits"])
    at = slice(config.vocab.image_offset, config.vocab.mask)
    close(model.code_logits(states), vectors["logits"][..., at])
    behind, prefix = read_texts(model, blocks)
    after = model.embed(mine[:, blocks.shape[1] :])
    rest, _ = model(after, prefix_attend(prefix, after.shape[1]), prefix)
    close(model.logits(torch.cat((behind, rest), dim=1)), vectors["logits"])


def read_texts(model: Showo, blocks: Tensor) -> tuple[Tensor, Prefix]:
    """Text blocks read once: no step of the decoder changes them."""
    pad = blocks == model.config.vocab.special("[PAD]")
    attend = prompts.painting_attend(blocks, model.config)
    return model.read(model.embed(blocks), attend, key=~pad)


def prefix_attend(prefix: Prefix, count: int) -> Tensor:
    everything = torch.ones(len(prefix.key), count, dtype=torch.bool)
    row = torch.cat((prefix.key, everything), dim=1)
    return row[:, None, None].expand(-1, 1, count, -1)


@torch.no_grad()
def test_golden_showo_understanding_rows(case: Callable[[str], Case], model: Showo) -> None:
    vectors, config = case("mmu_forward"), model.config
    ids, vocab = vectors["input_ids"], config.vocab
    codes = ids[:, 2 : 2 + config.image_tokens] - vocab.image_offset
    seen = prompts.understanding_ids(codes, config)
    texts = []
    for text in vectors.params["text_ids"]:
        row = [vocab.bos, *text, vocab.eos]
        if len(row) > config.text_length:
            row = [*row[: config.text_length - 1], vocab.eos]
        texts.append(row + [vocab.special("[PAD]")] * (config.text_length - len(row)))
    assert torch.equal(torch.cat((seen, torch.tensor(texts)), dim=1), ids)
    attend = prompts.reading_attend(ids.shape[1], slice(0, seen.shape[1]))
    assert torch.equal(attend.expand(len(ids), -1, -1, -1).to(torch.uint8), vectors["attend"])
    states, _ = model(model.embed(ids), attend)
    close(model.logits(states), vectors["logits"])
    prefix = see(model, model.embed(seen), slice(0, seen.shape[1]))
    states, _ = model.follow(model.embed(torch.tensor(texts)), prefix)
    close(model.logits(states), vectors["logits"][:, seen.shape[1] :])


def see(model: Showo, rows: Tensor, columns: slice) -> Prefix:
    return model.read(rows, prompts.reading_attend(rows.shape[1], columns))[1]


def text_row(text: Sequence[int], config: Any) -> list[int]:
    """Text alone: ``bos text eos [PAD]...``, as long as a row that paints; too long loses its
    eos."""
    vocab, length = config.vocab, config.text_length + config.image_tokens + 3
    body = list(text)
    if not body or body[0] != vocab.bos:
        body.insert(0, vocab.bos)
    ids = [*body, vocab.eos][:length]
    return ids + [vocab.special("[PAD]")] * (length - len(ids))


@torch.no_grad()
def test_golden_showo_text_rows(case: Callable[[str], Case], model: Showo) -> None:
    vectors = case("lm_forward")
    rows = [text_row(text, model.config) for text in vectors.params["text_ids"]]
    ids = torch.tensor(rows)
    assert torch.equal(ids, vectors["input_ids"])
    attend = prompts.reading_attend(ids.shape[1], slice(0, 0))
    assert torch.equal(attend.expand(len(ids), -1, -1, -1).to(torch.uint8), vectors["attend"])
    close(model.logits(model(model.embed(ids), attend)[0]), vectors["logits"])


def conversation(rounds: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
    """Questions and answers as pieces of text, and which pieces are trained: the answers, with
    their leading space and their end. An empty answer last leaves the row open, to be said."""
    pieces: list[tuple[str, bool]] = []
    for question, answer in rounds:
        pieces.append((f"USER: {question} ASSISTANT:", False))
        if answer:
            pieces.append((f" {answer}<|endoftext|>", True))
    return pieces


def test_golden_showo_conversations(recorded: dict[str, Any]) -> None:
    checked = 0
    for text_case in recorded["text_cases"]:
        if "conversation" not in text_case:
            continue
        said = [it["value"].replace("<image>", "").strip() for it in text_case["conversation"]]
        pieces = conversation(list(zip(said[::2], said[1::2], strict=True)))
        wanted = [(it["text"], it["supervised"]) for it in text_case["segments"]]
        merged = [(text, trained) for text, trained in pieces]
        assert merged == wanted
        assert "".join(text for text, _ in pieces) == text_case["full_text"]
        checked += 1
    assert checked


# --- training -------------------------------------------------------------------------------


def test_golden_showo_train_mask(case: Callable[[str], Case], config: ShowoConfig) -> None:
    vectors = case("train_mask")
    hidden, share = training_mask(vectors["u"], vectors["r"])
    close(share, vectors["mask_prob"], 1e-6)
    tokens = vectors["image_tokens"]
    assert torch.equal(torch.where(hidden, config.vocab.mask, tokens), vectors["masked_tokens"])
    assert torch.equal(torch.where(hidden, tokens, prompts.IGNORE), vectors["labels"])


def test_golden_showo_training_prompts(case: Callable[[str], Case], config: ShowoConfig) -> None:
    vectors = case("t2i_train_prompt")
    dropped = (vectors["drop_draws"] < vectors.params["cond_dropout_prob"]).tolist()
    texts = [
        [] if drop else text for text, drop in zip(vectors.params["text_ids"], dropped, strict=True)
    ]
    blocks = torch.tensor([prompts.text_block(text, config) for text in texts])
    codes = vectors["image_tokens"] - config.vocab.image_offset
    hidden = codes == config.vocab.codebook_size
    picture = prompts.picture_ids(codes.clamp(min=0), hidden, config)
    assert torch.equal(torch.cat((blocks, picture), dim=1), vectors["input_ids"])
    ends = picture[:, :1], picture[:, -1:]
    wanted = vectors["labels"][:, blocks.shape[1] :]  # what stands before is never trained
    assert torch.equal(torch.cat((ends[0], vectors["image_labels"], ends[1]), dim=1), wanted)


def shifted(labels: Tensor) -> Tensor:
    """Labels of the next position: what a causal row is trained on."""
    return torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], prompts.IGNORE)), dim=1)


def test_golden_showo_losses_and_gradients(case: Callable[[str], Case], model: Showo) -> None:
    vectors = case("train_losses")
    counts = [vectors.params[f"batch_size_{name}"] for name in ("t2i", "lm", "mmu")]
    states, _ = model(model.embed(vectors["input_ids"]), vectors["attend"].bool())
    parts, labels = states.split(counts), vectors["labels"].split(counts)
    start = model.config.text_length + 1
    t2i = model.losses(parts[0][:, start:], labels[0][:, start:]).mean()
    lm = model.losses(parts[1], shifted(labels[1])).mean()
    mmu = model.losses(parts[2], shifted(labels[2])).mean()
    weights = vectors.params["coeff"]
    total = weights["t2i"] * t2i + weights["lm"] * lm + weights["mmu"] * mmu
    for name, loss in (("_t2i", t2i), ("_lm", lm), ("_mmu", mmu), ("", total)):
        close(loss, vectors[f"loss{name}"].squeeze(), LOSS)
    total.backward()
    phi = model.showo
    for name, parameter in (
        ("embed_tokens", phi.model.embed_tokens.weight),
        ("lm_head_weight", phi.lm_head.weight),
        ("lm_head_bias", phi.lm_head.bias),
        ("layer0_q_proj_weight", phi.model.layers[0].self_attn.q_proj.weight),
        ("layer1_q_layernorm_weight", phi.model.layers[1].self_attn.q_layernorm.weight),
    ):
        assert parameter.grad is not None
        close(parameter.grad, vectors[f"grad_{name}"], LOSS)


# --- CLIP -----------------------------------------------------------------------------------


def clip_rows(model: Showo, vectors: Case, features: int, system: int) -> tuple[Tensor, int]:
    """Task, system, soi, vectors, eoi, question as rows; and where the vectors start."""
    assert model.mm_projector is not None
    start = 1 + system + 1
    words = model.embed(vectors["text_ids"])
    seen = model.mm_projector(vectors["features"])
    assert seen.shape[1] == features
    return torch.cat((words[:, :start], seen, words[:, start:]), dim=1), start


@torch.no_grad()
def test_golden_showo_clip_understanding(case: Callable[[str], Case], model: Showo) -> None:
    vectors = case("clip_mmu_forward")
    count = vectors.params["num_features"]
    rows, start = clip_rows(model, vectors, count, vectors.params["system_prompt_len"])
    close(rows[:, start : start + 8], vectors["projected_first8"])
    attend = prompts.reading_attend(rows.shape[1], slice(start, start + count))
    assert torch.equal(attend.to(torch.uint8), vectors["attend"])
    states, _ = model(rows, attend)
    logits = model.logits(states)
    first = vectors["logits_first48"].shape[1]
    close(logits[:, :first], vectors["logits_first48"])
    close(logits[:, -vectors["logits_last48"].shape[1] :], vectors["logits_last48"])
    loss = model.losses(states, shifted(vectors["labels"])).mean()
    close(loss, vectors["loss_mmu"].squeeze(), LOSS)


@torch.no_grad()
def test_golden_showo_clip_answers(
    case: Callable[[str], Case], model: Showo, values: dict[str, Any]
) -> None:
    vectors, about = case("clip_mmu_generate"), values["clip_variant"]
    count = about["num_features"]
    rows, start = clip_rows(model, vectors, count, about["system_prompt_len"])
    end = start + count + 1
    prefix = see(model, rows[:, :end], slice(start, start + count))
    said, _ = greedy(model, rows[:, end:], prefix, len(vectors["tokens"]))
    assert said == vectors["tokens"].tolist()


def greedy(model: Showo, rows: Tensor, prefix: Prefix, count: int) -> tuple[list[int], Tensor]:
    said, logits = [], []
    for _ in range(count):
        states, prefix = model.follow(rows, prefix)
        logits.append(model.logits(states[0, -1]))
        said.append(int(logits[-1].argmax()))
        rows = model.embed(torch.tensor([[said[-1]]]))
    return said, torch.stack(logits)


@torch.no_grad()
def test_golden_showo_answers(case: Callable[[str], Case], model: Showo) -> None:
    vectors, config = case("mmu_generate"), model.config
    end = config.image_tokens + 3
    rows = model.embed(vectors["input_ids"])
    prefix = see(model, rows[:, :end], slice(0, end))
    said, logits = greedy(model, rows[:, end:], prefix, len(vectors["tokens"]))
    assert said == vectors["tokens"].tolist()
    close(logits, vectors["last_logits"])


# --- painting -------------------------------------------------------------------------------


class Recorded:
    """Draws and noise as they were recorded; the likeliest code where no draw was."""

    def __init__(self, vectors: Case) -> None:
        self.noise: Iterator[Tensor] = iter(vectors["recorded_uniform"])
        self.drawn = iter(vectors["recorded_samples"]) if "recorded_samples" in vectors else None

    def draw(self, probabilities: Tensor) -> Tensor:
        return probabilities.argmax(-1) if self.drawn is None else next(self.drawn)

    def uniform(self, shape: torch.Size) -> Tensor:
        noise = next(self.noise)
        assert noise.shape == shape
        return noise


class OneGenerator:
    """The recording's own generator, shared by all rows of the batch."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, probabilities: Tensor) -> Tensor:
        flat = torch.multinomial(probabilities.flatten(0, 1), 1, generator=self.generator)
        return flat.view(probabilities.shape[:2])

    def uniform(self, shape: torch.Size) -> Tensor:
        return torch.zeros(shape).uniform_(0, 1, generator=self.generator)


def paint(model: Showo, vectors: Case, chance: Any) -> list[DecodingStep]:
    config, params = model.config, vectors.params
    start = config.text_length + 1
    rows = [vectors["input_ids"]]
    if "uncond_input_ids" in vectors:
        rows.append(vectors["uncond_input_ids"])
    blocks = torch.cat([it[:, :start] for it in rows])
    codes = rows[0][:, start + 1 : -1] - config.vocab.image_offset
    hidden = codes == config.vocab.codebook_size
    _, prefix = read_texts(model, blocks)
    guidance = params["guidance_scale"]

    def logits(known: Tensor, unknown: Tensor) -> Tensor:
        ids = prompts.picture_ids(known, unknown, config).repeat(len(rows), 1)
        attend = prefix_attend(prefix, ids.shape[1])
        states, _ = model(model.embed(ids), attend, prefix)
        scores = model.code_logits(states[:, 1:-1])
        if len(rows) == 1:
            return scores
        full, bare = scores.chunk(2)
        return (1 + guidance) * full - guidance * bare

    return list(
        decode_masked(
            logits,
            codes.clamp(0, config.vocab.codebook_size - 1),
            hidden,
            steps=params["timesteps"],
            chance=chance,
            temperature=params["temperature"],
        )
    )


PAINTINGS = (
    "t2i_sample_greedy",
    "t2i_sample_greedy_nocfg",
    "t2i_sample_recorded",
    "inpaint_greedy",
    "inpaint_recorded",
)


@torch.no_grad()
@pytest.mark.parametrize("name", PAINTINGS)
def test_golden_showo_painting(
    case: Callable[[str], Case], model: Showo, magvit: Magvit, name: str
) -> None:
    vectors = case(name)
    steps = paint(model, vectors, Recorded(vectors))
    for step in steps:
        at = step.index
        close(step.probabilities, vectors["probs"][at], 2e-5)
        close(step.chosen.clamp(max=1), vectors["selected_probs"][at].clamp(max=1), 2e-5)
        assert step.kept_masked.tolist() == vectors["mask_len"][at].tolist()
        assert step.temperature == pytest.approx(float(vectors["temperature"][at]), abs=1e-6)
        assert torch.equal(step.remask.to(torch.uint8), vectors["remask"][at])
    assert torch.equal(steps[-1].codes, vectors["tokens"])
    close(magvit.decode(steps[-1].codes), vectors["pixels"], PIXELS)


@torch.no_grad()
@pytest.mark.parametrize("name", ["t2i_sample_recorded", "inpaint_recorded"])
def test_golden_showo_painting_from_the_seed(
    case: Callable[[str], Case], model: Showo, name: str
) -> None:
    vectors = case(name)
    steps = paint(model, vectors, OneGenerator(vectors.params["seed"]))
    assert torch.equal(steps[-1].codes, vectors["tokens"])


def test_golden_showo_seeds_are_independent() -> None:
    probabilities = torch.rand(2, 5, 7).softmax(-1)
    both, alone = Seeded((3, 4)), Seeded((4,))
    for _ in range(2):
        assert torch.equal(both.draw(probabilities)[1], alone.draw(probabilities[1:])[0])
        one, other = both.uniform(torch.Size((2, 5))), alone.uniform(torch.Size((1, 5)))
        assert torch.equal(one[1], other[0])


# --- new tokens -----------------------------------------------------------------------------


@torch.no_grad()
def test_golden_showo_start_of_new_rows(case: Callable[[str], Case], model: Showo) -> None:
    vectors, vocab = case("unictokens_init"), model.config.vocab
    count = len(vectors["new_lm_head_bias"])
    codes = slice(vocab.image_offset, vocab.image_offset + count)
    head = model.showo.lm_head
    assert torch.equal(head.weight[codes], vectors["new_lm_head_rows"])
    assert torch.equal(head.bias[codes], vectors["new_lm_head_bias"])
    close(model.table[vectors.params["class_word_ids"]].mean(0), vectors["new_embed_rows"][0])
    seen = model.table[vectors["image_indices"].flatten() + vocab.image_offset]
    centres = vectors["new_embed_rows"][1:]
    nearest = torch.cdist(seen, centres).argmin(1)
    for index, centre in enumerate(centres):  # each centre is the mean of the codes nearest to it
        close(seen[nearest == index].mean(0), centre)


def regrown(ids: Tensor, config: ShowoConfig, count: int) -> Tensor:
    """Ids of a table that grew in its middle -> ids here, where new rows come last."""
    offset, size = config.vocab.image_offset, config.vocab.size
    moved = torch.where(ids < offset + count, ids - offset + size, ids - count)
    return torch.where(ids < offset, ids, moved)


def test_golden_showo_learning_new_rows(case: Callable[[str], Case], model: Showo) -> None:
    vectors, start = case("unictokens_train"), case("unictokens_init")
    config, params = model.config, case("unictokens_train").params
    model.requires_grad_(False)
    rows, head, bias = (
        start[f"new_{name}"].clone().requires_grad_()
        for name in ("embed_rows", "lm_head_rows", "lm_head_bias")
    )
    soft = ExtraVocabulary(rows=rows, head=head, bias=bias)
    count = len(bias)
    ids = regrown(vectors["input_ids"], config, count)
    labels = regrown(vectors["labels"], config, count)
    optimiser = torch.optim.AdamW(
        [rows, head, bias],
        lr=params["lr"],
        betas=tuple(params["betas"]),
        weight_decay=params["weight_decay"],
        eps=params["eps"],
    )
    t2i_rows, start_of_picture = params["batch_size_t2i"], config.text_length + 1
    for step in range(params["steps"]):
        states, _ = model(model.embed(ids, soft), vectors["attend"].bool())
        if step == 0:
            logits = model.logits(states, soft)
            offset, size = config.vocab.image_offset, config.vocab.size
            grown = torch.cat(
                (logits[..., :offset], logits[..., size:], logits[..., offset:size]), dim=-1
            )
            close(grown, vectors["logits_step0"])
        drawn = states[:t2i_rows, start_of_picture:]
        t2i = model.losses(drawn, labels[:t2i_rows, start_of_picture:], soft).mean()
        mmu = model.losses(states[t2i_rows:], shifted(labels[t2i_rows:]), soft).mean()
        total = params["coeff"]["t2i"] * t2i + params["coeff"]["mmu"] * mmu
        found = torch.stack((t2i, mmu, total))
        close(found, vectors["losses_t2i_mmu_total"][step], LOSS)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    close(rows, vectors["embed_rows"])
    close(head, vectors["lm_head_rows"])
    close(bias, vectors["lm_head_bias"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_golden_showo_picture_prefix_is_exact(case: Callable[[str], Case], model: Showo) -> None:
    """Loss and gradients of an answer are the same behind a cached picture and in one row."""
    vectors, config = case("mmu_forward"), model.config
    model.requires_grad_(False)
    ids = vectors["input_ids"].clone()
    end = config.image_tokens + 3
    ids[:, end + 1] = config.vocab.size
    found = []
    for cached in (False, True):
        row = model.table[:1].clone().requires_grad_()
        soft = ExtraVocabulary(rows=row, head=row[:0], bias=row[0, :0])
        text = model.embed(ids[:, end:], soft)
        seen = model.embed(ids[:, :end])
        if cached:
            with torch.no_grad():
                prefix = see(model, seen, slice(0, end))
            states, _ = model.follow(text, prefix)
        else:
            attend = prompts.reading_attend(ids.shape[1], slice(0, end))
            states = model(torch.cat((seen, text), dim=1), attend)[0][:, end:]
        labels = shifted(vectors["input_ids"][:, end:])
        loss = model.losses(states, labels).mean()
        loss.backward()
        assert row.grad is not None
        found.append((loss.detach(), row.grad))
    close(found[0][0], found[1][0], LOSS)
    close(found[0][1], found[1][1], LOSS)
    assert bool(found[0][1].abs().max() > 0)


# --- the released sizes ---------------------------------------------------------------------


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SHIPPED / f"showo-{name}.json").read_text())
    return found


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", MANIFESTS)
def test_golden_showo_manifest(name: str) -> None:
    listed = manifest(name)
    config = ShowoConfig.from_released(listed["config"])
    assert config.image_tokens == listed["config"]["num_vq_tokens"]
    with torch.device("meta"):
        model = Showo(config)
    assert shapes(model) == listed["tensors"]
    assert len(listed["tensors"]) == listed["num_tensors"]
    assert sum(it.numel() for it in model.parameters()) == listed["num_parameters"]


def test_golden_showo_manifest_of_the_tokenizer() -> None:
    listed = manifest("magvitv2")
    with torch.device("meta"):
        magvit = Magvit(TokenizerConfig())
    assert shapes(magvit) == listed["tensors"]
    assert len(listed["tensors"]) == listed["num_tensors"]
    kinds = {name: str(it.dtype).removeprefix("torch.") for name, it in magvit.state_dict().items()}
    for name, kind in kinds.items():
        assert kind == listed["dtype_exceptions"].get(name, listed["dtype_default"])
    assert sum(it.numel() for it in magvit.parameters()) == listed["num_parameters"]
