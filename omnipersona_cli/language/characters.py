"""Characters: one spelling for what looks the same, and nothing that cannot be seen.

Text from outside (prompts, questions, captions, facts) passes here once. A byte-order mark, a zero
width space or a soft hyphen would change a picture, or hide a word from the grammar.
"""

from __future__ import annotations

import re
import unicodedata

from omnipersona_cli.language.mentions import NAME_PATTERN

JOINERS = "\u200c\u200d"
"""Zero width, but part of Persian and Indic words and of emoji."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co"})
_STRAY_JOINERS = re.compile(rf"(?<![^\u0000-\u02ff{JOINERS}])[{JOINERS}]+(?![^\u0000-\u02ff])")

_BAR = "|｜∣│¦"  # noqa: RUF001 - full-width and look-alike bars are the point
_OPEN, _CLOSE = "<＜﹤", ">＞﹥"  # noqa: RUF001 - as are the brackets
_BARRED = re.compile(rf"[{_OPEN}]\s*[{_BAR}][^{_OPEN}{_CLOSE}]*[{_BAR}]\s*[{_CLOSE}]")
_TAG = re.compile(rf"[{_OPEN}]([^{_OPEN}{_CLOSE}\s]{{1,64}})[{_CLOSE}]")
_BRACKETED = re.compile(r"\[/?[A-Z_]{2,16}\]")
_RESERVED = re.compile(
    r"s|sys|inst|unk|pad|bos|eos|eot|sep|cls|mask|box|ref|quad|point|think|thinking|tool|user|system"
    r"|assistant|human|(?:so|eo)[ivt]|t2i|t2v|mmu|lvg|(?:begin|start|end|unused|extra|tool)[_-].*"
    r"|unused\d*|extra\d*|.*(?:image|img|video|vision|audio|frame|placeholder|special|reserved).*"
)
_NAME = re.compile(NAME_PATTERN)
_LOOKED_AT = 1024  # characters: tokens nested in tokens cost a round each


def visible(text: str) -> str:
    """``text`` in NFC on one line, without control, format, private and half characters.

    Every white space becomes a blank; joiners stay beside characters that they can join.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "".join(
        " " if character.isspace() else character
        for character in unicodedata.normalize("NFC", text)
        if character.isspace()
        or character in JOINERS
        or unicodedata.category(character) not in _INVISIBLE
    )
    return _STRAY_JOINERS.sub("", kept)


def one_line(text: str) -> str:
    """`visible`, with single blanks and none at the ends."""
    return " ".join(visible(text).split())


def harmless(text: str, *, name: str = "") -> str:
    """`one_line`, without strings that look like special tokens of the model families
    (``<|im_end|>``, ``<image>``, ``</s>``, ``[INST]``); of a very long text the beginning.

    Mentions of concepts stay; ``name`` is one that stays even where it looks like such a token.
    """
    line, before = visible(text[:_LOOKED_AT]), ""
    while line != before:  # until stable: "<|im<|x|>_end|>" hides one token in another
        before = line
        line = _TAG.sub(lambda tag: _mention(tag, name), _BARRED.sub("", line))
        line = visible(_BRACKETED.sub("", line))
    return " ".join(line.split())


def _mention(tag: re.Match[str], name: str) -> str:
    """The tag when it is a mention, else nothing."""
    inside = tag[1].lower()
    if not (inside.isascii() and _NAME.fullmatch(inside)):
        return ""
    return f"<{inside}>" if inside == name or not _RESERVED.fullmatch(inside) else ""
