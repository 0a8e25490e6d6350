"""The facts file beside the photos: sentences, and what sort of thing the concept is.

Whatever is in it is read as it is written: every value is text (``12:30``, ``0123``, ``yes``), and
what cannot be read is named rather than left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omnipersona_cli.errors import PhotoError, nearest
from omnipersona_cli.language.attributes import is_plural
from omnipersona_cli.language.characters import one_line
from omnipersona_cli.reading import Origin, Tree, parse_yaml, read_text

FACT_FILES = ("facts.yaml", "facts.yml", "facts.txt")

EXAMPLE = "write it as `facts:` and one line `- its toy is a red ball` for each fact"

_KEYS = ("facts", "class", "kind")
_NOTHING = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, kw_only=True)
class FactSheet:
    """What a facts file says: sentences, and what sort of thing the concept is."""

    facts: tuple[str, ...] = ()
    class_word: str = ""
    kind: str = ""


def read_facts(path: Path) -> FactSheet:
    """A facts file: YAML with ``facts:`` (a list, or attribute: value) and optionally ``class:``
    and ``kind:``; or plain text, one fact a line, # for comments. Raises PhotoError, MissingError
    where there is no such file."""
    origin = Origin(name=f"the facts file {path.name}", error=PhotoError, hint=EXAMPLE)
    text = read_text(path, origin)
    if path.suffix.lower() not in {".yaml", ".yml", ".json"}:
        return FactSheet(facts=_lines(text))
    content = parse_yaml(text, origin)
    if content == "":
        return FactSheet()
    if isinstance(content, list):
        content = {"facts": content}
    if not isinstance(content, dict):
        origin.refuse("holds no facts")
    table = _with_known_keys(content, origin)
    class_word, kind = (_word(table.get(key, ""), key, origin) for key in ("class", "kind"))
    return FactSheet(
        facts=_facts(table.get("facts", ""), origin),
        class_word=class_word or kind,
        kind=kind or class_word,
    )


def _with_known_keys(content: Mapping[str, Tree], origin: Origin) -> dict[str, Tree]:
    """``Facts:`` is read as ``facts:``; a key that means nothing here is named."""
    table: dict[str, Tree] = {}
    for key, value in content.items():
        known = key.strip().lower()
        if known not in _KEYS:
            guess = nearest(known, _KEYS)
            raise PhotoError(
                f"{origin.name} has the key {key[:40]!a}, which means nothing here",
                hint=f"did you mean `{guess}:`?" if guess else EXAMPLE,
            )
        if known in table:
            origin.refuse(f"says the key {known!a} twice")
        table[known] = value
    return table


def _facts(value: Tree, origin: Origin) -> tuple[str, ...]:
    if isinstance(value, str):
        facts = () if value in _NOTHING else _lines(value)
    elif isinstance(value, dict):
        facts = tuple(_attribute(key, entry, origin) for key, entry in value.items())
    else:
        facts = tuple(_item(item, place, origin) for place, item in enumerate(value, start=1))
    for fact in facts:
        if not any(character.isalpha() for character in fact):
            origin.refuse(f"holds a fact that is no sentence: {fact[:40]!a}")
    return facts


def _lines(text: str) -> tuple[str, ...]:
    lines = (one_line(line) for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def _attribute(attribute: str, value: Tree, origin: Origin) -> str:
    """``toy: a red ball`` as a sentence; several values stand together."""
    values = value if isinstance(value, list) else [value]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        origin.refuse(f"nests something under {attribute[:40]!a}: a fact is one line of text")
    if not texts or any(text in _NOTHING for text in texts):
        origin.refuse(f"says nothing after {attribute[:40]!a}")
    be = "are" if len(texts) > 1 or is_plural(attribute.lower()) else "is"
    return one_line(f"its {attribute} {be} {' and '.join(texts)}")


def _item(item: Tree, place: int, origin: Origin) -> str:
    """A list item as a sentence; YAML reads an unquoted "its toy: a red ball" as a mapping."""
    if isinstance(item, str):
        if item in _NOTHING:
            origin.refuse(f"says nothing as fact {place}")
        return one_line(item)
    if isinstance(item, dict):
        parts = [f"{key}: {text}" for key, text in item.items() if isinstance(text, str)]
        if len(parts) == len(item):
            return one_line(". ".join(parts))
    origin.refuse(f"nests something in fact {place}: a fact is one line of text")


def _word(value: Tree, key: str, origin: Origin) -> str:
    if not isinstance(value, str):
        origin.refuse(f"gives {key!a} as a list or table, not as a word")
    return "" if value in _NOTHING else one_line(value)
