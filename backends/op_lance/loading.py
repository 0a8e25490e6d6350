"""The released files: `Lance_3B`, `Qwen2.5-VL-ViT` and `Wan2.2_VAE.pth`, opened tensor by tensor.

The released model is in float32, 24.7 GB; each tensor is read, brought to bfloat16 and put in its
place, so that no second copy ever exists. Sizes are read off the tensors: the configuration beside
them is a stock one of Qwen2.5-VL, which says that the text head is tied and knows nothing of the
norms of queries and keys (Lance release, inference code). The latent table that the file carries is
made anew, as the release does.

Understanding needs half of the file. The generation expert and the latent table are read when a
picture is first painted, or conditioned on a generation token; the autoencoder when one is first
encoded or painted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnipersona_cli.backend import BackendInfo, FreeSizes, Opening
from omnipersona_cli.errors import MissingError, UsageError, shell_word
from omnipersona_cli.family.checkpoint import (
    Shapes,
    check_tensors,
    fill,
    fingerprint,
    numbered,
    put,
    read_json,
    shapes_in,
)
from omnipersona_cli.family.device import choose_device, choose_dtype
from omnipersona_cli.family.tensors import weights_only
from omnipersona_cli.family.weights import fetch_command, locate, public_name
from op_bagel.config import DecoderConfig
from op_bagel.model import GEN, Bagel
from op_bagel.pictures import sincos_table_3d
from op_bagel.placing import arrange, check_opening, placing
from op_bagel.sampling import Guidance
from op_bagel.tokenizer import QwenTokenizer
from op_lance import INFO
from op_lance.backend import LanceBackend
from op_lance.config import LanceConfig, TowerConfig
from op_lance.encoders import Encoders
from op_lance.pictures import LEARNED
from op_lance.tower import build_tower
from op_lance.vae import LATENTS_MEAN, AutoEncoder, WanConfig, plane

MODEL, TOWER, AUTOENCODER = "Lance_3B", "Qwen2.5-VL-ViT", "Wan2.2_VAE.pth"
"""Two folders and a file, as the release calls them."""

WEIGHTS = ("model.safetensors", "ema.safetensors")
"""Names of the file with everything but tower and autoencoder, in the order in which they are
tried."""

AT_ONCE = 6
"""Tensors of the autoencoder's file that are in memory together while it is read."""

TABLE = "latent_pos_embed.pos_embed"
SHIFT = 3.5
"""Time shift of painting (inference code)."""

HINT = fetch_command(INFO)


@dataclass(frozen=True, kw_only=True)
class LanceFiles:
    """The files of one Lance, looked at but not read. Of the autoencoder, shapes are those of what
    single pictures use."""

    weights: Path
    tower: Path
    autoencoder: Path
    shapes: Shapes
    tower_shapes: Shapes
    autoencoder_shapes: Shapes

    @property
    def folder(self) -> Path:
        """Where configuration and tokenizer are."""
        return self.weights.parent


def find_checkpoint(place: Path) -> LanceFiles:
    """The checkpoint in a folder, or the one whose large file or whose folder with it is named.

    Raises MissingError for a file that is missing, cut off or a pickle with code, naming it;
    UsageError for the video checkpoint and for BAGEL's.
    """
    inner = place / MODEL if (place / MODEL).is_dir() else place
    folder = inner if place.is_dir() else place.parent
    names = WEIGHTS if place.is_dir() else (place.name,)
    weights = next((folder / name for name in names if (folder / name).is_file()), None)
    if weights is None:
        if (place / f"{MODEL}_Video").is_dir():
            raise video(place / f"{MODEL}_Video")
        wanted = place / MODEL / WEIGHTS[0]
        raise MissingError(f"{place} has no Lance weights: {wanted} is missing", hint=HINT)
    shapes = shapes_in(weights, backend=INFO.name)
    if any(name.startswith("vit_model.vision_model.") for name in shapes):  # SigLIP's
        raise UsageError(
            f"{weights} is a BAGEL's, not a Lance's", hint=f"-b bagel --model {shell_word(folder)}"
        )
    if any(name.startswith("vit_model.") for name in shapes):
        raise video(weights)
    root = folder.parent
    tower, autoencoder = root / TOWER / "vit.safetensors", root / AUTOENCODER
    for path in (tower, autoencoder):
        if not path.is_file():
            raise MissingError(f"the weights are not whole: {path} is missing", hint=HINT)
    return LanceFiles(
        weights=weights,
        tower=tower,
        autoencoder=autoencoder,
        shapes=shapes,
        tower_shapes=shapes_in(tower, backend=INFO.name),
        autoencoder_shapes={name: tuple(it.shape) for name, it in planes_in(autoencoder).items()},
    )


def video(path: Path) -> UsageError:
    """What is said of the checkpoint that makes videos."""
    return UsageError(
        f"{path} is the video checkpoint, and {INFO.name} opens {MODEL}, the one for pictures",
        hint=HINT,
    )


def planes_in(path: Path) -> dict[str, Tensor]:
    """What the tensors of an autoencoder's file are for single pictures, mapped."""
    with torch.inference_mode(False):  # they may have to serve a gradient
        found = {name: plane(name, value) for name, value in weights_only(path, hint=HINT).items()}
    return {name: value for name, value in found.items() if value is not None}


def read_config(checkpoint: LanceFiles, tokenizer: QwenTokenizer) -> LanceConfig:
    """The sizes of the model in ``checkpoint``.

    What no tensor shows comes from the two configuration files: rotary base and sections, norm
    epsilon; the tower's heads, windows and blocks of full attention. Raises MissingError for a
    configuration that is missing or describes another model than the tensors.
    """
    shapes = checkpoint.shapes
    rows = shapes[TABLE][0] if TABLE in shapes else LanceConfig().max_latent_size ** 2
    if round(rows**0.5) ** 2 != rows:  # it counts frames, and is no square
        raise video(checkpoint.weights)
    with told_of(checkpoint.weights):
        decoder = _decoder(
            shapes, read_json(checkpoint.folder / "llm_config.json", hint=HINT), tokenizer
        )
    with told_of(checkpoint.tower):
        tower = _tower(
            checkpoint.tower_shapes,
            read_json(checkpoint.tower.with_name("config.json"), hint=HINT),
        )
    with told_of(checkpoint.autoencoder):
        vae = _autoencoder(checkpoint.autoencoder_shapes)
    if tower.out_hidden_size != decoder.hidden_size:
        raise MissingError(
            f"{checkpoint.tower} is a tower of another size: its features are "
            f"{tower.out_hidden_size} wide, the language model's {decoder.hidden_size}",
            hint=HINT,
        )
    return LanceConfig(
        llm=decoder,
        tower=tower,
        vae=vae,
        special_tokens=tokenizer.special_tokens(),
        max_latent_size=round(rows**0.5),
    )


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Whatever is raised inside about tensors and configurations is about the file ``path``."""
    try:
        yield
    except KeyError as error:
        raise MissingError(
            f"{path} is not Lance's: it or its configuration lacks {error}", hint=HINT
        ) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        raise MissingError(
            f"{path} and its configuration describe no Lance: {error}", hint=HINT
        ) from error


def _decoder(shapes: Shapes, llm: Mapping[str, Any], tokenizer: QwenTokenizer) -> DecoderConfig:
    layer = "language_model.model.layers.0"
    vocabulary, width = shapes["language_model.model.embed_tokens.weight"]
    head_dim = shapes[f"{layer}.self_attn.q_norm.weight"][0]
    rotary = llm.get("rope_scaling") or llm.get("rope_parameters") or {}
    known = max(tokenizer.tokens.get_vocab().values()) + 1
    if known > vocabulary:
        raise ValueError(f"its tokenizer has {known} words, its text table {vocabulary} rows")
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes[f"{layer}.mlp.up_proj.weight"][0],
        num_hidden_layers=numbered(shapes, "language_model.model.layers."),
        num_attention_heads=shapes[f"{layer}.self_attn.q_proj.weight"][0] // head_dim,
        num_key_value_heads=shapes[f"{layer}.self_attn.k_proj.weight"][0] // head_dim,
        head_dim=head_dim,
        rms_norm_eps=float(llm.get("rms_norm_eps", 1e-6)),
        rope_theta=float(llm.get("rope_theta") or rotary.get("rope_theta") or 1e6),
        qk_norm=True,
        tie_word_embeddings=False,
        mrope_section=tuple(rotary.get("mrope_section") or LanceConfig().llm.mrope_section),
        tokenizer_length=known,
    )


def _tower(shapes: Shapes, told: Mapping[str, Any]) -> TowerConfig:
    vision = told.get("vision_config", told)
    released = TowerConfig()
    width, _, frames, patch, _ = shapes["patch_embed.proj.weight"]
    merged_width = shapes["merger.mlp.0.weight"][1]
    full = vision.get("fullatt_block_indexes", released.fullatt_block_indexes)
    heads = int(vision.get("num_heads", released.num_heads))
    if width % heads:
        raise ValueError(f"a width of {width} does not split in {heads} heads")
    return TowerConfig(
        depth=int(vision.get("depth", numbered(shapes, "blocks."))),
        hidden_size=width,
        intermediate_size=shapes["blocks.0.mlp.gate_proj.weight"][0],
        num_heads=heads,
        window_size=int(vision.get("window_size", released.window_size)),
        fullatt_block_indexes=tuple(int(block) for block in full),
        patch_size=patch,
        temporal_patch_size=frames,
        spatial_merge_size=round((merged_width / width) ** 0.5),
        out_hidden_size=shapes["merger.mlp.2.weight"][0],
    )


def _autoencoder(shapes: Shapes) -> WanConfig:
    """Sizes off the tensors; latents are scaled as the release scales them."""
    levels = numbered(shapes, "encoder.downsamples.")
    channels = shapes["conv2.weight"][0]
    if channels != len(LATENTS_MEAN):
        raise ValueError(f"its latents have {channels} channels, Lance's {len(LATENTS_MEAN)}")
    dim = shapes["encoder.conv1.weight"][0]
    first = "encoder.downsamples.{}.downsamples.0.residual.2.weight"
    return WanConfig(
        dim=dim,
        dec_dim=shapes["decoder.head.0.gamma"][0],
        z_dim=channels,
        dim_mult=tuple(shapes[first.format(level)][0] // dim for level in range(levels)),
        num_res_blocks=sum(
            name.endswith(".residual.2.weight")
            for name in shapes
            if name.startswith("encoder.downsamples.0.")
        ),
    )


def needed_for_painting(name: str) -> bool:
    """Whether a tensor serves generation alone: the generation expert and what stands around the
    latents. Text and pictures are understood without it."""
    around = ("vae2llm", "llm2vae", "time_embedder", "latent_pos_embed")
    return GEN in name or name.partition(".")[0] in around


def open_backend(
    opening: Opening, *, understanding_anchor: bool = False, recount: bool = False
) -> LanceBackend:
    """Lance from a folder, its large file, or the hub's cache.

    It runs in bfloat16 on every device unless float32 is asked for: the release was trained and
    runs in bfloat16. The autoencoder always runs in float32. Only what understanding needs is read
    here; the rest is read when it is needed. ``understanding_anchor`` and ``recount`` choose the
    other of two ways that the release itself goes (`op_lance.config.LanceConfig`).
    """
    name = opening.model or INFO.default_model
    device = choose_device(opening.device)
    wanted = "bfloat16" if opening.dtype in (None, "auto") else opening.dtype
    dtype = choose_dtype(wanted, device, backend=INFO.name, known=("bfloat16", "float32"))
    check_opening(opening, device)
    found = locate(name, INFO, single=True, revisions=opening.revisions)
    checkpoint = find_checkpoint(found)
    tokenizer = QwenTokenizer(checkpoint.folder, backend=INFO.name)
    config = replace(
        read_config(checkpoint, tokenizer),
        understanding_anchor=understanding_anchor,
        recount=recount,
    )
    with torch.device("meta"):
        mixture, vae = Bagel(config.mixture), AutoEncoder(config.vae)
        tower = build_tower(config.tower)
    later = _check(checkpoint, mixture, tower, vae)
    read = partial(fill, device=device, dtype=dtype, backend=INFO.name)
    place = placing(opening, device, dtype)
    now = [name for name in checkpoint.shapes if name not in later]
    read(mixture, checkpoint.weights, now, place=place, on_step=opening.on_step)
    read(tower, checkpoint.tower, list(checkpoint.tower_shapes))
    tower.to(device)  # its rotary frequencies are in no file

    def read_expert() -> None:
        names = sorted(later - {TABLE})
        read(mixture, checkpoint.weights, names, place=place, on_step=opening.on_step)
        side, width = config.max_latent_size, config.llm.hidden_size
        table = sincos_table_3d(config.latent_frames, side, width)
        put(mixture, TABLE, table.to(device, dtype))

    def read_autoencoder() -> None:
        names = sorted(checkpoint.autoencoder_shapes)
        for some in (names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE)):
            stored = planes_in(checkpoint.autoencoder)  # anew: what was read is let go
            for part in some:
                put(vae, part, stored[part].to(device, torch.float32, copy=True))

    largest = config.max_latent_size * config.mixture.stride
    quantized = arrange(mixture, opening, device, dtype)
    files = {
        str(path): path for path in (checkpoint.weights, checkpoint.tower, checkpoint.autoencoder)
    }
    backend = LanceBackend(
        info=_info(config),
        model=public_name(name, INFO),
        fingerprint=fingerprint(checkpoint.folder, files, name),
        config=config,
        mixture=mixture.eval(),
        encoders=Encoders(
            tower.eval(),
            vae.eval(),
            config=config.tower,
            device=mixture.device,
            need=cache(read_autoencoder),
        ),
        tokenizer=tokenizer,
        guidance=Guidance(text=INFO.guidance),
        shift=SHIFT,
        need_expert=cache(read_expert),
        learned=min(LEARNED, opening.lesson_size / largest) if opening.lesson_size else LEARNED,
    )
    backend.quantized = quantized
    return backend


def _check(checkpoint: LanceFiles, mixture: Bagel, tower: nn.Module, vae: AutoEncoder) -> set[str]:
    """MissingError where a file does not hold what its module wants; names of what is read late."""
    table = tuple(mixture.latent_pos_embed.pos_embed.shape)
    shapes = {**checkpoint.shapes, TABLE: table}  # made anew, whether the file has it or not
    check_tensors(mixture, shapes, checkpoint.weights, backend=INFO.name)
    check_tensors(tower, checkpoint.tower_shapes, checkpoint.tower, backend=INFO.name)
    check_tensors(vae, checkpoint.autoencoder_shapes, checkpoint.autoencoder, backend=INFO.name)
    return {name for name in shapes if needed_for_painting(name)}


def _info(config: LanceConfig) -> BackendInfo:
    """The backend's description with the sizes that this checkpoint's table holds."""
    stride = config.mixture.stride
    largest = config.max_latent_size * stride
    sizes = tuple(size for size in INFO.sizes if max(size) <= largest)
    free = FreeSizes(step=stride, largest=largest)
    deep = config.llm.num_hidden_layers - 1
    return replace(INFO, sizes=sizes or ((largest, largest),), free_sizes=free, deep_layers=deep)
