"""Where the threshold of recognition should lie: its constants, tried on characters for tuning.

    python benchmarks/thresholds.py --characters 16 --first 34000000 -o thresholds.jsonl

Each character is learned by `engine.learn` from what `op toy photos` draws, in the backbone's own
number of steps or in ``--steps``. Kept are the scores (nats) that learning calibrated on, of
held-out photos and negatives, and those of fresh pictures: of the character, of look-alikes that
differ in one attribute, of other characters and of empty scenes. From these every setting of `HOME`
and `PULL` (`engine.calibrate`) gives another threshold at once, and the table says what it would
answer rightly. A score on the threshold counts as yes; "not sure" is left aside.

Settings are chosen on these characters, so none of them may be measured elsewhere. ``-o`` keeps one
line of JSON for each character; those already there are not repeated.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from calibration import ALIKE, EMPTY, OTHERS, POSITIVES, pictures
from series import NAME, draw_folder, interval, kept, measured_with

GROUPS = {"character": POSITIVES, "look-alikes": ALIKE, "others": OTHERS, "empty": EMPTY}
"""What is in the fresh pictures, in their order, and how many there are."""

HOMES = (0.0, math.log(2), 1.0, 1.5, 2.0, 2.5, 3.0)
PULLS = (0.1, 0.5, 1.0)


def measure(seed: int, *, steps: int | None) -> dict[str, Any]:
    """Learn one character in a temporary home; its scores (nats), of learning and fresh."""
    import torch

    from omnipersona_cli import engine
    from omnipersona_cli.engine import examine
    from omnipersona_cli.engine.calibrate import recognition_score
    from omnipersona_cli.engine.tokens import from_slot

    torch.set_num_threads(1)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch.object(examine, "calibrate", wraps=examine.calibrate) as calibrated,
    ):
        os.environ["OMNIPERSONA_HOME"] = str(Path(place) / "home")
        draw_folder(Path(place) / "photos", seed)
        learned = engine.learn(
            engine.Subject(photos=[Path(place) / "photos"], name=NAME),
            engine.Settings(steps=steps),
            engine.Keeping(samples=0),
        )
        backend = engine.opened_for([NAME])
    positives, negatives = calibrated.call_args.args
    tokens, fresh = from_slot(learned.pack, backend), iter(pictures(seed))
    scores = {
        group: [recognition_score(backend, tokens, next(fresh)[0]) for _ in range(count)]
        for group, count in GROUPS.items()
    }
    return {
        "seed": seed,
        "learning": {"positives": positives, "negatives": negatives},
        "fresh": {group: np.round(found, 4).tolist() for group, found in scores.items()},
        "seconds": round(time.monotonic() - began, 1),
    }


def answered(result: dict[str, Any], home: float, pull: float) -> dict[str, float]:
    """The shares of one character's fresh pictures that are answered rightly."""
    from omnipersona_cli.engine import calibrate

    with mock.patch.multiple(calibrate, HOME=home, PULL=pull):
        threshold = calibrate.settled_threshold(**result["learning"])
    right = {
        group: [(score >= threshold) == (group == "character") for score in scores]
        for group, scores in result["fresh"].items()
    }
    others = [said for group, answers in right.items() if group != "character" for said in answers]
    shares = {group: float(np.mean(answers)) for group, answers in right.items()}
    balanced = (shares["character"] + float(np.mean(others))) / 2
    return {"threshold": threshold, "balanced": balanced} | shares


def table(results: Sequence[dict[str, Any]]) -> str:
    """One row for each setting as Markdown, means over characters; gains are over today's setting,
    in pairs, with their 95 % intervals."""
    from omnipersona_cli.engine import calibrate

    seeds = f"seeds {results[0]['seed']} to {results[-1]['seed']}"
    lines = [
        f"{len(results)} characters for tuning, {seeds}",
        "",
        f"| `HOME` | `PULL` | threshold | balanced | {' | '.join(GROUPS)} | gained, balanced |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    today = (calibrate.HOME, calibrate.PULL)
    now = [answered(result, *today)["balanced"] for result in results]
    for home, pull in sorted({*((home, pull) for home in HOMES for pull in PULLS), today}):
        found = [answered(result, home, pull) for result in results]
        means = [f"{np.mean([row[name] for row in found]):.3f}" for name in found[0]]
        gains = [row["balanced"] - before for row, before in zip(found, now, strict=True)]
        low, high = interval(gains)
        gained = f"{np.mean(gains):.3f} ({low:.3f} to {high:.3f})"
        if (home, pull) == today:
            gained = "today's"
        lines.append(f"| {home:.2f} | {pull} | {' | '.join(means)} | {gained} |")
    fresh = [result["fresh"] for result in results]
    parted = [calibrate.auroc(one["character"], one["look-alikes"]) for one in fresh]
    low, high = interval(parted)
    lines += ["", f"AUROC among look-alikes: {np.mean(parted):.3f} ({low:.3f} to {high:.3f})"]
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--characters", type=click.IntRange(1), default=16, show_default=True)
@click.option("--first", default=34_000_000, show_default=True, help="Seed of the first one.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--steps", type=click.IntRange(0), help="Steps of learning. [default: the backend's]")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Keep results there."
)
def main(characters: int, first: int, workers: int, steps: int | None, out: Path | None) -> None:
    """Print what every setting of the threshold would answer rightly."""
    setting = measured_with() | {"steps": steps}
    seeds = range(first, first + characters)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        run = partial(measure, steps=steps)
        click.echo(table(kept(pool, run, seeds, setting=setting, out=out)))


if __name__ == "__main__":
    main()
