"""How `op ask` and `op chat` show an answer: as it comes, or as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from omnipersona_cli.cli import output
from omnipersona_cli.language.attributes import is_plural

if TYPE_CHECKING:
    pass


class Streaming:
    """Pieces of an answer on stdout as they come; blank space at either end is left out."""

    def __init__(self) -> None:
        self.begun = False

    def piece(self, text: str) -> None:
        """One piece."""
        if not self.begun:
            text = text.lstrip()
        if text:
            self.begun = True
            output.answer_piece(text)

    def end(self) -> None:
        """The end of the line."""
        click.echo()


def untold(concept: str, attribute: str) -> str:
    """A fact that nobody told, and the command that tells it."""
    be = "are" if is_plural(attribute) else "is"
    add = f'op concepts facts {concept} add "its {attribute} {be} ..."'
    return f"<{concept}>'s {attribute}, which nobody told; to tell: {add}"


def tell_missing(told: Mapping[str, Any]) -> None:
    """On stderr, what would have been needed for an answer in plain values, where nobody told
    it."""
    if told.get("missing"):
        output.note(f"this asks for {untold(**told['missing'])}")
