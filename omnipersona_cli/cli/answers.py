"""How `op ask` and `op chat` show an answer: as it comes, or as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from omnipersona_cli.cli import output

if TYPE_CHECKING:
    from omnipersona_cli.engine.ask import Answer


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


def as_data(question: str, answer: Answer) -> dict[str, Any]:
    """The answer as plain values, with stable keys."""
    return {
        "question": question,
        "answer": answer.text,
        "source": answer.source,
        "verdict": answer.verdict,
        "probability": answer.probability,
        "concepts": dict(answer.probabilities),
        "facts": list(answer.facts),
        "backend": answer.backend,
    }
