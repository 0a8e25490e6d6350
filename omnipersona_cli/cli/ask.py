"""`op ask`: a question about a picture, or to memory alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from omnipersona_cli.backend import Opening
from omnipersona_cli.cli import options, output
from omnipersona_cli.cli.answers import Streaming, tell_missing
from omnipersona_cli.cli.picture_input import read_picture, sent_picture
from omnipersona_cli.cli.server import Server, ask, asked_for
from omnipersona_cli.cli.server import option as server_option
from omnipersona_cli.errors import UsageError, shell_word

LONGEST_NAME = 255
"""A single word longer than this is a question, and no file."""


@click.command(
    epilog='\b\nExamples:\n  op ask photo.png "is <bo> here?"\n'
    '  op ask "what is <bo>\'s toy?"\n'
    '  op ask photo.png "is it here?" --concept bo --exit-code -q && echo found'
)
@click.argument("words", nargs=-1, required=True, metavar="[IMAGE] QUESTION")
@options.opening
@server_option
@options.seed
@options.concept
@options.max_tokens
@click.option("--exit-code", is_flag=True, help='Exit with 1 unless the answer is "yes".')
@options.as_json
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    opening: Opening,
    server: Server | None,
    seed: int | None,
    concepts: tuple[str, ...],
    max_tokens: int,
    exit_code: bool,
    as_json: bool,
) -> None:
    """Answer QUESTION about IMAGE (- for stdin), or from memory when there is no picture.

    "is <bo> here?" is answered "yes", "no" or "not sure", by the threshold that learning set;
    --json adds the probability. With --exit-code, "no" and "not sure" exit with 1, and so does
    every answer that is not a plain yes.
    """
    if len(words) > 2:
        raise UsageError("too many words outside quotes", hint='op ask photo.png "is <bo> here?"')
    if len(words) == 1 and len(words[0]) < LONGEST_NAME and Path(words[0]).is_file():
        raise UsageError(
            "a picture, but no question",
            hint=f'op ask {shell_word(words[0])} "what is in the picture?"',
        )
    picture = words[0] if len(words) == 2 else None
    streaming = Streaming()
    wanted: dict[str, Any] = {
        "concepts": concepts,
        "max_tokens": max_tokens,
        "seed": seed or 0,
        "on_text": None if as_json else streaming.piece,
    }
    if server is None:
        told = _answer_here(words[-1], picture, opening, **wanted)
    else:
        wanted |= {"bare_names": False, **asked_for(ctx)}
        image = sent_picture(picture) if picture is not None else None
        with output.progress() as on_progress:
            told = ask(server, words[-1], image=image, on_progress=on_progress, **wanted)
    if as_json:
        output.answer_json(told)
    else:
        streaming.end()
    tell_missing(told)
    if exit_code and told["answer"].strip().lower().rstrip(".!") != "yes":
        ctx.exit(1)


def _answer_here(
    question: str, picture: str | None, opening: Opening, **wanted: Any
) -> Mapping[str, Any]:
    """The answer of a model that is opened for it, as plain values."""
    with output.starting():
        from omnipersona_cli import engine

    image = None if picture is None else read_picture(picture)
    with output.progress() as on_progress:
        answer = engine.ask(
            question, image=image, opening=opening, on_progress=on_progress, **wanted
        )
    return answer.to_dict(question)
