"""Yes or no: the calibrated answer beside the raw first-token answer, on characters never seen.

    python benchmarks/calibration.py --characters 20 --first 40000000 -o calibration.jsonl

Each character is learned by `engine.learn` with its defaults from what `op toy photos` draws, then
asked about in fresh pictures: 20 of the character, 20 look-alikes that differ in one attribute, 10
other characters and 10 empty scenes. The same tokens answer three times:

*raw*: "yes" where log p("yes") > log p("no") of the one question "is <bo> here?";
*threshold*: the averaged score against the threshold that learning set on the character's own
held-out photos; *answered*: what `op ask` says, where "not sure" counts as wrong.

Nothing is tuned on these characters. Balanced accuracy is ½(recall₊ + recall₋); the calibration
error is of p(yes), both sides weighing the same. The table holds means over characters with
bootstrap 95 % intervals, and the gain over raw in pairs, which is what says whether calibration
helps. ``-o`` keeps one line of JSON for each character; those already there are not repeated.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from series import NAME, draw_folder, interval, kept, measured_with

POSITIVES, ALIKE, OTHERS, EMPTY = 20, 20, 10, 10
QUESTION = f"is <{NAME}> here?"

ROWS = (
    ("raw", "raw first token: balanced accuracy"),
    ("threshold", "calibrated threshold: balanced accuracy"),
    ("answered", "… with “not sure” as wrong"),
    ("gain", "gain of the threshold over raw, in pairs"),
    ("gain answered", "gain as answered over raw, in pairs"),
    ("not sure", "share answered “not sure”"),
    ("raw recall", "raw: yes to the character"),
    ("raw rejection", "raw: no to all others"),
    ("threshold recall", "threshold: yes to the character"),
    ("threshold rejection", "threshold: no to all others"),
    ("raw error", "raw p(yes): calibration error"),
    ("calibrated error", "calibrated p(yes): calibration error"),
)
"""Figure, and what the table calls it."""


def measure(seed: int, *, steps: int | None) -> dict[str, Any]:
    """Learn one character in a temporary home, and all figures of it."""
    import torch

    from omnipersona_cli import engine
    from omnipersona_cli.engine.calibrate import calibration_error, recognition_score
    from omnipersona_cli.engine.tokens import from_slot

    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        os.environ["OMNIPERSONA_HOME"] = str(Path(place) / "home")
        draw_folder(Path(place) / "photos", seed)
        learned = engine.learn(
            engine.Subject(photos=[Path(place) / "photos"], name=NAME),
            engine.Settings(steps=steps),
            engine.Keeping(samples=0),
        )
        backend = engine.opened_for([NAME])
    tokens, calibration = from_slot(learned.pack, backend), learned.report.calibration
    truth, raw, scores = [], [], []
    for image, there in pictures(seed):
        truth.append(there)
        raw.append(raw_score(backend, tokens, image))
        scores.append(recognition_score(backend, tokens, image))
    verdicts = [calibration.verdict(score) for score in scores]
    figures = {"not sure": float(np.mean([verdict == "not sure" for verdict in verdicts]))}
    by_rule = {
        "raw": [score > 0 for score in raw],
        "threshold": [score >= calibration.threshold for score in scores],
    }
    for name, answers in by_rule.items():
        figures[f"{name} recall"] = _share(answers, truth, there=True)
        figures[f"{name} rejection"] = 1 - _share(answers, truth, there=False)
        figures[name] = (figures[f"{name} recall"] + figures[f"{name} rejection"]) / 2
    figures["answered"] = (
        _share([verdict == "yes" for verdict in verdicts], truth, there=True)
        + _share([verdict == "no" for verdict in verdicts], truth, there=False)
    ) / 2
    figures["gain"] = figures["threshold"] - figures["raw"]
    figures["gain answered"] = figures["answered"] - figures["raw"]
    odds = [1 / (1 + math.exp(-max(-50.0, min(50.0, score)))) for score in raw]
    probabilities = [calibration.probability(score) for score in scores]
    for name, said_so in (("raw", odds), ("calibrated", probabilities)):
        error = calibration_error(list(zip(said_so, truth, strict=True)))
        if error is not None:
            figures[f"{name} error"] = error
    return {
        "seed": seed,
        "figures": {key: round(float(value), 4) for key, value in figures.items()},
        "seconds": round(time.monotonic() - began, 1),
    }


def pictures(seed: int) -> list[tuple[Any, bool]]:
    """Fresh pictures: (picture, is it the character?)."""
    from op_toy.drawing import render
    from op_toy.world import draw_character, draw_picture, one_attribute_away

    rng = random.Random(f"{seed}:calibration")
    character = draw_character(seed, held_out=True)
    pictures = [((character,), True)] * POSITIVES
    pictures += [((one_attribute_away(character, rng),), False) for _ in range(ALIKE)]
    pictures += [
        ((draw_character(rng.randrange(1 << 40), held_out=True),), False) for _ in range(OTHERS)
    ]
    pictures += [((), False)] * EMPTY
    return [(render(draw_picture(rng, characters)), there) for characters, there in pictures]


def raw_score(backend: Any, tokens: Any, image: Any) -> float:
    """log p("yes") - log p("no") of one question: positive where the model would say yes."""
    from omnipersona_cli.backend import Prompt
    from omnipersona_cli.language.mentions import to_turn

    prompt = Prompt(turns=(to_turn(QUESTION),), concepts=(tokens,))
    yes, no = backend.score(prompt, ("yes", "no"), image=image).tolist()
    return float(yes - no)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Means over characters as Markdown."""
    lines = [
        f"{len(results)} held-out characters, seeds {results[0]['seed']} to {results[-1]['seed']}",
        "",
        "| | mean | 95 % interval |",
        "| --- | --- | --- |",
    ]
    for name, label in ROWS:
        values = [result["figures"][name] for result in results if name in result["figures"]]
        if values:
            low, high = interval(values)
            lines.append(f"| {label} | {np.mean(values):.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def _share(answers: Sequence[bool], truth: Sequence[bool], *, there: bool) -> float:
    """How many of one side are answered yes."""
    return float(
        np.mean([answer for answer, real in zip(answers, truth, strict=True) if real == there])
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--characters", type=click.IntRange(1), default=20, show_default=True)
@click.option("--first", default=40_000_000, show_default=True, help="Seed of the first one.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Steps of learning. [default: the backend's]")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Keep results there."
)
def main(characters: int, first: int, workers: int, steps: int | None, out: Path | None) -> None:
    """Print what calibration is worth."""
    setting = measured_with() | {"steps": steps}
    seeds = range(first, first + characters)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        run = partial(measure, steps=steps)
        click.echo(table(kept(pool, run, seeds, setting=setting, out=out)))


if __name__ == "__main__":
    main()
