"""The cartoon world in words: a look, a thing, a place, a fact."""

from __future__ import annotations

from op_toy.world import Accessory, Character, Facts, Thing, article

WHERE = {
    "beach": ("at the beach", "on the beach"),
    "forest": ("in the forest",),
    "snow": ("in the snow",),
    "city": ("in the city",),
    "space": ("in space",),
    "desert": ("in the desert",),
    "meadow": ("in the meadow", "on the meadow"),
    "room": ("in the room", "in a room"),
}


def coat(character: Character) -> str:
    """ "red" or "white and black"."""
    first, second = character.colours
    return first if character.pattern == "plain" else f"{first} and {second}"


def worn(accessory: Accessory | None) -> str:
    """ "a blue hat", "blue glasses" or "nothing"."""
    if accessory is None:
        return "nothing"
    if accessory.what == "glasses":
        return f"{accessory.colour} glasses"
    return f"{article(accessory.colour)} {accessory.what}"


def describe(character: Character) -> str:
    """The one full description of a look: "a spotted white and black cat with a blue hat"."""
    words = f"{coat(character)} {character.kind}"
    if character.pattern != "plain":
        words = f"{character.pattern} {words}"
    phrase = article(words.split()[0]) + words[len(words.split()[0]) :]
    return phrase if character.accessory is None else f"{phrase} with {worn(character.accessory)}"


def thing_phrase(thing: Thing) -> str:
    """ "a red ball"."""
    return f"{article(thing.colour)} {thing.what}"


def side(place: str) -> str:
    """ "on the left", "in the middle"."""
    return "in the middle" if place == "middle" else f"on the {place}"


def fact_answer(attribute: str, facts: Facts) -> str:
    """The value of a fact, as it is answered."""
    if attribute == "home":
        return WHERE[facts.home][0]
    return facts.toy if attribute == "toy" else facts.food
