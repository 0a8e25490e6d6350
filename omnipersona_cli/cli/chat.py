"""`op chat`: an `ask` that goes on, line by line."""

from __future__ import annotations

import sys

import click

from omnipersona_cli.backend import Opening
from omnipersona_cli.cli import options, output
from omnipersona_cli.cli.answers import Streaming, as_data, tell_missing
from omnipersona_cli.cli.picture_input import read_picture
from omnipersona_cli.errors import PersonaError

_LEAVE = ("exit", "quit", "bye", "/exit", "/quit")
_REMEMBERED = 6
"""How many earlier questions and answers are shown to the model."""


@click.command(
    epilog="\b\nExamples:\n  op chat photo.png\n  op chat --concept bo\n"
    '  printf "what is <bo>\'s toy?\\nwhere does it live?\\n" | op chat'
)
@click.argument("image", required=False)
@options.opening
@options.seed
@options.concept
@options.max_tokens
@options.as_json
def command(
    image: str | None,
    opening: Opening,
    seed: int | None,
    concepts: tuple[str, ...],
    max_tokens: int,
    as_json: bool,
) -> None:
    """Answer questions about IMAGE, or from memory, one line after another.

    A concept that was mentioned once is meant by "it" from then on. An empty line, "exit" or
    Ctrl-D ends it. With --json every answer is one line of JSON.
    """
    import json

    with output.starting():
        from omnipersona_cli import engine
    from omnipersona_cli.language.mentions import names_in

    picture = read_picture(image) if image is not None else None
    opened = None
    meant = list(concepts)
    earlier: list[tuple[str, str]] = []
    while True:
        question = _next_question()
        if not question or question.lower() in _LEAVE:
            return
        mentioned = list(names_in(question))
        streaming = Streaming()
        try:
            with output.progress() as on_progress:
                if opened is None:
                    opened = engine.opened_for(
                        [*mentioned, *meant], opening, on_progress=on_progress
                    )
                answer = engine.ask(
                    question,
                    image=picture,
                    concepts=() if mentioned else meant,
                    earlier=earlier[-_REMEMBERED:],
                    max_tokens=max_tokens,
                    seed=seed or 0,
                    backend=opened,
                    on_progress=on_progress,
                    on_text=None if as_json else streaming.piece,
                )
        except PersonaError as error:
            if not sys.stdin.isatty():
                raise
            output.fail(error)
            continue
        if as_json:
            line = json.dumps(as_data(question, answer), ensure_ascii=False)
            output.answer(line)
        else:
            streaming.end()
        tell_missing(answer)
        meant = mentioned or meant
        earlier.append((question, answer.text))


def _next_question() -> str:
    """The next line; empty at the end. A person at a terminal is asked, on stderr."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.strip()
