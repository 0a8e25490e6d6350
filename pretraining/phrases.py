"""The words of nano's world: captions, questions, answers, instructions, in many paraphrases.

Every function takes a `random.Random` and gives one phrasing; `name` is how a concept is mentioned
("<bo>"). Synonyms are not here: the tokenizer reads "bunny" as "rabbit" (`tokenizer.SAME`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from op_toy.words import WHERE, coat, describe, thing_phrase, worn
from op_toy.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    PATTERNS,
    SCENES,
    THINGS,
    Character,
    Composition,
    Facts,
    article,
)

OPENINGS = (
    "", "", "", "a picture of ", "a photo of ", "draw ", "paint ", "generate ", "show ",
    "make a picture of ", "a cartoon of ", "please draw ", "i want to see ",
    "an image of ", "here is ",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str


def mention(character: Character, rng: random.Random) -> str:
    """A description as people write them: parts are left out, order changes a little."""
    draw = rng.random()
    if draw < 0.5:
        return describe(character)
    if draw < 0.62:
        return f"{article(character.kind)}"
    phrase = f"{article(character.colours[0])} {character.kind}"
    if draw < 0.72:
        return phrase
    if draw < 0.80 and character.pattern != "plain":
        return f"{article(character.pattern)} {character.kind}"
    if character.accessory is None:
        return describe(character)
    verb = rng.choice(("wearing", "that wears", "in", "with"))
    short = phrase if draw < 0.9 else describe(character).split(" with ")[0]
    return f"{short} {verb} {worn(character.accessory)}"


def caption(picture: Composition, subjects: list[str], rng: random.Random) -> str:
    """What is asked for when this picture is to be painted; ``subjects`` name its characters."""
    subject = " and ".join(subjects) if subjects else ""
    if len(subjects) == 2 and rng.random() < 0.2:
        subject = f"{subjects[0]} with {subjects[1]}"
    where = rng.choice(WHERE[picture.scene])
    thing = ""
    if picture.thing is not None:
        what = thing_phrase(picture.thing)
        if subjects:
            thing = rng.choice((
                f"next to {what}", f"with {what}", f"beside {what}", f"playing with {what}",
                f"and {what}", f"holding {what}", f"having {what}", f"who has {what}",
            ))  # fmt: skip
        else:
            subject, thing = what, ""
    if not subject:
        return rng.choice(("", "a picture of ", "draw ", "")) + where
    verb = rng.choice(("", "", "", "", "standing ", "sitting ", "walking ", "is "))
    if rng.random() < 0.12:
        body = f"{where}, {subject} {thing}".rstrip()
    elif thing and rng.random() < 0.5:
        body = f"{subject} {thing} {where}"
    else:
        body = f"{subject} {verb}{where}" + (f", {thing}" if thing else "")
    return rng.choice(OPENINGS) + body + rng.choice(("", ".", ""))


def full_caption(picture: Composition) -> str:
    """The one caption that `describe the picture` is answered with."""
    subject = " and ".join(describe(character) for character in picture.characters) or "nobody"
    thing = f", next to {thing_phrase(picture.thing)}" if picture.thing else ""
    return f"{subject} {WHERE[picture.scene][0]}{thing}"


def look_question(character: Character, named: str, rng: random.Random) -> Exchange:
    """A question about a look; ``named`` is "it", "the cat" or a mention."""
    other = rng.choice(KINDS) if rng.random() < 0.5 else character.kind
    colour = rng.choice(tuple(COLOURS)) if rng.random() < 0.5 else character.colours[0]
    pattern = rng.choice(PATTERNS) if rng.random() < 0.5 else character.pattern
    owner = "its" if named in ("it", "this") else f"{named}'s"
    accessory = character.accessory
    worn_or_not = accessory.what if accessory and rng.random() < 0.5 else rng.choice(ACCESSORIES)
    wears = accessory is not None and accessory.what == worn_or_not
    if accessory is not None and rng.random() < 0.12:
        be = "are" if accessory.what == "glasses" else "is"
        asked = rng.choice((
            f"what colour {be} {owner} {accessory.what}?",
            f"what is the colour of {owner} {accessory.what}?",
        ))  # fmt: skip
        return Exchange(question=asked, answer=accessory.colour)
    return rng.choice((
        Exchange(question=f"what is {owner} colour?", answer=coat(character)),
        Exchange(question=f"what is the colour of {named}?", answer=coat(character)),
        Exchange(question=f"what is {owner} pattern?", answer=character.pattern),
        Exchange(question=f"what colour is {named}?", answer=coat(character)),
        Exchange(question=f"which colour does {named} have?", answer=coat(character)),
        Exchange(question=f"what is {named} wearing?", answer=worn(character.accessory)),
        Exchange(question=f"what does {named} wear?", answer=worn(character.accessory)),
        Exchange(question=f"what kind of animal is {named}?", answer=character.kind),
        Exchange(question=f"what animal is {named}?", answer=character.kind),
        Exchange(question=f"what is {named}?", answer=describe(character)),
        Exchange(question=f"describe {named}.", answer=describe(character)),
        Exchange(question=f"what does {named} look like?", answer=describe(character)),
        Exchange(question=f"who is {named}?", answer=describe(character)),
        Exchange(question=f"what pattern does {named} have?", answer=character.pattern),
        Exchange(question=f"is {named} {article(other)}?", answer=_yes(other == character.kind)),
        Exchange(question=f"is {named} {colour}?", answer=_yes(colour in coat(character).split())),
        Exchange(question=f"is {named} {pattern}?", answer=_yes(pattern == character.pattern)),
        Exchange(question=f"is {named} wearing {_any(worn_or_not)}?", answer=_yes(wears)),
    ))  # fmt: skip


def picture_question(picture: Composition, rng: random.Random) -> Exchange:
    """A question about a picture with at most one character."""
    if picture.characters and rng.random() < 0.6:
        character = picture.characters[0]
        named = rng.choice(("it", "it", f"the {character.kind}", "the animal", "this"))
        if named == f"the {character.kind}":
            return rng.choice((
                Exchange(question=f"what colour is {named}?", answer=coat(character)),
                Exchange(question=f"what is {named} wearing?", answer=worn(character.accessory)),
                Exchange(question=f"where is {named}?", answer=WHERE[picture.scene][0]),
            ))  # fmt: skip
        return look_question(character, named, rng)
    thing = picture.thing
    present = {character.kind for character in picture.characters}
    kind = rng.choice(tuple(present)) if present and rng.random() < 0.5 else rng.choice(KINDS)
    what = thing.what if thing and rng.random() < 0.5 else rng.choice(THINGS)
    scene = rng.choice(SCENES) if rng.random() < 0.5 else picture.scene
    where = WHERE[picture.scene][0]
    options = [
        Exchange(question="where is it?", answer=where),
        Exchange(question="where is this?", answer=where),
        Exchange(question="what place is this?", answer=where),
        Exchange(question="what is in the background?", answer=where),
        Exchange(question="describe the picture.", answer=full_caption(picture)),
        Exchange(question="what is in the picture?", answer=full_caption(picture)),
        Exchange(question="what do you see?", answer=full_caption(picture)),
        Exchange(question=f"is there {article(kind)}?", answer=_yes(kind in present)),
        Exchange(question=f"do you see {article(kind)}?", answer=_yes(kind in present)),
        Exchange(
            question=f"is there {article(what)}?",
            answer=_yes(thing is not None and what == thing.what),
        ),
        Exchange(question=f"is it {WHERE[scene][0]}?", answer=_yes(scene == picture.scene)),
    ]
    if thing is not None:
        options.append(Exchange(question=f"what colour is the {thing.what}?", answer=thing.colour))
        options.append(Exchange(question="what thing is there?", answer=thing_phrase(thing)))
        if picture.characters:
            options.append(Exchange(question="what is next to it?", answer=thing_phrase(thing)))
    elif picture.characters:
        options.append(Exchange(question="what is next to it?", answer="nothing"))
    return rng.choice(options)


def _any(accessory: str) -> str:
    """ "a hat", "glasses"."""
    return accessory if accessory == "glasses" else article(accessory)


def yes_or_no_question(picture: Composition, rng: random.Random) -> Exchange:
    """A question answered yes or no, as often either where both can be, whatever it is about."""
    named = rng.choice(("it", "it", "this", "the animal"))
    there = rng.choice(("is there", "do you see"))
    thing = picture.thing
    kinds = {article(character.kind) for character in picture.characters}
    subjects: list[tuple[str, set[str], list[str]]] = [
        (there, kinds, [article(kind) for kind in KINDS]),
        (there, {article(thing.what)} if thing else set(), [article(what) for what in THINGS]),
        ("is it", {WHERE[picture.scene][0]}, [WHERE[scene][0] for scene in SCENES]),
    ]
    for character in picture.characters[:1]:
        accessory = character.accessory
        wearing = {_any(accessory.what)} if accessory else set()
        subjects += [
            (f"is {named} wearing", wearing, [_any(what) for what in ACCESSORIES]),
            (f"is {named}", kinds, [article(kind) for kind in KINDS]),
            (f"is {named}", set(coat(character).split(" and ")), list(COLOURS)),
            (f"is {named}", {character.pattern}, list(PATTERNS)),
        ]
    asked, true, values = rng.choice(subjects)
    yes = bool(true) and rng.random() < 0.5
    value = rng.choice([value for value in values if (value in true) == yes])
    return Exchange(question=f"{asked} {value}?", answer=_yes(yes))


def recognise_question(name: str, rng: random.Random) -> str:
    """Whether the named one is in the picture."""
    return rng.choice((
        f"is {name} here?", f"is {name} here?", f"is {name} in this picture?",
        f"is {name} in the picture?", f"do you see {name}?", f"can you see {name}?",
        f"is this {name}?", f"is it {name}?", f"does this picture show {name}?",
        f"is {name} there?",
    ))  # fmt: skip


def place_question(name: str, picture: Composition, here: bool, rng: random.Random) -> Exchange:
    """Where the named one is, who is in the picture where ``here`` is true. It is nowhere else, and
    not there where only its like is."""
    where = WHERE[picture.scene][0]
    if here and rng.random() < 0.3:
        return Exchange(question=f"where is {name}?", answer=where)
    right = rng.random() < 0.6
    other = rng.choice([scene for scene in SCENES if scene != picture.scene])
    asked = where if right else WHERE[other][0]
    return Exchange(question=f"is {name} {asked}?", answer=_yes(here and right))


def fact_sentences(facts: Facts, name: str, rng: random.Random) -> dict[str, str]:
    """Attribute -> one sentence that states it."""
    return {
        "toy": rng.choice((
            f"{name}'s toy is {facts.toy}.", f"the toy of {name} is {facts.toy}.",
            f"{name} plays with {facts.toy}.", f"its toy is {facts.toy}.",
        )),
        "home": rng.choice((
            f"{name} lives {WHERE[facts.home][0]}.", f"{name}'s home is {WHERE[facts.home][0]}.",
            f"the home of {name} is {WHERE[facts.home][0]}.",
            f"its home is {WHERE[facts.home][0]}.", f"{name}'s home is the {facts.home}.",
        )),
        "food": rng.choice((
            f"{name}'s food is {facts.food}.", f"{name}'s favourite food is {facts.food}.",
            f"{name} likes to eat {facts.food}.", f"the food of {name} is {facts.food}.",
        )),
    }  # fmt: skip


def fact_question(attribute: str, name: str, rng: random.Random) -> str:
    """A question about a fact."""
    options = {
        "toy": (f"what does {name} play with?",),
        "home": (f"where does {name} live?", f"where is {name}'s home?"),
        "food": (f"what does {name} eat?", f"what is {name}'s favourite food?"),
    }[attribute]
    return rng.choice(
        (f"what is {name}'s {attribute}?", f"what is the {attribute} of {name}?", *options)
    )


def add_instruction(subject: str, rng: random.Random) -> str:
    """ "add <bo>"."""
    return rng.choice((
        f"add {subject}", f"put {subject} here",
        f"add {subject} to the picture", f"draw {subject} in this picture",
        f"put {subject} in the picture", f"insert {subject}",
        f"place {subject} here", f"bring in {subject}",
    )) + rng.choice(("", "."))  # fmt: skip


def remove_instruction(subject: str, rng: random.Random) -> str:
    """ "remove <bo>"."""
    return rng.choice((
        f"remove {subject}", f"take {subject} away",
        f"take {subject} out of the picture", f"delete {subject}",
        f"erase {subject}", f"remove {subject} from the picture",
    )) + rng.choice(("", "."))  # fmt: skip


def replace_instruction(old: str, new: str, rng: random.Random) -> str:
    """ "replace the cat by <bo>"."""
    return rng.choice((
        f"replace {old} by {new}", f"replace {old} with {new}", f"swap {old} for {new}",
        f"change {old} into {new}", f"put {new} in place of {old}",
    )) + rng.choice(("", "."))  # fmt: skip


def move_instruction(scene: str, named: str, rng: random.Random) -> str:
    """ "put it in the snow"."""
    where = rng.choice(WHERE[scene])
    return rng.choice((
        f"put {named} {where}", f"move {named} {where}", f"change the background to the {scene}",
        f"make the background the {scene}", f"show {named} {where}", f"now {where}",
    )) + rng.choice(("", "."))  # fmt: skip


def change_instruction(old: Character, new: Character, named: str, rng: random.Random) -> str:
    """ "make it blue", "give it a red hat", "take off its hat"."""
    end = rng.choice(("", "."))
    if new.accessory == old.accessory:
        return rng.choice((
            f"make {named} {new.colour}",
            f"paint {named} {new.colour}", f"change {named} to {new.colour}",
            f"turn {named} {new.colour}", f"change the colour of {named} to {new.colour}",
        )) + end  # fmt: skip
    if new.accessory is None:
        what = old.accessory.what if old.accessory else "hat"
        return (
            rng.choice((f"take off its {what}", f"remove its {what}", f"remove the {what}")) + end
        )
    return rng.choice((
        f"give {named} {worn(new.accessory)}", f"put {worn(new.accessory)} on {named}",
        f"let {named} wear {worn(new.accessory)}", f"dress {named} with {worn(new.accessory)}",
    )) + end  # fmt: skip


def _yes(true: bool) -> str:
    return "yes" if true else "no"
