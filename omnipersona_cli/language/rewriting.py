"""Whether a model's rewriting of a request can be believed: names survive, nothing is added."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from omnipersona_cli.language.mentions import find_mentions, names_in

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

    Every value is said; every mention of ``plain``, the request as the grammar would rewrite it, is
    there; no mention and no word of content is in it that is neither in the request nor in a value.
    """
    allowed = _content(request) + sum(map(_content, memory), Counter())
    words = _content(reply)
    most = len(request.split()) + sum(len(value.split()) for value in memory) + _MORE_WORDS
    spoken = all(_content(value) <= words for value in memory)
    kept = set(names_in(plain)) <= set(names_in(reply)) <= set(names_in(request))
    return bool(reply) and spoken and kept and words <= allowed and len(reply.split()) <= most


def comes_from(value: str, texts: Sequence[str], question: str) -> bool:
    """Whether an answer to ``question`` says something, and nothing that is not in ``texts``."""
    known = set(sum(map(_content, texts), Counter()))
    asked = set(_content(question))
    words = set(_content(value))
    return bool(words - asked) and words <= known | asked and (words - asked) <= known


def _content(text: str) -> Counter[str]:
    """The words that carry meaning, without their endings, so that "plays" is "playing"; mentions
    are counted as words."""
    for span in reversed(find_mentions(text)):
        text = f"{text[: span.start]} {text[span.end :]}"
    words = re.findall(r"[^\W_]+", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}s", " "))
    return Counter(_stem(word) for word in words if word not in _SMALL and word != "s")


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
