"""Pictures into Janus and out of it: SigLIP features, image codes, pixels."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as images
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import JanusForConditionalGeneration


def to_tensor(image: Image, side: int) -> Tensor:
    """RGB [1, 3, side, side] in [-1, 1]; other shapes are squeezed, so that nothing is cut off and
    no grey bars are learnt."""
    square = image.convert("RGB").resize((side, side), Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square, dtype=np.float32))
    return pixels.permute(2, 0, 1)[None] / 127.5 - 1


def to_image(pixels: Tensor) -> Image:
    """[H, W, 3] in [-1, 1] as a picture; the processor's own postprocessing fails."""
    scaled = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return images.fromarray(scaled.round().byte().cpu().numpy())


@torch.no_grad()
def look(model: JanusForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the language model sees of a picture: SigLIP after its aligner [1, n, d]."""
    weight = model.model.aligner.fc1.weight
    found: Tensor = model.model.get_image_features(
        pixels.to(weight.device, weight.dtype)
    ).pooler_output
    return found


@torch.no_grad()
def encode(model: JanusForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Codes [1, N] by the nearest *direction*: the authors' tokenizer compares normalised vectors,
    transformers' `encode` plain distances, and the two disagree."""
    vq = model.model.vqmodel
    weight = vq.quantize.embedding.weight
    states = vq.quant_conv(vq.encoder(pixels.to(weight.device, weight.dtype)))
    directions = F.normalize(weight, dim=-1)
    similar = torch.einsum("bchw,kc->bkhw", F.normalize(states, dim=1), directions)
    return similar.argmax(1).flatten(1)


def code_rows(model: JanusForConditionalGeneration, codes: Tensor) -> Tensor:
    """Codes [n] as the language model's input rows [n, d]."""
    rows: Tensor = model.prepare_embeddings_for_image_generation(codes[None])[0]
    table = cast(torch.nn.Embedding, model.get_input_embeddings())
    return rows.to(table.weight.dtype)


@torch.no_grad()
def decode(model: JanusForConditionalGeneration, codes: Tensor) -> Tensor:
    """Pixels [H, W, 3] of codes [N]."""
    pixels: Tensor = model.decode_image_tokens(codes[None])
    return pixels[0]
