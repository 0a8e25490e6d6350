"""Janus as its authors write it to disk (`model_type: multi_modality`), as Janus-4o is released.

The weights are those of transformers' classes under other names; SigLIP's queries, keys and values
lie in one tensor. Sizes that the original configuration leaves to its code are read off the
tensors' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import JanusConfig

from omnipersona_cli.errors import MissingError, UsageError
from omnipersona_cli.family.checkpoint import misfit, places

MODEL_TYPE = "multi_modality"
TOWER = "vision_model.vision_tower"
LAYER = "model.vision_model.encoder.layers.#"
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (f"{TOWER}.patch_embed.proj.*", ("model.vision_model.embeddings.patch_embedding.*",)),
    (f"{TOWER}.pos_embed", ("model.vision_model.embeddings.position_embedding.weight",)),
    (
        f"{TOWER}.blocks.#.attn.qkv.*",
        tuple(f"{LAYER}.self_attn.{letter}_proj.*" for letter in "qkv"),
    ),
    (f"{TOWER}.blocks.#.attn.proj.*", (f"{LAYER}.self_attn.projection_layer.*",)),
    (f"{TOWER}.blocks.#.norm#.*", (f"{LAYER}.layer_norm#.*",)),
    (f"{TOWER}.blocks.#.mlp.*", (f"{LAYER}.mlp.*",)),
    (f"{TOWER}.norm.*", ("model.vision_model.post_layernorm.*",)),
    (f"{TOWER}.attn_pool.*", ()),  # a head that Janus does not use
    ("aligner.layers.0.*", ("model.aligner.fc1.*",)),
    ("aligner.layers.2.*", ("model.aligner.hidden_layers.0.*",)),
    ("gen_aligner.layers.0.*", ("model.generation_aligner.fc1.*",)),
    ("gen_aligner.layers.2.*", ("model.generation_aligner.hidden_layers.0.*",)),
    ("gen_embed.*", ("model.generation_embeddings.*",)),
    ("gen_head.output_mlp_projector.*", ("model.generation_head.proj_out.*",)),
    ("gen_head.vision_head.*", ("model.generation_head.vision_head.*",)),
    ("gen_vision_model.encoder.conv_blocks.#.res.*", ("model.vqmodel.encoder.down.#.block.*",)),
    ("gen_vision_model.decoder.conv_blocks.#.res.*", ("model.vqmodel.decoder.up.#.block.*",)),
    ("gen_vision_model.encoder.conv_blocks.*", ("model.vqmodel.encoder.down.*",)),
    ("gen_vision_model.decoder.conv_blocks.*", ("model.vqmodel.decoder.up.*",)),
    *(
        (f"gen_vision_model.{half}.mid.{old}.*", (f"model.vqmodel.{half}.mid.{new}.*",))
        for half in ("encoder", "decoder")
        for old, new in enumerate(("block_1", "attn_1", "block_2"))
    ),
    ("gen_vision_model.quantize.codebook_used", ()),  # a count from training
    ("gen_vision_model.*", ("model.vqmodel.*",)),
    ("language_model.model.layers.#.self_attn.rotary_emb.inv_freq", ()),  # follows from theta
    ("language_model.model.*", ("model.language_model.*",)),
    ("language_model.lm_head.weight", ("lm_head.weight",)),
)
"""Original name, and transformers' names: none where nothing needs the tensor, three where one is
cut in three. # is a number, * the rest; the first rule that fits holds."""

TOWERS: Mapping[str, int] = {"siglip_large_patch16_384": 16}
"""Attention heads by the tower's name, the one size that no tensor shows."""


def new_names(old: str) -> tuple[str, ...] | None:
    """What transformers calls an original tensor; None for one that no Janus has."""
    for source, targets in RULES:
        found = _pattern(source).fullmatch(old)
        if found:
            return tuple(_filled(target, found.groups()) for target in targets)
    return None


def old_name(new: str) -> str:
    """The original name of transformers' tensor; itself where it has none."""
    for source, targets in RULES:
        for target in targets:
            found = _pattern(target).fullmatch(new)
            if found:
                return _filled(source, found.groups())
    return new


@cache
def _pattern(name: str) -> re.Pattern[str]:
    plain = re.escape(name).replace(r"\#", r"(\d+)")
    return re.compile(plain.replace(r"\*", "(.+)"))


def _filled(name: str, groups: tuple[str, ...]) -> str:
    parts = iter(groups)
    return re.sub(r"[#*]", lambda _: next(parts), name)


def configuration(
    config: Mapping[str, Any], files: Mapping[str, Path], *, folder: Path
) -> JanusConfig:
    """transformers' configuration of an original checkpoint.

    ``files`` says in which file each original tensor is. Raises MissingError where the
    configuration or a tensor that shows a size is not whole, UsageError for another vision tower.
    """
    sizes = _Sizes(files)
    try:
        tower = config["vision_config"]["params"]
        side, name = int(tower["image_size"]), str(tower["model_name"])
        language = dict(config["language_config"])
    except (KeyError, TypeError, ValueError) as error:
        raise MissingError(
            f"{folder / 'config.json'} is not whole: it lacks {error}",
            hint="op backends fetch janus",
        ) from error
    if name not in TOWERS:
        raise UsageError(
            f"{folder} has the vision tower {name!r}, and janus knows {', '.join(TOWERS)}",
            hint="op backends show janus",
        )
    wide, _, patch, _ = sizes.of(f"{TOWER}.patch_embed.proj.weight")
    base = sizes.of("gen_vision_model.encoder.conv_in.weight")[0]
    codes, depth = sizes.of("gen_vision_model.quantize.embedding.weight")
    blocks = "gen_vision_model.encoder.conv_blocks"
    levels = [
        sizes.of(f"{blocks}.{level}.res.0.conv1.weight")[0] // base
        for level in range(sizes.count(f"{blocks}.#.*"))
    ]
    vision = {
        "hidden_size": wide,
        "num_hidden_layers": sizes.count(f"{TOWER}.blocks.#.*"),
        "num_attention_heads": TOWERS[name],
        "mlp_ratio": sizes.of(f"{TOWER}.blocks.0.mlp.fc1.weight")[0] / wide,
        "image_size": side,
        "patch_size": patch,
        "num_image_tokens": (side // patch) ** 2,
        "projection_dim": sizes.of("aligner.layers.0.weight")[0],
        "depth": 2,
    }
    head_out, head_in = sizes.of("gen_head.output_mlp_projector.weight")
    painter = {
        "embed_dim": depth,
        "num_embeddings": codes,
        "latent_channels": sizes.of("gen_vision_model.encoder.conv_out.weight")[0],
        "base_channels": base,
        "channel_multiplier": levels,
        "num_res_blocks": sizes.count(f"{blocks}.0.res.#.*"),
        "projection_dim": head_out,
        "image_token_embed_dim": head_in,
        "num_hidden_layers": 2,
    }
    text = {**language, "model_type": "llama"}
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=painter, tie_word_embeddings=False
    )


class _Sizes:
    """Shapes of original tensors, by name; MissingError names a file that lacks one."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files

    def of(self, name: str) -> tuple[int, ...]:
        if name not in self.files:
            raise lacking(name, self.files)
        with safe_open(self.files[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def count(self, pattern: str) -> int:
        """How many numbers stand at the first # of names that fit."""
        found = (_pattern(pattern).fullmatch(name) for name in self.files)
        return len({match[1] for match in found if match})


def lacking(name: str, files: Mapping[str, Path]) -> MissingError:
    """The complaint about a tensor that should be in one of ``files``."""
    hint = "op backends fetch janus"
    return MissingError(f"{places(files)} lacks the tensor {name}", hint=hint)


def converted(
    files: Mapping[str, Path], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """All tensors under transformers' names, queries, keys and values apart.

    ``wanted`` are transformers' names and shapes; MissingError names the file and the original
    tensor where one is unknown, missing or of another shape.
    """
    unknown = sorted(name for name in files if new_names(name) is None)
    if unknown:
        raise MissingError(
            f"{files[unknown[0]]} holds a tensor that no Janus has: {unknown[0]}",
            hint="op backends fetch janus",
        )
    found: dict[str, Tensor] = {}
    for path in sorted(set(files.values())):
        for old, tensor in _tensors_in(path, files):
            names = new_names(old) or ()
            for new, one in zip(names, _parts(old, tensor, len(names)), strict=True):
                if new in wanted and tuple(one.shape) != wanted[new]:
                    raise MissingError(
                        misfit(path, old, tuple(tensor.shape)), hint="op backends fetch janus"
                    )
                found[new] = one
    for new in wanted:
        if new not in found:
            raise lacking(old_name(new), files)
    surplus = sorted(name for name in found if name not in wanted)
    if surplus:
        old = old_name(surplus[0])
        raise MissingError(
            f"{files[old]} holds a tensor for which its configuration has no place: {old}",
            hint="op backends fetch janus",
        )
    return found


def _parts(name: str, tensor: Tensor, count: int) -> Sequence[Tensor]:
    """A tensor as transformers has it: one cut in three, or without its batch dimension."""
    if count > 1 and tensor.ndim:
        return tensor.tensor_split(count)
    return [tensor[0] if name == f"{TOWER}.pos_embed" and tensor.ndim == 3 else tensor] * count


def _tensors_in(path: Path, files: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in sorted(tensor for tensor, where in files.items() if where == path):
            yield name, file.get_tensor(name)
