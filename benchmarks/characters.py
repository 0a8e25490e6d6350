"""Characters that the backbone has never seen: what learning them with defaults reaches.

    python benchmarks/characters.py --characters 20 --first 33000000 --workers 2 -o characters.jsonl

Each character is drawn as `op toy photos` draws it (ten pictures and facts.yaml), learned by
`engine.learn` with its defaults in a process and a home of its own, and measured on pictures that
learning was not shown. The only threshold is the one that learning calibrated on the character's
own photos; nothing is tuned on these characters. Everything follows from the seeds, whatever the
number of workers: each runs in one thread.

*Recognition*: half the sum of the shares of 10 pictures of the character and of 20 others (10
look-alikes that differ in one attribute, 5 other characters, 5 empty scenes) that `engine.ask`
answers rightly; "not sure" is wrong. *Facts*: what `engine.ask` says, and what the tokens say
without the text. *Painting*: 4 scenes, and 3 prompts that need a fact, with and without replay at
the same seeds. *Editing*: added to 3 empty scenes, removed from 3 pictures. What is in a picture is
said by the judge (`op_toy.network`), which is used for nothing else.

*Memory*, with the text of the facts taken out of the pack: questions in `exam.WORDINGS`, which are
in no lesson and in no check of learning, as the tokens answer them by themselves; the three prompts
that need a fact; and `exam.NEVER_TOLD`, attributes that nobody told and learning did not ask about,
where any answer but "I do not know" is a false memory. The same is asked of each character learned
once more with one of its facts, chosen by the seed, withheld. ``--memory`` leaves out edits and
prompts with the text of the facts, which take most of the time, ``--looks`` memory as well;
``--steps 0`` measures instant concepts, which is what learning begins with.

Background SSIM of "add" is taken where the character does not stand. Where it stands is not known,
so there are two masks. *Changed*: pixels that changed by more than 24 of 255 in some channel, grown
by 2 pixels, are the character; a change elsewhere is forgiven. *Place*: of the three places where
the world puts a character, the one that changed most, as large as the character can get there,
grown by 2 pixels; a change elsewhere counts. Background SSIM of "remove" is taken outside the
character as it was drawn.

The table goes to stdout as Markdown: means over characters with bootstrap 95 % intervals. ``-o``
keeps one line of JSON for each character; those already there are not repeated.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from exam import Exam, Tally
from series import NAME, draw_folder, interval, kept, measured_with

ROWS: tuple[tuple[str, str, str], ...] = (
    ("recognition", "recognition, ½(recall₊ + recall₋), as answered", "≥ 0.85"),
    ("recognition by threshold", "the same, by the threshold alone", ""),
    ("recall of the character", "… yes to the character", ""),
    ("recall of look-alikes", "… no to look-alikes", ""),
    ("recall of others", "… no to other characters", ""),
    ("recall of empty scenes", "… no to empty scenes", ""),
    ("not sure", "… answered “not sure”", ""),
    ("auroc", "AUROC of the scores", ""),
    ("toy", "“what is <bo>'s toy?”", "≥ 0.95"),
    ("toy from tokens", "the same, from the tokens alone", ""),
    ("described", "“describe <bo>.”, without a picture: looks right", ""),
    ("wordings from tokens", "facts in wordings never taught, from the tokens alone", "≥ 0.80"),
    ("false memories", "attributes never told that are answered all the same", "≤ 0.05"),
    ("withheld", "the same of a fact that was withheld while learning", "≤ 0.05"),
    ("unsure", "facts that were told, but are not surely known", ""),
    ("identity", "generations: identity attributes", "≥ 0.70"),
    ("second colours", "… the second colour", ""),
    ("scene", "generations: scene", "≥ 0.85"),
    ("one character", "generations: exactly one character", ""),
    ("fact prompts", "fact-driven prompts, with replay", "≥ 0.70"),
    ("fact prompts from tokens", "… from the tokens alone", "≥ 0.60"),
    ("fact prompts, no replay", "fact-driven prompts, without", "far lower"),
    ("fact in prompt", "… the fact stands in the replayed prompt", ""),
    ("add: recognised", "add: recognised afterwards, as answered", "≥ 0.75"),
    ("add: all attributes", "add: all identity attributes, by the judge", ""),
    ("add: attributes", "add: identity attributes, by the judge", ""),
    ("add: background ssim", "add: background SSIM, changed pixels left out", "≥ 0.93"),
    ("add: background ssim by place", "add: background SSIM, the place left out", ""),
    ("add: changed", "add: share of the picture that changed", ""),
    ("remove: gone", "remove: gone, by the judge", "≥ 0.85"),
    ("remove: not recognised", "remove: not recognised afterwards, as answered", ""),
    ("remove: background ssim", "remove: background SSIM", ""),
    ("learn seconds", "seconds to learn (one thread)", ""),
    ("learn cpu seconds", "… of processor time", ""),
    ("process seconds", "… whole process", ""),
    ("peak mb", "peak memory while learning, MB", ""),
)
"""Figure, what the table calls it, and what is wanted of it."""


# -- one character, in a process of its own ----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class How:
    """How each character is learned, and ``part`` of the exam, "" for all of it."""

    steps: int | None = None
    depth: int | None = None
    part: str = ""

    @property
    def settings(self) -> Any:
        """What `engine.learn` is given."""
        from omnipersona_cli import engine

        return engine.Settings(steps=self.steps, depth=self.depth)


def measure(seed: int, *, how: How, judge_file: Path, began: float) -> dict[str, Any]:
    """Learn one character in a temporary home, and all figures of it."""
    import torch

    from omnipersona_cli import engine

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["OMNIPERSONA_HOME"] = str(Path(place) / "home")
        draw_folder(Path(place) / "photos", seed)
        cpu = time.process_time()
        learned = engine.learn(
            engine.Subject(photos=[Path(place) / "photos"], name=NAME), how.settings
        )
        tally = Tally()
        tally.note("learn seconds", learned.seconds)
        tally.note("learn cpu seconds", time.process_time() - cpu)
        tally.note("process seconds", time.time() - began)
        tally.note("peak mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        exam = Exam(seed=seed, learned=learned, judge_file=judge_file, tally=tally)
        exam.recognition()
        exam.facts()
        exam.scenes()
        if not how.part:
            exam.fact_prompts()
        if how.part != "looks":
            with exam.facts_hidden():
                exam.memory()
                exam.fact_prompts(hidden=True)
        if not how.part:
            exam.additions()
            exam.removals()
        if how.part != "looks":
            exam.withheld(Path(place), how.settings)
    return {
        "seed": seed,
        "figures": tally.means(),
        "best_step": learned.report.best_step,
        "calibration": learned.report.calibration.to_dict(),
        "seconds": round(time.time() - began, 1),
    }


# -- all of them -------------------------------------------------------------------------------


def run_one(seed: int, *, how: How, judge_file: Path) -> dict[str, Any]:
    """`measure` in a fresh process with one thread."""
    command = [sys.executable, __file__, "--only", str(seed), "--judge", str(judge_file)]
    command += [] if how.steps is None else ["--steps", str(how.steps)]
    command += [] if how.depth is None else ["--depth", str(how.depth)]
    command += [f"--{how.part}"] if how.part else []
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")
    done = subprocess.run(
        [*command, "--began", str(time.time())],
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"character {seed} failed; what it said stands above")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(results: Sequence[dict[str, Any]], against: Sequence[dict[str, Any]] = ()) -> str:
    """Means over characters as Markdown; what is gained in pairs ``against`` the same characters
    learned otherwise, where there are some."""
    gained = ", gained over the other file" if against else ""
    lines = [
        f"{len(results)} held-out characters, seeds {results[0]['seed']} to "
        f"{results[-1]['seed']}{gained}",
        "",
        "| | mean | 95 % interval | wanted |",
        "| --- | --- | --- | --- |",
    ]
    for name, label, wanted in ROWS:
        found = {it["seed"]: it["figures"][name] for it in results if name in it["figures"]}
        other = {it["seed"]: it["figures"][name] for it in against if name in it["figures"]}
        values = list(found.values())
        if against:
            values = [value - other[seed] for seed, value in found.items() if seed in other]
        if not values:
            continue
        digits = 0 if name == "peak mb" else 1 if name.endswith("seconds") else 3
        low, high = interval(values)
        label = label.replace("<", "&lt;").replace(">", "&gt;")
        lines.append(
            f"| {label} | {np.mean(values):.{digits}f} | {low:.{digits}f} to {high:.{digits}f} "
            f"| {wanted} |"
        )
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--characters", type=click.IntRange(1), default=20, show_default=True)
@click.option("--first", default=30_000_000, show_default=True, help="Seed of the first one.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--steps",
    type=click.IntRange(0),
    help="Steps of learning; 0 keep the start. [default: the backend's]",
)
@click.option(
    "--depth",
    type=click.IntRange(1),
    help="Layers after the first with tokens of their own. [default: the backend's]",
)
@click.option(
    "--judge",
    "judge_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The judge's weights. [default: the package's]",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Keep results there."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file of the same characters: print what is gained over it, in pairs.",
)
@click.option(
    "--memory", "part", flag_value="memory", help="Memory alone: no edits, no text of the facts."
)
@click.option("--looks", "part", flag_value="looks", help="No memory and no edits.")
@click.option("--only", type=int, hidden=True)
@click.option("--began", type=float, hidden=True)
def main(
    characters: int,
    first: int,
    workers: int,
    steps: int | None,
    depth: int | None,
    judge_file: Path | None,
    out: Path | None,
    against: Path | None,
    part: str | None,
    only: int | None,
    began: float | None,
) -> None:
    """Learn held-out characters with defaults and print what is reached."""
    how = How(steps=steps, depth=depth, part=part or "")
    if only is not None and judge_file is not None:
        one = measure(only, how=how, judge_file=judge_file, began=began or time.time())
        click.echo(json.dumps(one))
        return
    from op_toy.network import WEIGHTS

    judge_file = judge_file or WEIGHTS / "judge.safetensors"
    setting = {
        **measured_with(judge_file),
        "steps": steps,
        "depth": depth,
        "part": how.part,
    }
    seeds = range(first, first + characters)
    run = partial(run_one, how=how, judge_file=judge_file)
    with ThreadPoolExecutor(workers) as pool:
        results = kept(pool, run, seeds, setting=setting, out=out)
    others: list[dict[str, Any]] = []
    if against is not None:
        lines = map(json.loads, against.read_text(encoding="utf-8").splitlines())
        theirs = {other["seed"]: other for other in lines}
        if missing := [seed for seed in seeds if seed not in theirs]:
            raise click.ClickException(f"{against} does not hold character {missing[0]}")
        others = [theirs[seed] for seed in seeds]
    click.echo(table(results, others))


if __name__ == "__main__":
    main()
