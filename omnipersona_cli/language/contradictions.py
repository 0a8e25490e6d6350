"""Facts that cannot both be true: only where the words themselves say so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from omnipersona_cli.language.attributes import is_plural
from omnipersona_cli.language.facts import ParsedFact, parse_facts

_SINGLE = frozenset({"age", "weight", "height", "size", "name"})
"""Attributes that have one value."""

_MOST = re.compile(r"(?:favou?rite|best|least favou?rite)\b")
_NOT = re.compile(r"\b(?:not|never|no longer)\b|n't\b", re.IGNORECASE)
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
    return bool(_NOT.search(first)) != bool(_NOT.search(second)) and _bare(first) == _bare(second)


def _bare(text: str) -> list[str]:
    plain = _HELPERS.sub(
        " ", _NOT.sub(" ", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    )
    return [word[:-1] if word.endswith("s") else word for word in re.findall(r"[\w<>']+", plain)]


def _opposed(one: ParsedFact, two: ParsedFact) -> bool:
    values = {value.lower().removeprefix("the ") for value in (one.value, two.value)}
    if {one.attribute, two.attribute} == {"favourite thing", "least favourite thing"}:
        return len(values) == 1
    if one.attribute != two.attribute or len(values) == 1:
        return False
    superlative = _MOST.match(one.attribute) and not is_plural(one.attribute) and not _verbal(one)
    return one.attribute in _SINGLE or bool(superlative)


def _verbal(fact: ParsedFact) -> bool:
    """True for "loves tuna", which leaves room for more."""
    return fact.attribute.endswith("thing")
