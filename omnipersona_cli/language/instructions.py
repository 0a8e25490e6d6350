"""Instructions for an edit: what is to be done, and to what ("remove the cat")."""

from __future__ import annotations

import re
from typing import Literal

Intent = Literal["add", "remove", "replace", "other"]

_INTENTS: tuple[tuple[Intent, str], ...] = (
    ("remove", r"remove|erase|delete|take (?!.*\bphoto\b).*\b(?:away|out|off)|get rid of"),
    ("replace", r"replace|swap|exchange|(?:turn|change) .+ (?:in)?to\b"),
    ("add", r"add|put|place|insert|draw|include|paint"),
)
_TARGET = re.compile(
    r"\b(?:replace|swap|exchange|turn|change|remove|erase|delete)\s+"
    r"(?:the|an?|this|that|its)?\s*(?P<kind>[a-z][a-z -]{0,30}?)"
    r"\s*(?:$|[.,!]|\b(?:with|by|for|into|to|from|in|on|at|next)\b)",
    re.IGNORECASE,
)


def intent_of(prompt: str) -> Intent:
    """What an instruction asks for, by its verb."""
    for intent, pattern in _INTENTS:
        if re.search(rf"\b(?:{pattern})\b", prompt, re.IGNORECASE):
            return intent
    return "other"


def target_of(prompt: str) -> str:
    """What is to be removed or replaced, in small letters: "replace the cat with <bo>" -> "cat";
    "" where the instruction does not name it."""
    match = _TARGET.search(prompt)
    return match["kind"].strip().lower() if match else ""
