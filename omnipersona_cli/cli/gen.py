"""`op gen`: paint a picture of what was learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
from omnipersona_cli.errors import UsageError


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
def command(
    prompt: str | None,
    size: tuple[int, int] | None,
    prompts: str | None,
    like: str | None,
    opening: Opening,
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
    with output.starting():
        from omnipersona_cli import engine
    from omnipersona_cli.engine.provenance import GenerationSettings, settings_of
    from omnipersona_cli.language.mentions import names_in

    earlier = GenerationSettings(prompt="", packs={})
    if like is not None:
        earlier = settings_of(engine.read_about(Path(like)))
    lines = prompts_from(prompts) if prompts is not None else [prompt or earlier.prompt]
    if not lines[0]:
        raise UsageError("what shall be painted?", hint='op gen "<bo> at the beach"')
    target = painting.output(lines[0], pictures=painting.count * len(lines))
    seed = tell_seed(earlier.seed if painting.seed is None else painting.seed)
    opening = replace(opening, backend=opening.backend or earlier.backend)
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
                size=size or earlier.size,
                steps=painting.steps or earlier.steps,
                guidance=earlier.guidance if painting.guidance is None else painting.guidance,
                fast=painting.fast or earlier.fast,
                seed=seed,
                replayed=not painting.no_replay and (like is None or prompt is not None),
                expected=earlier.packs,
                backend=opened,
                opening=opening,
                on_progress=on_progress,
                on_trace=painting.on_trace,
                on_picture=target.put,
            )
    target.finish()
