"""The words of nano's world: captions, questions, answers, instructions, in many paraphrases.

Every function takes a `random.Random` and gives one phrasing; `name` is how a concept is mentioned
("<bo>"). Synonyms are not here: the tokenizer reads "bunny" as "rabbit" (`tokenizer.SAME`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from op_toy.words import WHERE, coat, describe, thing_phrase, worn
from op_toy.world import (
    COLOURS,
    KINDS,
    PATTERNS,
    SCENES,
    THINGS,
    Character,
    Facts,
    Picture,
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


def mention(who: Character, rng: random.Random) -> str:
    """A description as people write them: parts are left out, order changes a little."""
    draw = rng.random()
    if draw < 0.5:
        return describe(who)
    if draw < 0.62:
        return f"{article(who.kind)}"
    phrase = f"{article(who.colours[0])} {who.kind}"
    if draw < 0.72:
        return phrase
    if draw < 0.80 and who.pattern != "plain":
        return f"{article(who.pattern)} {who.kind}"
    if who.accessory is None:
        return describe(who)
    verb = rng.choice(("wearing", "that wears", "in", "with"))
    return (
        f"{phrase if draw < 0.9 else describe(who).split(' with ')[0]} {verb} {worn(who.accessory)}"
    )


def caption(picture: Picture, subjects: list[str], rng: random.Random) -> str:
    """What is asked for when this picture is to be painted; ``subjects`` name its characters."""
    who = " and ".join(subjects) if subjects else ""
    if len(subjects) == 2 and rng.random() < 0.2:
        who = f"{subjects[0]} with {subjects[1]}"
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
            who, thing = what, ""
    if not who:
        return rng.choice(("", "a picture of ", "draw ", "")) + where
    verb = rng.choice(("", "", "", "", "standing ", "sitting ", "walking ", "is "))
    if rng.random() < 0.12:
        body = f"{where}, {who} {thing}".rstrip()
    elif thing and rng.random() < 0.5:
        body = f"{who} {thing} {where}"
    else:
        body = f"{who} {verb}{where}" + (f", {thing}" if thing else "")
    return rng.choice(OPENINGS) + body + rng.choice(("", ".", ""))


def full_caption(picture: Picture) -> str:
    """The one caption that `describe the picture` is answered with."""
    who = " and ".join(describe(character) for character in picture.characters) or "nobody"
    thing = f", next to {thing_phrase(picture.thing)}" if picture.thing else ""
    return f"{who} {WHERE[picture.scene][0]}{thing}"


def look_question(who: Character, it: str, rng: random.Random) -> Exchange:
    """A question about a look; ``it`` is "it", "the cat" or a mention."""
    other = rng.choice(KINDS) if rng.random() < 0.5 else who.kind
    colour = rng.choice(tuple(COLOURS)) if rng.random() < 0.5 else who.colours[0]
    pattern = rng.choice(PATTERNS) if rng.random() < 0.5 else who.pattern
    return rng.choice((
        Exchange(question=f"what colour is {it}?", answer=coat(who)),
        Exchange(question=f"which colour does {it} have?", answer=coat(who)),
        Exchange(question=f"what is {it} wearing?", answer=worn(who.accessory)),
        Exchange(question=f"what does {it} wear?", answer=worn(who.accessory)),
        Exchange(question=f"what kind of animal is {it}?", answer=who.kind),
        Exchange(question=f"what animal is {it}?", answer=who.kind),
        Exchange(question=f"what is {it}?", answer=describe(who)),
        Exchange(question=f"describe {it}.", answer=describe(who)),
        Exchange(question=f"who is {it}?", answer=describe(who)),
        Exchange(question=f"what pattern does {it} have?", answer=who.pattern),
        Exchange(question=f"is {it} {article(other)}?", answer=_yes(other == who.kind)),
        Exchange(question=f"is {it} {colour}?", answer=_yes(colour in coat(who).split())),
        Exchange(question=f"is {it} {pattern}?", answer=_yes(pattern == who.pattern)),
    ))  # fmt: skip


def picture_question(picture: Picture, rng: random.Random) -> Exchange:
    """A question about a picture with at most one character."""
    if picture.characters and rng.random() < 0.6:
        who = picture.characters[0]
        it = rng.choice(("it", "it", f"the {who.kind}", "the animal", "this"))
        if it == f"the {who.kind}":
            return rng.choice((
                Exchange(question=f"what colour is {it}?", answer=coat(who)),
                Exchange(question=f"what is {it} wearing?", answer=worn(who.accessory)),
                Exchange(question=f"where is {it}?", answer=WHERE[picture.scene][0]),
            ))  # fmt: skip
        return look_question(who, it, rng)
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


def recognise_question(name: str, rng: random.Random) -> str:
    """Whether the named one is in the picture."""
    return rng.choice((
        f"is {name} here?", f"is {name} here?", f"is {name} in this picture?",
        f"is {name} in the picture?", f"do you see {name}?", f"can you see {name}?",
        f"is this {name}?", f"is it {name}?", f"does this picture show {name}?",
        f"is {name} there?",
    ))  # fmt: skip


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


def add_instruction(who: str, rng: random.Random) -> str:
    """ "add <bo>"."""
    return rng.choice((
        f"add {who}", f"put {who} here", f"add {who} to the picture", f"draw {who} in this picture",
        f"put {who} in the picture", f"insert {who}", f"place {who} here", f"bring in {who}",
    )) + rng.choice(("", "."))  # fmt: skip


def remove_instruction(who: str, rng: random.Random) -> str:
    """ "remove <bo>"."""
    return rng.choice((
        f"remove {who}", f"take {who} away", f"take {who} out of the picture", f"delete {who}",
        f"erase {who}", f"remove {who} from the picture",
    )) + rng.choice(("", "."))  # fmt: skip


def replace_instruction(old: str, new: str, rng: random.Random) -> str:
    """ "replace the cat by <bo>"."""
    return rng.choice((
        f"replace {old} by {new}", f"replace {old} with {new}", f"swap {old} for {new}",
        f"change {old} into {new}", f"put {new} in place of {old}",
    )) + rng.choice(("", "."))  # fmt: skip


def move_instruction(scene: str, it: str, rng: random.Random) -> str:
    """ "put it in the snow"."""
    where = rng.choice(WHERE[scene])
    return rng.choice((
        f"put {it} {where}", f"move {it} {where}", f"change the background to the {scene}",
        f"make the background the {scene}", f"show {it} {where}", f"now {where}",
    )) + rng.choice(("", "."))  # fmt: skip


def change_instruction(old: Character, new: Character, it: str, rng: random.Random) -> str:
    """ "make it blue", "give it a red hat", "take off its hat"."""
    end = rng.choice(("", "."))
    if new.accessory == old.accessory:
        return rng.choice((
            f"make {it} {new.colour}", f"paint {it} {new.colour}", f"change {it} to {new.colour}",
            f"turn {it} {new.colour}", f"change the colour of {it} to {new.colour}",
        )) + end  # fmt: skip
    if new.accessory is None:
        what = old.accessory.what if old.accessory else "hat"
        return (
            rng.choice((f"take off its {what}", f"remove its {what}", f"remove the {what}")) + end
        )
    return rng.choice((
        f"give {it} {worn(new.accessory)}", f"put {worn(new.accessory)} on {it}",
        f"let {it} wear {worn(new.accessory)}", f"dress {it} with {worn(new.accessory)}",
    )) + end  # fmt: skip


def _yes(true: bool) -> str:
    return "yes" if true else "no"
