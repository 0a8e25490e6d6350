"""Pretraining of nano, from nothing to the weights in the package.

    python -m pretraining draw         draw the pool of families
    python -m pretraining autoencoder  pictures <-> latents
    python -m pretraining vision       the ViT, on attributes
    python -m pretraining encode       latents and ViT features of the pool, once
    python -m pretraining joint        everything else, on cached latents and features
    python -m pretraining repaint      pictures that the joint model paints on, once
    python -m pretraining decoder      the autoencoder's decoder, on those too
    python -m pretraining judge        the network of the judge, apart from all others
    python -m pretraining export       bf16 weights into the package
    python -m pretraining unpack       the package's weights as a state, to go on from: then
                                       draw, encode, and joint with more --minutes in all

Every stage keeps its state in ``--state`` (default `.training/`), resumes where it stopped, ends
after ``--minutes``, and logs to `<state>/<stage>.jsonl`. Minutes are of processor time, so that a
busy machine does not shorten the training; on a GPU they are of wall-clock. One thing at a time:
two stages beside each other are slower than one after the other.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click
import torch

from op_nano.backend import WEIGHTS as NANO
from op_nano.shape import CONFIG
from op_toy.network import WEIGHTS as TOY
from pretraining.autoencoder import train_autoencoder
from pretraining.families import HELD_OUT_FIRST, JUDGE_FIRST, draw_pool
from pretraining.vision import train_vision

FAMILIES = 6000
"""Families of the pool."""


DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
PRECISION = click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), default="float32"
)


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
@click.option("--families", default=FAMILIES, help="How many.")
@click.option("--first", default=0, help="The seed of the first: others teach what is new.")
@click.option("--jobs", default=os.cpu_count() or 1)
@click.pass_obj
def draw(state: Path, families: int, first: int, jobs: int) -> None:
    """Draw the pool of families, and a held-out one."""
    for _ in draw_pool(state / "test.npy", 300, first=HELD_OUT_FIRST, held_out=True, jobs=jobs):
        pass
    for done in draw_pool(state / "pool.npy", families, first=first, jobs=jobs):
        if done % 1000 == 0:
            print(f"{done} families", flush=True)


@main.command()
@click.option("--minutes", default=24.0)
@click.option("--batch", default=8)
@click.option("--tail", default=0.4, help="Share of the budget over which the rate falls to zero.")
@click.option("--rate", default=4e-3, help="Peak rate; less when going on from a finished one.")
@click.option("--near", default=0.0, help="Go on near the latents that the joint model knows.")
@PRECISION
@DEVICE
@click.pass_obj
def autoencoder(state: Path, /, **options: Any) -> None:
    """Train the autoencoder."""
    train_autoencoder(state, **options)


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
    from pretraining.joint import encode_pool

    for name in ("test", "pool"):
        encode_pool(state, name, device=device)


@main.command()
@click.option("--minutes", default=57.0, help="Budget: processor time; on a GPU, wall-clock.")
@click.option("--sitting", default=math.inf, help="Stop after so many minutes, to be resumed.")
@click.option("--name", default="joint", help="Name of the run's state.")
@click.option("--width", default=CONFIG.llm.hidden_size)
@click.option("--layers", default=CONFIG.llm.num_hidden_layers)
@click.option("--concepts", default=8)
@click.option("--ce-weight", default=1.0)
@click.option("--processes", default=1, help="On a CPU; a GPU wants one.")
@PRECISION
@click.option("--tail", default=0.4, help="Share of the budget over which the rate falls to zero.")
@click.option("--rate", default=5e-3, help="Peak rate; less when going on from finished weights.")
@click.option("--held-out", default=0, help="Held-out steps to measure at the end of a sitting.")
@DEVICE
@click.pass_obj
def joint(state: Path, /, **options: Any) -> None:
    """Train both experts and the concept encoder."""
    from pretraining.joint import JointRun, train_joint

    train_joint(JointRun(state=state, **options))


@main.command()
@click.option("--count", default=12000, help="Pictures of the pool to paint.")
@DEVICE
@click.pass_obj
def repaint(state: Path, count: int, device: str) -> None:
    """Paint pictures of the pools with the finished joint model, for the decoder."""
    from pretraining.decoder import repaint_pool

    repaint_pool(state, "test", 400, device=device)
    repaint_pool(state, "pool", count, device=device)


@main.command()
@click.option("--minutes", default=45.0)
@click.option("--batch", default=8)
@click.option("--tail", default=0.4, help="Share of the budget over which the rate falls to zero.")
@click.option("--rate", default=2e-3, help="Peak rate; less when going on from a finished decoder.")
@PRECISION
@DEVICE
@click.pass_obj
def decoder(state: Path, /, **options: Any) -> None:
    """Train the autoencoder's decoder on what the joint model paints."""
    from pretraining.decoder import train_decoder

    train_decoder(state, **options)


@main.command()
@click.option("--to", type=click.Path(path_type=Path), default=NANO, help="For nano's weights.")
@click.option("--judge-to", type=click.Path(path_type=Path), default=TOY, help="For the judge's.")
@click.pass_obj
def export(state: Path, to: Path, judge_to: Path) -> None:
    """Write the averaged weights, in bf16, as the packages ship them; the judge's, if trained."""
    from pretraining.joint import export_judge, export_weights

    export_weights(state, to)
    if (state / "judge.safetensors").exists():
        export_judge(state, judge_to)


@main.command()
@click.option("--weights", type=click.Path(path_type=Path), default=NANO)
@click.pass_obj
def unpack(state: Path, weights: Path) -> None:
    """Lay shipped weights out as a state to train on from."""
    from pretraining.joint import unpack_weights

    try:
        unpack_weights(weights, state)
    except FileExistsError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
