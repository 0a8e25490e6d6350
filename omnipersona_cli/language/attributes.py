"""Names of attributes: which mean the same, and how they are compared.

Facts are taught, asked for, probed and replayed by these names: "what is <bo>'s food?" finds
what "its favourite food is tuna" and "its meal is tuna" have told.
"""

from __future__ import annotations

import re

TASTE = frozenset("favourite favorite beloved best dear".split())
"""Words that make of an attribute what somebody likes: a favourite colour is not the own one."""

PRAISE = TASTE | frozenset("own usual very".split())
"""Words before an attribute that do not make it another."""

_OWN = {"place": "place", "colour": "colour", "color": "colour"}
"""What something is in or has: the favourite one is another."""

SYNONYMS = {
    other: name
    for name, others in {
        "home": "house, place, residence, dwelling, place to live",
        "food": "meal, snack, dish, thing to eat",
        "drink": "beverage, thing to drink",
        "toy": "plaything",
        "friend": "pal, buddy",
        "job": "occupation, profession",
        "car": "automobile",
        "colour": "color",
        "birthday": "birth date, date of birth",
        "birthplace": "place of birth",
        "mother": "mum, mom",
        "father": "dad",
        "partner": "spouse, husband, wife",
    }.items()
    for other in others.split(", ")
}
"""Names that mean another, in the singular: the one table of them."""


_HOW = (
    "red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|gr[ea]y|golden|beige|teal"
    "|turquoise|big|small|tiny|huge|large|long|short|round|square|old|new|soft|fluffy|curly|bushy"
    "|shiny|striped|spotted|dotted|checked|torn|broken|wooden|dark|light|bright|pale"
)
_DESCRIBED = re.compile(rf"(?P<how>(?:{_HOW})(?:(?:, | and | )(?:{_HOW}))*)(?P<more>(?: with .+)?)")
"""A value that says what something is like, and not what it is."""
_MASS = frozenset("fur hair skin wool".split())
"""Nouns without an article."""


def usual_name(attribute: str) -> str:
    """The name by which an attribute is taught and asked for besides the one that was told:
    "favourite meal" -> "food". What is praise alone stays ("favourite thing"): it names nothing."""
    words = attribute.lower().split()
    if another := _favourite(words):
        return another
    bare = list(words)
    while bare and bare[0] in PRAISE:
        bare = bare[1:]
    if not bare or singular(bare[-1]) == "thing":
        return " ".join(words)
    return _named(bare)


def attribute_key(attribute: str) -> str:
    """The form in which attributes are compared: "favourite toys" and "toy" are the same."""
    words = attribute.lower().split()
    return _favourite(words) or _named([word for word in words if word not in PRAISE])


def _favourite(words: list[str]) -> str:
    """ "favorite color" -> "favourite colour"; "" where taste makes of it no other attribute."""
    own = _OWN.get(singular(words[-1])) if TASTE & set(words) else None
    return " ".join(["favourite", *(w for w in words[:-1] if w not in PRAISE), own]) if own else ""


def _named(words: list[str]) -> str:
    if not words:
        return ""
    whole = " ".join([*words[:-1], singular(words[-1])])
    if whole in SYNONYMS:
        return SYNONYMS[whole]
    last = singular(words[-1])
    return " ".join([*words[:-1], SYNONYMS.get(last, last)])


def as_thing(attribute: str, value: str) -> str:
    """The value as what can be painted: a collar that is "red with a bell" is "a red collar with a
    bell", eyes that are "blue" are "blue eyes". What names a thing stays, and so does a colour."""
    noun = attribute.lower().split()[-1] if attribute else ""
    described = _DESCRIBED.fullmatch(value)
    if described is None or TASTE & set(attribute.lower().split()) or noun in (*_OWN, "pattern"):
        return value
    thing = f"{described['how']} {attribute}{described['more']}"
    if is_plural(noun) or noun in _MASS:
        return thing
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def is_plural(noun: str) -> bool:
    """True for "toys", not for "glass"."""
    return noun.endswith("s") and not noun.endswith(("ss", "us", "is"))


def singular(noun: str) -> str:
    """ "toys" -> "toy", "puppies" -> "puppy"."""
    if len(noun) > 4 and noun.endswith("ies"):
        return noun[:-3] + "y"
    return noun[:-1] if len(noun) > 3 and is_plural(noun) else noun
