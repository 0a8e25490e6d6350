"""Pretraining of nano, from nothing to the weights in the package.

    python -m op_nano.pretrain draw         draw the pool of families
    python -m op_nano.pretrain autoencoder  pictures <-> latents
    python -m op_nano.pretrain vision       the ViT, on attributes
    python -m op_nano.pretrain encode       latents and ViT features of the pool, once
    python -m op_nano.pretrain joint        everything else, on cached latents and features
    python -m op_nano.pretrain judge        the network that measures, apart from all others
    python -m op_nano.pretrain export       bf16 weights into the package

Every stage keeps its state in ``--state`` (default `.training/`), resumes where it stopped, ends
after ``--minutes`` of wall-clock, and logs to `<state>/<stage>.jsonl`. One thing at a time: two
stages beside each other are slower than one after the other.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from op_bagel.pictures import patchify, position_ids
from op_bagel.vae import AutoEncoder
from op_bagel.vit import VisionModel
from op_nano.families import PICTURES, draw_family, draw_pool
from op_nano.shape import CONFIG, SIZE, VAE
from op_nano.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    PATTERNS,
    SCENES,
    THINGS,
    Picture,
    layout,
)

FAMILIES, HELD_OUT_FIRST, JUDGE_FIRST = 6000, 10_000_000, 5_000_000


# -- the clock, the log and the state of a stage ---------------------------------------------------


class Stage:
    """Wall-clock, log, learning-rate schedule and checkpoint of one stage. ``done`` in [0, 1] is
    the share of the whole budget used, over all sittings."""

    def __init__(self, state: Path, name: str, minutes: float) -> None:
        self.folder, self.name, self.budget = state, name, minutes * 60
        self.weights = state / f"{name}.safetensors"
        self.about = state / f"{name}.json"
        self.spent, self.step = 0.0, 0
        if self.about.exists():
            before = json.loads(self.about.read_text())
            self.spent, self.step = before["seconds"], before["step"]
        self.began = self.saved = self.logged = time.monotonic()
        self.sums: dict[str, list[float]] = {}

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    @property
    def done(self) -> float:
        return min(1.0, self.seconds / self.budget)

    def rate(self, peak: float, *, warm: int = 100, tail: float = 0.4) -> float:
        """Warm-up, flat, then linear to zero over the last ``tail`` of the budget."""
        return peak * min(1.0, (self.step + 1) / warm, max(0.0, (1 - self.done) / tail))

    def log(self, every: float = 30.0, **values: float) -> None:
        for key, value in values.items():
            self.sums.setdefault(key, []).append(value)
        if time.monotonic() - self.logged > every:
            means = {key: round(float(np.mean(seen)), 4) for key, seen in self.sums.items()}
            line = {"step": self.step, "minutes": round(self.seconds / 60, 1), **means}
            print(json.dumps(line), flush=True)
            with (self.folder / f"{self.name}.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            self.logged, self.sums = time.monotonic(), {}

    def save_due(self, every: float = 120.0) -> bool:
        return time.monotonic() - self.saved > every

    def save(self, tensors: dict[str, Tensor]) -> None:
        part = self.weights.with_suffix(".part")
        save_file({key: value.detach().clone() for key, value in tensors.items()}, part)
        part.rename(self.weights)
        self.about.write_text(json.dumps({"seconds": self.seconds, "step": self.step}))
        self.saved = time.monotonic()


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

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                update = orthogonalise(update)
                scale = 0.2 * math.sqrt(max(update.shape))
                weight.add_(update.view_as(weight), alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly, by five Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def optimisers(
    parameters: dict[str, torch.nn.Parameter], *, matrices: float, rest: float
) -> dict[str, tuple[torch.optim.Optimizer, float]]:
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

    def __init__(self, parameters: dict[str, Tensor], decay: float = 0.999) -> None:
        self.decay = decay
        self.values = {key: value.detach().clone() for key, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, Tensor], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        mine = list(self.values.values())
        torch._foreach_lerp_(mine, [parameters[key].detach() for key in self.values], 1 - decay)


Optimisers = dict[str, tuple[torch.optim.Optimizer, float]]


def everything(model: torch.nn.Module, both: Optimisers, average: Average) -> dict[str, Tensor]:
    """All that a stage needs to go on: weights, their average, optimiser states."""
    return (
        {f"model.{key}": value for key, value in model.state_dict().items()}
        | {f"average.{key}": value for key, value in average.values.items()}
        | {k: v for name, (one, _) in both.items() for k, v in optimiser_state(one, name).items()}
    )


def resume(stage: Stage, model: torch.nn.Module, both: Optimisers, average: Average) -> None:
    """The inverse of `everything`, where the stage has been saved before."""
    if not stage.weights.exists():
        return
    saved = load_file(stage.weights)
    model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
    for name, (optimiser, _) in both.items():
        load_optimiser(optimiser, name, saved)
    for key, value in average.values.items():
        value.copy_(saved[f"average.{key}"])


def step_all(stage: Stage, model: torch.nn.Module, both: Optimisers, loss: Tensor) -> None:
    """One update of all parameters at the rate that the clock says."""
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser, peak in both.values():
        optimiser.param_groups[0]["lr"] = stage.rate(peak)
        optimiser.step()
    stage.step += 1


def to_pixels(pool: np.ndarray, rows: np.ndarray) -> Tensor:
    """uint8 [n, H, W, 3] of the pool as float [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pool[np.sort(rows)]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


# -- autoencoder -----------------------------------------------------------------------------------


def restoration_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """L1 of pixels and of their differences to the right and below."""
    error = restored - pictures
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def train_autoencoder(state: Path, minutes: float, batch: int) -> None:
    """L1 + gradient L1 + a light KL, AdamW, EMA; at the end mean and deviation of the latents
    become shift and scale."""
    pool = np.load(state / "pool.npy", mmap_mode="r")
    test = np.load(state / "test.npy", mmap_mode="r")
    stage = Stage(state, "autoencoder", minutes)
    torch.manual_seed(stage.step)
    rng = np.random.default_rng(stage.step)
    model = AutoEncoder(VAE)
    both = optimisers(dict(model.named_parameters()), matrices=4e-3, rest=3e-3)
    average = Average(dict(model.named_parameters()))
    resume(stage, model, both, average)
    while stage.done < 1.0:
        pictures = to_pixels(pool, rng.integers(len(pool), size=batch))
        mean, logvar = model.moments(pictures)
        logvar = logvar.clamp(-12, 4)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        restored = model.decode(mean + (logvar / 2).exp() * torch.randn_like(mean))
        loss = restoration_loss(restored, pictures)
        step_all(stage, model, both, loss + 1e-3 * kl)
        average.update(dict(model.named_parameters()), stage.step)
        mse = (restored.detach().clamp(-1, 1) - pictures).square().mean().item() / 4
        stage.log(loss=loss.item(), kl=kl.item(), psnr=-10 * math.log10(mse))
        if stage.save_due():
            stage.save(everything(model, both, average))
    stage.save(everything(model, both, average))
    model.load_state_dict(average.values)
    with torch.no_grad():
        pictures = to_pixels(test, np.arange(0, len(test), 4))
        mean, _ = model.moments(pictures)
        restored = model.decode(mean).clamp(-1, 1)
        psnr = -10 * torch.log10((restored - pictures).square().mean((1, 2, 3)) / 4)
    report = {
        "held_out_psnr": round(psnr.mean().item(), 2),
        "shift_factor": mean.mean().item(),
        "scale_factor": 1 / mean.std().item(),
    }
    (state / "autoencoder.report.json").write_text(json.dumps(report))
    print(json.dumps(report))


# -- vision ----------------------------------------------------------------------------------------

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "second": tuple(COLOURS),
    "accessory": ("nothing", *ACCESSORIES),
    "accessory colour": tuple(COLOURS),
}
AROUND: dict[str, tuple[str, ...]] = {
    "scene": SCENES,
    "thing": ("nothing", *THINGS),
    "thing colour": tuple(COLOURS),
    "characters": ("0", "1", "2"),
}


def truth(picture: Picture) -> list[int]:
    """Class numbers of a picture: the attributes of its left and right character (a single one
    counts as left), then what is around; -1 where a question makes no sense."""
    stands = sorted(layout(picture), key=lambda item: item[1])
    found: list[int] = []
    for side in range(2):
        if side >= len(stands):
            found += [-1] * len(ATTRIBUTES)
            continue
        who = stands[side][0]
        worn = who.accessory
        colours = tuple(COLOURS)
        found += [
            KINDS.index(who.kind),
            colours.index(who.colours[0]),
            PATTERNS.index(who.pattern),
            -1 if who.pattern == "plain" else colours.index(who.colours[1]),
            ATTRIBUTES["accessory"].index(worn.what if worn else "nothing"),
            colours.index(worn.colour) if worn else -1,
        ]
    thing = picture.thing
    return [
        *found,
        SCENES.index(picture.scene),
        AROUND["thing"].index(thing.what if thing else "nothing"),
        tuple(COLOURS).index(thing.colour) if thing else -1,
        len(stands),
    ]


class AttributeHeads(torch.nn.Module):
    """One attention query and one linear head per question; only for pretraining the ViT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [len(values) for values in (*ATTRIBUTES.values(), *ATTRIBUTES.values())]
        sizes += [len(values) for values in AROUND.values()]
        self.queries = torch.nn.Parameter(torch.randn(len(sizes), width) * 0.1)
        self.keys = torch.nn.Linear(width, width)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, size) for size in sizes)

    def forward(self, features: Tensor) -> list[Tensor]:
        """[B, n, d] -> logits of each question."""
        weights = (self.keys(features) @ self.queries.T * features.shape[-1] ** -0.5).softmax(1)
        pooled = weights.mT @ features
        return [head(pooled[:, i]) for i, head in enumerate(self.heads)]


def truths(families: int, first: int, held_out: bool) -> Tensor:
    """`truth` of every picture of a pool [families * 11, questions]."""
    seeds = range(first, first + families)
    return torch.tensor(
        [truth(p) for seed in seeds for p in draw_family(seed, held_out=held_out).pictures]
    )


def patch_rows(pictures: Tensor, patch: int) -> Tensor:
    """[B, 3, H, W] -> [B, n, patch width]."""
    return patchify(pictures, patch)[0]


def see(model: VisionModel, pictures: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> ViT rows [B, n, d], before the connector."""
    rows = patch_rows(pictures, CONFIG.vit.patch_size)
    side = SIZE // CONFIG.vit.patch_size
    ids = position_ids((side, side), CONFIG.vit.side).repeat(len(rows))
    seen: Tensor = model.vision_model(rows.flatten(0, 1), ids, [side * side] * len(rows))
    return seen.unflatten(0, (len(rows), side * side))


def blurred(pictures: Tensor) -> Tensor:
    """Half of the pictures a little soft and noisy, as painted ones are."""
    small = F.interpolate(pictures, scale_factor=0.6, mode="bilinear", antialias=True)
    soft = F.interpolate(small, size=pictures.shape[-2:], mode="bicubic")
    soft = soft + 0.04 * torch.randn_like(soft)
    return torch.where(torch.rand(len(pictures), 1, 1, 1) < 0.5, soft, pictures)


def train_vision(state: Path, minutes: float, batch: int, *, name: str = "vision") -> None:
    """A ViT alone, on what is in a picture. As "vision" it becomes nano's eye, and the heads are
    thrown away; as "judge", from other pictures and another start, it measures and is used for
    nothing else."""
    judge = name == "judge"
    pool = np.load(state / ("judge.npy" if judge else "pool.npy"), mmap_mode="r")
    test = np.load(state / "test.npy", mmap_mode="r")
    labels = truths(len(pool) // PICTURES, JUDGE_FIRST if judge else 0, False)
    test_labels = truths(len(test) // PICTURES, HELD_OUT_FIRST, True)
    stage = Stage(state, name, minutes)
    torch.manual_seed(stage.step + (1 << 20 if judge else 0))
    rng = np.random.default_rng(stage.step)
    model = torch.nn.ModuleDict(
        {"vit": VisionModel(CONFIG.vit), "heads": AttributeHeads(CONFIG.vit.hidden_size)}
    )
    both = optimisers(dict(model.named_parameters()), matrices=5e-3, rest=2e-3)
    average = Average(dict(model.named_parameters()), 0.998)
    resume(stage, model, both, average)
    while stage.done < 1.0:
        rows = np.sort(rng.integers(len(pool), size=batch))
        pictures = to_pixels(pool, rows)
        if judge:
            pictures = blurred(pictures)
        answers = model["heads"](see(model["vit"], pictures))  # type: ignore[arg-type]
        wanted = labels[rows]
        losses = [
            F.cross_entropy(logits, wanted[:, i], ignore_index=-1)
            for i, logits in enumerate(answers)
        ]
        loss = torch.stack(losses).nanmean()
        step_all(stage, model, both, loss)
        average.update(dict(model.named_parameters()), stage.step)
        stage.log(loss=loss.item())
        if stage.save_due():
            stage.save(everything(model, both, average))
    stage.save(everything(model, both, average))
    model.load_state_dict(average.values)
    names = [*ATTRIBUTES, *(f"right {name}" for name in ATTRIBUTES), *AROUND]
    with torch.no_grad():
        answers = model["heads"](see(model["vit"], to_pixels(test, np.arange(len(test)))))  # type: ignore[arg-type]
    report = {}
    for i, name in enumerate(names):
        asked = test_labels[:, i] >= 0
        right = answers[i].argmax(1)[asked] == test_labels[asked, i]
        report[name] = round(right.float().mean().item(), 3)
    (state / f"{name}.report.json").write_text(json.dumps(report))
    print(json.dumps(report))


# -- command line ----------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--state", type=click.Path(path_type=Path), default=Path(".training"))
@click.option("--threads", default=os.cpu_count() or 1, help="Threads for torch.")
@click.pass_context
def main(context: click.Context, state: Path, threads: int) -> None:
    """Pretrain nano, stage by stage."""
    state.mkdir(exist_ok=True)
    torch.set_num_threads(threads)
    context.obj = state


@main.command()
@click.option("--families", default=FAMILIES)
@click.option("--jobs", default=os.cpu_count() or 1)
@click.pass_obj
def draw(state: Path, families: int, jobs: int) -> None:
    """Draw the pool of families, and a held-out one."""
    for _ in draw_pool(state / "test.npy", 300, first=HELD_OUT_FIRST, held_out=True, jobs=jobs):
        pass
    for done in draw_pool(state / "pool.npy", families, jobs=jobs):
        if done % 1000 == 0:
            print(f"{done} families", flush=True)


@main.command()
@click.option("--minutes", default=15.0)
@click.option("--batch", default=16)
@click.pass_obj
def autoencoder(state: Path, minutes: float, batch: int) -> None:
    """Train the autoencoder."""
    train_autoencoder(state, minutes, batch)


@main.command()
@click.option("--minutes", default=8.0)
@click.option("--batch", default=64)
@click.pass_obj
def vision(state: Path, minutes: float, batch: int) -> None:
    """Train the ViT on attributes."""
    train_vision(state, minutes, batch)


@main.command()
@click.option("--minutes", default=8.0)
@click.option("--batch", default=64)
@click.option("--jobs", default=os.cpu_count() or 1)
@click.pass_obj
def judge(state: Path, minutes: float, batch: int, jobs: int) -> None:
    """Train the judge, apart from nano, on pictures of its own."""
    for _ in draw_pool(state / "judge.npy", FAMILIES // 2, first=JUDGE_FIRST, jobs=jobs):
        pass
    train_vision(state, minutes, batch, name="judge")


@main.command()
@click.pass_obj
def encode(state: Path) -> None:
    """Encode the pools with the finished autoencoder and ViT."""
    from op_nano.joint import encode_pool

    for name in ("test", "pool"):
        encode_pool(state, name)


@main.command()
@click.option("--minutes", default=90.0)
@click.option("--concepts", default=14)
@click.option("--ce-weight", default=1.0)
@click.pass_obj
def joint(state: Path, minutes: float, concepts: int, ce_weight: float) -> None:
    """Train both experts and the concept encoder."""
    from op_nano.joint import train_joint

    train_joint(state, minutes, concepts, ce_weight)


@main.command()
@click.option("--to", type=click.Path(path_type=Path), default=Path(__file__).parent / "weights")
@click.pass_obj
def export(state: Path, to: Path) -> None:
    """Write the averaged weights, in bf16, as the package ships them."""
    from op_nano.joint import export_weights

    export_weights(state, to)


if __name__ == "__main__":
    main()
