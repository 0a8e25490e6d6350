"""Captions and nouns: putting the name of a concept, or an article, where it belongs."""

from __future__ import annotations

import re


def name_in_caption(caption: str, *, name: str, class_word: str = "") -> str:
    """A caption that mentions <name>: "a small dog on a sofa" -> "<bo> on a sofa"."""
    mention = f"<{name}>"
    caption = " ".join(caption.split()).rstrip(".")
    known = re.sub(
        rf"<{re.escape(name)}>|(?<![\w<]){re.escape(name)}(?![\w>])", mention, caption, flags=re.I
    )
    if mention in known:
        return known
    if class_word:
        thing = rf"\b(?:(?:an?|the|my|our|this)\s+(?:[\w-]+\s+){{0,3}}?)?{re.escape(class_word)}\b"
        if (named := re.sub(thing, mention, caption, count=1, flags=re.I)) != caption:
            return named
    first = caption.split(" ", 1)[0].lower()
    goes_on = first.endswith("ing") or first in {"in", "on", "at", "by", "with", "under", "near"}
    return f"{mention} {caption}" if goes_on else f"{mention}, {caption}"


def with_article(noun: str) -> str:
    """ "frog" -> "a frog"; left alone where it has an article, or is no plain noun."""
    noun = noun.strip()
    if re.match(r"(?:an?|the|my|our|some)\b", noun, flags=re.I):
        return noun
    vowel = re.match(r"[aeiou]|hour|honest", noun, flags=re.I)
    spoken_y = re.match(r"uni|eu|use|one\b", noun, flags=re.I)
    return f"{'an' if vowel and not spoken_y else 'a'} {noun}"
