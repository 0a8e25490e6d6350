"""Lance's arithmetic against the recorded outputs of the released classes (a tiny random model).

Every dimension, count and setting is read from the fixtures. OMNIPERSONA_GOLDENS names another
folder of the same form: one that holds config.json, or one with a `lance` folder that does.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from op_bagel.cache import Cache
from op_bagel.decoder import Frame, Rows
from op_bagel.model import Bagel, Outputs
from op_bagel.packing import Packed, pack
from op_bagel.pictures import Grid, patchify, position_ids, sincos_table_3d, to_tensor, unpatchify
from op_bagel.sampling import (
    Guidance,
    SamplingStep,
    decode_text,
    sample_latents,
    time_grid,
    training_time,
)
from op_bagel.segments import Latent, Noise, Segment, SoftRows, Text, Vit
from op_lance.config import LanceConfig
from op_lance.layout import concept_text, painting_contexts, placed, raw
from op_lance.pictures import BucketRule, for_tower, merged, tower_patches
from op_lance.tower import build_tower, see
from op_lance.vae import AutoEncoder, plane, to_pixels

SHIPPED = Path(__file__).parent.parent / "goldens" / "lance"
SINGLE, PATH = 2e-5, 2e-4  # absolute tolerance of one forward, and of a path of several steps
RELATIVE = 1e-4


def folder() -> Path:
    """Where the fixtures are."""
    place = Path(os.environ.get("OMNIPERSONA_GOLDENS") or SHIPPED)
    return place if (place / "config.json").exists() else place / "lance"


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

    def has_cache(self, cache: Cache, start: str = "context") -> None:
        """Each recorded `<start>_{k,v}{layer}` equals the cache of one context."""
        recorded = [
            m for m in (re.fullmatch(rf"out\.{start}_([kv])(\d+)", n) for n in self.tensors) if m
        ]
        assert recorded
        for match in recorded:
            held = cache.keys if match[1] == "k" else cache.values
            self.near(held[int(match[2])][0], f"{start}_{match[1]}{match[2]}")


@pytest.fixture(scope="module")
def config() -> LanceConfig:
    return LanceConfig.from_dict(json.loads((folder() / "config.json").read_text()))


@pytest.fixture(scope="module")
def case() -> Callable[[str], Case]:
    described = json.loads((folder() / "cases.json").read_text())["cases"]
    tensors = load_file(folder() / "cases.safetensors")
    return lambda name: Case(name, described[name], tensors)


VIT = "vit_model."


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(folder() / "weights.safetensors")


@pytest.fixture
def model(config: LanceConfig, weights: dict[str, Tensor]) -> Bagel:
    model = Bagel(config.mixture)
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(VIT)})
    return model.eval()


@pytest.fixture(scope="module")
def tower(config: LanceConfig, weights: dict[str, Tensor]) -> nn.Module:
    tower = build_tower(config.tower)
    own = {k.removeprefix(VIT): v for k, v in weights.items() if k.startswith(VIT)}
    tower.load_state_dict(own)
    return tower.requires_grad_(False)


@pytest.fixture(scope="module")
def vae(config: LanceConfig) -> AutoEncoder:
    vae = AutoEncoder(config.vae)
    stored = load_file(folder() / "vae.safetensors")
    planes = {name: plane(name, value) for name, value in stored.items()}
    vae.load_state_dict({name: value for name, value in planes.items() if value is not None})
    return vae.eval()


def one_frame(x: Tensor) -> Tensor:
    """A recorded video of one frame [..., 1, H, W] as a picture."""
    return x.squeeze(-3)


# --- parts --------------------------------------------------------------------------------


@torch.no_grad()
def test_golden_lance_vae(case: Callable[[str], Case], vae: AutoEncoder) -> None:
    vectors = case("vae")
    for tag in ("a", "b"):
        image = one_frame(vectors[f"in.image_{tag}"])[None]
        eps = one_frame(vectors[f"in.eps_{tag}"])
        mean, logvar = vae.moments(image)
        vectors.near(mean, f"mean_{tag}")
        vectors.near(logvar, f"logvar_{tag}")
        z = vae.encode(image, eps)
        vectors.near(z[0].movedim(0, -1), f"z_{tag}")
        decoded = vae.decode(z)
        vectors.near(decoded, f"decoded_{tag}")
        if f"out.u8_{tag}" in vectors:
            same_pixels(to_pixels(decoded[0]), vectors[f"out.u8_{tag}"])


def same_pixels(found: Tensor, wanted: Tensor) -> None:
    off = (found.int() - wanted.int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01


@torch.no_grad()
def test_golden_lance_vit(
    case: Callable[[str], Case], config: LanceConfig, tower: nn.Module
) -> None:
    vectors = case("vit")
    images = [vectors["in.image_a"], vectors["in.image_b"]]
    patches, grids = zip(*(tower_patches(image, config.tower) for image in images), strict=True)
    assert [[1, *grid] for grid in grids] == vectors["out.grid_thw"].tolist()
    vectors.near(torch.cat(patches), "patches")
    blocks: dict[str, Tensor] = {}
    untyped: Any = tower
    hooks = [
        block.register_forward_hook(
            lambda _module, _inputs, found, name=f"block{i}": blocks.update({name: found})
        )
        for i, block in enumerate(untyped.blocks)
    ]
    features = see(tower, torch.cat(patches), grids)
    for hook in hooks:
        hook.remove()
    vectors.near(torch.cat(features), "features")
    assert [len(one) for one in features] == [h * w for h, w in map(of_tower(config), grids)]
    for name in ("block0", "block3"):
        vectors.near(blocks[name][-len(vectors[f"out.{name}"]) :], name)  # of the last picture


def of_tower(config: LanceConfig) -> Callable[[Grid], Grid]:
    return lambda grid: merged(grid, config.tower)


@torch.no_grad()
def test_golden_lance_misc(case: Callable[[str], Case], model: Bagel) -> None:
    vectors, config = case("misc"), model.config
    times = vectors["in.timesteps"]
    vectors.near(model.time_embedder.features(times), "time_features")
    vectors.near(model.time_embedder(times, torch.float32), "time_embedding")
    width, side = config.llm.hidden_size, config.max_latent_size
    vectors.near(sincos_table_3d(config.latent_frames, side, width), "latent_pos_embed")
    assert torch.equal(position_ids((3, 5), side), vectors["out.pos_ids_1x3x5"])
    positions = vectors["in.mrope_positions"][:, 0].T
    frame = rotary(model, positions)
    vectors.near(frame.rotate(vectors["in.mrope_x"]), "mrope_rotated")
    checked = 0
    for name in vectors.tensors:
        if match := re.fullmatch(r"out\.(times_n(\d+)_shift([\d.]+))", name):
            vectors.near(time_grid(int(match[2]), float(match[3])), match[1])
            checked += 1
    assert checked >= 2


def rotary(model: Bagel, positions: Tensor) -> Frame:
    """The rotary frame of rows at positions [n, 3]."""
    packed = pack([[Text([0] * len(positions), raw=True)]], model.config)
    return model._frame(replace(packed, positions=positions), None)


@torch.no_grad()
def test_golden_lance_pixels(case: Callable[[str], Case]) -> None:
    vectors = case("pixels")
    vae_rule = BucketRule(vectors.given["resolution_vae"], 16)
    vit_rule = BucketRule(vectors.given["resolution_vit"], 28)
    for tag in ("a", "b"):
        image = Image.fromarray(vectors[f"in.{tag}_u8"].numpy())
        found = to_tensor(vae_rule.apply(image))
        close(found, one_frame(vectors[f"out.{tag}_vae"]), f"{tag}_vae", 1e-6)
        found = for_tower(vit_rule.apply(image))
        for number in range(2):
            close(found, vectors[f"out.{tag}_vit"][:, number], f"{tag}_vit", 1e-6)


def test_golden_lance_resize() -> None:
    specs = json.loads((folder() / "cases.json").read_text())["resize"]["specs"]
    assert specs
    for name, spec in specs.items():
        rule = BucketRule(spec["resolution"], spec["final_multiple"])
        assert [list(bucket) for bucket in rule.buckets] == spec["buckets_w_h"], name
        for width, height, *wanted in spec["rows"]:
            cut = rule.cut(width, height)
            left, top, right, bottom = cut.box
            found = [right - left, bottom - top, *cut.bucket, *cut.size]
            assert found == wanted[:6], (name, width, height)
            if not wanted[6]:
                assert [left, top] == wanted[7:], (name, width, height)


# --- packed rows --------------------------------------------------------------------------


def segments_of(
    ids: list[int], splits: list[int], modes: list[str], grids: list[Grid], config: LanceConfig
) -> list[Segment]:
    """The splits of a recorded sample as segments; pictures hold zeros. Where text ends in an
    answer, its ids are labels."""
    width = config.mixture.latent_width
    shapes = iter(grids)
    found: list[Segment] = []
    at = 0
    for length, mode in zip(splits, modes, strict=True):
        rows = ids[at : at + length]
        at += length
        if mode == "causal":
            found.append(Text(rows, raw=True))
            continue
        grid = next(shapes)
        assert grid[0] * grid[1] == length - 2
        if mode == "full":
            features = torch.zeros(length - 2, config.llm.hidden_size)
            found.append(Vit(features=features, grid=grid))
        elif mode == "full_noise":
            found.append(Latent(torch.zeros(length - 2, width), grid))
        else:
            found.append(Noise(torch.zeros(length - 2, width), grid, 0.5))
    last = found[-1]
    if isinstance(last, Text) and len(last.ids) > 1:
        begin = len(last.ids) - last.ids[::-1].index(config.special_tokens.bos_token_id)
        found[-1] = replace(last, loss=True, loss_from=begin + 2)  # behind "assistant\n"
    return found


def token_grids(grids: list[list[int]], config: LanceConfig) -> list[Grid]:
    """Recorded grids as grids of tokens; recorded are patches before merging, of latents too."""
    side = config.tower.spatial_merge_size
    return [(high // side, wide // side) for _, high, wide in grids]


def reading_order(packed: Packed, rows: Tensor) -> Tensor:
    """Places in reading order of rows numbered as in `Packed`."""
    where = torch.empty_like(packed.order)
    where[packed.order] = torch.arange(len(packed.order))
    return where[rows]


def rows_of(packed: Packed) -> dict[str, Tensor]:
    """Places in reading order of each kind of rows."""
    texts = len(packed.text_ids)
    features = 0 if packed.features is None else len(packed.features)
    return {
        "text_indexes": reading_order(packed, torch.arange(texts)),
        "vit_indexes": reading_order(packed, texts + torch.arange(features)),
        "vae_indexes": reading_order(packed, torch.arange(packed.und_rows, len(packed.place))),
        "noised_indexes": reading_order(packed, packed.und_rows + packed.noised_at),
        "ce_indexes": reading_order(packed, packed.label_at),
    }


@pytest.mark.parametrize("name", ["pack_t2i", "pack_edit", "pack_x2t"])
def test_golden_lance_packing(case: Callable[[str], Case], config: LanceConfig, name: str) -> None:
    vectors = case(name)
    ids, modes = vectors.given["token_ids"], vectors.wanted["attn_modes"]
    grids = token_grids(vectors.given["grids_thw"], config)
    sample = segments_of(ids, vectors.wanted["split_lens"], modes, grids, config)
    anchor = None if name == "pack_x2t" else config.anchor
    packed = pack([placed(sample, anchor=anchor)], config.mixture)
    positions = packed.positions[packed.order].T
    assert torch.equal(positions, vectors["out.positions"])
    assert packed.mask is not None
    assert torch.equal(packed.mask[0, 0], vectors["out.mask"].bool())
    found = rows_of(packed)
    for kind, places in found.items():
        if f"out.{kind}" in vectors:
            assert places.tolist() == vectors[f"out.{kind}"].tolist(), kind
    assert packed.text_ids.tolist() == [ids[i] for i in found["text_indexes"].tolist()]
    if "out.labels" in vectors:
        assert packed.labels.tolist() == vectors["out.labels"].tolist()
    if "out.unconditional_positions" in vectors:
        prompt = vectors.wanted["modality"].index(0)
        split = np.cumsum(vectors.wanted["split_lens"]).tolist().index(prompt) + 1
        bare = [segment for i, segment in enumerate(sample) if i != split]
        packed = pack([placed(bare, anchor=anchor)], config.mixture)
        positions = packed.positions[packed.order].T
        assert torch.equal(positions, vectors["out.unconditional_positions"])


# --- packed training ----------------------------------------------------------------------


def training_samples(vectors: Case, config: LanceConfig, tower: nn.Module) -> list[list[Segment]]:
    """The recorded samples, with their pictures."""
    patches, grid = tower_patches(vectors["in.vit_pixels"][:, 0], config.tower)
    features = see(tower, patches, [grid])[0]
    noise, times = vectors["in.noise"], vectors["in.pre_t"]
    latents = iter(vectors[f"in.latent{i}"] for i in range(len(vectors.given["latent_shapes_thw"])))
    samples: list[list[Segment]] = []
    row = 0
    for given, grids in zip(vectors.given["samples"], vectors.given["grids_thw"], strict=True):
        modes = given["attn_modes"]
        shapes = token_grids(grids, config)
        sample: list[Segment] = []
        for segment in segments_of(given["ids"], given["split_lens"], modes, shapes, config):
            if isinstance(segment, Vit):
                segment = replace(segment, features=features)
            if isinstance(segment, Latent | Noise):
                tokens = next(latents).flatten(0, 2)
                rows = slice(row, row + len(tokens))
                row += len(tokens)
                segment = replace(segment, tokens=tokens)
                t = training_time(times[rows][0], vectors.given["timestep_shift"])
                if isinstance(segment, Noise):
                    segment = replace(segment, t=t, noise=noise[rows])
            sample.append(segment)
        samples.append(placed(sample, anchor=config.anchor))
    return samples


@pytest.fixture
def train(case: Callable[[str], Case]) -> Case:
    return case("train")


@pytest.fixture
def packed(train: Case, config: LanceConfig, tower: nn.Module) -> Packed:
    return pack(training_samples(train, config, tower), config.mixture)


@torch.no_grad()
def test_golden_lance_train_encodes_pictures(train: Case, vae: AutoEncoder) -> None:
    for number in range(len(train.given["latent_shapes_thw"])):
        image = one_frame(train[f"in.image{number}"])[None]
        found = vae.encode(image, one_frame(train[f"in.vae_eps{number}"]))
        close(found[0].movedim(0, -1), train[f"in.latent{number}"][0], f"latent{number}")


def test_golden_lance_train_packing(train: Case, packed: Packed) -> None:
    assert packed.lengths.tolist() == train.given["sample_lens"]
    assert torch.equal(packed.positions[packed.order].T, train["in.positions"])
    for name, found in rows_of(packed).items():
        assert torch.equal(found, train[f"in.{name}"]), name
    texts = train["in.text_indexes"]
    assert torch.equal(packed.text_ids, train["in.token_ids"][texts])
    assert torch.equal(packed.latent_ids, train["in.latent_ids"])
    assert torch.equal(packed.labels, train["in.labels"])
    torch.testing.assert_close(packed.label_weights, train["in.label_weights"])
    train.near(packed.times[packed.latent_image], "t_after_shift")
    assert packed.mask is not None
    for number, length in enumerate(train.given["sample_lens"]):
        mask = packed.mask[number, 0, :length, :length]
        assert torch.equal(mask, train[f"in.mask{number}"].bool()), number


def loss_of(outputs: Outputs) -> Tensor:
    """The recorded loss: both mean errors, equally weighted."""
    return outputs.ce.mean() + outputs.mse.mean()


def test_golden_lance_train_forward(train: Case, packed: Packed, model: Bagel) -> None:
    assert model.config.llm.tokenizer_length == train.given["tokenizer_length"]
    outputs = model(packed, hidden=True, logits=True)
    train.near(outputs.hidden[0], "llm_input")
    for number in range(model.config.llm.num_hidden_layers):
        if f"out.layer{number}" in train:
            train.near(outputs.hidden[number + 1], f"layer{number}")
    train.near(outputs.hidden[-1], "last_hidden")
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


def parameter_of(name: str) -> str:
    """`q_proj_moe_gen_layer0` -> the parameter's released name."""
    if match := re.fullmatch(r"(\w+)_layer(\d+)", name):
        return f"language_model.model.layers.{match[2]}.self_attn.{match[1]}.weight"
    return f"{name}.weight"


def test_golden_lance_train_gradients(train: Case, packed: Packed, model: Bagel) -> None:
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
    still = {name for name in train.wanted["no_grad_params"] if not name.startswith(VIT)}
    assert set(norms) | still == set(parameters)
    for name, parameter in parameters.items():
        if name in still:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert float(parameter.grad.norm()) == pytest.approx(norms[name], rel=1e-4, abs=2e-5)


@torch.no_grad()
def test_golden_lance_bfloat16_stays_near(
    train: Case, config: LanceConfig, tower: nn.Module, model: Bagel
) -> None:
    samples = training_samples(train, config, tower)
    found = model.to(torch.bfloat16)(pack(samples, model.config)).velocity.float()
    wanted = train["out.velocity"]
    assert (found - wanted).square().mean().sqrt() < 0.03 * wanted.square().mean().sqrt()


# --- inference ----------------------------------------------------------------------------


@torch.no_grad()
def test_golden_lance_und(
    case: Callable[[str], Case], config: LanceConfig, tower: nn.Module, model: Bagel
) -> None:
    vectors = case("und")
    image = Image.fromarray(vectors["in.source_u8"].numpy())
    pixels = vectors["out.vit_pixels"][:, 0]
    rule = BucketRule(case("pixels").given["resolution_vit"], config.tower.multiple)
    close(for_tower(rule.apply(image)), pixels, "vit_pixels", 1e-6)
    patches, grid = tower_patches(pixels, config.tower)
    close(patches, vectors["in.vit_patches"], "vit_patches", 1e-6)
    features = see(tower, patches, [grid])[0]

    *ids, last = vectors.given["prompt_ids"]
    first, block, *_ = vectors.given["split_lens"]
    head, question = ids[:first], ids[first + block :]
    picture = Vit(features=features, grid=merged(grid, config.tower))
    context = model.prefill(placed([raw(head), picture, raw(question)]))
    assert context.length == vectors.wanted["prompt_len"] - 1
    vectors.has_cache(context)

    wanted = vectors.wanted["greedy_tokens"]
    room = vectors.given["max_new"]
    eos = config.special_tokens.eos_token_id
    assert [*decode_text(model, context, max_new=room, first=last)] == [
        token for token in wanted if token != eos
    ]
    cache, scores = context, []
    for token in (last, *wanted[:-1]):
        found, cache = model.next_logits([token], cache)
        scores.append(found)
    vectors.near(torch.cat(scores), "greedy_logits")


def guidance(hyper: dict[str, Any]) -> Guidance:
    low, high = hyper["cfg_interval"]
    kind = hyper["cfg_renorm_type"]
    return Guidance(
        text=hyper["cfg_text_scale"],
        interval=(low, high),
        renorm="global" if kind == "none" else kind,
        renorm_min=1.0 if kind == "none" else hyper["cfg_renorm_min"],
    )


def tags(vectors: Case) -> list[str]:
    return [name.removesuffix("_hyper") for name in vectors.given if name.endswith("_hyper")]


def paints(
    vectors: Case,
    model: Bagel,
    vae: AutoEncoder,
    before: Cache,
    prompt: list[int],
    after: list[int],
    *,
    together: bool,
    source: int | None = None,
) -> None:
    """All recorded runs of a case, step by step, and the picture where there is one."""
    stride = model.config.stride
    high, wide = vectors.given["image_hw"]
    grid = (high // stride, wide // stride)
    assert tags(vectors)
    for tag in tags(vectors):
        full, bare = painting_contexts(
            model, before, raw(prompt), raw(after), source=source, recount=tag == "plain"
        )
        if tag == "cached":
            vectors.has_cache(full)
            vectors.has_cache(bare, "uncond")
        hyper = vectors.given[f"{tag}_hyper"]
        steps: list[SamplingStep] = []
        noise = vectors["in.init_noise"][None]
        final = sample_latents(
            model,
            full,
            no_text=bare,
            noise=noise,
            grid=grid,
            guidance=guidance(hyper),
            steps=hyper["num_updates"],
            shift=hyper["timestep_shift"],
            together=together,
            on_step=steps.append,
        )
        vectors.near(torch.cat([noise, *(step.state for step in steps)]), f"{tag}_x", path=True)
        vectors.near(torch.tensor([step.t for step in steps]), f"{tag}_t")
        vectors.near(torch.cat([step.velocity for step in steps]), f"{tag}_v", path=True)
        for ours, theirs in (("full", "cond"), ("no_text", "text")):
            found = [step.branches.get(ours) for step in steps]
            name = f"{tag}_raw_{theirs}"
            ran = [branch for branch in found if branch is not None]
            assert bool(ran) == (f"out.{name}" in vectors), name
            if ran:
                vectors.near(torch.cat(ran), name, path=True)
        if f"out.{tag}_decoded" in vectors:
            image = vae.decode(unpatchify(final, grid, 1))
            vectors.near(image, f"{tag}_decoded", path=True)
            same_pixels(to_pixels(image[0]), vectors[f"out.{tag}_u8"])


@pytest.mark.parametrize("together", [True, False])
@torch.no_grad()
def test_golden_lance_t2i(
    case: Callable[[str], Case], model: Bagel, vae: AutoEncoder, together: bool
) -> None:
    vectors = case("t2i")
    ids = vectors.given["token_ids"]
    head, prompt, after, *_ = np.cumsum(vectors.given["split_lens"]).tolist()
    before = model.prefill([raw(ids[:head])])
    paints(vectors, model, vae, before, ids[head:prompt], ids[prompt:after], together=together)


@pytest.mark.parametrize("together", [True, False])
@torch.no_grad()
def test_golden_lance_edit(
    case: Callable[[str], Case],
    config: LanceConfig,
    tower: nn.Module,
    model: Bagel,
    vae: AutoEncoder,
    together: bool,
) -> None:
    vectors = case("edit")
    image = Image.fromarray(vectors["in.source_u8"].numpy())
    sizes = case("pixels").given
    found = to_tensor(BucketRule(sizes["resolution_vae"], config.vae.downsample).apply(image))
    close(found, vectors["in.vae_input"][:, 0], "vae_input", 1e-6)
    found = for_tower(BucketRule(sizes["resolution_vit"], config.tower.multiple).apply(image))
    close(found, vectors["in.vit_pixels"][:, 0], "vit_pixels", 1e-6)
    latent = vae.encode(vectors["in.vae_input"][:, 0][None], one_frame(vectors["in.vae_eps"]))
    close(latent[0].movedim(0, -1), vectors["in.source_latent"][0], "source_latent")
    tokens, grid = patchify(latent[0], 1)
    patches, vit_grid = tower_patches(vectors["in.vit_pixels"][:, 0], config.tower)
    features = see(tower, patches, [vit_grid])[0]

    ids = vectors.given["token_ids"]
    head, _, clean, prompt, after, *_ = np.cumsum(vectors.given["split_lens"]).tolist()
    picture = Vit(features=features, grid=merged(vit_grid, config.tower))
    segments = [raw(ids[:head]), picture, Latent(tokens, grid)]
    before = model.prefill(placed(segments, anchor=config.anchor))
    source = int(model.prefill([raw(ids[:head]), picture]).positions[0])
    paints(
        vectors,
        model,
        vae,
        before,
        ids[clean:prompt],
        ids[prompt:after],
        together=together,
        source=source,
    )


@torch.no_grad()
def test_golden_lance_batch2(
    case: Callable[[str], Case], config: LanceConfig, model: Bagel
) -> None:
    vectors = case("batch2")
    given, t = vectors.given["samples"], vectors.given["t"]
    grids: list[Grid] = [(high, wide) for high, wide in (sample["grid"] for sample in given)]
    noised = torch.split(vectors["in.x_t"], [high * wide for high, wide in grids])
    samples = []
    for one, grid, x in zip(given, grids, noised, strict=True):
        segments = segments_of(one["ids"], one["split_lens"], one["attn_modes"], [grid], config)
        samples.append([replace(s, tokens=x, t=t) if isinstance(s, Noise) else s for s in segments])
    packed = pack(samples, config.mixture)
    assert torch.equal(packed.positions[packed.order].T, vectors["out.positions"])
    vectors.near(model(packed).velocity, "velocity")
    contexts = [[s for s in sample if isinstance(s, Text)][:-1] for sample in samples]
    alone = [
        model.velocity(model.prefill(context), x[None], t, model.drawing(1, grid))[0]
        for context, x, grid in zip(contexts, noised, grids, strict=True)
    ]
    vectors.near(torch.cat(alone), "velocity")
    behind = [[s for s in sample if isinstance(s, Noise)] for sample in samples]
    vectors.near(model(pack(behind, config.mixture), model.prefill(*contexts)).velocity, "velocity")


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
    """The start of the system turn that introduces the concept."""
    ids, given = persona.given["ids0"], persona.given
    sks, und, gen = given["sks_at0"][0], given["u_at"], given["g_at"]
    return concept_text(
        ids[:sks],
        [(soft["sks"], soft["und"], soft["gen"])],
        says=ids[sks + 1 : und[0]],
        ends=ids[gen[-1] + 1 : given["prefix_rows"]],
    )


def persona_parts(
    persona: Case, soft: dict[str, Tensor], config: LanceConfig, tower: nn.Module
) -> tuple[list[Segment], list[Segment]]:
    """What follows the introduction in the two samples: a painting, an answer."""
    given = persona.given
    t = training_time(torch.tensor(given["pre_t"]), given["timestep_shift"])
    grid: Grid = (given["latent_grid_hw"][0], given["latent_grid_hw"][1])
    patches, vit_grid = tower_patches(persona["in.vit_image"], config.tower)
    picture = Vit(features=see(tower, patches, [vit_grid])[0], grid=merged(vit_grid, config.tower))
    parts: list[list[Segment]] = []
    for number in range(2):
        ids, splits = given[f"ids{number}"], given["split_lens"][number]
        modes = given["attn_modes"][number]
        named = given[f"sks_at{number}"]
        if number == 1:  # the question's end and the answer are one turn
            splits, modes = [*splits[:-2], splits[-2] + splits[-1]], modes[:-1]
        part: list[Segment] = []
        at = 0
        for length, mode in zip(splits, modes, strict=True):
            begin, at = at, at + length
            if begin < given["prefix_rows"]:
                continue
            if mode == "noise":
                part.append(Noise(persona["in.latent"], grid, t, persona["in.noise"]))
            elif mode == "full":
                part.append(picture)
            else:
                inside = [i - begin for i in named if begin <= i < at]
                turn = raw(ids[begin:at], [SoftRows([i], soft["sks"]) for i in inside])
                answer = given["answer_at1"] - begin
                if number == 1 and 0 <= answer < length:
                    turn = replace(turn, loss=True, loss_from=answer)
                part.append(turn)
        parts.append(part)
    return parts[0], parts[1]


def gradients_near(persona: Case, soft: dict[str, Tensor]) -> None:
    for name, rows in soft.items():
        assert rows.grad is not None
        persona.near(rows.grad, f"grad_{name}")


def test_golden_lance_persona_packed(
    persona: Case,
    soft: dict[str, Tensor],
    config: LanceConfig,
    tower: nn.Module,
    model: Bagel,
) -> None:
    model.requires_grad_(False)
    intro = introduction(persona, soft)
    samples = [[intro, *part] for part in persona_parts(persona, soft, config, tower)]
    packed = pack(samples, config.mixture)
    assert torch.equal(packed.positions[packed.order].T, persona["in.positions"])
    und = reading_order(packed, torch.arange(packed.und_rows)).sort().values
    gen = reading_order(packed, torch.arange(packed.und_rows, len(packed.place))).sort().values
    assert torch.equal(und, persona["in.und_indexes"])
    assert torch.equal(gen, persona["in.gen_indexes"])
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


def test_golden_lance_persona_cached(
    persona: Case,
    soft: dict[str, Tensor],
    config: LanceConfig,
    tower: nn.Module,
    model: Bagel,
) -> None:
    intro = introduction(persona, soft)
    with torch.no_grad():
        alone = model(pack([[intro]], model.config), hidden=True)
        persona.near(alone.hidden[-1], "cached_prefix_hidden")
        prefix = model.prefill([intro])
        persona.has_cache(prefix, "cached_prefix")
        parts = persona_parts(persona, soft, config, tower)[0]
        noise = next(part for part in parts if isinstance(part, Noise))
        assert noise.noise is not None
        before = parts[: parts.index(noise)]
        context = model.prefill(before, cache=prefix)
        t = float(persona["out.t"])
        x = (1 - t) * noise.tokens + t * noise.noise
        velocity = model.velocity(context, x[None], t, model.drawing(1, noise.grid))
        persona.near(velocity, "cached_velocity")


def test_golden_lance_persona_learns_through_a_shared_prefix(
    persona: Case,
    soft: dict[str, Tensor],
    config: LanceConfig,
    tower: nn.Module,
    model: Bagel,
) -> None:
    model.requires_grad_(False)
    prefix = model.prefill([introduction(persona, soft)])
    packed = pack(persona_parts(persona, soft, config, tower), model.config)
    loss = loss_of(model(packed, prefix))
    persona.near(loss, "loss")
    loss.backward()
    gradients_near(persona, soft)


# --- the released sizes -------------------------------------------------------------------


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SHIPPED / f"lance-3b-{name}.json").read_text())
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


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def test_golden_lance_manifest_of_the_3b_model() -> None:
    listed = manifest("image")
    special = {
        "bos_token_id": listed["config"]["special_tokens"]["<|im_start|>"],
        "eos_token_id": listed["config"]["special_tokens"]["<|im_end|>"],
        "start_of_image": listed["config"]["special_tokens"]["<|vision_start|>"],
        "end_of_image": listed["config"]["special_tokens"]["<|vision_end|>"],
    }
    llm = {**listed["config"]["llm"], "tokenizer_length": listed["config"]["tokenizer_length"]}
    config = LanceConfig.from_dict(
        {
            "llm": llm,
            "lance": listed["config"]["lance"],
            "vit": manifest("vit")["config"]["vit"],
            "vae": manifest("vae")["config"],
            "special_tokens": special,
        }
    )
    assert config == LanceConfig()
    with torch.device("meta"):
        model = Bagel(config.mixture)
    assert shapes(model) == expanded(listed)
    assert len(shapes(model)) == listed["tensor_count"]
    assert sum(p.numel() for p in model.parameters()) == listed["param_count"]


def test_golden_lance_manifest_of_the_video_model_differs_in_the_latent_table_alone() -> None:
    listed, image = expanded(manifest("video")), expanded(manifest("image"))
    rest = {name: shape for name, shape in listed.items() if not name.startswith(VIT)}
    assert {name for name in rest if rest[name] != image.get(name)} == {
        "latent_pos_embed.pos_embed"
    }
    assert {name.removeprefix(VIT) for name in listed if name.startswith(VIT)} == set(
        expanded(manifest("vit"))
    )


def test_golden_lance_manifest_of_the_tower() -> None:
    listed = manifest("vit")
    with torch.device("meta"):
        tower = build_tower(LanceConfig().tower)
    assert shapes(tower) == expanded(listed)
    assert len(shapes(tower)) == listed["tensor_count"]
    assert sum(p.numel() for p in tower.parameters()) == listed["param_count"]


def test_golden_lance_manifest_of_the_autoencoder() -> None:
    listed = manifest("vae")
    with torch.device("meta"):
        vae = AutoEncoder(LanceConfig().vae)
        stored = {name: torch.empty(shape) for name, shape in expanded(listed).items()}
    assert len(stored) == listed["tensor_count"]
    assert sum(value.numel() for value in stored.values()) == listed["param_count"]
    planes = {name: plane(name, value) for name, value in stored.items()}
    wanted = {name: list(value.shape) for name, value in planes.items() if value is not None}
    assert shapes(vae) == wanted
    left = stored.keys() - wanted.keys()
    assert left and all(".time_conv." in name for name in left)
