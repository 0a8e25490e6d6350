"""The vision tower: Qwen2.5-VL's, as transformers has it.

Its merger gives rows of the language model's width; Lance adds no connector and no positions to
them. Source: Lance release (arXiv 2605.18678); Qwen2.5-VL (arXiv 2502.13923).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from op_bagel.pictures import Grid
from op_lance.config import TowerConfig


def build_tower(config: TowerConfig) -> nn.Module:
    """The tower with the released tensor names, weights not set. Its rotary frequencies are real
    numbers even where it is built on the meta device."""
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl

    known: Any = configuration_qwen2_5_vl
    parts: Any = modeling_qwen2_5_vl
    sizes = {**asdict(config), "fullatt_block_indexes": list(config.fullatt_block_indexes)}
    settings = known.Qwen2_5_VLVisionConfig(**sizes, hidden_act="silu", in_channels=3)
    settings._attn_implementation = "sdpa"
    tower: nn.Module = parts.Qwen2_5_VisionTransformerPretrainedModel(settings)
    with torch.device("cpu"):  # the frequencies are in no file
        tower.rotary_pos_emb = parts.Qwen2_5_VLVisionRotaryEmbedding(settings)
    return tower.eval()


def see(tower: nn.Module, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Patch rows [n, patch width] of pictures with `grids` rows and columns of patches, one after
    another -> the features [tokens, D] of each picture. No picture attends to another."""
    untyped: Any = tower
    weight = untyped.patch_embed.proj.weight
    sides = torch.tensor([[1, *grid] for grid in grids], device=weight.device)
    features: Tensor = untyped(patches.to(weight), sides).pooler_output
    merge = untyped.spatial_merge_size**2
    return list(torch.split(features, [h * w // merge for h, w in grids]))
