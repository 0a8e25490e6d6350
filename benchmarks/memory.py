"""Memory as predicted from shapes, against what a process of its own was seen to take.

    python benchmarks/memory.py nano
    python benchmarks/memory.py janus --scale 0.25
    python benchmarks/memory.py janus --verbs learn --batch 8 --activation-checkpointing
    python benchmarks/memory.py lance --scale 1 --verbs gen --size 256x256

Writes a random checkpoint in the released layout (but for nano), and for each verb starts a process
that opens it and does that verb's work once: asking scores two answers and gives one, editing
asks where the concept is and then paints, learning is a few steps on a batch of all tasks and the
painting of a check. What is compared is the most resident memory that Linux saw (VmHWM), Python and
torch included.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnipersona_cli import registry
from omnipersona_cli.backend import TASKS, Backend, Lesson, Opening, Prompt, Task
from omnipersona_cli.family.footprint import Means, needed, shares
from omnipersona_cli.family.room import describe, usual_dtype
from omnipersona_cli.language.mentions import to_turn

if TYPE_CHECKING:
    from PIL.Image import Image

VERBS = ("open", "ask", "gen", "edit", "learn")
PAINTING = 3
"""Steps of painting."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a process does: the verb, with a picture of ``size`` where it paints (an edit: what the
    backend makes of a photo), ``photos`` of the size ``photo``, ``batch`` lessons of the ``tasks``
    and ``steps`` of learning: how many codes a lesson hides is drawn anew in each."""

    verb: str
    opening: Opening
    size: tuple[int, int] | None
    photo: tuple[int, int]
    photos: int
    batch: int
    steps: int
    tasks: tuple[Task, ...]


def resident_peak() -> float:
    """GiB that this process has had at most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    if found is None:
        raise click.ClickException("this system does not tell a process's peak")
    return int(found[1]) / 2**20


def do(order: Order) -> None:
    """One verb's work in this process."""
    import torch
    from PIL import Image as images

    from omnipersona_cli.backend import ConceptTokens
    from omnipersona_cli.testing import drawing

    verb = order.verb
    backend = registry.open_backend(order.opening)
    if verb == "open":
        return
    photos = [drawing("red", number).resize(order.photo) for number in range(order.photos)]
    ask, paint, add = (to_turn(it) for it in ("is <bo> here?", "a photo of <bo>", "add <bo>."))
    rows = {
        part: torch.randn(count, backend.width) * 0.02
        for part, count in (("id", 1), ("und", 16), ("gen", 16))
    }
    tokens = ConceptTokens(name="bo", **rows)
    question = Prompt(turns=(ask,), concepts=(tokens,))
    if verb in ("ask", "edit"):
        backend.score(question, ("yes", "no"), image=photos[-1])
    if verb == "ask":  # of another picture: it is encoded while all that answers is in memory
        list(backend.say(question, image=photos[0], max_tokens=4))
    if verb == "learn":
        learn(backend, order, photos)
    if verb in ("gen", "learn"):
        prompt = Prompt(turns=(paint,), concepts=(tokens,))
        list(backend.gen(prompt, size=order.size, steps=PAINTING, guidance=None, seeds=(1,)))
    if verb == "edit":
        masked = backend.info.tasks["edit"] == "masked"
        mask = images.new("L", photos[0].size, 255) if masked else None
        prompt = Prompt(turns=(add,), concepts=(tokens,))
        sampling = {"steps": PAINTING, "guidance": None, "seeds": (1,)}
        list(backend.edit(photos[0], prompt, mask=mask, **sampling))  # type: ignore[arg-type]


def learn(backend: Backend, order: Order, photos: Sequence[Image]) -> None:
    """Some steps on one batch."""
    import torch

    from omnipersona_cli.engine.tokens import copy_of

    texts = {"understand": "is <bo> here?", "generate": "a photo of <bo>", "edit": "add <bo>."}
    drawn = shares(order.batch, order.tasks)
    kinds = [task for task, count in drawn.items() for _ in range(count)]
    lessons = [
        Lesson(
            task=task,
            kind="recognise",
            request=to_turn(texts[task]),
            image=None if task == "generate" else photos[number % order.photos],
            target=None if task == "understand" else photos[(number + 1) % order.photos],
            answer="yes",
        )
        for number, task in enumerate(kinds)
    ]
    start = backend.new_tokens("bo", understand=16, generate=16, photos=photos, seed=0)
    ready = backend.prepare(lessons)
    for seed in range(order.steps):
        losses = backend.loss(ready, copy_of(start, trainable=True), seed=seed)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        del losses


def measured(order: Order) -> float:
    """GiB that a process takes."""
    told = json.dumps(asdict(order))
    command = [sys.executable, __file__, "child", told]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise click.ClickException(f"{order.verb}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def predicted(order: Order) -> float:
    """GiB from shapes, pages of mapped files included."""
    opening = order.opening
    info = registry.backend_info(opening.backend)
    what = describe(info, opening, order.size)
    if what is None:
        raise click.ClickException(f"{info.name} does not describe itself")
    lessons = {task: one for task, one in what.lessons.items() if task in order.tasks}
    means = Means(
        dtype=opening.dtype or usual_dtype(what, "cpu"),
        batch=order.batch,
        activation_checkpointing=opening.activation_checkpointing,
        pictures=order.photos,
    )
    return needed(replace(what, lessons=lessons), order.verb, means, pages=True)  # type: ignore[arg-type]  # one of VERBS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("backend")
@click.option("--scale", default=0.25, show_default=True, help="Of the language model's sizes.")
@click.option("--model", help="A checkpoint that is there already.")
@click.option("--verbs", default=",".join(VERBS), show_default=True)
@click.option("--dtype", help="As in `op`.")
@click.option("--batch", default=4, show_default=True)
@click.option("--steps", default=2, show_default=True, help="Of learning.")
@click.option("--tasks", default=",".join(TASKS), show_default=True, help="That are learned.")
@click.option("--size", default="", help="Of what is painted: 512x256, 512.")
@click.option("--photos", default=3, show_default=True)
@click.option("--photo", default="512x512", show_default=True, help="The size of the photos.")
@click.option("--activation-checkpointing", is_flag=True)
def main(
    backend: str,
    scale: float,
    model: str | None,
    verbs: str,
    dtype: str | None,
    batch: int,
    steps: int,
    tasks: str,
    size: str,
    photos: int,
    photo: str,
    activation_checkpointing: bool,
) -> None:
    """Print a row for each verb."""
    if backend == "child":
        raise click.UsageError("name a backend")
    with tempfile.TemporaryDirectory() as folder:
        if model is None and backend != "nano":
            from checkpoints import write

            model = str(write(backend, Path(folder) / backend, scale=scale))
        opening = Opening(
            backend=backend,
            model=model,
            device="cpu",
            dtype=dtype,
            activation_checkpointing=activation_checkpointing,
        )
        click.echo("| verb | predicted, GB | measured, GB | measured / predicted |")
        click.echo("| --- | --- | --- | --- |")
        for verb in verbs.split(","):
            order = Order(
                verb=verb,
                opening=opening,
                size=pixels(size) if size else None,
                photo=pixels(photo),
                photos=photos,
                batch=batch,
                steps=steps,
                tasks=tuple(task for task in TASKS if task in tasks.split(",")),
            )
            told, seen = predicted(order), measured(order)
            click.echo(f"| {verb} | {told:.2f} | {seen:.2f} | {seen / told:.2f} |")


def pixels(size: str) -> tuple[int, int]:
    """Width and height of "512x256", or of the square "512"."""
    width, _, height = size.partition("x")
    return int(width), int(height or width)


def child(told: str) -> None:
    """Do what the parent asks, and tell the peak."""
    order = json.loads(told)
    do(Order(**order | {"opening": Opening(**order["opening"])}))
    print(resident_peak())


if __name__ == "__main__":
    child(sys.argv[2]) if sys.argv[1:2] == ["child"] else main()
