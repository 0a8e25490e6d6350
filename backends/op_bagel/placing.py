"""Where the weights of a mixture go, and what its layers keep, as an opening asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from omnipersona_cli.backend import Opening
from omnipersona_cli.family.offload import at_home, check_offload, stream
from omnipersona_cli.family.quantize import Quantized, check_quantize, quantize
from omnipersona_cli.family.recompute import recompute
from op_bagel.config import DecoderConfig
from op_bagel.model import GEN, Bagel

LAYERS = "language_model.model.layers."


def check_opening(opening: Opening, device: str) -> None:
    """UsageError for what does not go together, MissingError for a library that is not here."""
    if opening.quantize:
        check_quantize(opening.quantize, offload=opening.offload)
    if opening.offload:
        check_offload(device)


def placing(opening: Opening, device: str, dtype: torch.dtype) -> Callable[[str, Tensor], Tensor]:
    """What brings a stored tensor of the mixture, by its name, to where it is wanted."""

    def place(name: str, value: Tensor) -> Tensor:
        if opening.offload and name.startswith(LAYERS):
            return at_home(value.to(dtype), device)
        if opening.quantize and name.startswith(LAYERS) and "_proj" in name and GEN not in name:
            return value  # to be quantised from where it is, and never copied whole
        return value.to(device=device, dtype=dtype)

    return place


def arrange(model: Bagel, opening: Opening, device: str, dtype: torch.dtype) -> Quantized | None:
    """Quantise the understanding expert, offload the layers, or let them keep nothing for the way
    back, where that is asked; what was quantised."""
    quantized = None
    if opening.quantize:
        names = linears(model.config.llm)
        quantized = quantize(model, names, opening.quantize, device=device, dtype=dtype)
    layers = model.language_model.model.layers
    if opening.offload:
        stream(layers, device)
    elif opening.activation_checkpointing or opening.quantize:
        recompute(layers)
    return quantized


def linears(config: DecoderConfig) -> Iterator[str]:
    """Names of the understanding expert's linear layers."""
    for layer in range(config.num_hidden_layers):
        for part, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            yield from (f"{LAYERS}{layer}.{part}.{name}_proj" for name in names)
