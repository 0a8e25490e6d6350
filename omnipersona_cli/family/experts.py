"""A low-rank expert per task, through PEFT.

One language model serves all tasks, so nothing routes a concept's understanding and its painting
apart. An expert of low rank per task brings the routing back; it is learned with the concept and
lies in its pack under "lora.<task>.<module>.A" [r, in] and "….B" [out, r].

PEFT puts an empty adapter of each task into the model once. The concept's own tensors take its
place inside `using`, so that gradients reach them and nothing is copied; outside, every adapter is
off, and a switched-off layer runs the frozen layer alone, bit for bit.

PEFT is imported where a concept has experts: it brings bitsandbytes and with it torch's compiler,
two seconds that every other command would wait for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omnipersona_cli.backend import Task
from omnipersona_cli.errors import PackError, SlotError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTERS: Mapping[Task, str] = {"understand": "und", "generate": "gen", "edit": "edit"}
LLAMA_LINEARS = r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""The linear layers of a Llama alone: no vision encoder, no image tokenizer (which may have
a q_proj too), no head."""
SCALE = 2.0
"""How much an expert's output counts: alpha = 2 r, whatever the rank."""


def new_experts(
    model: nn.Module,
    regex: str,
    *,
    tasks: Sequence[str] = ("und", "gen", "edit"),
    rank: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Float32 tensors of experts that change nothing yet: A is random, B is zero.

    ``regex`` must match a module's whole name, as PEFT has it. A list of name endings would reach
    into the vision tower too, and "all-linear" into the image head.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for task in tasks:
        for name, (wide, high) in _targets(model, regex).items():
            bound = 1 / sqrt(wide)
            a = (torch.rand(rank, wide, generator=generator) * 2 - 1) * bound
            found[f"lora.{task}.{name}.A"] = a
            found[f"lora.{task}.{name}.B"] = torch.zeros(high, rank)
    return found


@contextmanager
def using(
    model: nn.Module, regex: str, extras: Sequence[Mapping[str, Tensor]], task: Task
) -> Iterator[None]:
    """The model with the experts of ``task`` that ``extras`` (one mapping per concept) hold.

    Several concepts' experts add up. Concepts without experts cost nothing: the model is untouched.
    Raises SlotError where an expert does not fit into this model.
    """
    adapter = ADAPTERS[task]
    stacked = _stacked(extras, adapter)
    if not stacked:
        yield
        return
    from peft.tuners.lora import LoraLayer

    _check(stacked, _targets(model, regex))
    _inject(model, regex)
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    device = next(model.parameters()).device
    kept: list[tuple[nn.Module, nn.Parameter | None]] = []
    try:
        for name, (a, b) in stacked.items():
            layer = layers[name]
            for module, tensor in ((layer.lora_A[adapter], a), (layer.lora_B[adapter], b)):
                kept.append((module, module._parameters.pop("weight")))
                module.weight = tensor.to(device)
            _switch(layer, adapter)
        yield
    finally:
        for name in stacked:
            _switch(layers[name], None)
        for module, parameter in kept:
            module.__dict__.pop("weight", None)
            module._parameters["weight"] = parameter


def _switch(layer: LoraLayer, adapter: str | None) -> None:
    """One task's expert on, or all off, by PEFT's own flags. Its `set_adapter` would also make the
    placeholder trainable."""
    layer._active_adapter = [adapter] if adapter else []
    layer._disable_adapters = adapter is None


def _targets(model: nn.Module, regex: str) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers whose whole name matches."""
    from peft.tuners.lora import LoraLayer

    return {
        name: (int(module.in_features or 0), int(module.out_features or 0))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | LoraLayer) and re.fullmatch(regex, name)
    }


def _inject(model: nn.Module, regex: str) -> None:
    """Adapters of rank 1 as places for experts of any rank, all off; once per model."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    if any(isinstance(module, LoraLayer) for module in model.modules()):
        return
    config = LoraConfig(r=1, lora_alpha=int(SCALE), target_modules=regex, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # three adapters in one model are meant
        for adapter in ADAPTERS.values():
            inject_adapter_in_model(config, model, adapter)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            _switch(module, None)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(False)


def _stacked(
    extras: Sequence[Mapping[str, Tensor]], adapter: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """A [r, in] and B [out, r] of each module; concepts stand beside each other in r."""
    start = f"lora.{adapter}."
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for extra in extras:
        for key in sorted(extra):
            if not (key.startswith(start) and key.endswith(".A")):
                continue
            other = extra.get(f"{key[:-2]}.B")
            if other is None or other.ndim != 2 or other.shape[1] != extra[key].shape[0]:
                raise PackError(f"the expert {key[:-2]} is not whole", hint="op learn … --force")
            a, b = found.setdefault(key.removeprefix(start)[:-2], ([], []))
            a.append(extra[key])
            b.append(other)
    return {name: (torch.cat(a, 0), torch.cat(b, 1)) for name, (a, b) in found.items()}


def _check(
    stacked: Mapping[str, tuple[Tensor, Tensor]], targets: Mapping[str, tuple[int, int]]
) -> None:
    for name, (a, b) in stacked.items():
        wide, high = targets.get(name, (0, 0))
        if a.ndim != 2 or (a.shape[1], b.shape[0]) != (wide, high):
            raise SlotError(
                f"the concept's expert for {name} does not fit this backbone",
                hint="learn it again here: op learn PHOTOS --name NAME --experts lora --force",
            )
