"""Facts: what is true of a concept, as plain sentences ("<bo>'s toy is a red ball").

A fact of a shared pack is text from a stranger that will be quoted in a prompt. So its length is
capped, and what could act on a terminal or a tokenizer is stripped
(`omnipersona_cli.language.characters`). Mentions of concepts stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from omnipersona_cli.errors import UsageError
from omnipersona_cli.language.characters import harmless, one_line
from omnipersona_cli.language.contradictions import contradiction
from omnipersona_cli.language.mentions import names_in

FACT_LENGTH = 300
"""The most characters a fact may have."""
WORD_LENGTH = 64
"""The most characters of a class word or a kind."""
FACT_COUNT = 256
"""The most facts a pack may have."""

Source = Literal["user", "auto"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One sentence that is true of the concept; ``source`` says who said so: the user, or the
    backbone looking at the photos. ``more`` holds keys of newer formats, kept as they are."""

    text: str
    source: Source = "user"
    more: Mapping[str, Any] = field(default_factory=dict)


def clean_fact(text: str, *, name: str = "") -> str:
    """``text`` as one harmless line of at most `FACT_LENGTH` characters; may end up empty.

    ``name`` is the concept's own: its mention stays even where it looks like a special token.
    """
    line = harmless(text, name=name)
    if len(line) > FACT_LENGTH:
        line = _whole_mentions(line[:FACT_LENGTH]).rstrip()
    return line


def new_fact(text: str, *, name: str = "", source: Source = "user", by: str = "") -> Fact:
    """A fact that a person states. Raises UsageError when nothing is left of it, when it is long,
    and for a mention that `clean_fact` would leave out. ``by`` is what states a fact, for the hint;
    without it the command that adds one to a concept."""
    by = by or f"op concepts facts {name or 'bo'} add"
    line = one_line(text)
    if len(line) > FACT_LENGTH:
        raise UsageError(
            f"a fact has at most {FACT_LENGTH} characters, {line[:30] + '…'!r} has {len(line):,}",
            hint=f'say it in several: {by} "likes apples"',
        )
    cleaned = clean_fact(text, name=name)
    if not cleaned:
        raise UsageError(
            "there is nothing in this fact",
            hint=f'say a sentence: {by} "<{name or "bo"}>\'s toy is a red ball"',
        )
    if lost := [mention for mention in names_in(text) if f"<{mention}>" not in cleaned]:
        raise UsageError(
            f"<{lost[0]}> is left out of facts, because models have a special token of that name",
            hint=f"write it without brackets: {lost[0]}",
        )
    return Fact(text=cleaned, source=source)


def with_fact(known: tuple[Fact, ...], fact: Fact, *, name: str) -> tuple[Fact, ...]:
    """``known`` with one fact more; the same again, in whatever case, changes nothing. Raises
    UsageError where it contradicts one of them, naming both."""
    if any(other.text.casefold() == fact.text.casefold() for other in known):
        return known
    for number, other in enumerate(known, 1):
        if contradiction([other.text, fact.text], name):
            raise UsageError(
                f"two facts of <{name}> contradict each other: {other.text!r} and {fact.text!r}",
                hint=f"if the new one is true: op concepts facts {name} rm {number}",
            )
    return (*known, fact)


def clean_word(text: str) -> str:
    """A class word or a kind as a pack may have it. Raises UsageError where it is too long."""
    word = harmless(text)
    if len(word) > WORD_LENGTH:
        raise UsageError(
            f"what it is may have {WORD_LENGTH} characters, and {word[:20]!a}… has {len(word)}",
            hint="name it in a word or two: --kind dog; the rest is a fact: --fact TEXT",
        )
    return word


def _whole_mentions(line: str) -> str:
    """``line`` without a mention that its end cuts in two."""
    opened = line.rfind("<")
    return line[:opened] if opened > line.rfind(">") and len(line) - opened <= 33 else line
