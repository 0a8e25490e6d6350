"""nano's world: cartoon characters with a continuous identity, scenes and things, drawn by code.

Everything is seeded and comes with its exact truth. A *character* is who somebody is (kind,
colours, pattern, accessory, proportions, where its spots sit); a *picture* is a character, or two,
or none, in a scene, perhaps next to a thing. One identity in five is held out of pretraining,
chosen by a hash of its words (`is_held_out`): characters of users, of tests and of the evaluation
are drawn from these. Pretraining meets some of them as look-alikes of others, never as a concept.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace

KINDS = (
    "cat", "dog", "rabbit", "bear", "mouse", "pig", "frog", "duck", "elephant", "lion", "deer",
    "robot",
)  # fmt: skip
COLOURS: dict[str, tuple[float, float, float]] = {  # hue, saturation, value
    "red": (0.99, 0.85, 0.86),
    "orange": (0.075, 0.90, 0.98),
    "yellow": (0.145, 0.80, 0.98),
    "green": (0.34, 0.75, 0.62),
    "teal": (0.49, 0.75, 0.72),
    "blue": (0.61, 0.80, 0.88),
    "purple": (0.76, 0.62, 0.72),
    "pink": (0.92, 0.42, 0.98),
    "brown": (0.07, 0.62, 0.50),
    "black": (0.65, 0.15, 0.17),
    "white": (0.12, 0.03, 0.98),
    "grey": (0.60, 0.06, 0.60),
}
PATTERNS = ("plain", "spotted", "striped", "patched")
ACCESSORIES = ("hat", "scarf", "glasses", "crown", "flower")
SCENES = ("beach", "forest", "snow", "city", "space", "desert", "meadow", "room")
THINGS = ("ball", "car", "boat", "star", "box", "balloon", "apple", "cake")
PLACES = ("left", "middle", "right")


@dataclass(frozen=True, kw_only=True)
class Accessory:
    """Something worn, and its colour."""

    what: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Character:
    """Who somebody is. ``shape`` holds body width, head size, ear size and eye size, each in
    [-1, 1]; ``tint`` shifts hue, saturation and value of the named colour, each in [-1, 1];
    ``marks`` seeds the positions of spots, stripes and patches."""

    kind: str
    colour: str
    pattern: str = "plain"
    second: str = "white"
    accessory: Accessory | None = None
    shape: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    marks: int = 0

    @property
    def colours(self) -> tuple[str, str]:
        """Both colours in the order in which words name them: of a patched coat, that of the upper
        left patch comes first, because nothing else tells the two apart."""
        if self.pattern == "patched" and random.Random(self.marks).random() < 0.5:
            return self.second, self.colour
        return self.colour, self.second


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A thing to play with or to eat, and its colour."""

    what: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What is in a picture, and how it is laid out. ``place`` is where the (first) character
    stands; the thing stands on the free side; ``jitter`` moves and scales a little."""

    scene: str
    characters: tuple[Character, ...] = ()
    thing: Thing | None = None
    place: str = "middle"
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    backdrop: int = 0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is true of a character beyond its looks; every value is a phrase."""

    toy: str
    home: str
    food: str
    extra: dict[str, str] = field(default_factory=dict)


def is_held_out(character: Character) -> bool:
    """Whether this identity (its words, not its proportions) is kept from pretraining: one in
    five."""
    worn = character.accessory
    key = "/".join((character.kind, character.colour, character.pattern,
                    character.second if character.pattern != "plain" else "",
                    f"{worn.what} {worn.colour}" if worn else ""))  # fmt: skip
    return hashlib.sha256(key.encode()).digest()[0] % 5 == 0


def draw_character(seed: int, *, held_out: bool = False) -> Character:
    """A random character from the pretraining identities, or from the held-out ones."""
    rng = random.Random(seed)
    while True:
        colour = rng.choice(tuple(COLOURS))
        character = Character(
            kind=rng.choice(KINDS),
            colour=colour,
            pattern=rng.choice(PATTERNS),
            second=rng.choice([name for name in COLOURS if name != colour]),
            accessory=_accessory(rng, colour),
            shape=(*_three(rng), rng.uniform(-1, 1)),
            tint=_three(rng),
            marks=rng.randrange(1 << 30),
        )
        if is_held_out(character) == held_out:
            return character


def _three(rng: random.Random) -> tuple[float, float, float]:
    return (rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-1, 1))


def _accessory(rng: random.Random, coat: str) -> Accessory | None:
    if rng.random() < 0.2:
        return None
    colours = [name for name in COLOURS if name != coat]
    return Accessory(what=rng.choice(ACCESSORIES), colour=rng.choice(colours))


def draw_thing(rng: random.Random) -> Thing:
    """A random thing of a random colour."""
    return Thing(what=rng.choice(THINGS), colour=rng.choice(tuple(COLOURS)))


def draw_facts(seed: int) -> Facts:
    """Random facts of a character."""
    rng = random.Random(seed ^ 0x5EED)
    toy = Thing(what=rng.choice(THINGS[:6]), colour=rng.choice(tuple(COLOURS)))
    food = Thing(what=rng.choice(THINGS[6:]), colour=rng.choice(tuple(COLOURS)))
    return Facts(
        toy=f"{article(toy.colour)} {toy.what}",
        home=rng.choice(SCENES),
        food=f"{article(food.colour)} {food.what}",
    )


def article(word: str) -> str:
    """The word with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def draw_picture(
    rng: random.Random,
    characters: tuple[Character, ...],
    *,
    scene: str | None = None,
    thing: Thing | str | None = "maybe",
) -> Composition:
    """A random picture of the given characters. ``thing="maybe"`` puts one in half of them."""
    if isinstance(thing, str):
        thing = draw_thing(rng) if rng.random() < 0.5 and len(characters) < 2 else None
    return Composition(
        scene=scene or rng.choice(SCENES),
        characters=characters,
        thing=thing,
        place=rng.choice(PLACES) if thing is None else rng.choice(("left", "right")),
        jitter=_three(rng),
        backdrop=rng.randrange(3),
    )


def one_attribute_away(character: Character, rng: random.Random) -> Character:
    """A look-alike that differs in exactly one word: kind, colour, pattern or accessory."""
    what = rng.choice(("kind", "colour", "pattern", "accessory"))
    if what == "kind":
        kind = rng.choice([kind for kind in KINDS if kind != character.kind])
        return replace(character, kind=kind)
    if what == "colour":
        taken = {character.colour, character.second}
        if character.accessory is not None:
            taken.add(character.accessory.colour)
        colour = rng.choice([name for name in COLOURS if name not in taken])
        return replace(character, colour=colour)
    if what == "pattern":
        pattern = rng.choice([name for name in PATTERNS if name != character.pattern])
        return replace(character, pattern=pattern)
    while True:
        worn = _accessory(rng, character.colour)
        if worn != character.accessory:
            return replace(character, accessory=worn)
