"""What the parts of a command cost on one backend: opening, encoding, answers, lessons, a step.

    python benchmarks/parts.py janus FOLDER
    python benchmarks/parts.py janus FOLDER --parts open,answers,lessons

For each part the processor's seconds, those of the clock, and the most resident memory meanwhile
(Linux). It is what `rehearsal.py` takes apart where a whole command would take hours. FOLDER is a
checkpoint, random or not; without it, the backend's own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from omnipersona_cli import registry
from omnipersona_cli.backend import Lesson, Opening, Prepared, Prompt
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing

PARTS = ("answers", "lessons", "step", "whole")
STATUS = Path("/proc/self/status")


@contextmanager
def part(name: str) -> Iterator[None]:
    """Prints what happens inside."""
    Path("/proc/self/clear_refs").write_text("5")  # the most memory is counted from here
    clock, processor = time.perf_counter(), time.process_time()
    yield
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    most = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    memory = int(most[1]) / 2**20 if most else 0.0
    click.echo(f"{name:36}{processor:9.2f} s processor {clock:9.2f} s clock {memory:6.2f} GiB")


@click.command()
@click.argument("backend")
@click.argument("model", required=False)
@click.option("--parts", default=",".join(PARTS[:3]), show_default=True)
@click.option("--side", type=int, default=1024, show_default=True, help="Pixels of the photos.")
@click.option("--dtype", help="As for op.")
def main(backend: str, model: str | None, parts: str, side: int, dtype: str | None) -> None:
    """Measure BACKEND."""
    with part("opening"):
        opened = registry.open_backend(
            Opening(backend=backend, model=model, device="cpu", dtype=dtype)
        )
    photos = [drawing("red", number).resize((side, side)) for number in range(4)]
    with part("starting tokens from 2 photos"):
        tokens = opened.new_tokens("bo", understand=16, generate=16, photos=photos[:2], seed=0)
    is_it, see_it = (
        Prompt(turns=(to_turn(text),), concepts=(tokens,))
        for text in ("is <bo> here?", "do you see <bo>?")
    )
    if "answers" in parts:
        with part("yes and no, another picture"):
            opened.score(is_it, ("yes", "no"), image=photos[3])
        with part("yes and no, the next question"):
            opened.score(see_it, ("yes", "no"), image=photos[3])
        with part("the first word of an answer"):
            list(opened.say(see_it, image=photos[3], max_tokens=1))
        with part("nine words of an answer"):
            list(opened.say(see_it, image=photos[3], max_tokens=9))
    understand = [
        Lesson(task="understand", kind="recognise", request=to_turn("is <bo> here?"),
               image=photo, answer=answer)
        for photo, answer in zip(photos, ("yes", "no", "yes", "no"), strict=True)
    ]  # fmt: skip
    paint = [
        Lesson(task="generate", kind="depict", request=to_turn("a photo of <bo>"), target=photo)
        for photo in photos[:2]
    ]
    edit = [
        Lesson(task="edit", kind="edit", request=to_turn("add <bo>"), image=one, target=other)
        for one, other in ((photos[2], photos[3]), (photos[1], photos[0]))
    ]
    with part("encoding what is new of 4 photos"):
        ready = list(opened.prepare([*understand, *paint, *edit]))

    def learn(batch: Sequence[Prepared], at_once: int = 0) -> None:
        own = copy_of(tokens, trainable=True)
        losses = opened.loss(batch, own, seed=0, at_once=at_once)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())

    if "lessons" in parts:
        with part("a lesson of understanding"):
            learn(ready[:1])
        with part("a lesson of painting"):
            learn(ready[4:5])
        with torch.no_grad(), part("the same in a check"):
            opened.loss(ready[4:5], tokens, seed=0)
        with part("yes and no of a picture in a check"):
            opened.answer_losses([ready[2], ready[2]], tokens)
    if "step" in parts:
        with part("a step of 8 lessons"):
            learn(ready)
    if "whole" in parts:
        with part("the same, all at once"):
            learn(ready, at_once=len(ready))


if __name__ == "__main__":
    main()
