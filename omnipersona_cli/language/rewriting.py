"""Whether a model's rewriting of a request can be believed: names survive, nothing is added."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from omnipersona_cli.language.attributes import attribute_key
from omnipersona_cli.language.facts import parse_facts, split_sentences
from omnipersona_cli.language.mentions import find_mentions, names_in
from omnipersona_cli.language.questions import asked_about

_SMALL = frozenset(
    "a an the this that these those some its his her their is are was were be being has have "
    "having in on at by to of for from with without and or near next beside under over behind into "
    "onto inside where which who what it he she they him them as while".split()
)
"""Words that add nothing to a picture by themselves."""

_MORE_WORDS = 8
"""How many words a rewriting may have beside those of the request and of memory."""


def keeps_to(reply: str, request: str, memory: Sequence[str], *, plain: str) -> bool:
    """Whether ``reply`` is ``request`` with the values of ``memory`` in it, and no more than that.

    Every value is said, in one piece; every mention of ``plain``, the request as the grammar would
    rewrite it, is there; no mention and no word of content is in it that is neither in the request
    nor in a value.
    """
    allowed = _content(request) + sum(map(_content, memory), Counter())
    words = _content(reply)
    most = len(request.split()) + sum(len(value.split()) for value in memory) + _MORE_WORDS
    spoken = all(_in_one_piece(value, reply) for value in memory)
    kept = set(names_in(plain)) <= set(names_in(reply)) <= set(names_in(request))
    return bool(reply) and spoken and kept and words <= allowed and len(reply.split()) <= most


def comes_from(value: str, texts: Sequence[str], question: str, *, name: str) -> bool:
    """Whether an answer to ``question`` about ``name`` says something, all of it from one of the
    facts, and that one is asked for: words of two facts make up a third, and what is the toy is not
    the car. A sentence that the grammar reads as another attribute has to share a word with the
    question; one that it cannot read is the model's to understand."""
    asked = _content(question)
    new = _content(value) - asked
    return bool(new) and any(
        new <= _content(sentence) and _concerns(sentence, question, asked, name)
        for text in texts
        for sentence in split_sentences(text)
    )


def _concerns(sentence: str, question: str, asked: Counter[str], name: str) -> bool:
    read = parse_facts(sentence, name)
    about = asked_about(question)
    told = {attribute_key(one) for fact in read for one in (fact.attribute, *fact.also)}
    same = about is not None and attribute_key(about[1]) in told
    return not read or same or bool(asked & _content(sentence)) or not asked


def _in_one_piece(value: str, reply: str) -> bool:
    """Whether the words of a value stand in ``reply`` one after the other: "a red ball" and "a blue
    van" are not in "a blue ball and a red van"."""
    wanted, there = _stems(value), _stems(reply)
    starts = range(len(there) - len(wanted) + 1)
    return any(there[start : start + len(wanted)] == wanted for start in starts)


def _content(text: str) -> Counter[str]:
    """The words that carry meaning, without their endings, so that "plays" is "playing"; mentions
    are counted as words."""
    return Counter(_stems(text))


def _stems(text: str) -> list[str]:
    for span in reversed(find_mentions(text)):
        text = f"{text[: span.start]} {text[span.end :]}"
    words = re.findall(r"[^\W_]+", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}s", " "))
    return [_stem(word) for word in words if word not in _SMALL and word != "s"]


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
