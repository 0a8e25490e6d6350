"""Facts: what is true of a concept, as plain sentences ("<bo>'s toy is a red ball").

A fact of a shared pack is text from a stranger that will be quoted in a prompt. So its length is
capped, and what could act on a terminal or a tokenizer is stripped: control and bidi characters,
and strings that look like the special tokens of the model families (``<|im_end|>``,
``<image>``, ``</s>``, ``[INST]``). Mentions of concepts stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from omnipersona_cli.errors import UsageError
from omnipersona_cli.language.mentions import NAME_PATTERN

FACT_LENGTH = 300
"""The most characters a fact may have."""
FACT_COUNT = 256
"""The most facts a pack may have."""

Source = Literal["user", "auto"]

_BAR = "|｜∣│¦"  # noqa: RUF001 - full-width and look-alike bars are the point
_OPEN, _CLOSE = "<＜﹤", ">＞﹥"  # noqa: RUF001 - as are the brackets
_BARRED = re.compile(rf"[{_OPEN}]\s*[{_BAR}][^{_OPEN}{_CLOSE}]*[{_BAR}]\s*[{_CLOSE}]")
_TAG = re.compile(rf"[{_OPEN}]([^{_OPEN}{_CLOSE}\s]{{1,64}})[{_CLOSE}]")
_BRACKETED = re.compile(r"\[/?[A-Z_]{2,16}\]")
_RESERVED = re.compile(
    r"s|sys|inst|unk|pad|bos|eos|eot|sep|cls|mask|box|ref|quad|point|patch|think|thinking|tool|user|system"
    r"|assistant|human|(?:so|eo)[ivt]|t2i|t2v|mmu|lvg|(?:begin|start|end|unused|extra|tool)[_-].*"
    r"|unused\d*|extra\d*|.*(?:image|img|video|vision|audio|frame|placeholder|special|reserved).*"
)
_NAME = re.compile(NAME_PATTERN)
_LOOKED_AT = 1024  # characters: tokens nested in tokens cost a round each
_JOINERS = "\u200c\u200d"  # part of Persian words and of emoji


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
    line = "".join(
        " " if character.isspace() else character
        for character in unicodedata.normalize("NFC", text[:_LOOKED_AT])
        if character.isspace()
        or character in _JOINERS
        or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co"}
    )
    before = ""
    while line != before:  # until stable: "<|im<|x|>_end|>" hides one token in another
        before = line
        line = _BRACKETED.sub("", _TAG.sub(lambda tag: _mention(tag, name), _BARRED.sub("", line)))
    line = " ".join(line.split())
    if len(line) > FACT_LENGTH:
        line = _whole_mentions(line[:FACT_LENGTH]).rstrip()
    return line


def new_fact(text: str, *, name: str = "", source: Source = "user") -> Fact:
    """A fact that a person states. Raises UsageError when nothing is left of it, or it is long."""
    if len(" ".join(text.split())) > FACT_LENGTH:
        raise UsageError(
            f"a fact has at most {FACT_LENGTH} characters, this one has {len(text)}",
            hint="say it in two: op concepts facts NAME add TEXT",
        )
    cleaned = clean_fact(text, name=name)
    if not cleaned:
        raise UsageError(
            "there is nothing in this fact",
            hint=f"say a sentence: op concepts facts {name or 'bo'} add"
            f' "<{name or "bo"}>\'s toy is a red ball"',
        )
    return Fact(text=cleaned, source=source)


def _mention(tag: re.Match[str], name: str) -> str:
    """The tag when it is a mention, else nothing."""
    inside = tag[1].lower()
    if not (inside.isascii() and _NAME.fullmatch(inside)):
        return ""
    return f"<{inside}>" if inside == name or not _RESERVED.fullmatch(inside) else ""


def _whole_mentions(line: str) -> str:
    """``line`` without a mention that its end cuts in two."""
    opened = line.rfind("<")
    return line[:opened] if opened > line.rfind(">") and len(line) - opened <= 33 else line
