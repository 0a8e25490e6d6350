"""The exam of one learned character: what it is asked, what it paints and edits.

What is asked and how each figure is counted is told in `characters.py`, which sits it.
"""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFilter
from PIL.Image import Image
from series import NAME

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
NEVER_TOLD = (
    "name", "sister", "car", "boat", "present", "vehicle", "nickname", "teacher", "instrument",
    "neighbour",
)  # fmt: skip
"""Attributes of which nothing was said; some are words of nano's, some are not."""


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
        pictures = [
            ("the character", draw_picture(rng, (self.character,))) for _ in range(POSITIVES)
        ]
        pictures += [
            ("look-alikes", draw_picture(rng, (one_attribute_away(self.character, rng),)))
            for _ in range(ALIKE)
        ]
        pictures += [
            (
                "others",
                draw_picture(rng, (draw_character(rng.randrange(1 << 40), held_out=True),)),
            )
            for _ in range(OTHERS)
        ]
        pictures += [("empty scenes", draw_picture(rng, ())) for _ in range(EMPTY)]
        answered: dict[bool, list[bool]] = {True: [], False: []}
        by_threshold: dict[bool, list[bool]] = {True: [], False: []}
        scores: dict[bool, list[float]] = {True: [], False: []}
        for group, picture in pictures:
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
        """Its toy, from everything and from the tokens alone; its looks, which no fact tells: kind,
        colours and what is worn count where their words stand in the answer."""
        from omnipersona_cli import engine
        from omnipersona_cli.engine.memory import say
        from op_toy.words import coat, worn

        question = f"what is <{NAME}>'s toy?"
        answer = engine.ask(question, backend=self.backend).text
        self.tally.note("toy", _same(answer, self.known.toy))
        answer = say(self.backend, self.tokens, question)
        self.tally.note("toy from tokens", _same(answer, self.known.toy))
        said = engine.ask(f"describe <{NAME}>.", backend=self.backend).text
        looks = [self.character.kind, *coat(self.character).split(" and ")]
        if self.character.accessory is not None:
            looks.append(worn(self.character.accessory))
        self.tally.note("described", *(look in said for look in looks))

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
                answer = say(self.backend, self.tokens, wording)
                self.tally.note("wordings from tokens", _same(answer, value))
            found = engine.ask(f"what is <{NAME}>'s {attribute}?", backend=self.backend)
            self.tally.note("unsure", found.source == "unknown")
        for attribute in NEVER_TOLD:
            found = engine.ask(f"what is <{NAME}>'s {attribute}?", backend=self.backend)
            self.tally.note("false memories", found.source != "unknown")

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
            answer = engine.ask(wording, backend=self.backend)
            self.tally.note("withheld", answer.source != "unknown")

    def scenes(self) -> None:
        """The character in scenes that the prompt names."""
        from omnipersona_cli import engine
        from op_toy.dataset import LOOKS
        from op_toy.words import WHERE
        from op_toy.world import SCENES, Composition

        for number, scene in enumerate(self.dice("scenes").sample(SCENES, SCENE_PROMPTS)):
            prompt = f"<{NAME}> {WHERE[scene][0]}"
            (made,) = engine.gen(prompt, seed=self.paint_seed(number), backend=self.backend)
            reading = self.judged(made.image)
            wanted = Composition(scene=scene, characters=(self.character,))
            looks = reading.matches(wanted, LOOKS)
            self.tally.note("identity", *looks.values())
            self.tally.note("second colours", *(looks[key] for key in looks if key == "second"))
            self.tally.note("scene", *reading.matches(wanted, ("scene",)).values())
            self.tally.note("one character", *reading.matches(wanted, ("characters",)).values())

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


def _same(answer: str, value: str) -> bool:
    """Whether an answer is the value, but for its article and full stop."""

    def plain(text: str) -> str:
        return text.lower().strip(" .").removeprefix("an ").removeprefix("a ")

    return plain(answer) == plain(value)


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
