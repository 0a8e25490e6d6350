"""The facts file beside the photos: sentences, and what sort of thing the concept is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from omnipersona_cli.errors import PhotoError

FACT_FILES = ("facts.yaml", "facts.yml", "facts.txt")


@dataclass(frozen=True, kw_only=True)
class FactSheet:
    """What a facts file says: sentences, and what sort of thing the concept is."""

    facts: tuple[str, ...] = ()
    class_word: str = ""
    kind: str = ""


def read_facts(path: Path) -> FactSheet:
    """A facts file: YAML with ``facts:`` (a list, or attribute: value) and optionally ``class:``
    and ``kind:``; or plain text, one fact a line, # for comments. Raises PhotoError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PhotoError(
            f"the facts file {path.name} cannot be read", hint="save it as UTF-8 text"
        ) from error
    if path.suffix.lower() not in {".yaml", ".yml", ".json"}:
        lines = (line.strip() for line in text.splitlines())
        return FactSheet(facts=tuple(line for line in lines if line and not line.startswith("#")))
    example = "write it as `facts:` and one line `- its toy is a red ball` for each fact"
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise PhotoError(
            f"the facts file {path.name} is not valid YAML{where}", hint=example
        ) from error
    if content is None:
        return FactSheet()
    if isinstance(content, list):
        content = {"facts": content}
    if not isinstance(content, Mapping):
        raise PhotoError(f"the facts file {path.name} holds no facts", hint=example)
    facts = content.get("facts") or ()
    if isinstance(facts, str):
        facts = facts.splitlines()
    elif isinstance(facts, Mapping):
        facts = [f"its {attribute} is {value}" for attribute, value in facts.items()]
    if not isinstance(facts, Sequence) or not all(
        isinstance(fact, str | int | float | Mapping) for fact in facts
    ):
        raise PhotoError(f"the facts file {path.name} holds a fact that is no text", hint=example)
    class_word, kind = str(content.get("class") or ""), str(content.get("kind") or "")
    return FactSheet(
        facts=tuple(line for fact in facts if (line := _fact_line(fact))),
        class_word=(class_word or kind).strip(),
        kind=(kind or class_word).strip(),
    )


def _fact_line(fact: str | int | float | Mapping[object, object]) -> str:
    """A list item as a sentence; YAML reads an unquoted "its toy: a red ball" as a mapping."""
    if isinstance(fact, Mapping):
        return ". ".join(f"{key}: {value}" for key, value in fact.items())
    return str(fact).strip()
