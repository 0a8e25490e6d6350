"""Instructions for an edit: what is to be done, to what, and how one can see that it was done.

"put <bo> in the snow" is a change of scene where <bo> is in the picture and an addition where it
is not, which words alone do not tell: `Instruction.if_absent`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from omnipersona_cli.language.mentions import names_in

Intent = Literal["add", "remove", "replace", "give", "change", "scene", "move", "other"]
"""add, remove, replace: something comes or goes. give: it wears or gets something, or no longer.
change: it looks different. scene: all around it changes. move: it stands elsewhere."""

_PICTURE = r"(?:picture|photo|photograph|image|scene)"
_SUBJECT = (
    rf"(?:<[\w-]+>(?:(?:\s*,\s*|\s+and\s+)<[\w-]+>)*(?!['\u2019])|it|him|her|them"
    rf"|this(?!\s+{_PICTURE}\b)|(?:the|this|that|my|a|an)\s+(?!{_PICTURE}\b)[a-z-]+"
    r"(?:\s+(?!(?:an?|the|some)\b)[a-z-]+)?)"
)
_WHOSE = r"(?:<[\w-]+>(?:'s|\u2019s)|its|his|her|their)"
_PART = rf"(?:{_WHOSE}\s+[a-z-]+(?:\s+[a-z-]+)?)"
_PLACED = r"put|place|move|bring|show|set|take|send|shift"
_SIDES = r"left|right|middle|cent(?:re|er)|top|bottom|foreground|background|front|back|corner"
_SIDE = (
    r"(?:(?:on|to|at|in|into|onto|towards?)\s+)?(?:the\s+)?"
    rf"(?:(?:far|upper|lower|{_SIDES})\s+)?(?P<side>{_SIDES})"
    r"(?:[\s-]+(?:hand|side|edge|half|corner|third))*"
    r"(?:\s+of\s+(?:the|this)\s+(?:picture|photo|image|scene))?"
)
_BESIDE = (
    r"(?:next to|beside|behind|in front of|between|among|under|above|over|near|by"
    r"|(?:(?:on|to|at)\s+the\s+)?(?:left|right)(?:[\s-]+(?:hand|side))*\s+of)\s+\S.*"
)
_AT_ALL = (
    r"(?:(?:right )?(?:here|there)|in|(?:in|into|to|onto)\s+(?:the\s+|this\s+|that\s+)?"
    r"(?:picture|photo|photograph|image|scene|drawing))"
)
_AROUND = (
    r"(?P<where>(?:in|at|on|into|onto|to|inside|on top of|under)\s+\S.*"
    r"|outside|outdoors|indoors|underwater)"
)
_WORN = (
    r"\b(?:hat|cap|scarf|crown|(?:sun)?glasses|tie|bow|ribbon|shirt|t-shirt|sweater|jumper|coat"
    r"|jacket|dress|skirt|trousers|boots|shoes|socks|gloves|collar|helmet|mask|costume|cape"
    r"|necklace|flower|wig|beard)"
)

_GIVEN = (
    rf"(?:give|hand|buy)\s+{_SUBJECT}\s+(?P<what>.+)",
    rf"(?:let|make)\s+{_SUBJECT}\s+(?:wear|have|hold)\s+(?P<what>.+)",
    rf"dress\s+{_SUBJECT}\s+(?:with|in|up as)\s+(?P<what>.+)",
    rf"(?:put|place|add)\s+(?P<what>(?:an?|some|the|two)?\s*(?:(?!(?:on|next|close)\b)[a-z-]+\s+){{1,4}})"
    rf"(?:on|onto|to)\s+(?!the\s+(?:{_SIDES})\b)(?:{_SUBJECT}|{_PART})",
    rf"put\s+{_SUBJECT}\s+in\s+(?P<what>(?:an?|the)\s.*{_WORN})",
)
_TAKEN_OFF = (
    rf"(?:remove|take|erase|delete)\s+(?:off\s+|away\s+)?{_WHOSE}\s+(?P<what>[a-z -]+?)"
    r"(?:\s+(?:off|away))?",
    r"(?:remove|take|erase|delete)\s+(?:off\s+|away\s+)?the\s+(?P<what>[a-z -]+?)\s+"
    r"(?:of|from)\s+<[\w-]+>(?:\s+(?:off|away))?",
)
_WEATHER = r"(?:snow|rain|hail|storm|thunder|night|day|morning|evening|winter|spring|summer|autumn)"
_CHANGED = (
    rf"(?:make|turn|paint|colou?r|dye|tint)\s+(?!it\s+{_WEATHER}\W*$)"
    rf"(?:(?P<part>{_PART})|{_SUBJECT})\s+"
    r"(?P<how>(?!in(?:to)?\b|an?\b|the\b|<|look\b|here\b|on\b|at\b|to\b|next\b)[a-z][a-z ,-]*)",
    rf"change\s+{_SUBJECT}\s+(?:in)?to\s+(?P<how>(?!an?\b|the\b|<)[a-z][a-z -]*)",
    rf"change\s+(?:the\s+colou?r\s+of\s+(?:(?P<part>{_PART})|{_SUBJECT})|{_WHOSE}\s+colou?r)"
    r"\s+(?:in)?to\s+"
    r"(?P<how>[a-z][a-z -]*)",
)
_BACKDROP = (
    rf"(?:change|replace|swap|turn|make|set)\s+(?:the|this|{_WHOSE})?\s*"
    r"(?:background|scene|scenery|setting|backdrop|place)"
    r"(?:\s+(?:(?:in)?to|with|by|for))?\s+(?P<where>\S.*)",
    rf"(?P<where>now\s+{_AROUND.replace('?P<where>', '?:')})",
)
_IN_PLACE = (
    r"(?:put|place)\s+(?P<new>.+?)\s+(?:in\s+(?:the\s+)?place\s+of|instead\s+of)\s+(?P<old>.+)",
    r"(?:put|place)\s+(?P<new>.+?)\s+in\s+(?P<old>its|his|her|their)\s+place",
    r"(?:put|place)\s+(?P<new>.+?)\s+in\s+(?P<old>(?:the\s|<).+?)['\u2019]s\s+place",
    r"(?:remove|erase|delete|take(?:\s+(?:away|out))?)\s+(?P<old>.+?)(?:\s+(?:away|out))?\s*,?\s+"
    r"and\s+(?:then\s+)?(?:put|place|add|insert|draw)\s+(?P<new><[\w-]+>(?:\s+and\s+<[\w-]+>)*)"
    r"(?:\s+(?:here|there|instead|in\s+(?:its|his|her|their)\s+place))?",
)
_MOVED = (rf"(?:{_PLACED})\s+(?P<who>{_SUBJECT})\s+(?P<where>{_SIDE}|{_BESIDE})",)
_HERE = (rf"(?:{_PLACED}|add)\s+{_SUBJECT}\s+{_AT_ALL}",)
_ELSEWHERE = (rf"(?:{_PLACED})\s+(?P<who>{_SUBJECT})\s+{_AROUND}",)
_EXCHANGED = (
    rf"(?:replace|swap|exchange)\s+{_WHOSE}\s+(?P<old>[a-z -]+?)\s+(?:with|by|for)\s+(?P<what>.+)",
    rf"(?:turn|change|transform)\s+{_WHOSE}\s+(?P<old>[a-z -]+?)\s+(?:in)?to\s+(?P<what>.+)",
)
_REPLACED = (
    r"(?:replace|swap|exchange|switch)\s+(?P<old>.+?)\s+(?:with|by|for)\s+(?P<new>.+)",
    rf"(?:turn|transform)\s+(?!(?:the|this|my)\s+{_PICTURE}\b)(?P<old>.+?)\s+into\s+(?P<new>.+)",
    rf"change\s+(?!(?:the|this|my)\s+{_PICTURE}\b)(?P<old>.+?)\s+(?:in)?to\s+(?P<new>.+)",
    r"replace\s+(?P<old>.+)",
)
_REMOVED = (
    r"(?:remove|erase|delete|get\s+rid\s+of|cut\s+out)\s+(?P<old>.+)",
    r"take\s+(?:away|off)\s+(?P<old>.+)",
    r"(?:take|cut)\s+(?!.*\bphoto\b)(?P<old>.+?)\s+(?:away|out|off)\b.*",
)
_ADDED = (
    rf".*\b(?:add|put|place|insert|draw|include|paint|bring\s+in)\b.+?[\s,]"
    rf"(?P<where>(?:on|to|at|in)\s+{_SIDE})",
    r".*\b(?:add|put|place|insert|draw|include|paint|bring\s+in)\b.*",
)
_COLOURS = re.compile(
    r"\b(?:red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|gr[ea]y|golden|silver"
    r"|beige|turquoise|cyan|magenta)\b",
    re.I,
)
_IS_WORN = re.compile(rf"{_WORN}$", re.I)
_POLITE = re.compile(
    r"^(?:(?:please|can you|could you|would you|i want you to|let's)[\s,]+)+|[\s,]+please$", re.I
)
_REST = re.compile(
    r"\b(?:from|in|on|at|next|of|near|behind|beside|under|above|over|with|that|who|which|holding"
    r"|wearing|carrying|playing|standing|sitting|lying|except|but|other than|apart from"
    r"|and\s+(?:then\s+)?(?:add|put|place|draw|insert|make|give|let|keep|leave|show|move))\b.*",
    re.I,
)
_OWNER = re.compile(r"<[\w-]+>['\u2019]s\b")
_ALL = ("everything", "everyone", "everybody", "all", "anything", "anyone")
_ARTICLE = re.compile(r"^(?:the|an?|this|that|its|my)\s+", re.I)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What an instruction asks for.

    ``target`` is what goes, in words ("cat"); ``place`` where something is to stand ("on the
    left"). Of the concepts that it names the ``present`` ought to be recognised afterwards and the
    ``absent`` not; one that is made to look different is in neither. ``question`` about the result
    has the ``answer`` where it was done ("what is it wearing?", "a red hat"); "" where none tells.
    """

    intent: Intent
    target: str = ""
    place: str = ""
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    question: str = ""
    answer: str = ""

    @property
    def if_absent(self) -> Instruction:
        """What it asks for where the concept is not in the picture yet."""
        if self.intent not in ("scene", "move") or not self.present:
            return self
        return replace(self, intent="add")


def read_instruction(text: str) -> Instruction:
    """What an instruction asks for, by its verb and what stands behind it."""
    names = names_in(text)
    plain = _POLITE.sub("", " ".join(text.split()).rstrip(" .!?"))
    for patterns, read in _READERS:
        for pattern in patterns:
            if found := re.fullmatch(pattern, plain, re.IGNORECASE):
                return read(found, names)
    return Instruction(intent="other", present=names)


def _given(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    what = found["what"].strip()
    asked = "what is it wearing?" if _IS_WORN.search(what) else ""
    return Instruction(intent="give", question=asked, answer=what if asked else "")


def _taken_off(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    asked = "what is it wearing?" if _IS_WORN.search(found["what"]) else ""
    return Instruction(intent="give", question=asked, answer="nothing" if asked else "")


def _changed(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    of_part = found.groupdict().get("part")
    colours = "" if of_part else " and ".join(_COLOURS.findall(found["how"]))
    asked = "what colour is it?" if colours else ""
    return Instruction(intent="change", question=asked, answer=colours)


def _scene(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    if _is_another(found, names):
        return Instruction(intent="other", present=names)
    where = found["where"].removeprefix("now ")
    asked = "" if _COLOURS.fullmatch(where) else "where is it?"
    return Instruction(
        intent="scene", place=where, present=names, question=asked, answer=where if asked else ""
    )


def _moved(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    if _is_another(found, names):
        return Instruction(intent="other", present=names)
    return Instruction(intent="move", place=found["where"], present=names)


def _is_another(found: re.Match[str], names: tuple[str, ...]) -> bool:
    """True where what is put somewhere is none of the concepts: "put the ball next to <bo>"."""
    who = found.groupdict().get("who") or ""
    return bool(names) and re.match(r"(?:the|this|that|my|an?)\s", who, re.I) is not None


def _exchanged(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    if comes := _shown(found["what"]):
        return Instruction(intent="replace", target=_target(found["old"]), present=comes)
    if _COLOURS.fullmatch(found["what"]):
        return Instruction(intent="change")
    return _given(found, names)


def _replaced(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    old, new = found["old"], found.groupdict().get("new") or ""
    comes, goes = _shown(new), _shown(_REST.sub("", old))
    return Instruction(
        intent="replace",
        target=_target(old),
        present=comes,
        absent=tuple(name for name in goes if name not in comes),
    )


def _removed(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    gone = names_in(_REST.sub("", found["old"]))
    kept = tuple(name for name in names if name not in gone)
    if _target(found["old"]) in _ALL and kept:
        return Instruction(intent="other", present=kept)  # all but these
    return Instruction(intent="remove", target=_target(found["old"]), absent=gone, present=kept)


def _added(found: re.Match[str], names: tuple[str, ...]) -> Instruction:
    return Instruction(
        intent="add", place=found.groupdict().get("where") or "", present=_shown(found[0])
    )


def _shown(text: str) -> tuple[str, ...]:
    """The names in ``text`` but for those that only own something: "<bo>'s toy" shows no bo."""
    return names_in(_OWNER.sub("", text))


_READERS: tuple[
    tuple[tuple[str, ...], Callable[[re.Match[str], tuple[str, ...]], Instruction]], ...
] = (
    (_BACKDROP, _scene),
    (_GIVEN, _given),
    (_TAKEN_OFF, _taken_off),
    (_CHANGED, _changed),
    (_IN_PLACE, _replaced),
    (_MOVED, _moved),
    (_HERE, _added),
    (_ELSEWHERE, _scene),
    (_EXCHANGED, _exchanged),
    (_REPLACED, _replaced),
    (_REMOVED, _removed),
    (_ADDED, _added),
)
"""The first that fits the whole instruction wins, so the narrower ones come first."""


def _target(phrase: str) -> str:
    """ "the cat on the left" -> "cat"; "" for a mention or "it"."""
    noun = _REST.sub("", _ARTICLE.sub("", phrase.strip())).strip(" ,.").lower()
    return "" if "<" in noun or noun in ("it", "this", "that", "its", "his", "her") else noun
