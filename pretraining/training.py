"""What every stage of pretraining shares: its clock, log and state, and how weights are moved."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def clock_of(device: str) -> Callable[[], float]:
    """Seconds since some moment: of processor time on a CPU, because the machine may be shared; of
    wall-clock on a GPU."""
    return time.process_time if device.startswith("cpu") else time.monotonic


def autocast(device: str, precision: str) -> torch.autocast:
    """bfloat16 where it is asked for."""
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bfloat16")


class PretrainingStage:
    """Clock, log, learning-rate schedule and checkpoint of one stage. ``done`` in [0, 1] is
    the share of the whole budget used, over all sittings."""

    def __init__(
        self,
        state: Path,
        name: str,
        minutes: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        tail: float = 0.4,
    ) -> None:
        self.clock, self.tail = clock, tail
        self.folder, self.name, self.budget = state, name, minutes * 60
        self.weights = state / f"{name}.safetensors"
        self.about = state / f"{name}.json"
        self.spent, self.step = 0.0, 0
        if self.about.exists():
            before = json.loads(self.about.read_text())
            self.spent, self.step = before["seconds"], before["step"]
        self.began = clock()
        self.saved = self.logged = time.monotonic()
        self.sums: dict[str, list[float]] = {}
        self.agreed: float | None = None
        """The share of the budget that all processes of a stage agree on."""

    @property
    def seconds(self) -> float:
        """Time worked on this stage, over all sittings."""
        return self.spent + self.clock() - self.began

    @property
    def done(self) -> float:
        """Share of the budget used, in [0, 1]."""
        return min(1.0, self.seconds / self.budget) if self.agreed is None else self.agreed

    def rate(self, peak: float, *, warm: int = 100) -> float:
        """Warm-up, flat, then linear to zero over the last ``tail`` of the budget; flat to the end
        where that is 0."""
        left = max(0.0, (1 - self.done) / self.tail) if self.tail else 1.0
        return peak * min(1.0, (self.step + 1) / warm, left)

    def log(self, every: float = 30.0, **values: float) -> None:
        """Collects values; prints and writes their means when ``every`` seconds have passed."""
        for key, value in values.items():
            self.sums.setdefault(key, []).append(value)
        if time.monotonic() - self.logged > every:
            means = {key: round(float(np.mean(values)), 4) for key, values in self.sums.items()}
            line = {"step": self.step, "minutes": round(self.seconds / 60, 1), **means}
            print(json.dumps(line), flush=True)
            with (self.folder / f"{self.name}.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            self.logged, self.sums = time.monotonic(), {}

    def save_due(self, every: float = 120.0) -> bool:
        """Whether the last save is ``every`` seconds ago."""
        return time.monotonic() - self.saved > every

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Replaces the checkpoint at once, then notes time and step."""
        part = self.weights.with_suffix(".part")
        save_file({key: value.detach().clone() for key, value in tensors.items()}, part)
        part.rename(self.weights)
        about = self.about.with_suffix(".json.part")
        self.spent, self.began = self.seconds, self.clock()
        about.write_text(json.dumps({"seconds": self.spent, "step": self.step}))
        about.rename(self.about)
        self.saved = time.monotonic()


Optimisers = dict[str, tuple[torch.optim.Optimizer, float]]
"""Name -> optimiser and its peak rate."""


def optimiser_state(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimiser's tensors by name; numbers become 0-d tensors."""
    return {
        f"{prefix}.{index}.{key}": torch.as_tensor(value)
        for index, values in optimiser.state_dict()["state"].items()
        for key, value in values.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, prefix: str, saved: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_state`."""
    whole = optimiser.state_dict()
    whole["state"] = {}
    for name, value in saved.items():
        if name.startswith(f"{prefix}."):
            _, index, key = name.split(".", 2)
            whole["state"].setdefault(int(index), {})[key] = value
    optimiser.load_state_dict(whole)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, for matrices and, flattened, for convolutions;
    scaled to the root mean square of an Adam step (Jordan 2024; Liu et al. 2025, section 2.2)."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; equal shapes go together."""
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                updates.setdefault(update.shape, []).append((weight, update))
            for shape, pairs in updates.items():
                whole = orthogonalise(torch.stack([update for _, update in pairs]))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for (weight, _), update in zip(pairs, whole, strict=True):
                    weight.add_(update.view_as(weight), alpha=-rate)


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices [n, rows, columns], roughly, by five Newton-Schulz
    iterations."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    nearest: Tensor = x.mT if tall else x
    return nearest


def optimisers(parameters: dict[str, nn.Parameter], *, matrices: float, rest: float) -> Optimisers:
    """Muon for what is inside (matrices, convolutions), AdamW for what touches words or pixels,
    norms and biases; each with its peak rate."""
    inside = {
        key: value
        for key, value in parameters.items()
        if value.ndim >= 2 and min(value.shape[0], value[0].numel()) >= 16 and "embed" not in key
    }
    others = [value for key, value in parameters.items() if key not in inside]
    return {
        "muon": (Muon(list(inside.values()), lr=matrices), matrices),
        "adam": (torch.optim.AdamW(others, lr=rest, betas=(0.9, 0.98), weight_decay=0.0), rest),
    }


class Average:
    """Exponential moving average of parameters, warmed up so that it forgets the start."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float = 0.999) -> None:
        self.decay = decay
        self.values = {key: value.detach().clone() for key, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """A step towards the parameters, the smaller the later."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine = list(self.values.values())
        torch._foreach_lerp_(mine, [parameters[key].detach() for key in self.values], 1 - decay)


def everything(model: nn.Module, both: Optimisers, average: Average) -> dict[str, Tensor]:
    """All that a stage needs to go on: weights, their average, optimiser states."""
    return (
        {f"model.{key}": value for key, value in model.state_dict().items()}
        | {f"average.{key}": value for key, value in average.values.items()}
        | {k: v for name, (one, _) in both.items() for k, v in optimiser_state(one, name).items()}
    )


def resume(stage: PretrainingStage, model: nn.Module, both: Optimisers, average: Average) -> None:
    """The inverse of `everything`, where the stage has been saved before. What the file does not
    hold starts anew: shipped weights have neither optimisers nor what is for training alone."""
    if not stage.weights.exists():
        return
    saved = load_file(stage.weights)
    kept = {k[6:]: value for k, value in saved.items() if k.startswith("model.")}
    model.load_state_dict(model.state_dict() | kept)
    for name, (optimiser, _) in both.items():
        load_optimiser(optimiser, name, saved)
    for key, value in average.values.items():
        value.copy_(saved.get(f"average.{key}", value))


def step_all(stage: PretrainingStage, model: nn.Module, both: Optimisers, loss: Tensor) -> None:
    """One update of all parameters at the rate that the clock says. Several processes first agree
    on the gradient and on the time."""
    model.zero_grad()
    torch.autograd.backward(loss)
    if distributed.is_initialized():
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        spent = torch.tensor([stage.seconds / stage.budget])
        whole = torch.cat([spent, *(gradient.flatten() for gradient in gradients)])
        distributed.all_reduce(whole)
        whole /= distributed.get_world_size()
        stage.agreed = min(1.0, whole[0].item())
        parts = torch.split(whole[1:], [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser, peak in both.values():
        optimiser.param_groups[0]["lr"] = stage.rate(peak)
        optimiser.step()
    stage.step += 1


def to_pixels(pool: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
    """uint8 [n, H, W, 3] of the pool as float [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pool[np.sort(rows)]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
