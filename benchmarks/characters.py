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

*Memory*, with the text of the facts taken out of the pack: questions in `WORDINGS`, which are in no
lesson and in no check of learning, as the tokens answer them by themselves; the three prompts that
need a fact; and `NEVER_TOLD`, attributes that nobody told and that learning did not ask about,
where any answer but "I do not know" is a false memory. The same is asked of every fourth character
learned once more with one of its facts, chosen by the seed, withheld. ``--memory`` leaves out edits
and prompts with the text of the facts, which take most of the time, ``--looks`` memory as well;
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

import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import ImageFilter
from PIL.Image import Image
from series import NAME, as_done, draw_folder, finished, interval

POSITIVES, ALIKE, OTHERS, EMPTY = 10, 10, 5, 5
SCENE_PROMPTS = 4
EDITS = 3
CHANGED = 24
"""A pixel that differs by more than this in some channel belongs to the subject."""

WORDINGS = {
    "toy": (
        "please name <bo>'s toy.",
        "so what's <bo>'s toy?",
        "the toy of <bo> is what?",
        "what is it that <bo> plays with?",
        "what would <bo> like to play with?",
    ),
    "home": (
        "please name <bo>'s home.",
        "so what's <bo>'s home?",
        "where is the home of <bo>?",
        "in which place does <bo> live?",
        "where can i find <bo> at home?",
    ),
    "food": (
        "please name <bo>'s food.",
        "so what's <bo>'s favourite food?",
        "the food of <bo> is what?",
        "what food does <bo> like?",
        "what would <bo> like to eat?",
    ),
}
WITHHELD = 4
NEVER_TOLD = (
    "name", "sister", "car", "boat", "present", "vehicle", "nickname", "teacher", "instrument",
    "neighbour",
)  # fmt: skip
"""Attributes of which nothing was said; some are words of nano's, some are not."""

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


@dataclass(kw_only=True)
class Tally:
    """Figures by name, each the mean of what was noted under it."""

    noted: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def note(self, name: str, *values: float) -> None:
        """More values of a figure."""
        self.noted[name] += [float(value) for value in values]

    def means(self) -> dict[str, float]:
        """The mean of each figure."""
        return {
            name: round(float(np.mean(values)), 4) for name, values in self.noted.items() if values
        }


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
        if seed % WITHHELD == 0 and how.part != "looks":
            exam.withheld(Path(place), how.settings)
    return {
        "seed": seed,
        "figures": tally.means(),
        "best_step": learned.report.best_step,
        "calibration": learned.report.calibration.to_dict(),
        "seconds": round(time.time() - began, 1),
    }


class Exam:
    """The questions, prompts and edits that one learned character is measured by."""

    def __init__(self, *, seed: int, learned: Any, judge_file: Path, tally: Tally) -> None:
        from omnipersona_cli import engine
        from omnipersona_cli.engine.tokens import from_slot
        from op_toy.world import draw_character, draw_facts

        self.seed, self.judge_file, self.tally = seed, judge_file, tally
        self.character = draw_character(seed, held_out=True)
        self.known = draw_facts(seed)
        self.backend = engine.opened_for([NAME])
        self.tokens = from_slot(learned.pack, self.backend)
        self.calibration = learned.report.calibration

    def dice(self, purpose: str) -> random.Random:
        """Randomness of one part, whatever the other parts draw."""
        return random.Random(f"{self.seed}:{purpose}")

    def paint_seed(self, number: int) -> int:
        """Seeds of painting: other noise for each character and prompt."""
        return (self.seed * 100 + number) % 2**32

    def judged(self, image: Image) -> Any:
        """What the judge sees."""
        from op_toy.network import read

        return read([image], self.judge_file)[0]

    def verdict(self, image: Image) -> str:
        """What `op ask` answers: yes, no or not sure."""
        from omnipersona_cli import engine

        answer = engine.ask(f"is <{NAME}> here?", image=image, backend=self.backend)
        return answer.verdict or "not sure"

    def recognition(self) -> None:
        """The character among look-alikes, others and empty scenes."""
        from omnipersona_cli.engine.calibrate import auroc, recognition_score
        from op_toy.drawing import render
        from op_toy.world import draw_character, draw_picture, one_attribute_away

        rng = self.dice("recognition")
        shown = [("the character", draw_picture(rng, (self.character,))) for _ in range(POSITIVES)]
        shown += [
            ("look-alikes", draw_picture(rng, (one_attribute_away(self.character, rng),)))
            for _ in range(ALIKE)
        ]
        shown += [
            (
                "others",
                draw_picture(rng, (draw_character(rng.randrange(1 << 40), held_out=True),)),
            )
            for _ in range(OTHERS)
        ]
        shown += [("empty scenes", draw_picture(rng, ())) for _ in range(EMPTY)]
        answered: dict[bool, list[bool]] = {True: [], False: []}
        by_threshold: dict[bool, list[bool]] = {True: [], False: []}
        scores: dict[bool, list[float]] = {True: [], False: []}
        for group, picture in shown:
            image, present = render(picture), group == "the character"
            verdict = self.verdict(image)
            score = recognition_score(self.backend, self.tokens, image)
            answered[present].append(verdict == ("yes" if present else "no"))
            by_threshold[present].append((score >= self.calibration.threshold) == present)
            scores[present].append(score)
            self.tally.note(f"recall of {group}", answered[present][-1])
            self.tally.note("not sure", verdict == "not sure")
        for name, right in (("", answered), (" by threshold", by_threshold)):
            balanced = (np.mean(right[True]) + np.mean(right[False])) / 2
            self.tally.note(f"recognition{name}", float(balanced))
        self.tally.note("auroc", auroc(scores[True], scores[False]))

    def facts(self) -> None:
        """Its toy, from everything and from the tokens alone."""
        from omnipersona_cli import engine
        from omnipersona_cli.engine.memory import say

        question = f"what is <{NAME}>'s toy?"
        said = engine.ask(question, backend=self.backend).text
        self.tally.note("toy", _same(said, self.known.toy))
        said = say(self.backend, self.tokens, question)
        self.tally.note("toy from tokens", _same(said, self.known.toy))

    @contextlib.contextmanager
    def facts_hidden(self) -> Iterator[None]:
        """Without the text of the facts: what is known is in the tokens alone."""
        from omnipersona_cli.concepts.library import Library

        told = Library().header(NAME).facts
        Library().change_facts(NAME, lambda _: ())
        yield
        Library().change_facts(NAME, lambda _: told)

    def memory(self) -> None:
        """What the tokens know, in wordings never taught, and what they make up."""
        from omnipersona_cli import engine
        from omnipersona_cli.engine.memory import say
        from op_toy.words import fact_answer

        for attribute, wordings in WORDINGS.items():
            value = fact_answer(attribute, self.known)
            for wording in wordings:
                said = say(self.backend, self.tokens, wording)
                self.tally.note("wordings from tokens", _same(said, value))
            said = engine.ask(f"what is <{NAME}>'s {attribute}?", backend=self.backend)
            self.tally.note("unsure", said.source == "unknown")
        for attribute in NEVER_TOLD:
            said = engine.ask(f"what is <{NAME}>'s {attribute}?", backend=self.backend)
            self.tally.note("false memories", said.source != "unknown")

    def withheld(self, place: Path, settings: Any) -> None:
        """The character learned again, one fact untold, which it is then asked for."""
        from omnipersona_cli import engine
        from omnipersona_cli.data.facts import read_facts

        attribute = ("toy", "home", "food")[self.seed % 3]
        sheet = read_facts(place / "photos" / "facts.yaml")
        told = [fact for fact in sheet.facts if f"{attribute} is" not in fact]
        (place / "photos" / "facts.yaml").unlink()
        subject = engine.Subject(photos=[place / "photos"], name=NAME, kind=sheet.kind, facts=told)
        engine.learn(subject, settings, engine.Keeping(force=True, samples=0))
        for wording in (
            f"what is <{NAME}>'s {attribute}?",
            f"tell me the {attribute} of <{NAME}>.",
        ):
            said = engine.ask(wording, backend=self.backend)
            self.tally.note("withheld", said.source != "unknown")

    def scenes(self) -> None:
        """The character in scenes that the prompt names."""
        from omnipersona_cli import engine
        from op_toy.dataset import LOOKS
        from op_toy.words import WHERE
        from op_toy.world import SCENES, Composition

        for number, scene in enumerate(self.dice("scenes").sample(SCENES, SCENE_PROMPTS)):
            prompt = f"<{NAME}> {WHERE[scene][0]}"
            (made,) = engine.gen(prompt, seed=self.paint_seed(number), backend=self.backend)
            seen = self.judged(made.image)
            wanted = Composition(scene=scene, characters=(self.character,))
            looks = seen.matches(wanted, LOOKS)
            self.tally.note("identity", *looks.values())
            self.tally.note("second colours", *(looks[key] for key in looks if key == "second"))
            self.tally.note("scene", *seen.matches(wanted, ("scene",)).values())
            self.tally.note("one character", *seen.matches(wanted, ("characters",)).values())

    def fact_prompts(self, *, hidden: bool = False) -> None:
        """Prompts that cannot be painted without knowing a fact; all of it must be right.
        ``hidden``: the text of the facts is."""
        from omnipersona_cli import engine
        from op_toy.words import WHERE
        from op_toy.world import SCENES, Composition, Thing

        def thing(phrase: str) -> Thing:
            _, colour, what = phrase.split()
            return Thing(what=what, colour=colour)

        things = ("thing", "thing colour")
        home = Composition(scene=self.known.home, characters=(self.character,))
        toy = Composition(
            scene=SCENES[0], characters=(self.character,), thing=thing(self.known.toy)
        )
        food = Composition(
            scene=SCENES[0], characters=(self.character,), thing=thing(self.known.food)
        )
        prompts = (
            (f"<{NAME}> with its toy", toy, things, self.known.toy),
            (f"<{NAME}> at its home", home, ("scene",), WHERE[self.known.home][0]),
            (f"<{NAME}> next to its favourite food", food, things, self.known.food),
        )
        for number, (prompt, wanted, names, value) in enumerate(prompts):
            for replayed in (True,) if hidden else (True, False):
                (made,) = engine.gen(
                    prompt,
                    seed=self.paint_seed(10 + number),
                    replayed=replayed,
                    backend=self.backend,
                )
                right = all(self.judged(made.image).matches(wanted, names).values())
                if hidden:
                    self.tally.note("fact prompts from tokens", right)
                    continue
                self.tally.note(f"fact prompts{'' if replayed else ', no replay'}", right)
                if replayed:
                    self.tally.note("fact in prompt", value in made.trace.rewritten.lower())

    def additions(self) -> None:
        """The character put into empty scenes."""
        from omnipersona_cli import engine
        from omnipersona_cli.bench.metrics import ssim
        from op_toy.dataset import LOOKS
        from op_toy.drawing import render
        from op_toy.world import Composition, draw_picture

        rng = self.dice("additions")
        places = list(standing_places(self.character))
        for number in range(EDITS):
            picture = draw_picture(rng, ())
            source = render(picture)
            (made,) = engine.edit(
                source, f"add <{NAME}>", seed=self.paint_seed(20 + number), backend=self.backend
            )
            self.tally.note("add: recognised", self.verdict(made.image) == "yes")
            wanted = Composition(scene=picture.scene, characters=(self.character,))
            matches = self.judged(made.image).matches(wanted, LOOKS).values()
            self.tally.note("add: all attributes", all(matches))
            self.tally.note("add: attributes", *matches)
            changed = change(source, made.image) > CHANGED
            grown = _grown(changed)
            self.tally.note("add: changed", float(changed.mean()))
            stands = max(places, key=lambda place: float(change(source, made.image)[place].sum()))
            for name, where in (("", grown), (" by place", stands)):
                kept = ssim(source, made.image, ~where)
                self.tally.note(f"add: background ssim{name}", *([] if kept is None else [kept]))

    def removals(self) -> None:
        """The character taken out of pictures."""
        from omnipersona_cli import engine
        from omnipersona_cli.bench.metrics import ssim
        from op_toy.drawing import render, subject_mask
        from op_toy.world import Composition, draw_picture

        rng = self.dice("removals")
        for number in range(EDITS):
            picture = draw_picture(rng, (self.character,))
            source = render(picture)
            (made,) = engine.edit(
                source, f"remove <{NAME}>", seed=self.paint_seed(30 + number), backend=self.backend
            )
            gone = self.judged(made.image).matches(
                Composition(scene=picture.scene), ("characters",)
            )
            self.tally.note("remove: gone", *gone.values())
            self.tally.note("remove: not recognised", self.verdict(made.image) == "no")
            stood = _grown(np.asarray(subject_mask(picture)) > 127)
            kept = ssim(source, made.image, ~stood)
            self.tally.note("remove: background ssim", *([] if kept is None else [kept]))


def _same(said: str, value: str) -> bool:
    """Whether an answer is the value, but for its article and full stop."""

    def plain(text: str) -> str:
        return text.lower().strip(" .").removeprefix("an ").removeprefix("a ")

    return plain(said) == plain(value)


# -- pixels ------------------------------------------------------------------------------------

Mask = NDArray[np.bool_]


def change(before: Image, after: Image) -> NDArray[np.int16]:
    """[H, W]: the largest difference over the channels, 0 to 255."""
    first, second = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (before, after))
    found: NDArray[np.int16] = np.abs(first - second).max(axis=2)
    return found


def standing_places(character: Any) -> Iterator[Mask]:
    """For each place where the world puts a character, all pixels that it may cover there, and two
    around."""
    from op_toy.drawing import subject_mask
    from op_toy.world import PLACES, Composition

    for place in PLACES:
        covered = np.zeros((64, 64), dtype=bool)
        for jitter in ((-1.0, -1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 1.0)):
            picture = Composition(scene="room", characters=(character,), place=place, jitter=jitter)
            covered |= np.asarray(subject_mask(picture)) > 127
        yield _grown(covered)


def _grown(mask: Mask) -> Mask:
    """Two pixels more on every side."""
    from PIL import Image as images

    image = images.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(5))
    grown: Mask = np.asarray(image) > 127
    return grown


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
        values = [result["figures"][name] for result in results if name in result["figures"]]
        other = [result["figures"][name] for result in against if name in result["figures"]]
        if not values:
            continue
        if against:
            values = [new - old for new, old in zip(values, other, strict=True)]
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
    from omnipersona_cli import registry
    from omnipersona_cli.backend import Opening
    from op_toy.network import WEIGHTS

    judge_file = judge_file or WEIGHTS / "judge.safetensors"
    if not judge_file.is_file():
        raise click.ClickException(f"there is no judge in {judge_file}: name one with --judge FILE")
    setting = {
        "backend": registry.open_backend(Opening(backend="nano")).fingerprint,
        "judge": sha256(judge_file.read_bytes()).hexdigest()[:16],
        "steps": steps,
        "depth": depth,
        "part": how.part,
    }
    results = finished(out, setting)
    wanted = range(first, first + characters)
    waiting = [seed for seed in wanted if seed not in results]

    def run(seed: int) -> dict[str, Any]:
        made = run_one(seed, how=how, judge_file=judge_file)
        return made | {"setting": setting}

    with ThreadPoolExecutor(workers) as pool:
        for result in as_done(pool, run, waiting):
            results[result["seed"]] = result
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
            click.echo(f"{result['seed']} in {result['seconds']:.0f} s", err=True)
    others: list[dict[str, Any]] = []
    if against is not None:
        lines = map(json.loads, against.read_text(encoding="utf-8").splitlines())
        theirs = {other["seed"]: other for other in lines}
        if missing := [seed for seed in wanted if seed not in theirs]:
            raise click.ClickException(f"{against} does not hold character {missing[0]}")
        others = [theirs[seed] for seed in wanted]
    click.echo(table([results[seed] for seed in wanted], others))


if __name__ == "__main__":
    main()
