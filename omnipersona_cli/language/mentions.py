"""Names of concepts, and where a text mentions them: "<bo> at the beach".

A name is lower-case; in a text ``<Bo>`` is understood as bo. Mentions are found by form alone:
whether a concept of that name exists is the library's business.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from omnipersona_cli.backend import Span, Task, Turn
from omnipersona_cli.errors import UsageError

NAME_PATTERN = r"[a-z][a-z0-9_-]{0,31}"

_NAME = re.compile(NAME_PATTERN)
_MENTION = re.compile(r"<([A-Za-z][A-Za-z0-9_-]{0,31})>")


def check_name(name: str) -> str:
    """The bare name: "bo", "Bo" and "<bo>" all give "bo".

    Raises UsageError, with a name that would do in the hint, when it is not a name.
    """
    bare = name[1:-1] if name.startswith("<") and name.endswith(">") else name
    if bare.isascii() and _NAME.fullmatch(bare.lower()):
        return bare.lower()
    slug = re.sub(r"[^a-z0-9_-]+", "-", bare.lower()).strip("-_0123456789")[:32].rstrip("-_")
    shown = name if len(name) <= 40 else name[:40] + "…"
    raise UsageError(
        f"{shown!r} is not a name for a concept",
        hint="a letter, then letters, digits, - or _, at most 32 in all; "
        f"for example: {slug or 'bo'}",
    )


def find_mentions(text: str) -> tuple[Span, ...]:
    """Every mention in ``text``, from left to right; spans include the brackets."""
    return tuple(
        Span(start=found.start(), end=found.end(), name=found[1].lower())
        for found in _MENTION.finditer(text)
    )


def to_turn(text: str) -> Turn:
    """The text with its mentions."""
    return Turn(text=text, spans=find_mentions(text))


def names_in(text: str) -> tuple[str, ...]:
    """The names that ``text`` mentions, each once, in the order of their first mention."""
    return tuple(dict.fromkeys(span.name for span in find_mentions(text)))


def rename_mentions(text: str, old: str, new: str) -> str:
    """``text`` with every mention of ``old`` (a bare name, any case in the text) made ``<new>``."""
    return _MENTION.sub(
        lambda found: f"<{new}>" if found[1].lower() == old else found[0],
        text,
    )


def bare_mentions(text: str, names: Collection[str]) -> str:
    """``text`` with every mention of another concept than ``names`` made a plain word."""
    return _MENTION.sub(
        lambda found: found[0] if found[1].lower() in names else found[1].lower(), text
    )


def attach(text: str, names: Sequence[str], task: Task) -> str:
    """``text`` with a mention of each of ``names`` that it does not mention yet.

    The bare word becomes the mention ("bo at the beach" -> "<bo> at the beach"). Otherwise a
    depiction gets it in front, an edit in the place of "it" or at the end, and a question stays as
    it is: "is it here?" is about the only concept there is.
    """
    for name in names:
        if name in names_in(text):
            continue
        bare = re.compile(rf"(?<![<\w-]){re.escape(name)}(?![>\w-])", re.IGNORECASE)
        if bare.search(text):
            text = bare.sub(f"<{name}>", text)
        elif task == "generate":
            text = f"<{name}> {text}"
        else:
            subject = re.compile(r"\b(it|him|them)\b", re.IGNORECASE)
            if subject.search(text):
                text = subject.sub(f"<{name}>", text, count=1)
            elif task == "edit":
                text = f"{text} <{name}>"
    return text
