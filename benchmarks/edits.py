"""Edits with a concept and of it, on characters that the backbone has never seen, by kind.

    python benchmarks/edits.py --characters 8 --first 72000000 -o edits.jsonl

Each character is drawn as `op toy photos` draws it and learned with defaults; ``--lessons none``
leaves edit lessons out, ``--weight 4`` weighs them, ``--steps 0`` learns nothing. Then
`engine.edit` is asked, as `op edit` would be (``--tries`` says how often each is painted):

    add       "add <bo>", to an empty scene
    replace   "replace the cat with <bo>", in a picture of another character
    remove    "remove <bo>"
    give      "give <bo> a red hat"
    colour    "make <bo> blue"
    scene     "put <bo> in the snow", in a picture of it elsewhere
    side      "put <bo> on the left", in a picture of it on the right, and the other way round

*Done*: every attribute that the instruction asks for is in the picture, by the judge
(`op_toy.network`), which is used for nothing else. *Kept*: the share of the other attributes
(looks, scene, how many characters) that are as they were or, where <bo> comes in, as <bo>'s are.
*Both*: done, and all kept. *Recognised*: `engine.ask` says yes, for a removal no. A side is judged
by where the picture differs from the empty scene. *Tries* is how often each was painted, *regions*
to what the edit was held. Everything follows from the seeds; each character runs in one thread.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from series import NAME, draw_folder, interval, kept, measured_with

KINDS = ("add", "replace", "remove", "give", "colour", "scene", "side")
FIGURES = ("done", "kept", "both", "recognised", "tries")
PIXEL = 24
"""A pixel that differs by more than this from the empty scene belongs to the character."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One edit: ``wanted`` is asked for in ``done``, and everything else in ``kept``."""

    kind: str
    source: Any
    instruction: str
    wanted: Any
    done: tuple[str, ...]
    kept: tuple[str, ...]


def jobs(seed: int, count: int) -> Iterator[Job]:
    """``count`` edits of each kind, of one character."""
    from op_toy.dataset import LOOKS
    from op_toy.words import WHERE, side, worn
    from op_toy.world import ACCESSORIES, COLOURS, SCENES, Accessory, draw_character, draw_picture

    rng = random.Random(f"{seed}:edits")
    bo = draw_character(seed, held_out=True)
    whole = (*LOOKS, "scene", "characters")
    free = [colour for colour in COLOURS if colour not in bo.colours]

    def but(*names: str) -> tuple[str, ...]:
        return tuple(name for name in whole if name not in names)

    for _ in range(count):
        posed = draw_picture(
            rng,
            (bo,),
        )
        posed = replace(posed, place=rng.choice(("left", "right")))
        empty = replace(posed, characters=())
        other = draw_character(rng.randrange(1 << 40), held_out=True)
        yield Job(kind="add", source=empty, instruction=f"add <{NAME}>", wanted=posed,
                  done=("characters",), kept=but("characters"))  # fmt: skip
        yield Job(kind="replace", source=replace(posed, characters=(other,)), wanted=posed,
                  instruction=f"replace the {other.kind} with <{NAME}>",
                  done=LOOKS, kept=("scene", "characters"))  # fmt: skip
        yield Job(kind="remove", source=posed, instruction=f"remove <{NAME}>", wanted=empty,
                  done=("characters",), kept=("scene",))  # fmt: skip
        now = bo.accessory
        new = Accessory(
            what=rng.choice([what for what in ACCESSORIES if not now or what != now.what]),
            colour=rng.choice([colour for colour in free if not now or colour != now.colour]),
        )
        yield Job(kind="give", source=posed, instruction=f"give <{NAME}> {worn(new)}",
                  wanted=replace(posed, characters=(replace(bo, accessory=new),)),
                  done=("accessory", "accessory colour"),
                  kept=but("accessory", "accessory colour"))  # fmt: skip
        colour = rng.choice(free)
        yield Job(kind="colour", source=posed, instruction=f"make <{NAME}> {colour}",
                  wanted=replace(posed, characters=(replace(bo, colour=colour),)),
                  done=("colour",), kept=but("colour", "second"))  # fmt: skip
        scene = rng.choice([scene for scene in SCENES if scene != posed.scene])
        yield Job(kind="scene", source=posed, instruction=f"put <{NAME}> {WHERE[scene][0]}",
                  wanted=replace(posed, scene=scene), done=("scene",),
                  kept=but("scene"))  # fmt: skip
        there = "left" if posed.place == "right" else "right"
        yield Job(kind="side", source=posed, instruction=f"put <{NAME}> {side(there)}",
                  wanted=replace(posed, place=there), done=(), kept=whole)  # fmt: skip


def measure(seed: int, *, setting: dict[str, Any], judge_file: Path) -> dict[str, Any]:
    """Learn one character in a temporary home, and edit."""
    import torch

    from omnipersona_cli import engine
    from omnipersona_cli.bench.methods import learner
    from op_toy.drawing import render
    from op_toy.network import read

    torch.set_num_threads(1)
    began = time.time()
    noted: dict[str, list[float]] = {}
    regions: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        os.environ["OMNIPERSONA_HOME"] = str(Path(place) / "home")
        draw_folder(Path(place) / "photos", seed)
        from omnipersona_cli import registry

        backend = registry.open_backend(engine.Opening(backend="nano"))
        engine.learn(
            engine.Subject(photos=[Path(place) / "photos"], name=NAME),
            engine.Settings(steps=setting["steps"], lambda_edit=setting["weight"]),
            engine.Keeping(samples=0),
            backend=learner(backend, "no-edit" if setting["lessons"] == "none" else "full"),
        )
        for number, job in enumerate(jobs(seed, setting["edits"])):
            if setting["kinds"] and job.kind not in setting["kinds"]:
                continue
            source = render(job.source)
            (made,) = engine.edit(
                source, job.instruction, tries=setting["tries"], backend=backend,
                seed=(seed * 100 + number) % 2**32,
            )  # fmt: skip
            judged = read([made.image], judge_file)[0]
            done = all(judged.matches(job.wanted, job.done).values())
            if job.kind == "side":
                done = _stands(made.image, render(replace(job.source, characters=()))) == (
                    job.wanted.place
                )
            kept = list(judged.matches(job.wanted, job.kept).values())
            verdict = engine.ask(f"is <{NAME}> here?", image=made.image, backend=backend).verdict
            for name, value in {
                "done": done,
                "kept": float(np.mean(kept)),
                "both": done and all(kept),
                "recognised": verdict == ("no" if job.kind == "remove" else "yes"),
                "tries": made.about["tries"],
            }.items():
                noted.setdefault(f"{job.kind}: {name}", []).append(float(value))
            region = f"{job.kind}: {made.about['region']}"
            regions[region] = regions.get(region, 0) + 1
    return {
        "seed": seed,
        "figures": {name: round(float(np.mean(values)), 4) for name, values in noted.items()},
        "regions": regions,
        "seconds": round(time.time() - began, 1),
    }


def _stands(image: Any, empty: Any) -> str:
    """On which side the picture differs from the empty scene: left, right or middle."""
    apart = np.abs(np.asarray(image, np.int16) - np.asarray(empty, np.int16)).max(axis=2) > PIXEL
    columns = apart.sum(axis=0)
    if not columns.any():
        return "nowhere"
    centre = float((columns * np.arange(len(columns))).sum() / columns.sum()) / len(columns)
    return "left" if centre < 0.45 else "right" if centre > 0.55 else "middle"


def run_one(seed: int, *, setting: dict[str, Any], judge_file: Path) -> dict[str, Any]:
    """`measure` in a fresh process with one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")
    done = subprocess.run(
        [sys.executable, __file__, "--only", str(seed), "--judge", str(judge_file),
         "--setting", json.dumps(setting)],
        env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise click.ClickException(f"character {seed} failed; what it said stands above")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Means over characters with 95 % intervals, a row for each kind, as Markdown."""
    lines = [f"| {len(results)} characters | {' | '.join(FIGURES)} | regions |"]
    lines.append("| --- " * (len(FIGURES) + 2) + "|")
    for kind in KINDS:
        cells = []
        for figure in FIGURES:
            name = f"{kind}: {figure}"
            values = [one["figures"][name] for one in results if name in one["figures"]]
            if values and figure == "tries":
                cells.append(f"{np.mean(values):.0f}")
            elif values:
                low, high = interval(values)
                cells.append(f"{np.mean(values):.2f} ({low:.2f} to {high:.2f})")
        if not cells:
            continue
        where: dict[str, int] = {}
        for one in results:
            for name, count in one["regions"].items():
                if name.startswith(f"{kind}: "):
                    region = name.partition(": ")[2]
                    where[region] = where.get(region, 0) + count
        told = ", ".join(f"{count} {region}" for region, count in sorted(where.items()))
        lines.append(f"| {kind} | {' | '.join(cells)} | {told} |")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--characters", type=click.IntRange(1), default=8, show_default=True)
@click.option("--first", default=72_000_000, show_default=True, help="Seed of the first one.")
@click.option("--edits", type=click.IntRange(1), default=2, show_default=True, help="Of each kind.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="These kinds alone.")
@click.option("--tries", type=click.IntRange(1), help="Paintings of each. [default: op edit's]")
@click.option("--steps", type=click.IntRange(0), help="Steps of learning. [default: nano's]")
@click.option("--lessons", type=click.Choice(("all", "none")), default="all", show_default=True)
@click.option("--weight", type=float, default=1.0, show_default=True, help="Of edit lessons.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--judge", "judge_file", type=click.Path(path_type=Path), help="Weights of the judge."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Keep results there.")
@click.option("--only", type=int, hidden=True)
@click.option("--setting", hidden=True)
def main(
    characters: int,
    first: int,
    workers: int,
    judge_file: Path | None,
    out: Path | None,
    only: int | None,
    setting: str | None,
    **chosen: Any,
) -> None:
    """Learn held-out characters and print how well each kind of edit is done."""
    from op_toy.network import WEIGHTS

    judge_file = judge_file or WEIGHTS / "judge.safetensors"
    if only is not None and setting is not None:
        click.echo(json.dumps(measure(only, setting=json.loads(setting), judge_file=judge_file)))
        return
    wanted = {**measured_with(judge_file), **chosen, "kinds": list(chosen["kinds"])}
    seeds = range(first, first + characters)
    run = partial(run_one, setting=wanted, judge_file=judge_file)
    with ThreadPoolExecutor(workers) as pool:
        click.echo(table(kept(pool, run, seeds, setting=wanted, out=out)))


if __name__ == "__main__":
    main()
