"""`op ask`: a question about a picture, or to memory alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
"""A word of more bytes than this is a question, and no file."""


@click.command(
    epilog='\b\nExamples:\n  op ask photo.png "is <bo> here?"\n'
    '  op ask a.png b.png "which of the two shows <bo>?" -b bagel\n'
    '  op ask "what is <bo>\'s toy?"\n'
    '  op ask photo.png "is it here?" --concept bo --exit-code -q && echo found'
)
@click.argument("words", nargs=-1, required=True, metavar="[IMAGE]... QUESTION")
@options.opening
@server_option
@options.fixed_seed
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

    Of several pictures, some backends see all together, in the order in which they are named: `op
    backends show` says how many. Whether a concept is there is told of one picture at a time.

    "is <bo> here?" is answered "yes", "no" or "not sure", by the threshold that learning set;
    --json adds the probability. With --exit-code, "no" and "not sure" exit with 1, and so does
    every answer that is not a plain yes.
    """
    *pictures, question = words
    _check_words(pictures, question)
    streaming = Streaming()
    wanted: dict[str, Any] = {
        "concepts": concepts,
        "max_tokens": max_tokens,
        "seed": seed or 0,
        "on_text": None if as_json else streaming.piece,
    }
    if server is None:
        told = _answer_here(question, pictures, opening, **wanted)
    else:
        wanted |= {"bare_names": False, **asked_for(ctx)}
        images = [sent_picture(one) for one in pictures]
        with output.progress() as on_progress:
            told = ask(server, question, images=images, on_progress=on_progress, **wanted)
    if as_json:
        output.answer_json(told)
    else:
        streaming.end()
    tell_missing(told)
    if exit_code and told["answer"].strip().lower().rstrip(".!") != "yes":
        ctx.exit(1)


def _check_words(pictures: Sequence[str], question: str) -> None:
    """UsageError for words that are no pictures and a question after them."""
    named = " ".join(map(shell_word, pictures))
    loose = [word for word in pictures[1:] if word != "-" and not _is_named_as_a_file(word)]
    if loose:
        raise UsageError("too many words outside quotes", hint='op ask photo.png "is <bo> here?"')
    if len(os.fsencode(question)) < LONGEST_NAME and Path(question).is_file():
        raise UsageError(
            "pictures, but no question" if pictures else "a picture, but no question",
            hint=f'op ask {named} {shell_word(question)} "what is in the picture?"',
        )
    if pictures.count("-") > 1:
        raise UsageError(
            "stdin has one picture, and - is named twice",
            hint=f"op ask - photo.png {shell_word(question)} < other.png",
        )


def _is_named_as_a_file(word: str) -> bool:
    """Whether a word is a file, or would be called like one: what is none is told as missing."""
    path = Path(word)
    short = len(os.fsencode(word)) < LONGEST_NAME
    return short and bool(path.suffix or len(path.parts) > 1 or path.exists())


def _answer_here(
    question: str, pictures: Sequence[str], opening: Opening, **wanted: Any
) -> Mapping[str, Any]:
    """The answer of a model that is opened for it, as plain values."""
    with output.starting():
        from omnipersona_cli import engine

    if pictures:
        engine.check_images(
            question,
            len(pictures),
            concepts=wanted["concepts"],
            opening=opening,
            first=pictures[0],
        )
    images = [read_picture(one) for one in pictures]
    with output.progress() as on_progress:
        answer = engine.ask(
            question, image=images, opening=opening, on_progress=on_progress, **wanted
        )
    return answer.to_dict(question)
