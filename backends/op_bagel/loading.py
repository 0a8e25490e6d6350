"""The released checkpoint: `ema.safetensors` and `ae.safetensors`, opened tensor by tensor.

A folder holds both files, `llm_config.json`, `vit_config.json` and Qwen2.5's tokenizer. The model
is built without memory for its numbers; each tensor is then read, brought to the wanted dtype and
put in its place, so that no second copy ever exists. Sizes are read off the tensors themselves
where a configuration leaves them out or is wrong: the ViT's configuration lists one layer more than
the file has, the decoder's does not say that queries and keys are normed (BAGEL release, inference
code).

Understanding needs half of the file. The generation expert, the latent tables and the autoencoder
are read when a picture is first painted, encoded, or conditioned on a generation token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL.Image import Image, Resampling

from omnipersona_cli.backend import BackendInfo, FreeSizes, Opening
from omnipersona_cli.errors import MissingError
from omnipersona_cli.family.checkpoint import (
    Shapes,
    check_plain,
    check_tensors,
    fill,
    fingerprint,
    numbered,
    read_json,
    shapes_in,
)
from omnipersona_cli.family.device import choose_device, choose_dtype
from omnipersona_cli.family.weights import fetch_command, locate, public_name
from op_bagel import INFO
from op_bagel.backend import BagelBackend, Dropout, Fit
from op_bagel.config import BagelConfig, DecoderConfig, SpecialTokens, ViTConfig
from op_bagel.model import GEN, Bagel
from op_bagel.pictures import SizeRule
from op_bagel.placing import arrange, check_opening, placing
from op_bagel.sampling import Guidance
from op_bagel.tokenizer import QwenTokenizer
from op_bagel.vae import AutoEncoder, VAEConfig

WEIGHTS = ("ema.safetensors", "ema-FP8.safetensors", "model.safetensors")
"""Names of the file with everything but the autoencoder, in the order in which they are tried."""

AUTOENCODER = "ae.safetensors"
HINT = fetch_command(INFO)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The files of one BAGEL, looked at but not read."""

    folder: Path
    weights: Path
    autoencoder: Path
    shapes: Shapes
    autoencoder_shapes: Shapes

    @property
    def files(self) -> tuple[Path, Path]:
        """Both files with tensors."""
        return self.weights, self.autoencoder


def find_checkpoint(place: Path) -> Checkpoint:
    """The checkpoint in a folder, or the one whose large file is named.

    Raises MissingError for a file that is missing or cut off, naming it.
    """
    folder = place if place.is_dir() else place.parent
    names = WEIGHTS if place.is_dir() else (place.name,)
    weights = next((folder / name for name in names if (folder / name).is_file()), None)
    if weights is None:
        raise MissingError(f"{folder} has no BAGEL weights: {names[0]} is missing", hint=HINT)
    autoencoder = folder / AUTOENCODER
    if not autoencoder.is_file():
        raise MissingError(f"the weights are not whole: {autoencoder} is missing", hint=HINT)
    return Checkpoint(
        folder=folder,
        weights=weights,
        autoencoder=autoencoder,
        shapes=shapes_in(weights, backend=INFO.name),
        autoencoder_shapes=shapes_in(autoencoder, backend=INFO.name),
    )


def read_config(checkpoint: Checkpoint, special_tokens: SpecialTokens) -> BagelConfig:
    """The sizes of the model in ``checkpoint``.

    What no tensor shows comes from the two configuration files: attention heads, rotary base, norm
    epsilon, patch side. ``config.json`` is not read: the released one is no valid JSON. Raises
    MissingError for a configuration that is missing or describes another model than the tensors.
    """
    llm = read_json(checkpoint.folder / "llm_config.json", hint=HINT)
    vit = read_json(checkpoint.folder / "vit_config.json", hint=HINT)
    check_plain(llm, checkpoint.folder, backend=INFO.name)
    shapes = checkpoint.shapes
    try:
        decoder = "language_model.model"
        vocabulary, width = shapes[f"{decoder}.embed_tokens.weight"]
        heads = int(llm["num_attention_heads"])
        head_dim = shapes[f"{decoder}.layers.0.self_attn.q_norm.weight"][0]
        tower = "vit_model.vision_model"
        cells, vit_width = shapes[f"{tower}.embeddings.position_embedding.weight"]
        patch = int(vit["patch_size"])
        config = BagelConfig(
            llm=DecoderConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=shapes[f"{decoder}.layers.0.mlp.up_proj.weight"][0],
                num_hidden_layers=numbered(shapes, f"{decoder}.layers."),
                num_attention_heads=heads,
                num_key_value_heads=int(llm.get("num_key_value_heads", heads)),
                head_dim=head_dim,
                rms_norm_eps=float(llm.get("rms_norm_eps", 1e-6)),
                rope_theta=float(llm.get("rope_theta", 1e6)),
                qk_norm=True,
                tie_word_embeddings=False,
            ),
            vit=ViTConfig(
                hidden_size=vit_width,
                intermediate_size=shapes[f"{tower}.encoder.layers.0.mlp.fc1.weight"][0],
                num_hidden_layers=numbered(shapes, f"{tower}.encoder.layers."),
                num_attention_heads=int(vit["num_attention_heads"]),
                image_size=round(cells**0.5) * patch,
                patch_size=patch,
            ),
            vae=_autoencoder_config(checkpoint.autoencoder_shapes),
            special_tokens=special_tokens,
            max_latent_size=round(shapes["latent_pos_embed.pos_embed"][0] ** 0.5),
        )
    except KeyError as error:
        raise MissingError(
            f"{checkpoint.weights} is not a BAGEL checkpoint: it or its config lacks {error}",
            hint=HINT,
        ) from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise MissingError(
            f"the configuration in {checkpoint.folder} describes no BAGEL: {error}", hint=HINT
        ) from error
    return config


def needed_for_painting(name: str) -> bool:
    """Whether a tensor serves generation alone: the generation expert and what stands around the
    latents. Text and pictures are understood without it."""
    return GEN in name or name.partition(".")[0] in (
        "vae2llm",
        "llm2vae",
        "time_embedder",
        "latent_pos_embed",
    )


def open_backend(opening: Opening) -> BagelBackend:
    """BAGEL from a folder, one large file, or the hub's cache.

    It runs in bfloat16 on every device unless float32 is asked for: the release was trained and
    runs in bfloat16. The autoencoder always runs in float32. Only what understanding needs is read
    here; the rest is read when it is needed.
    """
    name = opening.model or INFO.default_model
    device = choose_device(opening.device)
    check_opening(opening, device)
    wanted = "bfloat16" if opening.dtype in (None, "auto") else opening.dtype
    dtype = choose_dtype(wanted, device, backend=INFO.name, known=("bfloat16", "float32"))
    found = locate(name, INFO, single=True, revisions=opening.revisions)
    checkpoint = find_checkpoint(found)
    tokenizer = QwenTokenizer(checkpoint.folder, backend=INFO.name)
    config = read_config(checkpoint, tokenizer.special_tokens())
    with torch.device("meta"):
        bagel, vae = Bagel(config), AutoEncoder(config.vae)
    check_tensors(bagel, checkpoint.shapes, checkpoint.weights, backend=INFO.name)
    check_tensors(vae, checkpoint.autoencoder_shapes, checkpoint.autoencoder, backend=INFO.name)
    later = {name for name in checkpoint.shapes if needed_for_painting(name)}
    now = [name for name in checkpoint.shapes if name not in later]
    read = partial(fill, device=device, backend=INFO.name)
    place = placing(opening, device, dtype)
    read(bagel, checkpoint.weights, now, dtype=dtype, place=place, on_step=opening.on_step)

    def read_rest() -> None:
        rest = sorted(later)
        read(bagel, checkpoint.weights, rest, dtype=dtype, place=place, on_step=opening.on_step)
        names = list(checkpoint.autoencoder_shapes)
        read(vae, checkpoint.autoencoder, names, dtype=torch.float32)

    quantized = arrange(bagel, opening, device, dtype)
    files = dict.fromkeys(checkpoint.shapes, checkpoint.weights)
    backend = BagelBackend(
        info=_info(config),
        model=public_name(name, INFO),
        fingerprint=fingerprint(checkpoint.folder, files, name),
        bagel=bagel.eval(),
        vae=vae.eval(),
        tokenizer=tokenizer,
        fit=fit_of(config, opening.lesson_size),
        guidance=Guidance(text=INFO.guidance),
        edit_guidance=Guidance(
            text=INFO.guidance, image=2.0, interval=(0.0, 1.0), renorm="text_channel"
        ),
        shift=3.0,
        read_rest=read_rest,
    )
    # the shares with which the release's trainer is started
    backend.dropout = Dropout(request=0.1, latents=0.3, features=0.3)
    backend.quantized = quantized
    return backend


def fit_of(config: BagelConfig, lesson_size: int = 0) -> Fit:
    """The release's sizes of pictures, in steps of its own grids (inference transforms): 512 to
    1024 pixels a side for the autoencoder, then 224 to 980 for the ViT.

    A picture that is learned from has ``lesson_size`` pixels on its shorter side. The usual 512 are
    about a third of the tokens of full size: a batch of eight edits at full size would keep 21 GB
    for its way back.
    """
    largest, stride = config.max_latent_size * config.stride, config.stride
    latents = SizeRule(max_size=largest, min_size=largest // 2, stride=stride)
    patch, side = config.vit.patch_size, config.vit.image_size
    patches = SizeRule(max_size=side, min_size=min(16 * patch, side), stride=patch)
    least = min(lesson_size or latents.min_size, latents.min_size)
    small = replace(latents, min_size=least)

    def lesson(image: Image) -> Image:
        scale = least / min(image.size)
        if scale < 1:
            width, height = (round(length * scale) for length in image.size)
            image = image.resize((width, height), Resampling.BICUBIC)
        return small.resize(image)

    return Fit(
        vae=latents.resize,
        vit=lambda image: patches.resize(latents.resize(image)),
        learn_vae=lesson,
        learn_vit=lambda image: patches.resize(lesson(image)),
    )


def _info(config: BagelConfig) -> BackendInfo:
    """The backend's description with the sizes that this checkpoint's tables hold."""
    largest = config.max_latent_size * config.stride
    sizes = tuple(size for size in INFO.sizes if max(size) <= largest)
    free = FreeSizes(step=config.stride, largest=largest)
    return replace(
        INFO,
        sizes=sizes or ((largest, largest),),
        free_sizes=free,
        deep_layers=config.llm.num_hidden_layers - 1,
    )


def _autoencoder_config(shapes: Shapes) -> VAEConfig:
    """Sizes off the tensors; latents are scaled as the release scales them."""
    base = shapes["encoder.conv_in.weight"][0]
    levels = numbered(shapes, "encoder.down.")
    widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return VAEConfig(
        ch=base,
        ch_mult=tuple(width // base for width in widths),
        num_res_blocks=numbered(shapes, "encoder.down.0.block."),
        z_channels=shapes["encoder.conv_out.weight"][0] // 2,
    )
