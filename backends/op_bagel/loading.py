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

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn

from omnipersona_cli.backend import BackendInfo, FreeSizes, OnStep, Opening, counted
from omnipersona_cli.errors import MissingError
from omnipersona_cli.family.checkpoint import fingerprint, silently
from omnipersona_cli.family.device import choose_device, choose_dtype
from omnipersona_cli.family.offload import at_home, check_offload, stream
from omnipersona_cli.family.quantize import check_quantize, quantize
from omnipersona_cli.family.recompute import recompute
from omnipersona_cli.family.tensors import mapped, stored_tensors
from omnipersona_cli.family.weights import locate, public_name
from op_bagel import INFO
from op_bagel.backend import BagelBackend, Dropout, Fit
from op_bagel.config import BagelConfig, DecoderConfig, SpecialTokens, ViTConfig
from op_bagel.model import GEN, Bagel
from op_bagel.pictures import SizeRule, rgb
from op_bagel.sampling import Guidance
from op_bagel.vae import AutoEncoder, VAEConfig

WEIGHTS = ("ema.safetensors", "ema-FP8.safetensors", "model.safetensors")
"""Names of the file with everything but the autoencoder, in the order in which they are tried."""

AUTOENCODER = "ae.safetensors"
LAYERS = "language_model.model.layers."
HINT = "op backends fetch bagel"

Shapes = Mapping[str, tuple[int, ...]]


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
        shapes=shapes_in(weights),
        autoencoder_shapes=shapes_in(autoencoder),
    )


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a safetensors file, from its header alone."""
    return {name: place.shape for name, place in stored_tensors(path, hint=HINT).items()}


def read_config(checkpoint: Checkpoint, special_tokens: SpecialTokens) -> BagelConfig:
    """The sizes of the model in ``checkpoint``.

    What no tensor shows comes from the two configuration files: attention heads, rotary base, norm
    epsilon, patch side. ``config.json`` is not read: the released one is no valid JSON. Raises
    MissingError for a configuration that is missing or describes another model than the tensors.
    """
    llm = _json(checkpoint.folder / "llm_config.json")
    vit = _json(checkpoint.folder / "vit_config.json")
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
                num_hidden_layers=_layers(shapes, f"{decoder}.layers."),
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
                num_hidden_layers=_layers(shapes, f"{tower}.encoder.layers."),
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


def check_tensors(module: nn.Module, shapes: Shapes, path: Path) -> None:
    """MissingError where ``path`` lacks a tensor of ``module``, has one of another shape, or one
    that the module has no place for: the first of each kind is named."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing = sorted(wanted.keys() - shapes.keys())
    extra = sorted(shapes.keys() - wanted.keys())
    both = wanted.keys() & shapes.keys()
    misshapen = sorted(name for name in both if wanted[name] != shapes[name])
    faults = []
    if missing:
        faults.append(f"lacks {missing[0]}{_and_more(missing)}")
    if misshapen:
        name = misshapen[0]
        found, needed = list(shapes[name]), list(wanted[name])
        faults.append(f"has {name} as {found} instead of {needed}{_and_more(misshapen)}")
    if extra:
        faults.append(f"has {extra[0]}, which the model does not have{_and_more(extra)}")
    if faults:
        raise MissingError(f"{path} {'; '.join(faults)}", hint=HINT)


def needed_for_painting(name: str) -> bool:
    """Whether a tensor serves generation alone: the generation expert and what stands around the
    latents. Text and pictures are understood without it."""
    return GEN in name or name.partition(".")[0] in (
        "vae2llm",
        "llm2vae",
        "time_embedder",
        "latent_pos_embed",
    )


def fill(
    module: nn.Module,
    path: Path,
    names: Sequence[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    on_step: OnStep | None = None,
    place: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Read the tensors ``names`` of ``path`` into ``module``, whose own are on the meta device.

    One tensor at a time is read, brought to ``dtype`` and laid on ``device``; fp8 files are read
    the same way. A tensor that is right already stays a view of the mapped file, which costs
    no memory until it is used. ``place`` brings one elsewhere, by its name.
    """
    # a tensor that is made in inference mode could never serve a gradient
    with torch.inference_mode(False), torch.no_grad():
        stored = mapped(path, hint=HINT)
        for name in counted(names, on_step):
            owner, leaf = _owner(module, name)
            if place is None:
                value = stored[name].to(device=device, dtype=dtype)
            else:
                value = place(name, stored[name])
            owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)


class QwenTokenizer:
    """Qwen2.5's byte-level BPE as BAGEL's backend wants it: no template, no special tokens."""

    unnamed = "<sks>"

    def __init__(self, folder: Path) -> None:
        import transformers

        untyped: Any = transformers
        try:
            with silently():
                if (folder / "tokenizer.json").is_file():
                    path = str(folder / "tokenizer.json")
                    self.tokens: Any = untyped.PreTrainedTokenizerFast(tokenizer_file=path)
                elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                    self.tokens = untyped.Qwen2Tokenizer.from_pretrained(folder)
                else:
                    raise MissingError(
                        f"{folder} has no tokenizer: tokenizer.json is missing", hint=HINT
                    )
        except (OSError, ValueError) as error:
            raise MissingError(f"the tokenizer in {folder} is broken", hint=HINT) from error
        self.folder = folder

    def encode(self, text: str) -> list[int]:
        """Ids of a text; words that look like special tokens are text."""
        found = self.tokens(text, add_special_tokens=False, split_special_tokens=True)
        return list(found.input_ids)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self.tokens.decode(ids, skip_special_tokens=True))

    def special_tokens(self) -> SpecialTokens:
        """The four tokens that frame turns and pictures; MissingError where one is unknown."""
        names = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
        known = self.tokens.get_vocab()
        lost = [name for name in names if name not in known]
        if lost:
            raise MissingError(f"the tokenizer in {self.folder} lacks {lost[0]}", hint=HINT)
        bos, eos, start, end = (known[name] for name in names)
        return SpecialTokens(
            bos_token_id=bos, eos_token_id=eos, start_of_image=start, end_of_image=end
        )


def open_backend(opening: Opening) -> BagelBackend:
    """BAGEL from a folder, one large file, or the hub's cache.

    It runs in bfloat16 on every device unless float32 is asked for: the release was trained and
    runs in bfloat16. The autoencoder always runs in float32. Only what understanding needs is read
    here; the rest is read when it is needed.
    """
    name = opening.model or INFO.default_model
    device = choose_device(opening.device)
    if opening.quantize:
        check_quantize(opening.quantize, offload=opening.offload)
    if opening.offload:
        check_offload(device)
    wanted = "bfloat16" if opening.dtype in (None, "auto") else opening.dtype
    dtype = choose_dtype(wanted, device, backend=INFO.name, known=("bfloat16", "float32"))
    checkpoint = find_checkpoint(locate(name, INFO, single=True))
    tokenizer = QwenTokenizer(checkpoint.folder)
    config = read_config(checkpoint, tokenizer.special_tokens())
    with torch.device("meta"):
        bagel, vae = Bagel(config), AutoEncoder(config.vae)
    check_tensors(bagel, checkpoint.shapes, checkpoint.weights)
    check_tensors(vae, checkpoint.autoencoder_shapes, checkpoint.autoencoder)
    later = {name for name in checkpoint.shapes if needed_for_painting(name)}
    now = [name for name in checkpoint.shapes if name not in later]
    on_step = opening.on_step

    def place(name: str, value: Tensor) -> Tensor:
        if opening.offload and name.startswith(LAYERS):
            return at_home(value.to(dtype), device)
        if opening.quantize and name.startswith(LAYERS) and "_proj" in name and GEN not in name:
            return value.to(dtype)  # to be quantised from where it is
        return value.to(device=device, dtype=dtype)

    def read(names: Sequence[str]) -> None:
        path = checkpoint.weights
        fill(bagel, path, names, device=device, dtype=dtype, on_step=on_step, place=place)

    read(now)

    def read_rest() -> None:
        read(sorted(later))
        names = list(checkpoint.autoencoder_shapes)
        fill(vae, checkpoint.autoencoder, names, device=device, dtype=torch.float32)

    quantized = None
    if opening.quantize:
        quantized = quantize(bagel, _linears(config), opening.quantize, device=device, dtype=dtype)
    layers = bagel.language_model.model.layers
    if opening.offload:
        stream(layers, device)
    elif opening.activation_checkpointing or opening.quantize:
        recompute(layers)
    files = dict.fromkeys(checkpoint.shapes, checkpoint.weights)
    backend = BagelBackend(
        info=_info(config),
        model=public_name(name),
        fingerprint=fingerprint(checkpoint.folder, files, name),
        bagel=bagel.eval(),
        vae=vae.eval(),
        tokenizer=tokenizer,
        fit=fit_of(config),
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


def fit_of(config: BagelConfig) -> Fit:
    """The release's sizes of pictures, in steps of its own grids (inference transforms): 512 to
    1024 pixels a side for the autoencoder, then 224 to 980 for the ViT.

    A picture that is learned from has 512 on its shorter side, about a third of the tokens of full
    size: a batch of eight edits at full size would keep 21 GB for its way back.
    """
    largest, stride = config.max_latent_size * config.stride, config.stride
    latents = SizeRule(max_size=largest, min_size=largest // 2, stride=stride)
    patch, side = config.vit.patch_size, config.vit.image_size
    patches = SizeRule(max_size=side, min_size=min(16 * patch, side), stride=patch)

    def lesson(image: Image) -> Image:
        picture = rgb(image)
        scale = latents.min_size / min(picture.size)
        if scale < 1:
            width, height = (round(length * scale) for length in picture.size)
            picture = picture.resize((width, height), Resampling.BICUBIC)
        return latents.resize(picture)

    return Fit(
        vae=latents.resize,
        vit=lambda image: patches.resize(latents.resize(image)),
        lesson=lesson,
    )


def _info(config: BagelConfig) -> BackendInfo:
    """The backend's description with the sizes that this checkpoint's tables hold."""
    largest = config.max_latent_size * config.stride
    sizes = tuple(size for size in INFO.sizes if max(size) <= largest)
    free = FreeSizes(step=config.stride, largest=largest)
    return replace(INFO, sizes=sizes or ((largest, largest),), free_sizes=free)


def _autoencoder_config(shapes: Shapes) -> VAEConfig:
    """Sizes off the tensors; latents are scaled as the release scales them."""
    base = shapes["encoder.conv_in.weight"][0]
    levels = _layers(shapes, "encoder.down.")
    widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return VAEConfig(
        ch=base,
        ch_mult=tuple(width // base for width in widths),
        num_res_blocks=_layers(shapes, "encoder.down.0.block."),
        z_channels=shapes["encoder.conv_out.weight"][0] // 2,
    )


def _layers(shapes: Shapes, start: str) -> int:
    """How many numbers follow ``start`` in tensor names."""
    numbered = re.compile(re.escape(start) + r"(\d+)\.")
    return len({match[1] for name in shapes if (match := numbered.match(name))})


def _linears(config: BagelConfig) -> Iterator[str]:
    """Names of the understanding expert's linear layers."""
    for layer in range(config.llm.num_hidden_layers):
        for part, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            yield from (f"{LAYERS}{layer}.{part}.{name}_proj" for name in names)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(f"{path} is missing", hint=HINT)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MissingError(f"{path} is not JSON", hint=HINT) from error
    if not isinstance(found, dict):
        raise MissingError(f"{path} is not a JSON object", hint=HINT)
    return found
