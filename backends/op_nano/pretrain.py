"""Pretraining of nano, from nothing to the weights in the package.

    python -m op_nano.pretrain draw         draw the pool of families
    python -m op_nano.pretrain autoencoder  pictures <-> latents
    python -m op_nano.pretrain vision       the ViT, on attributes
    python -m op_nano.pretrain encode       latents and ViT features of the pool, once
    python -m op_nano.pretrain joint        everything else, on cached latents and features
    python -m op_nano.pretrain judge        the network that measures, apart from all others
    python -m op_nano.pretrain export       bf16 weights into the package
    python -m op_nano.pretrain unpack       the package's weights as a state, to go on from: then
                                            draw, encode, and joint with more --minutes in all

Every stage keeps its state in ``--state`` (default `.training/`), resumes where it stopped, ends
after ``--minutes`` of wall-clock, and logs to `<state>/<stage>.jsonl`. One thing at a time: two
stages beside each other are slower than one after the other.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from op_bagel.vae import AutoEncoder
from op_bagel.vit import VisionModel
from op_nano.families import HELD_OUT_FIRST, JUDGE_FIRST, PICTURES, draw_family, draw_pool
from op_nano.judge import JudgeNetwork
from op_nano.shape import CONFIG, VAE
from op_nano.training import Average, Stage, everything, optimisers, resume, step_all, to_pixels
from op_nano.vision import NAMES, AttributeHeads, see, truth

FAMILIES = 6000
"""Families of the pool."""
WEIGHTS = Path(__file__).parent / "weights"


# -- autoencoder -----------------------------------------------------------------------------------


def restoration_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """L1 of pixels and of their differences to the right and below."""
    error = restored - pictures
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def train_autoencoder(state: Path, minutes: float, batch: int, *, device: str = "cpu") -> None:
    """L1 + gradient L1 + a light KL, AdamW, EMA; at the end mean and deviation of the latents
    become shift and scale."""
    pool = np.load(state / "pool.npy", mmap_mode="r")
    test = np.load(state / "test.npy", mmap_mode="r")
    stage = Stage(state, "autoencoder", minutes)
    torch.manual_seed(stage.step)
    rng = np.random.default_rng(stage.step)
    model = AutoEncoder(VAE).to(device)
    both = optimisers(dict(model.named_parameters()), matrices=4e-3, rest=3e-3)
    average = Average(dict(model.named_parameters()))
    resume(stage, model, both, average)
    while stage.done < 1.0:
        pictures = to_pixels(pool, rng.integers(len(pool), size=batch)).to(device)
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
        pictures = to_pixels(test, np.arange(0, len(test), 4)).to(device)
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


def truths(families: int, first: int, held_out: bool) -> Tensor:
    """`truth` of every picture of a pool [families * 11, questions]."""
    seeds = range(first, first + families)
    return torch.tensor(
        [truth(p) for seed in seeds for p in draw_family(seed, held_out=held_out).pictures]
    )


def blurred(pictures: Tensor) -> Tensor:
    """Half of the pictures a little soft and noisy, as painted ones are."""
    small = F.interpolate(pictures, scale_factor=0.6, mode="bilinear", antialias=True)
    soft = F.interpolate(small, size=pictures.shape[-2:], mode="bicubic")
    soft = soft + 0.04 * torch.randn_like(soft)
    return torch.where(
        torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < 0.5, soft, pictures
    )


class Eye(nn.Module):
    """nano's ViT, and the heads that teach it what there is to see."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionModel(CONFIG.vit)
        self.heads = AttributeHeads(CONFIG.vit.hidden_size)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        logits: list[Tensor] = self.heads(see(self.vit, pictures))
        return logits


def train_vision(
    state: Path, minutes: float, batch: int, *, name: str = "vision", device: str = "cpu"
) -> None:
    """A network alone, on what is in a picture. "vision" is a ViT that becomes nano's eye, and the
    heads are thrown away; "judge", another network on other pictures, measures and is used for
    nothing else."""
    judge = name == "judge"
    pool = np.load(state / ("judge.npy" if judge else "pool.npy"), mmap_mode="r")
    test = np.load(state / "test.npy", mmap_mode="r")
    labels = truths(len(pool) // PICTURES, JUDGE_FIRST if judge else 0, False)
    test_labels = truths(len(test) // PICTURES, HELD_OUT_FIRST, True)
    stage = Stage(state, name, minutes)
    torch.manual_seed(stage.step + (1 << 20 if judge else 0))
    rng = np.random.default_rng(stage.step)
    model = (JudgeNetwork() if judge else Eye()).to(device)
    both = optimisers(dict(model.named_parameters()), matrices=5e-3, rest=2e-3)
    average = Average(dict(model.named_parameters()), 0.998)
    resume(stage, model, both, average)
    while stage.done < 1.0:
        rows = np.sort(rng.integers(len(pool), size=batch))
        pictures = to_pixels(pool, rows).to(device)
        if judge:
            pictures = blurred(pictures)
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=judge):
            answers = model(pictures)
        wanted = labels[rows].to(device)
        losses = [
            F.cross_entropy(logits.float(), wanted[:, i], ignore_index=-1)
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
    with torch.no_grad():
        parts = np.array_split(np.arange(len(test)), len(test) // 100 + 1)
        seen = [model(to_pixels(test, rows).to(device)) for rows in parts]
    answers = [torch.cat(logits) for logits in zip(*seen, strict=True)]
    report = {}
    for i, asked_for in enumerate(NAMES):
        asked = test_labels[:, i] >= 0
        right = answers[i].argmax(1).cpu()[asked] == test_labels[asked, i]
        report[asked_for] = round(right.float().mean().item(), 3)
    (state / f"{name}.report.json").write_text(json.dumps(report))
    print(json.dumps(report))


# -- command line ----------------------------------------------------------------------------------

DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")


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
@click.option("--minutes", default=24.0)
@click.option("--batch", default=8)
@DEVICE
@click.pass_obj
def autoencoder(state: Path, minutes: float, batch: int, device: str) -> None:
    """Train the autoencoder."""
    train_autoencoder(state, minutes, batch, device=device)


@main.command()
@click.option("--minutes", default=11.0)
@click.option("--batch", default=64)
@DEVICE
@click.pass_obj
def vision(state: Path, minutes: float, batch: int, device: str) -> None:
    """Train the ViT on attributes."""
    train_vision(state, minutes, batch, device=device)


@main.command()
@click.option("--minutes", default=25.0)
@click.option("--batch", default=64)
@click.option("--jobs", default=os.cpu_count() or 1)
@DEVICE
@click.pass_obj
def judge(state: Path, minutes: float, batch: int, jobs: int, device: str) -> None:
    """Train the judge, apart from nano, on pictures of its own."""
    for _ in draw_pool(state / "judge.npy", FAMILIES, first=JUDGE_FIRST, jobs=jobs):
        pass
    train_vision(state, minutes, batch, name="judge", device=device)


@main.command()
@DEVICE
@click.pass_obj
def encode(state: Path, device: str) -> None:
    """Encode the pools with the finished autoencoder and ViT."""
    from op_nano.joint import encode_pool

    for name in ("test", "pool"):
        encode_pool(state, name, device=device)


@main.command()
@click.option("--minutes", default=57.0)
@click.option("--concepts", default=8)
@click.option("--ce-weight", default=1.0)
@click.option("--processes", default=os.cpu_count() or 1, help="On a CPU; a GPU wants one.")
@DEVICE
@click.pass_obj
def joint(
    state: Path,
    minutes: float,
    concepts: int,
    ce_weight: float,
    processes: int,
    device: str,
) -> None:
    """Train both experts and the concept encoder."""
    from op_nano.joint import train_joint

    train_joint(state, minutes, concepts, ce_weight, processes, device)


@main.command()
@click.option("--to", type=click.Path(path_type=Path), default=WEIGHTS)
@click.pass_obj
def export(state: Path, to: Path) -> None:
    """Write the averaged weights, in bf16, as the package ships them."""
    from op_nano.joint import export_weights

    export_weights(state, to)


@main.command()
@click.option(
    "--weights", type=click.Path(path_type=Path), default=Path(__file__).parent / "weights"
)
@click.pass_obj
def unpack(state: Path, weights: Path) -> None:
    """Lay shipped weights out as a state to train on from."""
    from op_nano.joint import unpack_weights

    try:
        unpack_weights(weights, state)
    except FileExistsError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
