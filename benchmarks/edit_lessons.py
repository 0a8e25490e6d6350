"""What edit lessons teach: the loss of true edits, before any step and after learning.

    python benchmarks/edit_lessons.py --characters 3 --first 73000000 -o edit_lessons.jsonl

Pictures vary with the seed, and a judge sees few of them, so that a small gain is lost among them.
The loss of the backbone's own objective on edits whose true result is known varies little: the
world draws the source and the target (an empty scene and the same with <bo> in it, another
character and <bo> in its place, <bo> and the empty scene), none of them are among the photos, and
every set of tokens is measured with the same noise. Each character is learned with the backend's
steps and batches, and with

    start     no step at all: what `op learn --steps 0` keeps
    all       every lesson
    no edits  the edit lessons left out, their share of the batch going to depictions
    adds      of the edit lessons those alone in which <bo> comes in
    true      true edits of <bo> in the place of composed ones: better lessons than photos can give

without rehearsing facts, and the last tokens are taken. *Moved* is how far the rows that paint have
gone, as a share of their length. Printed are the losses in thousandths, as means over characters,
and the difference to "no edits" in pairs with bootstrap 95 % intervals: below 0 the lessons help.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from series import NAME, draw_folder, finished, interval, measured_with

VARIANTS = ("start", "all", "no edits", "adds", "true")
KINDS = ("add", "replace", "remove", "depict")
PAIRS, NOISES = 6, 8
"""True edits of each kind, and draws of noise for each."""


def true_lessons(seed: int, purpose: str, pairs: int = PAIRS) -> dict[str, list[Any]]:
    """Edits whose results are drawn, not composed, and depictions, by kind; other ones for each
    ``purpose``."""
    from omnipersona_cli.backend import Lesson
    from omnipersona_cli.data.lessons import turn
    from op_toy.drawing import render
    from op_toy.words import WHERE, side
    from op_toy.world import draw_character, draw_picture

    rng = random.Random(f"{seed}:{purpose}")
    bo = draw_character(seed, held_out=True)
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}

    def edit(kind: str, source: Any, text: str, target: Any) -> None:
        found[kind].append(
            Lesson(task="edit", kind="edit", image=render(source), request=turn(text, NAME),
                   target=render(target))
        )  # fmt: skip

    for _ in range(pairs):
        posed = draw_picture(rng, (bo,))
        empty = replace(posed, characters=())
        other = draw_character(rng.randrange(1 << 40), held_out=True)
        edit("add", empty, f"add <{NAME}>, {side(posed.place)}", posed)
        edit("replace", replace(posed, characters=(other,)),
             f"replace the {other.kind} by <{NAME}>", posed)  # fmt: skip
        edit("remove", posed, f"remove <{NAME}>", empty)
        text = f"<{NAME}> {WHERE[posed.scene][0]}, {side(posed.place)}"
        found["depict"].append(
            Lesson(task="generate", kind="depict", request=turn(text, NAME), target=render(posed))
        )
    return found


def learned(seed: int, variant: str) -> Any:
    """The tokens of a character, and the backend that they are for."""
    from omnipersona_cli import engine, registry
    from omnipersona_cli.engine.heldout import HeldOut
    from omnipersona_cli.engine.keep import Before
    from omnipersona_cli.engine.material import captioned, gather
    from omnipersona_cli.engine.optimise import optimise
    from omnipersona_cli.engine.prepared import prepare
    from omnipersona_cli.engine.start import start_of

    backend = registry.open_backend(engine.Opening(backend="nano"))
    settings, info = engine.Settings(), backend.info
    with tempfile.TemporaryDirectory() as place:
        draw_folder(Path(place) / "photos", seed)
        subject = engine.Subject(photos=[Path(place) / "photos"], name=NAME)
        material = gather(subject, seed=0, backend=info.name, unknown_answer=info.unknown_answer)
    start = start_of(backend, material, settings, Before(), engine.Keeping(), lambda event: None)
    if variant == "start":
        return backend, start, start
    material = captioned(material, backend)

    def taught(lesson: Any) -> bool:
        if lesson.task != "edit" or variant == "all":
            return True
        comes = not lesson.request.text.startswith(("remove", "take", "erase"))
        return variant == "adds" and comes

    lessons = [lesson for lesson in material.lessons if taught(lesson)]
    if variant == "true":
        drawn = true_lessons(seed, "lessons", 3 * PAIRS)
        lessons += [lesson for kind in ("add", "replace", "remove") for lesson in drawn[kind]]
    material = replace(material, lessons=tuple(lessons))
    groups, _ = prepare(backend, material)
    found = optimise(backend, start, groups, HeldOut(), settings.hyperparameters(info))
    return backend, start, found.tokens


def measure(seed: int, variant: str) -> dict[str, Any]:
    """The losses of true edits with the tokens of one variant."""
    import torch

    torch.set_num_threads(1)
    began = time.process_time()
    backend, start, tokens = learned(seed, variant)
    losses = {}
    with torch.no_grad():
        for kind, lessons in true_lessons(seed, "true edits").items():
            prepared = list(backend.prepare(lessons)) * NOISES
            (loss,) = backend.loss(prepared, tokens, seed=1).values()
            losses[kind] = round(float(loss), 6)
    apart = (tokens.gen - start.gen).norm(dim=1) / start.gen.norm(dim=1)
    moved = round(float(apart.mean()), 4)
    cpu = round(time.process_time() - began, 1)
    return {"losses": losses, "moved": moved, "cpu_seconds": cpu}


def table(results: list[dict[str, Any]]) -> str:
    """Losses by variant, and differences to "no edits" in pairs, as Markdown."""
    lines = [f"| {len(results)} characters | {' | '.join(KINDS)} | moved |"]
    lines.append("| --- " * (len(KINDS) + 2) + "|")
    shown = [name for name in VARIANTS if all(name in one["variants"] for one in results)]
    for name in shown:
        mine = [one["variants"][name] for one in results]
        cells = [f"{1000 * np.mean([one['losses'][kind] for one in mine]):.1f}" for kind in KINDS]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {np.mean([o['moved'] for o in mine]):.3f} |"
        )
    for name in (name for name in shown if name != "no edits" and "no edits" in shown):
        cells = []
        for kind in KINDS:
            gaps = [
                1000 * (one["variants"][name]["losses"][kind]
                        - one["variants"]["no edits"]["losses"][kind])
                for one in results
            ]  # fmt: skip
            low, high = interval(gaps)
            cells.append(f"{np.mean(gaps):+.2f} ({low:+.2f} to {high:+.2f})")
        lines.append(f"| {name} minus no edits | {' | '.join(cells)} | |")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--characters", type=click.IntRange(1), default=3, show_default=True)
@click.option("--first", default=73_000_000, show_default=True, help="Seed of the first one.")
@click.option("--variant", "variants", type=click.Choice(VARIANTS), multiple=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Keep results there.")
@click.option("--only", type=int, hidden=True)
def main(
    characters: int, first: int, variants: tuple[str, ...], out: Path | None, only: int | None
) -> None:
    """Learn characters in several ways and print the loss of true edits."""
    wanted = variants or VARIANTS
    if only is not None:
        click.echo(json.dumps(measure(only, wanted[0])))
        return
    setting = {**measured_with(), "variants": list(wanted)}
    results = finished(out, setting)
    for seed in range(first, first + characters):
        if seed in results:
            continue
        made: dict[str, Any] = {"seed": seed, "setting": setting, "variants": {}}
        for variant in wanted:  # in processes of their own: learning leaves caches behind
            threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            done = subprocess.run(
                [sys.executable, __file__, "--only", str(seed), "--variant", variant],
                env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            made["variants"][variant] = json.loads(done.stdout.splitlines()[-1])
            told = made["variants"][variant]
            click.echo(f"{seed} {variant}: {told['cpu_seconds']} s, {told['losses']}", err=True)
        results[seed] = made
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(made) + "\n")
    click.echo(table([results[seed] for seed in range(first, first + characters)]))


if __name__ == "__main__":
    main()
