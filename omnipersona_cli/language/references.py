"""A small grammar of how people refer to what is true of a concept.

"its toy", "<bo>'s toy", "the toy of <bo>", "a toy for <bo>", "at home", "their toys", "what it
loves", "where it lives": each is a reference, the attribute ("toy") of a concept ("bo") at a place
in the text. The grammar is what replay checks the model's own reading against, and what it falls
back to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from omnipersona_cli.language.attributes import PRAISE, TASTE, attribute_key, singular
from omnipersona_cli.language.facts import ParsedFact, parse_facts
from omnipersona_cli.language.mentions import find_mentions, names_in
from omnipersona_cli.language.verbs import ADVERBS, ANY_VERB, VERBS

_LOOKS = frozenset(
    "head face eye ear nose mouth hand paw foot feet leg arm tail back front side body fur hair "
    "belly neck wing shoulder lap skin teeth tooth tongue whisker claw beak fin chin cheek knee "
    "toe finger lip horn shadow reflection smile".split()
)
"""Parts of how something looks: the tokens carry them, no fact is needed to paint them."""

_SEEN = frozenset("colour color pattern look appearance shape breed species pose".split())
"""Words for how something looks as a whole."""

_PICTURES = frozenset(
    "photo photograph picture image painting drawing portrait sketch cartoon view top middle left "
    "right style kind sort copy version scene statue name".split()
)
"""Words that stand before "of <bo>" without asking for anything that is known of bo."""

_COMPOUNDS = frozenset(
    "bag basket bed bin bowl box cake card case chest city club corner country court dish door "
    "field game house hut key land map office party place plate room seat shelf shop station store "
    "table team town village yard".split()
)
"""Nouns that with the word before them mean another thing: a toy box is no toy."""

_FUNCTION = (
    "a an the in on at by to of for from with without and or but near under over behind beside "
    "next is are was were be it as into onto out up down while who that this these those not if "
    "so than then there here all".split()
)

_WORD = rf"(?!(?:{'|'.join(_FUNCTION)})\b)[A-Za-z][A-Za-z-]*"
_PHRASE = rf"(?P<phrase>{_WORD}(?:\s+{_WORD}){{0,3}})"
_MENTION = r"<(?P<name>[A-Za-z][A-Za-z0-9_-]{0,31})>"

_OF = re.compile(rf"\b(?P<article>the|an?)\s+{_PHRASE}\s+(?P<of>of|for)\s+{_MENTION}", re.I)
_AND = re.compile(rf"\s*(?:,|\band\b)\s*{_MENTION}(?!'s|\u2019s)", re.I)
_POSSESSIVE = re.compile(rf"{_MENTION}(?:'s|\u2019s)\s+{_PHRASE}", re.I)
_OWNERS_BEFORE = re.compile(r"(?:<[\w-]+>(?:'s|\u2019s)\s*(?:,\s*(?:and\b)?|\band\b)\s*)+$", re.I)
_PRONOUN = re.compile(rf"\b(?P<whose>its|his|her|their)\s+{_PHRASE}", re.I)
_AT_HOME = re.compile(r"\b(?:at|back)\s+(?P<phrase>home)\b", re.I)
_WHERE = {"live": "home", "dwell": "home", "sleep": "bed", "nap": "bed", "work": "workplace"}
_PLACES = frozenset({"home", "bed", "workplace", "origin", "birthplace"})
_ANY_THING = frozenset({"", "thing", "one", "place"})
_BY_VERB = re.compile(
    rf"\b(?:(?P<where>(?:(?:the|a)\s+place\s+)?where(?:ver)?)|what(?:ever)?|who(?:m|ever)?"
    rf"|the\s+(?P<noun>[a-z]+)(?:\s+(?:that|which|who|whom))?)\s+(?:{_MENTION}|it|he|she|they)\s+"
    rf"{ADVERBS}(?P<verb>(?:{ANY_VERB})(?!\w)"
    rf"|(?:(?:likes?|loves?)\s+to\s+)?(?P<does>{'|'.join(_WHERE)})s?\b)"
    r"(?!\s+to\b)(?:\s+(?:the\s+)?(?:most|best))?\b",
    re.I,
)
_HINTS = re.compile(
    r"\b(?:favou?rite|beloved|loves?|likes?|owns?|lives?|eats?|wears?|plays? with|sleeps?)\b", re.I
)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """``text[start:end]`` means "the ``attribute`` of ``concept``"."""

    start: int
    end: int
    concept: str
    attribute: str


@dataclass(frozen=True, kw_only=True)
class KnownFact:
    """What the facts say about one attribute: its ``value``, and the sentences it comes from."""

    attribute: str
    value: str
    texts: tuple[str, ...]


Known = Mapping[str, Mapping[str, KnownFact]]
"""For each concept its facts by attribute key."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A phrase that may name an attribute. ``whole``: the phrase is the attribute, all of it;
    ``strict``: only if the attribute is known; ``attribute``: it names this one by a verb."""

    start: int
    end: int
    phrase_start: int
    phrase: str
    concept: str
    whole: bool = False
    strict: bool = False
    attribute: str = ""


def known_facts(facts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, KnownFact]]:
    """For each concept what its sentences say, by attribute key; two values of one attribute
    stand together ("a red ball and a blue car")."""
    known: dict[str, dict[str, KnownFact]] = {}
    for name, texts in facts.items():
        of_concept = known.setdefault(name, {})
        parsed = [fact for text in texts for fact in parse_facts(text, name)]
        for fact in parsed:
            _add(of_concept, fact.attribute, fact)
        for fact in parsed:  # by another attribute only where no fact has it as its own
            for other in fact.also:
                if attribute_key(other) not in of_concept:
                    _add(of_concept, other, fact)
    return known


def _add(known: dict[str, KnownFact], attribute: str, fact: ParsedFact) -> None:
    """Put a fact under one of its attributes, beside what is there."""
    key = attribute_key(attribute)
    if not key:
        return
    before = known.get(key)
    if before is None:
        known[key] = KnownFact(attribute=attribute, value=fact.value, texts=(fact.text,))
    elif f" and {fact.value} and " not in f" and {before.value} and ":
        value, texts = f"{before.value} and {fact.value}", (*before.texts, fact.text)
        known[key] = replace(before, value=value, texts=texts)


def is_look(attribute: str) -> bool:
    """True for what can be seen of something, be it known in words or not: its colour, its tail,
    and not its favourite colour."""
    words = attribute_key(attribute).split()
    likes = bool(TASTE & set(attribute.lower().split()))
    return bool(words) and words[-1] in _LOOKS | _SEEN and not likes


def hints_at_facts(text: str) -> bool:
    """True where ``text``, without a reference that the grammar knows, has a word that may still
    point at something known ("where it lives"): only then is the model worth asking."""
    return bool(_HINTS.search(text))


def find_references(text: str, names: Sequence[str], known: Known) -> tuple[Reference, ...]:
    """Every reference in ``text`` to an attribute of one of ``names``, in order of place.

    ``known`` decides how much of a phrase is the attribute, and whether the looser forms ("a toy
    for <bo>", "at home") count at all. Each possessive goes to its own concept: the name that it
    stands on, the nearest one mentioned before, or the only one there is; "their" after two names
    goes to both, as two references to one place.
    """
    found: list[Reference] = []
    candidates = [
        *_named(text),
        *_pronouns(text, names),
        *_homes(text, names),
        *_by_verb(text, names, known),
    ]
    for candidate in sorted(candidates, key=lambda candidate: (candidate.start, -candidate.end)):
        if candidate.concept not in names:
            continue
        told = known.get(candidate.concept, {})
        if candidate.attribute:
            length = len(candidate.phrase) * (attribute_key(candidate.attribute) in told)
        else:
            length = _attribute_length(candidate, told)
        if not length:
            continue
        end = candidate.end if candidate.whole else candidate.phrase_start + length
        if any(
            candidate.start < other.end
            and other.start < end
            and (other.start, other.end) != (candidate.start, end)
            for other in found
        ):
            continue
        found.append(
            Reference(
                start=candidate.start,
                end=end,
                concept=candidate.concept,
                attribute=candidate.attribute or candidate.phrase[:length].lower(),
            )
        )
    return tuple(found)


def _named(text: str) -> Iterator[_Candidate]:
    for match in _OF.finditer(text):
        owners, end = [match["name"].lower()], match.end()
        while further := _AND.match(text, end):
            owners.append(further["name"].lower())
            end = further.end()
        for owner in owners:
            yield _Candidate(
                start=match.start(),
                end=end,
                phrase_start=match.start("phrase"),
                phrase=match["phrase"],
                concept=owner,
                whole=True,
                strict=match["of"].lower() == "for" or match["article"].lower() != "the",
            )
    for match in _POSSESSIVE.finditer(text):
        before = _OWNERS_BEFORE.search(text, 0, match.start())
        start = before.start() if before else match.start()
        for owner in names_in(text[start : match.start("phrase")]):
            yield _Candidate(
                start=start,
                end=match.end(),
                phrase_start=match.start("phrase"),
                phrase=match["phrase"],
                concept=owner,
            )


def _pronouns(text: str, names: Sequence[str]) -> Iterator[_Candidate]:
    for match in _PRONOUN.finditer(text):
        meant = _antecedents(text[: match.start()], names, match["whose"].lower() == "their")
        for name in meant:
            yield _Candidate(
                start=match.start(),
                end=match.end(),
                phrase_start=match.start("phrase"),
                phrase=match["phrase"],
                concept=name,
            )


def _homes(text: str, names: Sequence[str]) -> Iterator[_Candidate]:
    for match in _AT_HOME.finditer(text):
        for name in _antecedents(text[: match.start()], names, False):
            yield _Candidate(
                start=match.start("phrase"),
                end=match.end(),
                phrase_start=match.start("phrase"),
                phrase=match["phrase"],
                concept=name,
                whole=True,
                strict=True,
            )


def _by_verb(text: str, names: Sequence[str], known: Known) -> Iterator[_Candidate]:
    """ "what it loves", "where <bo> lives", "the ball that she plays with". Of "the toy it loves"
    the noun counts, where it is known; what it loves may be no toy."""
    for match in _BY_VERB.finditer(text):
        verb = match["verb"].lower()
        attribute = next((one.attribute for one in VERBS if re.fullmatch(one.pattern, verb)), "")
        if match["where"]:
            attribute = _WHERE.get((match["does"] or "").lower(), attribute)
        if not attribute or (match["where"] and attribute not in _PLACES):
            continue
        noun = singular((match["noun"] or "").lower())
        owner = match["name"]
        meant = [owner.lower()] if owner else _antecedents(text[: match.start()], names, False)
        for name in meant:
            named = noun not in _ANY_THING and attribute_key(noun) in known.get(name, {})
            if attribute == "favourite thing" and not named and noun not in _ANY_THING:
                continue
            yield _Candidate(
                start=match.start(),
                end=match.end(),
                phrase_start=match.start("verb"),
                phrase=match["verb"],
                concept=name,
                whole=True,
                attribute=noun if named else attribute,
            )


def _antecedents(before: str, names: Sequence[str], plural: bool) -> Sequence[str]:
    if plural and len(both := [name for name in names_in(before) if name in names]) > 1:
        return both
    mentioned = [span.name for span in find_mentions(before) if span.name in names]
    if mentioned:
        return mentioned[-1:]
    return names if len(names) == 1 else ()


def _attribute_length(candidate: _Candidate, known: Collection[str]) -> int:
    """How many characters of the phrase are the attribute: 0 where it is not one.

    A known attribute wins over a guess, and a longer one over a shorter; a guess takes words of
    praise and one noun. Of a toy box that nobody told of, the toy is no part; an old toy need not
    be the one that is known.
    """
    words = list(re.finditer(r"\S+", candidate.phrase))
    for count in [len(words)] if candidate.whole else range(len(words), 0, -1):
        end = words[count - 1].end()
        if attribute_key(candidate.phrase[:end]) in known:
            compound = len(words) > count and singular(words[count][0].lower()) in _COMPOUNDS
            return words[count].end() * (not candidate.strict) if compound else end
    if candidate.strict:
        return 0
    count = len(words)
    if not candidate.whole:
        praise = (i for i, word in enumerate(words) if word[0].lower() not in PRAISE)
        count = min(next(praise, len(words) - 1) + 1, len(words))
        rest = [word[0].lower() for word in words[count:]]
        if rest and attribute_key(rest[0]) in known:
            return 0
        count += bool(rest) and singular(rest[0]) in _COMPOUNDS
    end = words[count - 1].end()
    noun = singular(words[count - 1][0].lower())
    blank = noun in _LOOKS | _PICTURES or not attribute_key(candidate.phrase[:end])
    return 0 if blank else end
