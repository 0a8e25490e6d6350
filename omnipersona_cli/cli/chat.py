"""`op chat`: an `ask` that goes on, line by line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from omnipersona_cli.backend import Opening
from omnipersona_cli.cli import options, output
from omnipersona_cli.cli.answers import Streaming, tell_missing
from omnipersona_cli.cli.picture_input import read_picture, sent_picture
from omnipersona_cli.cli.server import Server, ask, asked_for
from omnipersona_cli.cli.server import option as server_option
from omnipersona_cli.errors import PersonaError
from omnipersona_cli.reading import Origin, decode_text

Answering = Callable[..., Mapping[str, Any]]
"""(question, names of the concepts that are meant, …) -> the answer as plain values."""

_LEAVE = ("exit", "quit", "bye", "/exit", "/quit")
_REMEMBERED = 6
"""How many earlier questions and answers are shown to the model."""


@click.command(
    epilog="\b\nExamples:\n  op chat photo.png\n  op chat --concept bo\n"
    '  printf "what is <bo>\'s toy?\\nwhere does it live?\\n" | op chat'
)
@click.argument("image", required=False)
@options.opening
@server_option
@options.fixed_seed
@options.concept
@options.max_tokens
@options.as_json
@click.pass_context
def command(
    ctx: click.Context,
    image: str | None,
    opening: Opening,
    server: Server | None,
    seed: int | None,
    concepts: tuple[str, ...],
    max_tokens: int,
    as_json: bool,
) -> None:
    """Answer questions about IMAGE, or from memory, one line after another.

    A concept that was mentioned once is meant by "it" from then on. An empty line, "exit" or
    Ctrl-D ends it. With --json every answer is one line of JSON.
    """

    from omnipersona_cli.language.mentions import names_in

    if server is None:
        answered = _answering_here(image, opening)
    else:
        answered = _answering_there(image, server, asked_for(ctx))
    meant = list(concepts)
    earlier: list[tuple[str, str]] = []
    while True:
        question = _next_question()
        if not question or question.lower() in _LEAVE:
            return
        mentioned = list(names_in(question))
        streaming = Streaming()
        try:
            told = answered(
                question,
                [*mentioned, *meant],
                concepts=() if mentioned else meant,
                earlier=earlier[-_REMEMBERED:],
                max_tokens=max_tokens,
                seed=seed or 0,
                on_text=None if as_json else streaming.piece,
            )
        except PersonaError as error:
            if not sys.stdin.isatty():
                raise
            output.fail(error)
            continue
        if as_json:
            output.answer_json(told, lines=False)
        else:
            streaming.end()
        tell_missing(told)
        meant = mentioned or meant
        earlier.append((question, told["answer"]))


def _answering_here(image: str | None, opening: Opening) -> Answering:
    """Answers of a model that is opened with the first question."""
    with output.starting():
        from omnipersona_cli import engine

    picture = None if image is None else read_picture(image)
    opened = None

    def answered(question: str, names: Sequence[str], **wanted: Any) -> Mapping[str, Any]:
        nonlocal opened
        with output.progress() as on_progress:
            if opened is None:
                opened = engine.opened_for(names, opening, on_progress=on_progress)
            answer = engine.ask(
                question, image=picture, backend=opened, on_progress=on_progress, **wanted
            )
        return answer.to_dict(question)

    return answered


def _answering_there(image: str | None, server: Server, asked: Mapping[str, Any]) -> Answering:
    """Answers of a running server."""
    pictures = [] if image is None else [sent_picture(image)]

    def answered(question: str, names: Sequence[str], **wanted: Any) -> Mapping[str, Any]:
        with output.progress() as on_progress:
            return ask(
                server,
                question,
                images=pictures,
                bare_names=False,
                on_progress=on_progress,
                **wanted,
                **asked,
            )

    return answered


def _next_question() -> str:
    """The next line; empty at the end. A person at a terminal is asked, on stderr."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.buffer.readline()
    return decode_text(line, Origin(name="a question")).strip()
