"""Pictures into codes and out of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image as images
from PIL.Image import Image, Resampling
from torch import Tensor, nn
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
    with _one_frame(vq.encoder, vq.config.temporal_downsample_factor):
        (codes,) = vq.encode(pixels.to(weight.device, weight.dtype), sizes).image_tokens
    found: Tensor = codes.long()
    return found


@torch.no_grad()
def decode(model: Emu3ForConditionalGeneration, codes: Tensor) -> Tensor:
    """Pixels [3, 8 rows, 8 columns] of codes [rows, columns]."""
    vq: Any = model.model.vqmodel
    with _one_frame(vq.decoder, vq.config.temporal_downsample_factor):
        found: Tensor = vq.decode(codes[None])[0]
    return found


@contextmanager
def _one_frame(half: nn.Module, frames: int) -> Iterator[None]:
    """Inside, the convolutions in space of a half of the image tokenizer run once for a picture.

    The tokenizer is one of videos: it takes a picture as so many equal ``frames``, and gives as
    many, of which the first is the picture. Those in time join frames, those in space do not.
    """

    def first(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value[:1] for value in inputs)

    def repeated(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.repeat(frames, 1, 1, 1)

    in_space = [it for name, it in half.named_children() if not name.startswith("time_")]
    hooks = [module.register_forward_pre_hook(first) for module in in_space]
    hooks.append(half.get_submodule("conv_out").register_forward_hook(repeated))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _row(values: Any) -> Tensor:
    """One number or three, for the last dimension."""
    return torch.tensor(values, dtype=torch.float32)
