"""A whole benchmark drawn from nano's world, in the layout of UnifyBench, with the truth beside it.

Every character is one that pretraining never met: its identity is of the held-out families and its
seed of a range that nothing else uses. All of it is drawn by this file, so anybody may pass it on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from op_toy.attributes import AROUND, ATTRIBUTES, NAMES, truth
from op_toy.drawing import render, subject_mask
from op_toy.folder import new_folder
from op_toy.words import WHERE, coat, describe, fact_answer, side, worn
from op_toy.world import (
    SCENES,
    Accessory,
    Character,
    Composition,
    Facts,
    Thing,
    draw_character,
    draw_facts,
    draw_picture,
    one_attribute_away,
)

FIRST = 50_000_000
"""The first character's seed."""

PHOTOS, TEST_PHOTOS, NEGATIVES, HARD, OTHERS, EASY = 10, 5, 6, 5, 3, 100
LOOKS = ("kind", "colour", "pattern", "second", "accessory", "accessory colour")
_WORN = ("accessory", "accessory colour")


@dataclass(kw_only=True)
class _Sheet:
    """One concept's folders, and what is true of what is in them."""

    root: Path
    name: str
    character: Character
    facts: Facts
    rng: random.Random
    kinds: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, dict[str, str]] = field(default_factory=dict)
    edits: dict[str, dict[str, str]] = field(default_factory=dict)
    photos: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def train(self) -> Path:
        return self.root / "concept" / "train" / self.name

    @property
    def test(self) -> Path:
        return self.root / "concept" / "test" / self.name

    def draw(self, folder: Path, file: str, picture: Composition) -> str:
        """Draw into ``folder / file`` and note the truth; the path within the data set."""
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        render(picture).save(path)
        inside = path.relative_to(self.root).as_posix()
        self.photos[inside] = words_of(picture)
        return inside


def write_set(
    folder: Path, *, concepts: int = 20, first: int = FIRST,
    on_concept: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Write a benchmark of ``concepts`` characters into the new folder ``folder``."""
    with new_folder(folder, again="op bench export-toy") as half:
        _write_set(half, concepts, first, on_concept)


def words_of(picture: Composition) -> dict[str, str]:
    """What is in a picture, by attribute and in words; without what makes no sense of it."""
    known = {**ATTRIBUTES, **{f"right {name}": words for name, words in ATTRIBUTES.items()},
             **AROUND}  # fmt: skip
    return {
        name: known[name][index]
        for name, index in zip(NAMES, truth(picture), strict=True)
        if index >= 0
    }


def _write_set(
    folder: Path, concepts: int, first: int, on_concept: Callable[[int, int], None] | None
) -> None:
    names = [f"pet{number:02d}" for number in range(concepts)]
    seeds = [first + number for number in range(concepts)]
    _write(folder / "concepts_list.json", names)
    _write(folder / "template.json", {"recognition": ["is <sks> here?", "do you see <sks>?"]})
    rng = random.Random(f"{first}:random_images")
    (folder / "random_images").mkdir()
    for number in range(EASY):
        characters = () if number % 2 else (draw_character(rng.randrange(1 << 40), held_out=True),)
        render(draw_picture(rng, characters)).save(folder / "random_images" / f"{number}.png")
    from PIL import Image

    Image.new("RGB", (512, 512)).save(folder / "black_512x512.png")
    for number, (name, seed) in enumerate(zip(names, seeds, strict=True)):
        sheet = _Sheet(
            root=folder,
            name=name,
            character=draw_character(seed, held_out=True),
            facts=draw_facts(seed),
            rng=random.Random(f"{seed}:toyset"),
        )
        others = [draw_character(seed + 1_000_000 + n, held_out=True) for n in range(OTHERS)]
        _write_train(sheet)
        _write_test(sheet, others)
        if on_concept is not None:
            on_concept(number + 1, concepts)
    train = {name: [f"{number}.png" for number in range(PHOTOS)] for name in names}
    _write(folder / "concept" / "train" / "train_images.json", train)


def _write_train(sheet: _Sheet) -> None:
    """Photos to learn from, look-alikes, and what is said about the concept."""
    rng, mention = sheet.rng, f"<{sheet.name}>"
    for number in range(PHOTOS):
        sheet.draw(sheet.train, f"{number}.png", draw_picture(rng, (sheet.character,)))
    scores = {}
    for number in range(NEGATIVES):
        alike = one_attribute_away(sheet.character, rng)
        sheet.draw(sheet.train / "negative_example", f"{number}.png", draw_picture(rng, (alike,)))
        scores[f"{number}.png"] = 5 / 6
    _write(sheet.train / "negative_example" / "score.json", scores)
    _write(
        sheet.train / "info.json",
        {
            "class": sheet.character.kind,
            "info": f"{mention} is {describe(sheet.character)}.",
            "extra_info": [
                f"{mention}'s toy is {sheet.facts.toy}",
                f"{mention}'s home is {WHERE[sheet.facts.home][0]}",
                f"{mention}'s favourite food is {sheet.facts.food}",
            ],
            "conversation_type": "object",
            "generation_type": "live_subject",
        },
    )
    talk = [{"query": f"what kind of animal is {mention}?", "answer": sheet.character.kind}]
    talk += [{"query": f"what colour is {mention}?", "answer": coat(sheet.character)}]
    _write(sheet.train / "conversations.json", {f"{n}.png": talk for n in range(PHOTOS)})
    yes = [{"query": f"is {mention} here?", "answer": "yes"}]
    no = [{"query": f"is {mention} here?", "answer": "no"}]
    _write(sheet.train / "positive_recognitions.json", {f"{n}.png": yes for n in range(PHOTOS)})
    _write(sheet.train / "random_recognitions.json", {f"{n}.png": no for n in range(PHOTOS)})


def _write_test(sheet: _Sheet, others: list[Character]) -> None:
    """Test photos, questions, prompts, edits and the truth."""
    rng, name = sheet.rng, sheet.name
    entries: list[dict[str, Any]] = []

    def entry(type_: str, image: str, question: str, answer: str, kind: str = "") -> None:
        marker = "<image>\n" if image else ""
        if kind:
            sheet.kinds[f"{type_}-{len(entries):03d}"] = kind
        entries.append(
            {
                "image": image or "black_512x512.png",
                "type": type_,
                "conversations": [{"value": marker + question}, {"value": answer}],
            }
        )

    pictures = [draw_picture(rng, (sheet.character,)) for _ in range(TEST_PHOTOS)]
    files = [sheet.draw(sheet.test, f"{n}.png", picture) for n, picture in enumerate(pictures)]
    asked = f"is <{name}> here?"
    for file in files:
        entry("rec", file, asked, "yes", "positive")
    groups = (
        ("look-alike", [one_attribute_away(sheet.character, rng) for _ in range(HARD)]),
        ("other", others),
        ("empty", [None, None]),
    )
    number = 0
    for kind, whom in groups:
        for character in whom:
            picture = draw_picture(rng, () if character is None else (character,))
            file = sheet.draw(sheet.test / "negative_example", f"{number}.png", picture)
            entry("rec", file, asked, "no", kind)
            number += 1
    for picture, file in zip(pictures, files, strict=True):
        entry("vqa", file, f"what does <{name}> wear?", worn(sheet.character.accessory))
        entry("vqa", file, f"where is <{name}>?", WHERE[picture.scene][0])
    for attribute in ("toy", "home", "food"):
        answer = fact_answer(attribute, sheet.facts)
        for question in (f"what is <{name}>'s {attribute}?",
                         f"what is the {attribute} of <{name}>?"):  # fmt: skip
            entry("text_only", "", question, answer)
    entry("text_only", "", f"what kind of animal is <{name}>?", sheet.character.kind)
    _write(sheet.root / "test_data" / f"{name}.json", entries)
    _write(sheet.test / "vqa.json", [entry for entry in entries if entry["type"] == "vqa"])
    _write(
        sheet.test / "text_only.json", [entry for entry in entries if entry["type"] == "text_only"]
    )
    _write(sheet.test / "t2i_conditions.json", _conditions(sheet))
    _write(sheet.test / "edits.json", _edits(sheet, others[0]))
    _write(
        sheet.root / "ground_truth" / f"{name}.json",
        {
            "character": describe(sheet.character),
            "attributes": _looks(sheet.character),
            "facts": {"toy": sheet.facts.toy, "home": sheet.facts.home, "food": sheet.facts.food},
            "kinds": sheet.kinds,
            "prompts": sheet.prompts,
            "edits": sheet.edits,
            "pictures": sheet.photos,
        },
    )


def _conditions(sheet: _Sheet) -> dict[str, list[str]]:
    """Prompts that say all, and PARG prompts, which name by reference what only a fact says."""
    name, looks = sheet.name, _looks(sheet.character)
    toy, food = _thing(sheet.facts.toy), _thing(sheet.facts.food)
    plain = [f"a picture of <{name}>"]
    sheet.prompts[plain[0]] = looks
    for scene in sheet.rng.sample([s for s in SCENES if s != sheet.facts.home], 3):
        text = f"a picture of <{name}> {WHERE[scene][0]}"
        plain.append(text)
        sheet.prompts[text] = looks | {"scene": scene}
    parg = {
        f"a picture of <{name}> with its toy": _things(toy),
        f"<{name}> playing with its toy": _things(toy),
        f"a picture of <{name}> at its home": {"scene": sheet.facts.home},
        f"<{name}> next to its favourite food": _things(food),
    }
    for text, wanted in parg.items():
        sheet.prompts[text] = wanted
    return {
        "explicit_personalized_driven_generation": plain,
        "personalized_driven_generation": list(parg),
    }


def _edits(sheet: _Sheet, other: Character) -> list[dict[str, str]]:
    """One edit of each task, two of add and remove; source, target and mask are drawn."""
    rng, character, mention = sheet.rng, sheet.character, f"<{sheet.name}>"
    posed = draw_picture(rng, (character,))
    again = draw_picture(rng, (character,))
    elsewhere = rng.choice([scene for scene in SCENES if scene != posed.scene])
    dressed = replace(character, accessory=_new_accessory(character, rng))
    bare = draw_picture(rng, (character,), thing=None)
    with_toy = replace(
        bare, thing=_thing(sheet.facts.toy), place="left" if bare.place == "middle" else bare.place
    )
    bare = replace(with_toy, thing=None)
    empty, empty_again = (replace(picture, characters=()) for picture in (posed, again))
    looks = _looks(character)
    jobs = (
        ("add", empty, f"add {mention}, {side(posed.place)}", posed, looks | {"characters": "1"}),
        (
            "add",
            empty_again,
            f"put {mention} here, {side(again.place)}",
            again,
            looks | {"characters": "1"},
        ),
        ("remove", posed, f"remove {mention}", empty, {"characters": "0"}),
        ("remove", again, f"take {mention} away", empty_again, {"characters": "0"}),
        (
            "replace",
            replace(posed, characters=(other,)),
            f"replace the {other.kind} by {mention}",
            posed,
            looks | {"characters": "1"},
        ),
        (
            "accessory",
            posed,
            f"give {mention} {worn(dressed.accessory)}",
            replace(posed, characters=(dressed,)),
            {key: value for key, value in _looks(dressed).items() if key in _WORN},
        ),
        (
            "background",
            posed,
            f"put {mention} {WHERE[elsewhere][0]}",
            replace(posed, scene=elsewhere),
            looks | {"scene": elsewhere},
        ),
        ("fact-driven", bare, f"give {mention} its toy", with_toy, _things(with_toy.thing)),
    )
    entries = []
    for number, (task, source, instruction, target, wanted) in enumerate(jobs):
        id_ = f"edit-{number:03d}"
        sheet.edits[id_] = wanted
        folder = sheet.test / "edits"
        sheet.draw(folder, f"{number}-source.png", source)
        sheet.draw(folder, f"{number}-target.png", target)
        entry = {
            "id": id_,
            "task": task,
            "source": f"edits/{number}-source.png",
            "instruction": instruction,
            "target": f"edits/{number}-target.png",
        }
        if task != "background":
            _mask(source, target).save(folder / f"{number}-mask.png")
            entry["mask"] = f"edits/{number}-mask.png"
        entries.append(entry)
    return entries


def _mask(source: Composition, target: Composition) -> Any:
    """White where a character stands before or after, or where the two pictures differ."""
    from PIL import ImageChops

    apart = ImageChops.difference(render(source), render(target)).convert("L")
    mask = apart.point([0] + [255] * 255)
    for picture in (source, target):
        for which in range(len(picture.characters)):
            mask = ImageChops.lighter(mask, subject_mask(picture, which))
    return mask


def _looks(character: Character) -> dict[str, str]:
    """The identity's attributes in words."""
    words = words_of(Composition(scene="room", characters=(character,)))
    return {key: words[key] for key in LOOKS if key in words}


def _thing(phrase: str) -> Thing:
    _, colour, what = phrase.split()
    return Thing(what=what, colour=colour)


def _things(thing: Thing | None) -> dict[str, str]:
    return {"thing": thing.what, "thing colour": thing.colour} if thing else {}


def _new_accessory(character: Character, rng: random.Random) -> Accessory:
    now = character.accessory
    what = rng.choice(
        [accessory for accessory in ("hat", "scarf", "crown") if not now or accessory != now.what]
    )
    taken = {character.colour, character.second, now.colour if now else ""}
    colour = rng.choice(
        [colour for colour in ("red", "blue", "yellow", "green", "pink") if colour not in taken]
    )
    return Accessory(what=what, colour=colour)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
