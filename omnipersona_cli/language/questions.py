"""Questions: how presence and facts are asked for, and what an answer says.

"is <bo> here?" asks for presence; "what is <bo>'s toy?" for the value of a fact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Literal

from omnipersona_cli.language.attributes import attribute_key
from omnipersona_cli.language.facts import HELD_OUT_WORDINGS, WORDINGS, parse_facts
from omnipersona_cli.language.mentions import names_in
from omnipersona_cli.language.references import Reference
from omnipersona_cli.language.verbs import VERBS

_PRESENCE = re.compile(
    r"(?:is|are)\s+(?:this|that|it|these|those)\s+(?:a |the |an )?"
    r"(?:photo |picture |image )?(?:of )?"
    r"{m}(?:\s+(?:and|or)\s+{m})*"
    r"|(?:is|are)\s+(?:there\s+)?{m}(?:\s+(?:and|or)\s+{m})*(?:\s+(?:both|also))?{where}"
    r"|(?:do|can|could) you (?:see|find|spot|recogni[sz]e) {m}(?:\s+(?:and|or)\s+{m})*{where}"
    r"|does (?:this|the|it)(?: \w+)? (?:show|contain|have) {m}(?:\s+(?:and|or)\s+{m})*".replace(
        "{where}",
        r"(?:\s+(?:here|there|present|visible|shown"
        r"|(?:in|on)\s+(?:this|the|that)\s+(?:photo|photograph|picture|image|scene)))*",
    ).replace("{m}", r"<[A-Za-z][A-Za-z0-9_-]*>"),
    re.IGNORECASE,
)
_ALL = re.compile(
    r"(?:please )?(?:(?:can|could) you )?"
    r"(?:(?:tell|say) (?:me |us )?(?:something |everything |all |more )?about"
    r"|what (?:do you know|can you (?:say|tell me)) about|who is) <[\w-]+>"
)
_KIND = re.compile(
    r"(?:what|which) (?:(?:kind|sort|type|species) of )?(?:thing|animal|pet|creature|being|object)"
    r" is <[\w-]+>"
)
_OPENERS = re.compile(r"^(?:what|where|who|which|how|when|tell me|name)\b", re.IGNORECASE)
_ASKED = re.compile(
    r"what(?:'s| is| are)\s+(?:the\s+)?(?:<(?P<owner>[\w-]+)>(?:'s|\u2019s)\s+(?P<owned>[\w -]+?)"
    r"|(?P<attribute>[\w -]+?)\s+of\s+<(?P<name>[\w-]+)>)\s*\?",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[^?\n]+\?")
_OR = re.compile(r">\s+or\s+<", re.IGNORECASE)
_CHOICE = re.compile(r"\w or (?!not$|no$)(?:an? |the |in |at |on )*\w+$")
_LONGEST_VALUE = 120
_BROKEN_OFF = re.compile(r"\s(?:the|an?|its|and|or|of)$")


def asks_presence(question: str) -> bool:
    """True for "is <bo> here?" in one of its phrasings, and for nothing more than that."""
    return bool(_PRESENCE.fullmatch(question.strip().rstrip("?!. ")))


def asks_for_either(question: str) -> bool:
    """True for "is <bo> or <mam> here?": one of them is enough."""
    return bool(_OR.search(question))


def asks_for_all(question: str) -> bool:
    """True for "tell me about <bo>" and its like, which name one concept and no attribute."""
    return bool(_ALL.fullmatch(plain_words(question)))


def asks_for_kind(question: str) -> bool:
    """True for "what kind of animal is <bo>?" and its like, which the class word answers; "what
    kind of dog is <bo>?" asks for more."""
    return bool(_KIND.fullmatch(plain_words(question)))


def is_opener(question: str) -> bool:
    """True where the question begins as one that asks for something: "what", "where", "tell me"."""
    return bool(_OPENERS.match(question))


def is_open(question: str) -> bool:
    """True where yes and no are no answers: for an opener, and for a choice ("is it a cat or a
    dog?"), but not for "is <bo> or <mam> here?"."""
    return is_opener(question) or bool(_CHOICE.search(plain_words(question)))


def is_yes_or_no(answer: str) -> bool:
    """True for "yes" and "no" alone."""
    return plain_words(answer) in ("yes", "no")


def question_of(reference: Reference) -> str:
    """The question that a reference puts to memory."""
    return f"What is the {reference.attribute} of <{reference.concept}>?"


def asked_attributes(text: str) -> Iterator[tuple[str, str]]:
    """The concept and the attribute of every "what is the toy of <bo>?" in ``text``, in small
    letters."""
    for question in questions_in(text):
        if asked := asked_about(question):
            yield asked


def questions_in(text: str) -> list[str]:
    """The questions in what a model said, one after the other."""
    return [" ".join(found.split()) for found in _QUESTION.findall(text)]


def asked_about(question: str) -> tuple[str, str] | None:
    """The concept and the attribute that a question asks for ("what does <bo> play with?" -> bo,
    toy), in small letters; None where it asks for no one attribute of one concept."""
    if owned := asked_of_owner(question):
        return owned
    names = names_in(question)
    if len(names) != 1:
        return None
    plain = plain_words(re.sub(r"<[\w-]+>", "<x>", question))
    if attribute := _verbs_asked().get(plain):
        return names[0], attribute
    for wording in _wordings():
        if match := wording.fullmatch(plain):
            return names[0], match["attribute"]
    return None


def asked_of_owner(question: str) -> tuple[str, str] | None:
    """As `asked_about`, of the plain possessive alone ("what is <bo>'s toy?")."""
    match = _ASKED.search(question)
    if match is None:
        return None
    return (match["owner"] or match["name"]).lower(), (match["owned"] or match["attribute"]).lower()


@cache
def _verbs_asked() -> dict[str, str]:
    """Attribute by the plain words of a question; of several verbs the first counts."""
    found: dict[str, str] = {}
    for verb in VERBS:
        for asked in verb.asked:
            found.setdefault(plain_words(asked.format(name="<x>")), verb.attribute)
    return found


@cache
def _wordings() -> tuple[re.Pattern[str], ...]:
    return tuple(
        re.compile(
            plain_words(wording.format(name="<x>", attribute="ATTRIBUTE", be="is"))
            .replace("attribute", r"(?P<attribute>[\w][\w -]{0,39}?)", 1)
            .replace(" is ", " (?:is|are) ")
        )
        for wording in (*WORDINGS, *HELD_OUT_WORDINGS)
    )


def value_in(answer: str) -> str:
    """The value that a model's answer to "what is <bo>'s toy?" gives ("It is a red ball." -> "a red
    ball"); "" where it says that it does not know, too much, or breaks off ("in the")."""
    clause = r"\b(?:that|which|who|where)\b"  # "a ball that is red" is a value
    begun = rf"^(?:it is|it's|(?:(?!{clause}).){{0,60}}?\b(?:is|are))\s+(?=\S)"
    value = re.sub(begun, "", answer, flags=re.I).strip(". ")
    empty = value.lower() in ("", "yes", "no", "not sure", "unknown", "nothing", "none")
    unsure = re.search(r"don'?t know|do not know|not sure|[<>?]", value, re.I)
    too_long = len(value) > _LONGEST_VALUE or len(value.split()) > 12
    return "" if empty or unsure or too_long or _BROKEN_OFF.search(value) else value


def asks_more(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    """True where a question has content besides the references in it."""
    for start, end in sorted(set(spans), reverse=True):
        text = text[:start] + " " + text[end:]
    rest = _OPENERS.sub("", text)
    words = set(re.findall(r"[a-z']+", rest.lower()))
    return bool(words - set("is are was were me the and what 's do you know please".split()))


def content_words(text: str) -> set[str]:
    """The words of ``text`` that carry meaning, as attribute keys."""
    words = re.findall(r"[a-z]{3,}", re.sub(r"<[^>]*>", " ", text.lower()))
    common = "the and what where who which does how its his her their this that with for are can"
    return {attribute_key(word) for word in words if word not in common.split()} - {""}


def fact_words(text: str, name: str) -> set[str]:
    """As `content_words`, of a fact and of the questions that it answers."""
    parsed = parse_facts(text, name)
    asked = [word for fact in parsed for word in (fact.attribute, *fact.also, *fact.asked)]
    return content_words(" ".join([text, *asked]).replace("{name}", " "))


def told(attribute: str, facts: Iterable[str], name: str) -> Literal["all", "some", "none"]:
    """How much of an attribute the facts speak of: of a "home town" those of a home say "some"."""
    words = content_words(attribute_key(attribute))
    shared = [words & fact_words(text, name) for text in facts]
    if not any(shared):
        return "none"
    return "all" if words in shared else "some"


def plain_words(text: str) -> str:
    """``text`` in small letters without punctuation, to compare questions by."""
    return " ".join(re.findall(r"[\w<>'-]+", text.lower().replace("\u2019", "'")))
