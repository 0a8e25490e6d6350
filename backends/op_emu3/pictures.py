"""Pictures into codes and out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image as images
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import Emu3ForConditionalGeneration, Emu3ImageProcessor

from op_emu3.layout import SIDE


def to_tensor(image: Image, grid: tuple[int, int], processor: Emu3ImageProcessor) -> Tensor:
    """RGB [1, 3, 8 rows, 8 columns], scaled as the checkpoint's own processor scales."""
    wanted = (grid[1] * SIDE, grid[0] * SIDE)
    pixels = np.array(image.convert("RGB").resize(wanted, Resampling.BICUBIC), dtype=np.float32)
    scaled = (torch.from_numpy(pixels) / 255 - _row(processor.image_mean)) / _row(
        processor.image_std
    )
    return scaled.permute(2, 0, 1)[None]


def to_image(pixels: Tensor, processor: Emu3ImageProcessor) -> Image:
    """[3, H, W] as the tokenizer decodes it, as a picture."""
    found = pixels.detach().float().cpu().permute(1, 2, 0)
    scaled = (found * _row(processor.image_std) + _row(processor.image_mean)).clamp(0, 1) * 255
    return images.fromarray(scaled.round().byte().numpy())


@torch.no_grad()
def encode(model: Emu3ForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Codes [rows, columns] of one picture [1, 3, H, W].

    One at a time: pictures of several sizes in one batch are padded, and the normalisation of the
    encoder sees the padding, so that the smaller one gets other codes.
    """
    vq: Any = model.model.vqmodel
    weight = vq.quantize.embedding.weight
    sizes = torch.tensor([pixels.shape[-2:]])
    (codes,) = vq.encode(pixels.to(weight.device, weight.dtype), sizes).image_tokens
    found: Tensor = codes.long()
    return found


@torch.no_grad()
def decode(model: Emu3ForConditionalGeneration, codes: Tensor) -> Tensor:
    """Pixels [3, 8 rows, 8 columns] of codes [rows, columns]."""
    found: Tensor = model.model.vqmodel.decode(codes[None])[0]
    return found


def _row(values: Any) -> Tensor:
    """One number or three, for the last dimension."""
    return torch.tensor(values, dtype=torch.float32)
