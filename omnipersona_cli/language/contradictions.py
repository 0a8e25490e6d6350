"""Facts that cannot both be true: only where the words themselves say so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from omnipersona_cli.language.attributes import attribute_key, is_plural
from omnipersona_cli.language.facts import ParsedFact, parse_facts
from omnipersona_cli.language.verbs import NUMBERS

_SINGLE = frozenset({"age", "weight", "height", "size", "name"})
"""Attributes that have one value."""

_MOST = re.compile(r"(?:favou?rite|best|least favou?rite)\b")
_NOT = re.compile(r"\b(?:not|never|no longer)\b|n't\b", re.IGNORECASE)
_VAGUE = frozenset("the about almost nearly years year old".split())
_HELPERS = re.compile(r"\b(?:does|do|did)\b", re.IGNORECASE)


def contradiction(texts: Sequence[str], name: str) -> tuple[str, str] | None:
    """The first two facts that contradict each other: two ages, two favourite toys, "likes baths"
    and "hates baths", a sentence and its denial."""
    read = [(text, parse_facts(text, name)) for text in dict.fromkeys(texts)]
    for (first, some), (second, others) in combinations(read, 2):
        if _denied(first, second) or any(_opposed(one, two) for one in some for two in others):
            return first, second
    return None


def _denied(first: str, second: str) -> bool:
    first, second = (
        text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") for text in (first, second)
    )
    return bool(_NOT.search(first)) != bool(_NOT.search(second)) and _bare(first) == _bare(second)


def _bare(text: str) -> list[str]:
    plain = _HELPERS.sub(" ", _NOT.sub(" ", text.lower()))
    return [word[:-1] if word.endswith("s") else word for word in re.findall(r"[\w<>']+", plain)]


def _opposed(one: ParsedFact, two: ParsedFact) -> bool:
    if {one.attribute, two.attribute} == {"favourite thing", "least favourite thing"}:
        return bool(_things(one.value) & _things(two.value))
    same = attribute_key(one.attribute) == attribute_key(two.attribute)
    if not same or _plain(one.value) == _plain(two.value):
        return False
    return one.attribute in _SINGLE or (_superlative(one) and _superlative(two))


def _things(value: str) -> set[str]:
    """ "the rain and cats" -> "rain", "cats"."""
    return {_plain(one) for one in re.split(r",\s*(?:and\s+)?|\s+and\s+", value)}


def _plain(value: str) -> str:
    """The value with digits for words, and without what does not make it another ("about three
    years old" is 3)."""
    words = [word for word in value.lower().split() if word not in _VAGUE]
    spelled = [str(NUMBERS.index(word) + 1) if word in NUMBERS else word for word in words]
    return re.sub(r"(?<=\d)\s+(?=[a-z])", "", " ".join(spelled))


def _superlative(fact: ParsedFact) -> bool:
    plural = is_plural(fact.attribute)
    return bool(_MOST.match(fact.attribute)) and not plural and not _verbal(fact)


def _verbal(fact: ParsedFact) -> bool:
    """True for "loves tuna", which leaves room for more."""
    return fact.attribute.endswith("thing")
