"""What can go wrong, and what a person can do about it.

    PersonaError            exit 1   failed for a stated reason
    ├── PhotoError          exit 1   a photo, or a folder of photos, cannot be used
    ├── PackError           exit 1   an .opconcept file is broken, hostile or too new
    ├── SlotError           exit 1   a concept was learned on another backbone
    ├── TaskError           exit 1   the backend cannot do this task, size or option
    ├── TakenError          exit 1   a file of that name is there already
    ├── ResourceError       exit 1   memory or disk ran out, a folder is not writable
    ├── UsageError          exit 2   the words of the command do not fit together
    └── MissingError        exit 3   something named is not here: concept, backend, weights, package

Every error says what happened in the user's words (``str(error)``, one line) and carries a
``hint``: what to do next, with a command. Bugs are not PersonaErrors and keep their traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


class PersonaError(Exception):
    """An expected failure: ``message`` is what happened, ``hint`` a command that helps."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def memory_ran_out(error: BaseException) -> bool:
    """Whether ``error`` says so: Python's own, torch's of a CUDA card, and the plain RuntimeError
    that torch raises on a processor and on an Apple GPU."""
    words = str(error).lower()
    says_so = "out of memory" in words or "can't allocate memory" in words
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and says_so)


class PhotoError(PersonaError):
    """A photo, or a folder of photos, cannot be used."""


class PackError(PersonaError):
    """An .opconcept file is broken, hostile or of a newer format."""


class SlotError(PersonaError):
    """A concept has no slot for the backbone at hand, or was learned on another one."""


class TaskError(PersonaError):
    """The backend does not do this task, size or option."""


class ResourceError(PersonaError):
    """Memory or disk ran out, or a place cannot be written."""


class TakenError(PersonaError):
    """A file or concept of that name is there, and nobody said that it may be replaced."""


class UsageError(PersonaError):
    """The words of the command do not fit together."""

    exit_code = 2


class MissingError(PersonaError):
    """Something that was named is not here: a concept, a backend, weights, a package."""

    exit_code = 3


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that looks most like ``word``, or an empty string."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.5)), "")


def shell_word(value: object) -> str:
    """A path or another text as one word of a shell command, to be pasted from a hint; one line,
    whatever is in it."""
    text = str(value)
    if text.isprintable() and "  " not in text:
        import shlex

        return shlex.quote(text)
    return "$'" + "".join(map(_ansi_c, text)) + "'"


def _ansi_c(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable() and character != " ":
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
