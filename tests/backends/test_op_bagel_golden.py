"""BAGEL's arithmetic against the recorded outputs of the released modules (a tiny random model).

Every dimension, count and setting is read from the fixtures. OMNIPERSONA_GOLDENS names another
folder of the same form: one that holds config.json, or one with a `bagel` folder that does.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from op_bagel.cache import Cache
from op_bagel.config import BagelConfig
from op_bagel.decoder import Rows
from op_bagel.model import Bagel, Outputs
from op_bagel.packing import Packed, pack
from op_bagel.pictures import (
    SizeRule,
    patchify,
    position_ids,
    sincos_table,
    to_pixels,
    to_tensor,
    unpatchify,
)
from op_bagel.sampling import (
    Guidance,
    SamplingStep,
    decode_text,
    sample_latents,
    time_grid,
    training_time,
)
from op_bagel.segments import Latent, Noise, Sample, Segment, SoftRows, Text, Vit, concept_turn
from op_bagel.vae import AutoEncoder

SHIPPED = Path(__file__).parent.parent / "goldens" / "bagel"
SINGLE, PATH = 2e-5, 2e-4  # absolute tolerance of one forward, and of a path of several steps
RELATIVE = 1e-4


def folder() -> Path:
    """Where the fixtures are."""
    place = Path(os.environ.get("OMNIPERSONA_GOLDENS") or SHIPPED)
    return place if (place / "config.json").exists() else place / "bagel"


def close(found: Tensor, wanted: Tensor, name: str, atol: float = SINGLE) -> None:
    torch.testing.assert_close(
        found, wanted, rtol=RELATIVE, atol=atol, msg=lambda message: f"{name}: {message}"
    )


class Case:
    """One recorded case: plain values inline, tensors by name."""

    def __init__(self, name: str, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.given: dict[str, Any] = described["in"]["values"]
        self.wanted: dict[str, Any] = described["out"]["values"]
        self.tensors = {
            key.removeprefix(f"{name}/"): value
            for key, value in tensors.items()
            if key.startswith(f"{name}/")
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def near(self, found: Tensor, name: str, *, path: bool = False) -> None:
        """The tensor `out.<name>` within the stated tolerance."""
        wanted = self[f"out.{name}"]
        close(found.detach().float(), wanted.reshape(found.shape), name, PATH if path else SINGLE)

    def has_cache(self, cache: Cache) -> None:
        """Each recorded `context_{k,v}{layer}` equals the cache of one context."""
        recorded = [
            m for m in (re.fullmatch(r"out\.context_([kv])(\d+)", n) for n in self.tensors) if m
        ]
        assert recorded
        for match in recorded:
            held = cache.keys if match[1] == "k" else cache.values
            self.near(held[int(match[2])][0], f"context_{match[1]}{match[2]}")


@pytest.fixture(scope="module")
def config() -> BagelConfig:
    return BagelConfig.from_dict(json.loads((folder() / "config.json").read_text()))


@pytest.fixture(scope="module")
def case() -> Callable[[str], Case]:
    described = json.loads((folder() / "cases.json").read_text())["cases"]
    tensors = load_file(folder() / "cases.safetensors")
    return lambda name: Case(name, described[name], tensors)


@pytest.fixture
def model(config: BagelConfig) -> Bagel:
    model = Bagel(config)
    model.load_state_dict(load_file(folder() / "weights.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def vae(config: BagelConfig) -> AutoEncoder:
    vae = AutoEncoder(config.vae)
    vae.load_state_dict(load_file(folder() / "vae.safetensors"))
    return vae.eval()


def vit(image: Tensor, config: BagelConfig) -> Vit:
    return Vit(*patchify(image, config.vit.patch_size))


def grid_of(size: list[int], config: BagelConfig) -> tuple[int, int]:
    return size[0] // config.stride, size[1] // config.stride


# --- parts --------------------------------------------------------------------------------


@torch.no_grad()
def test_golden_bagel_vae(case: Callable[[str], Case], vae: AutoEncoder) -> None:
    vectors = case("vae")
    mean, logvar = vae.moments(vectors["in.images"])
    vectors.near(mean, "mean")
    vectors.near(logvar, "logvar")
    vectors.near(vae.encode(vectors["in.images"], vectors["in.eps"]), "z_scaled")
    vectors.near(vae.decode(vectors["out.z_scaled"]), "decoded_from_z")


@torch.no_grad()
def test_golden_bagel_vit(case: Callable[[str], Case], model: Bagel) -> None:
    vectors, config = case("vit"), model.config
    images = [vectors[name] for name in sorted(vectors.tensors) if name.startswith("in.image_")]
    patches, grids = zip(*(patchify(image, config.vit.patch_size) for image in images), strict=True)
    assert [len(rows) for rows in patches] == vectors["in.vit_token_seqlens"].tolist()
    ids = torch.cat([position_ids(grid, config.vit.side) for grid in grids])
    assert torch.equal(ids, vectors["out.position_ids"])
    vectors.near(torch.cat(patches), "packed_tokens")
    counts = vectors["in.vit_token_seqlens"].tolist()
    last = model.vit_model.vision_model(torch.cat(patches), ids, counts)
    vectors.near(last, "vit_last_hidden")
    vectors.near(model.connector(last), "connector_out")
    vectors.near(torch.cat(model.see(patches, grids)), "llm_input")


@torch.no_grad()
def test_golden_bagel_misc(case: Callable[[str], Case], model: Bagel) -> None:
    vectors, config = case("misc"), model.config
    times = vectors["in.timesteps"]
    vectors.near(model.time_embedder.features(times), "time_embedder_freq")
    vectors.near(model.time_embedder(times, torch.float32), "time_embedder_out")
    width = config.llm.hidden_size
    vectors.near(sincos_table(config.max_latent_size, width), "latent_pos_embed")
    vectors.near(sincos_table(config.vit.side, width), "vit_pos_embed")
    checked = 0
    for name, wanted in vectors.tensors.items():
        if match := re.fullmatch(r"out\.pos_ids_(\w+?)_h(\d+)_w(\d+)_p(\d+)_n(\d+)", name):
            height, wide, patch, side = (int(match[i]) for i in range(2, 6))
            grid = (height // patch, wide // patch)
            found = position_ids(grid, side, interpolate=match[1] == "interpolate")
            assert torch.equal(found, wanted), name
            checked += 1
        if match := re.fullmatch(r"out\.(timesteps_n(\d+)_shift([\d.]+))", name):
            vectors.near(time_grid(int(match[2]) - 1, float(match[3])), match[1])
            checked += 1
    assert checked >= 2


def test_golden_bagel_resize_rule() -> None:
    specs = json.loads((folder() / "cases.json").read_text())["resize"]["specs"]
    assert specs
    for name, spec in specs.items():
        rule = SizeRule(
            **{key: spec[key] for key in ("max_size", "min_size", "stride")},
            max_pixels=spec["max_pixels"],
        )
        for wide, high, *wanted in spec["rows_w_h_to_w_h"]:
            assert rule.fit(wide, high) == tuple(wanted), (name, wide, high)


# --- packed training ----------------------------------------------------------------------


def training_samples(vectors: Case, config: BagelConfig) -> list[list[Segment]]:
    """The samples of the case's plans, as segments."""
    shapes = iter(vectors.given["patchified_vae_latent_shapes"])
    latents = iter(vectors["in.padded_latent"])
    noise, times = vectors["in.flow_noise"], vectors["in.packed_timesteps"]
    samples: list[list[Segment]] = []
    row = 0
    for number, plan in enumerate(vectors.given["sequence_plans"]):
        texts = iter(vectors.given["text_ids"][number])
        images = iter(range(len(plan)))
        segments: list[Segment] = []
        for item in plan:
            if item["type"] == "text":
                after = item["special_token_label"] if item["special_token_loss"] else None
                segments.append(Text(next(texts), loss=bool(item["loss"]), after=after))
                continue
            image = vectors[f"in.sample{number}_image{next(images)}"]
            if item["type"] == "vit_image":
                segments.append(vit(image, config))
                continue
            high, wide = (cells * config.latent_patch_size for cells in next(shapes))
            tokens, grid = patchify(next(latents)[:, :high, :wide], config.latent_patch_size)
            rows = slice(row, row + len(tokens))
            row += len(tokens)
            if item["loss"]:
                t = training_time(times[rows][0], config.timestep_shift_train)
                segments.append(Noise(tokens, grid, t, noise[rows]))
            else:
                segments.append(Latent(tokens, grid))
        samples.append(segments)
    return samples


def reading_order(packed: Packed, rows: Tensor) -> Tensor:
    """Places in reading order of rows numbered as in `Packed`."""
    where = torch.empty_like(packed.order)
    where[packed.order] = torch.arange(len(packed.order))
    return where[rows]


@pytest.fixture
def train(case: Callable[[str], Case]) -> Case:
    return case("train")


@pytest.fixture
def packed(train: Case, config: BagelConfig) -> Packed:
    return pack(training_samples(train, config), config)


def test_golden_bagel_train_packing(train: Case, packed: Packed, config: BagelConfig) -> None:
    assert packed.lengths.tolist() == train.given["sample_lens"]
    assert len(packed.place) == train.given["sequence_length"]
    scalar = train["in.packed_position_ids"]
    assert torch.equal(packed.positions[packed.order], scalar[:, None].expand(-1, 3))
    assert torch.equal(packed.text_ids, train["in.packed_text_ids"])
    texts = torch.arange(len(packed.text_ids))
    assert torch.equal(reading_order(packed, texts), train["in.packed_text_indexes"])
    patches = len(texts) + torch.arange(len(packed.patch_ids))
    assert torch.equal(reading_order(packed, patches), train["in.packed_vit_token_indexes"])
    assert torch.equal(packed.patch_ids, train["in.packed_vit_position_ids"])
    assert list(packed.patch_counts) == train["in.vit_token_seqlens"].tolist()
    assert packed.patches is not None
    close(packed.patches, train["in.packed_vit_tokens"], "patches")
    latents = torch.arange(packed.und_rows, len(packed.place))
    assert torch.equal(reading_order(packed, latents), train["in.packed_vae_token_indexes"])
    assert torch.equal(packed.latent_ids, train["in.packed_latent_position_ids"])
    train.near(packed.times[packed.latent_image], "t_after_shift")
    assert torch.equal(
        reading_order(packed, packed.und_rows + packed.noised_at), train["in.mse_loss_indexes"]
    )
    assert torch.equal(reading_order(packed, packed.label_at), train["in.ce_loss_indexes"])
    assert torch.equal(packed.labels, train["in.packed_label_ids"])
    torch.testing.assert_close(packed.label_weights, train["in.ce_loss_weights"])
    assert packed.mask is not None
    for number, length in enumerate(train.given["sample_lens"]):
        mask = packed.mask[number, 0, :length, :length]
        assert torch.equal(mask, train[f"in.attn_mask_sample{number}"].bool()), number


@torch.no_grad()
def test_golden_bagel_train_encodes_padded_pictures(
    train: Case, vae: AutoEncoder, config: BagelConfig
) -> None:
    latents = train["in.padded_latent"]
    side = [cells * config.vae.downsample for cells in latents.shape[-2:]]
    images = []
    for number, plan in enumerate(train.given["sequence_plans"]):
        kinds = [item["type"] for item in plan if item["type"] != "text"]
        for i, kind in enumerate(kinds):
            image = train[f"in.sample{number}_image{i}"]
            if kind == "vae_image":
                canvas = torch.zeros(3, *side)
                canvas[:, : image.shape[1], : image.shape[2]] = image
                images.append(canvas)
    found = vae.encode(torch.stack(images), train["in.vae_eps"])
    close(found, latents, "padded_latent")


def test_golden_bagel_train_forward(train: Case, packed: Packed, model: Bagel) -> None:
    outputs = model(packed, hidden=True, logits=True)
    train.near(outputs.hidden[0], "llm_input")
    for number in range(model.config.llm.num_hidden_layers):
        if f"out.layer{number}" in train:
            train.near(outputs.hidden[number + 1], f"layer{number}")
    train.near(outputs.hidden[-1], "last_hidden")
    length = train.given["sample_lens"][0]
    scores = model.language_model.logits(outputs.hidden[-1][:length])
    train.near(scores, "und_logits_sample0")
    for found in (outputs, model(packed, logits=True)):
        train.near(found.velocity, "velocity")
        train.near((found.velocity - packed.target).square(), "mse_per_element")
        train.near(found.mse.mean(), "mse_mean")
        train.near(found.ce, "ce")
        train.near(found.logits, "ce_logits")
        train.near(found.ce.mean(), "ce_mean")
        weights = packed.label_weights
        train.near((found.ce * weights).sum() / weights.sum(), "ce_weighted_mean")
        train.near(loss_of(found), "loss")


def loss_of(outputs: Outputs) -> Tensor:
    """The released training loss: both mean errors, equally weighted."""
    return outputs.ce.mean() + outputs.mse.mean()


SHORT = {"q_proj": "self_attn.q_proj", "gate": "mlp.gate_proj"}


def parameter_of(name: str) -> str:
    """`grad_q_proj_moe_gen_layer0` -> the parameter's released name."""
    if match := re.fullmatch(r"(\w+?)(_moe_gen)?_layer(\d+)", name):
        head, _, tail = SHORT[match[1]].partition(".")
        expert = match[2] or ""
        inner = f"{head}{expert}.{tail}" if head == "mlp" else f"{head}.{tail}{expert}"
        return f"language_model.model.layers.{match[3]}.{inner}.weight"
    return name.replace("connector_", "connector.") + ".weight"


def test_golden_bagel_train_gradients(train: Case, packed: Packed, model: Bagel) -> None:
    rows = model.embed(packed)
    assert rows.gen is not None
    rows.und.retain_grad()
    rows.gen.retain_grad()
    loss_of(model(packed, rows=rows)).backward()
    assert rows.und.grad is not None and rows.gen.grad is not None
    entering = Rows(und=rows.und.grad, gen=rows.gen.grad).read(packed)
    train.near(entering, "grad_llm_input")
    parameters = dict(model.named_parameters())
    recorded = [n.removeprefix("out.grad_") for n in train.tensors if n.startswith("out.grad_")]
    for name in recorded:
        if name != "llm_input":
            gradient = parameters[parameter_of(name)].grad
            assert gradient is not None
            train.near(gradient, f"grad_{name}")
    norms = train.wanted["grad_norm_by_param"]
    still = set(train.wanted["no_grad_params"])
    assert set(norms) | still == set(parameters)
    for name, parameter in parameters.items():
        if name in still:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert float(parameter.grad.norm()) == pytest.approx(norms[name], rel=1e-4, abs=2e-5)


# --- contexts -----------------------------------------------------------------------------


def stands(cache: Cache, wanted: dict[str, int]) -> bool:
    return (cache.length, int(cache.positions[0])) == (wanted["kv_len"], wanted["rope"])


@torch.no_grad()
def test_golden_bagel_und(case: Callable[[str], Case], model: Bagel) -> None:
    vectors = case("und")
    special = model.config.special_tokens
    image, question = vit(vectors["in.image_vit"], model.config), vectors.given["question_ids"]
    seen = model.prefill([image])
    assert stands(seen, vectors.wanted["after_image"])
    asked = model.prefill([Text(question)], cache=seen)
    assert stands(asked, vectors.wanted["after_text"])
    vectors.has_cache(asked)
    vectors.has_cache(model.prefill([image, Text(question)]))

    bos, *greedy = vectors.wanted["greedy_tokens_including_bos"]
    assert bos == special.bos_token_id
    room = vectors.given["max_length"] - 1
    spoken = [*decode_text(model, asked, max_new=room)]
    assert spoken == [i for i in greedy if i != special.eos_token_id]
    cache, scores = asked, []
    for token in (bos, *greedy):
        found, cache = model.next_logits([token], cache)
        scores.append(found)
    vectors.near(torch.cat(scores), "greedy_logits")

    answer = vectors.given["answer_ids_for_teacher_forcing"]
    turn = pack([[Text(answer, loss=True)]], model.config)
    vectors.near(model(turn, asked, logits=True).logits, "teacher_forced_logits")


def guidance(hyper: dict[str, Any]) -> Guidance:
    low, high = hyper["cfg_interval"]
    return Guidance(
        text=hyper["cfg_text_scale"],
        image=hyper["cfg_img_scale"],
        interval=(low, high),
        renorm="text_channel" if "text" in hyper["cfg_renorm_type"] else hyper["cfg_renorm_type"],
        renorm_min=hyper["cfg_renorm_min"],
    )


def draws(
    vectors: Case,
    tag: str,
    model: Bagel,
    vae: AutoEncoder,
    *,
    together: bool,
    **contexts: Cache,
) -> None:
    """One recorded run, step by step, and its picture where there is one."""
    hyper = vectors.given[f"{tag}_hyper"]
    grid = grid_of(hyper["image_shape_hw"], model.config)
    steps: list[SamplingStep] = []
    noise = vectors["in.init_noise"][None]
    final = sample_latents(
        model,
        noise=noise,
        grid=grid,
        guidance=guidance(hyper),
        steps=hyper["num_timesteps"] - 1,
        shift=hyper["timestep_shift"],
        together=together,
        on_step=steps.append,
        **contexts,
    )
    vectors.near(torch.cat([noise, *(step.state for step in steps)]), f"{tag}_x", path=True)
    vectors.near(torch.tensor([step.t for step in steps]), f"{tag}_t")
    vectors.near(torch.cat([step.velocity for step in steps]), f"{tag}_v", path=True)
    for ours, theirs in (("full", "cond"), ("no_text", "text"), ("no_image", "img")):
        found = [step.branches[ours] for step in steps if ours in step.branches]
        assert bool(found) == (f"out.{tag}_raw_{theirs}" in vectors), (tag, theirs)
        if found:
            vectors.near(torch.cat(found), f"{tag}_raw_{theirs}", path=True)
    latent = unpatchify(final, grid, model.config.latent_patch_size)
    if f"out.{tag}_latent_chw" in vectors:
        vectors.near(latent, f"{tag}_latent_chw", path=True)
    if f"out.{tag}_decoded" in vectors:
        image = vae.decode(latent)
        vectors.near(image, f"{tag}_decoded", path=True)
        off = (to_pixels(image[0]).int() - vectors[f"out.{tag}_image_u8"].int()).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 0.01


def tags(vectors: Case) -> list[str]:
    return [name.removesuffix("_hyper") for name in vectors.given if name.endswith("_hyper")]


@pytest.mark.parametrize("together", [True, False])
@torch.no_grad()
def test_golden_bagel_t2i(
    case: Callable[[str], Case], model: Bagel, vae: AutoEncoder, together: bool
) -> None:
    vectors = case("t2i")
    full = model.prefill([Text(vectors.given["prompt_ids"])])
    assert stands(full, vectors.wanted["context"])
    assert stands(model.empty_cache(), vectors.wanted["cfg_text_context"])
    vectors.has_cache(full)
    assert tags(vectors)
    for tag in tags(vectors):
        draws(vectors, tag, model, vae, together=together, full=full, no_image=full)


def source(vectors: Case) -> Image.Image:
    return Image.fromarray(vectors["in.source_u8"].numpy())


def rule_of(settings: dict[str, int]) -> SizeRule:
    names = {"max": "max_size", "min": "min_size"}
    return SizeRule(**{names.get(key, key): value for key, value in settings.items()})


@pytest.mark.parametrize("together", [True, False])
@torch.no_grad()
def test_golden_bagel_edit(
    case: Callable[[str], Case], model: Bagel, vae: AutoEncoder, together: bool
) -> None:
    vectors, config = case("edit"), model.config
    resized = rule_of(vectors.given["vae_transform"]).resize(source(vectors))
    image = to_tensor(resized)
    pixels = torch.from_numpy(np.array(resized))
    assert torch.equal(pixels, vectors["out.resized_u8"])
    vectors.near(image, "vae_input")
    small = to_tensor(rule_of(vectors.given["vit_transform"]).resize(resized))
    vectors.near(small, "vit_input")

    tokens, grid = patchify(
        vae.encode(image[None], vectors["in.vae_eps"])[0], config.latent_patch_size
    )
    instruction = Text(vectors.given["instruction_ids"])
    pictures = model.prefill([Latent(tokens, grid), vit(small, config)])
    full = model.prefill([instruction], cache=pictures)
    no_text = pictures
    no_image = model.prefill([instruction])
    assert stands(full, vectors.wanted["context_full"])
    assert stands(no_text, vectors.wanted["context_cfg_text"])
    assert stands(no_image, vectors.wanted["context_cfg_img"])
    vectors.has_cache(full)
    assert tags(vectors)
    for tag in tags(vectors):
        draws(
            vectors,
            tag,
            model,
            vae,
            together=together,
            full=full,
            no_text=no_text,
            no_image=no_image,
        )


@torch.no_grad()
def test_golden_bagel_batch2(case: Callable[[str], Case], model: Bagel) -> None:
    vectors, config = case("batch2"), model.config
    prompts, t = vectors.given["prompt_ids"], vectors.given["t"]
    grids = [grid_of(size, config) for size in vectors.given["image_sizes_hw"]]
    noised = torch.split(vectors["in.x_t"], [high * wide for high, wide in grids])
    alone = [model.prefill([Text(prompt)]) for prompt in prompts]
    batched = model.prefill(*([Text(prompt)] for prompt in prompts))
    for cache in (batched, Cache.stack(alone)):
        assert cache.positions.tolist() == vectors.wanted["ropes"]
        assert cache.real_rows().sum(1).tolist() == vectors.wanted["kv_lens"]
        for name in vectors.tensors:
            if match := re.fullmatch(r"out\.(context_([kv])(\d+))", name):
                held = cache.keys if match[2] == "k" else cache.values
                vectors.near(held[int(match[3])][cache.real_rows()], match[1])
        samples = [[Noise(x, grid, t)] for x, grid in zip(noised, grids, strict=True)]
        packed = pack(samples, config)
        assert torch.equal(packed.latent_ids, vectors["in.packed_vae_position_ids"])
        assert torch.equal(packed.text_ids, vectors["in.packed_text_ids"])
        places = packed.positions[:, 0] + cache.positions[packed.sample]
        assert torch.equal(places[packed.order], vectors["in.packed_position_ids"])
        vectors.near(model(packed, cache).velocity, "velocity")
    single = [
        model.velocity(cache, x[None], t, model.drawing(1, grid))[0]
        for cache, x, grid in zip(alone, noised, grids, strict=True)
    ]
    vectors.near(torch.cat(single), "velocity")


# --- concept tokens -----------------------------------------------------------------------


@pytest.fixture
def persona(case: Callable[[str], Case]) -> Case:
    return case("persona")


@pytest.fixture
def soft(persona: Case) -> Iterator[dict[str, Tensor]]:
    """The learned rows, as leaves."""
    yield {
        name: persona[f"in.soft_{name}"].clone().requires_grad_() for name in ("sks", "und", "gen")
    }


def introduction(persona: Case, soft: dict[str, Tensor]) -> Text:
    return concept_turn(
        soft["sks"],
        soft["und"],
        soft["gen"],
        says=[persona.given["id_is"]],
        ends=[persona.given["id_dot"]],
    )


def persona_parts(
    persona: Case, soft: dict[str, Tensor], config: BagelConfig
) -> tuple[list[Segment], list[Segment]]:
    """What follows the introduction in the two samples: a drawing, an answer."""
    given = persona.given
    tokens, grid = patchify(persona["in.latent"][0], config.latent_patch_size)
    t = training_time(torch.tensor(given["timestep_pre_sigmoid"]), config.timestep_shift_train)
    question = given["question_ids"]
    caption = Text([0, *given["caption_ids"]], soft=[SoftRows([0], soft["sks"])])
    asking = Text([*question, 0], soft=[SoftRows([len(question)], soft["sks"])])
    return (
        [caption, Noise(tokens, grid, t, persona["in.flow_noise"])],
        [vit(persona["in.vit_image"], config), asking, Text(given["answer_ids"], loss=True)],
    )


def persona_samples(persona: Case, soft: dict[str, Tensor], config: BagelConfig) -> list[Sample]:
    drawing, answer = persona_parts(persona, soft, config)
    intro = introduction(persona, soft)
    return [[intro, *drawing], [intro, *answer]]


def gradients_near(persona: Case, soft: dict[str, Tensor]) -> None:
    for name, rows in soft.items():
        assert rows.grad is not None
        persona.near(rows.grad, f"grad_{name}")


def test_golden_bagel_persona_packed(persona: Case, soft: dict[str, Tensor], model: Bagel) -> None:
    model.requires_grad_(False)
    packed = pack(persona_samples(persona, soft, model.config), model.config)
    assert packed.lengths.tolist() == persona.given["sample_lens"]
    scalar = persona["in.packed_position_ids"]
    assert torch.equal(packed.positions[packed.order], scalar[:, None].expand(-1, 3))
    und = reading_order(packed, torch.arange(packed.und_rows)).sort().values
    gen = reading_order(packed, torch.arange(packed.und_rows, len(packed.place))).sort().values
    assert torch.equal(und, persona["in.packed_und_token_indexes"])
    assert torch.equal(gen, persona["in.packed_gen_token_indexes"])
    persona.near(packed.times[0], "t")
    traced = model(packed, hidden=True)
    persona.near(traced.hidden[0], "packed_sequence")
    persona.near(traced.hidden[-1], "last_hidden")
    outputs = model(packed, logits=True)
    persona.near(outputs.logits, "ce_logits")
    persona.near(outputs.ce.mean(), "ce")
    persona.near(outputs.velocity, "velocity")
    persona.near(outputs.mse.mean(), "mse")
    persona.near(loss_of(outputs), "loss")
    loss_of(outputs).backward()
    gradients_near(persona, soft)


def test_golden_bagel_persona_cached(persona: Case, soft: dict[str, Tensor], model: Bagel) -> None:
    intro = introduction(persona, soft)
    with torch.no_grad():
        alone = model(pack([[intro]], model.config), hidden=True)
        persona.near(alone.hidden[-1], "cached_prefix_hidden")
        prefix = model.prefill([intro])
        for name in persona.tensors:
            if match := re.fullmatch(r"out\.(cached_prefix_([kv])(\d+))", name):
                held = prefix.keys if match[2] == "k" else prefix.values
                persona.near(held[int(match[3])][0], match[1])
        caption, noise = persona_parts(persona, soft, model.config)[0]
        assert isinstance(noise, Noise) and noise.noise is not None
        context = model.prefill([caption], cache=prefix)
        t = float(persona["out.t"])
        x = (1 - t) * noise.tokens + t * noise.noise
        velocity = model.velocity(context, x[None], t, model.drawing(1, noise.grid))
        persona.near(velocity, "cached_velocity")


def test_golden_bagel_persona_learns_through_a_shared_prefix(
    persona: Case, soft: dict[str, Tensor], model: Bagel
) -> None:
    model.requires_grad_(False)
    prefix = model.prefill([introduction(persona, soft)])
    packed = pack(persona_parts(persona, soft, model.config), model.config)
    loss = loss_of(model(packed, prefix))
    persona.near(loss, "loss")
    loss.backward()
    gradients_near(persona, soft)


# --- the released sizes -------------------------------------------------------------------


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SHIPPED / f"bagel-7b-mot-{name}.json").read_text())
    return found


def expanded(listed: dict[str, Any]) -> dict[str, list[int]]:
    """Every tensor of a manifest; `{L}` and `{V}` stand for the ranges that it states."""
    tensors: dict[str, list[int]] = dict(listed["tensors"])
    for mark, meaning in listed.get("placeholders", {}).items():
        match = re.match(r"(\d+)\.\.(\d+)", meaning)
        assert match
        for name in [name for name in tensors if mark in name]:
            shape = tensors.pop(name)
            for i in range(int(match[1]), int(match[2]) + 1):
                tensors[name.replace(mark, str(i))] = shape
    return tensors


def test_golden_bagel_manifest_of_the_7b_model() -> None:
    listed = manifest("ema")
    config = BagelConfig.from_dict(
        {
            **{k: listed["config"][k] for k in ("llm", "vit", "bagel")},
            "vae": manifest("ae")["config"],
        }
    )
    assert config == BagelConfig()
    assert sorted(vars(config.special_tokens).values()) == sorted(
        listed["config"]["special_tokens"].values()
    )
    with torch.device("meta"):
        model = Bagel(config)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert found == expanded(listed)
    assert len(found) == listed["tensor_count"]
    assert sum(p.numel() for p in model.parameters()) == listed["param_count"]


def test_golden_bagel_manifest_of_the_autoencoder() -> None:
    listed = manifest("ae")
    with torch.device("meta"):
        vae = AutoEncoder(BagelConfig.from_dict({"vae": listed["config"]}).vae)
    found = {name: list(value.shape) for name, value in vae.state_dict().items()}
    assert found == expanded(listed)
    assert sum(p.numel() for p in vae.parameters()) == listed["param_count"]


@torch.no_grad()
def test_golden_bagel_bfloat16_stays_near(case: Callable[[str], Case], model: Bagel) -> None:
    train = case("train")
    samples = training_samples(train, model.config)
    found = model.to(torch.bfloat16)(pack(samples, model.config)).velocity.float()
    wanted = train["out.velocity"]
    assert (found - wanted).square().mean().sqrt() < 0.02 * wanted.square().mean().sqrt()
