"""`op gen`: paint a picture of what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnipersona_cli.backend import Opening
from omnipersona_cli.cli import output
from omnipersona_cli.cli.painting import (
    PaintingOptions,
    Pixels,
    painting_options,
    prompts_from,
    tell_seed,
)
from omnipersona_cli.cli.picture_output import PictureOutput
from omnipersona_cli.cli.server import Server, asked_for, paint
from omnipersona_cli.errors import UsageError

if TYPE_CHECKING:
    from omnipersona_cli.data.about import GenerationSettings


@click.command(
    epilog='\b\nExamples:\n  op gen "<bo> at the beach"\n'
    '  op gen "<bo> with its toy" --explain -n 4 -o pictures/\n'
    '  op gen --concept bo "in the snow" --seed 7 -o bo.png'
)
@click.argument("prompt", required=False)
@click.option("--size", type=Pixels(), metavar="WxH", help="Width and height in pixels.")
@click.option(
    "--prompts", metavar="FILE", help="Paint every line of a file, instead of PROMPT; - is stdin."
)
@click.option(
    "--like", metavar="IMAGE", help="Make a picture of op gen again, with its settings and seed."
)
@painting_options
@click.pass_context
def command(
    ctx: click.Context,
    prompt: str | None,
    size: tuple[int, int] | None,
    prompts: str | None,
    like: str | None,
    opening: Opening,
    server: Server | None,
    painting: PaintingOptions,
) -> None:
    """Paint PROMPT, in which concepts stand by name: "<bo> at the beach".

    What a fact says need not be said again: "<bo> with its toy" becomes "<bo> with a red ball"
    before anything is painted. Pictures get the next free numbered names in the current folder, or
    go where -o says; a file that -o names is replaced only with --force. One path per line on
    stdout.
    """
    if prompt is not None and prompts is not None:
        raise UsageError("a prompt and a file of prompts were both given", hint="give one of them")
    earlier = _earlier(like)
    lines = prompts_from(prompts) if prompts is not None else [prompt or earlier.prompt]
    if not lines[0]:
        raise UsageError("what shall be painted?", hint='op gen "<bo> at the beach"')
    target = painting.output(lines[0], pictures=painting.count * len(lines))
    wanted: dict[str, Any] = {
        "size": size or earlier.size,
        "steps": painting.steps or earlier.steps,
        "guidance": earlier.guidance if painting.guidance is None else painting.guidance,
        "fast": painting.fast or earlier.fast,
        "seed": tell_seed(earlier.seed if painting.seed is None else painting.seed),
        "expected": earlier.packs,
    }
    replayed = not painting.no_replay and (like is None or prompt is not None)
    if server is None:
        opening = replace(opening, backend=opening.backend or earlier.backend)
        _paint_here(lines, opening, target, painting, replayed=replayed, **wanted)
    else:
        wanted |= {**painting.asked_of_server(target), "replay": replayed, **asked_for(ctx)}
        if earlier.backend:
            wanted.setdefault("backend", earlier.backend)
        if wanted["size"] is not None:
            wanted["size"] = "{}x{}".format(*wanted["size"])
        for line in lines:
            target.words = line
            with output.progress() as on_progress:
                paint(server, line, on_progress=on_progress, **wanted)
    target.finish()


def _earlier(like: str | None) -> GenerationSettings:
    """The settings of the picture that is to be made again; none without one."""
    from omnipersona_cli.data.about import GenerationSettings, read_about, settings_of

    if like is None:
        return GenerationSettings(prompt="", packs={})
    return settings_of(read_about(Path(like)))


def _paint_here(
    lines: Sequence[str],
    opening: Opening,
    target: PictureOutput,
    painting: PaintingOptions,
    **wanted: Any,
) -> None:
    """Paint every line with a model that is opened once for all of them."""
    with output.starting():
        from omnipersona_cli import engine
    from omnipersona_cli.language.mentions import names_in

    opened = None
    with output.progress() as on_progress:
        if len(lines) > 1:
            named = (name for line in lines for name in names_in(line))
            names = tuple(dict.fromkeys([*painting.concepts, *named]))
            opened = engine.opened_for(names, opening, task="generate", on_progress=on_progress)
        for line in lines:
            target.words = line
            engine.gen(
                line,
                concepts=painting.concepts,
                count=painting.count,
                tries=painting.tries or 1,
                backend=opened,
                opening=opening,
                on_progress=on_progress,
                on_trace=painting.on_trace,
                on_picture=target.put,
                **wanted,
            )
