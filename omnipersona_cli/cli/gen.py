"""`op gen`: paint a picture of what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omnipersona_cli.cli import output, painting
from omnipersona_cli.cli.picture_output import PictureOutput
from omnipersona_cli.errors import UsageError


@click.command(
    epilog='\b\nExamples:\n  op gen "<bo> at the beach"\n'
    '  op gen "<bo> with its toy" --explain -n 4 -o pictures/\n'
    '  op gen --concept bo "in the snow" --seed 7 -o bo.png'
)
@click.argument("prompt", required=False)
@click.option("--size", type=painting.Pixels(), metavar="WxH", help="Width and height in pixels.")
@click.option(
    "--prompts", metavar="FILE", help="Paint every line of a file, instead of PROMPT; - is stdin."
)
@click.option(
    "--like", metavar="IMAGE", help="Make a picture of op gen again, with its settings and seed."
)
@painting.painting
def command(
    prompt: str | None,
    size: tuple[int, int] | None,
    prompts: str | None,
    like: str | None,
    backend: str | None,
    model: str | None,
    device: str,
    dtype: str | None,
    count: int,
    tries: int | None,
    steps: int | None,
    guidance: float | None,
    seed: int | None,
    concepts: tuple[str, ...],
    no_replay: bool,
    explain: bool,
    metadata: Any,
    out: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Paint PROMPT, in which concepts stand by name: "<bo> at the beach".

    What a fact says need not be said again: "<bo> with its toy" becomes "<bo> with a red ball"
    before anything is painted. Pictures get the next free numbered names in the current folder, or
    go where -o says; a file that -o names is replaced only with --force. One path per line on
    stdout.
    """
    if prompt is not None and prompts is not None:
        raise UsageError("a prompt and a file of prompts were both given", hint="give one of them")
    from omnipersona_cli import engine
    from omnipersona_cli.engine.provenance import GenerationSettings, settings_of
    from omnipersona_cli.language.mentions import names_in

    earlier = GenerationSettings(prompt="", packs={})
    if like is not None:
        earlier = settings_of(engine.read_about(Path(like)))
    lines = painting.prompts_from(prompts) if prompts is not None else [prompt or earlier.prompt]
    if not lines[0]:
        raise UsageError("what shall be painted?", hint='op gen "<bo> at the beach"')
    if seed is None:
        seed = earlier.seed
    target = PictureOutput(
        out=out,
        words=lines[0],
        metadata=metadata,
        force=force,
        as_json=as_json,
        explain=explain,
    )
    target.check(count * len(lines))
    seed = painting.tell_seed(seed)
    opening = engine.Opening(
        backend=backend or earlier.backend, model=model, device=device, dtype=dtype
    )
    opened = None
    with output.progress() as on_progress:
        if len(lines) > 1:
            names = dict.fromkeys([*concepts, *(name for line in lines for name in names_in(line))])
            opened = engine.opened_for(
                tuple(names), opening, task="generate", on_progress=on_progress
            )
        for line in lines:
            target.words = line
            engine.gen(
                line,
                concepts=concepts,
                count=count,
                tries=tries or 1,
                size=size or earlier.size,
                steps=steps or earlier.steps,
                guidance=earlier.guidance if guidance is None else guidance,
                seed=seed,
                replayed=not no_replay and (like is None or prompt is not None),
                expected=earlier.packs,
                backend=opened,
                opening=opening,
                on_progress=on_progress,
                on_trace=painting.show_trace if explain else None,
                on_picture=target.put,
            )
    target.finish()
