"""`op gen`: paint a picture of what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omnipersona_cli.cli import output, pictures
from omnipersona_cli.errors import UsageError


@click.command(
    epilog='\b\nExamples:\n  op gen "<bo> at the beach"\n'
    '  op gen "<bo> with its toy" --explain -n 4 -o pictures/\n'
    '  op gen --concept bo "in the snow" --seed 7 -o bo.png'
)
@click.argument("prompt", required=False)
@click.option("--size", type=pictures.Pixels(), metavar="WxH", help="Width and height in pixels.")
@click.option(
    "--prompts", metavar="FILE", help="Paint every line of a file, instead of PROMPT; - is stdin."
)
@click.option(
    "--like", metavar="IMAGE", help="Make a picture of op gen again, with its settings and seed."
)
@pictures.painting
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
    before anything is painted. Pictures get numbered names in the current folder, or go where -o
    says, and never replace a file without --force. One path per line on stdout.
    """
    if prompt is not None and prompts is not None:
        raise UsageError("a prompt and a file of prompts were both given", hint="give one of them")
    from omnipersona_cli import engine
    from omnipersona_cli.concepts.mentions import names_in
    from omnipersona_cli.engine.gen import Recipe, recipe_of

    recipe = Recipe(prompt="", packs={})
    if like is not None:
        recipe = recipe_of(engine.read_about(Path(like)))
    lines = pictures.prompts_from(prompts) if prompts is not None else [prompt or recipe.prompt]
    if not lines[0]:
        raise UsageError("what shall be painted?", hint='op gen "<bo> at the beach"')
    if seed is None:
        seed = recipe.seed
    shelf = pictures.Shelf(
        out=out,
        words=lines[0],
        metadata=metadata,
        force=force,
        as_json=as_json,
        explain=explain,
    )
    shelf.check(count * len(lines))
    seed = pictures.tell_seed(seed)
    opening = engine.Opening(
        backend=backend or recipe.backend, model=model, device=device, dtype=dtype
    )
    opened = None
    with output.progress() as on_progress:
        if len(lines) > 1:
            names = dict.fromkeys([*concepts, *(name for it in lines for name in names_in(it))])
            opened = engine.opened_for(
                tuple(names), opening, task="generate", on_progress=on_progress
            )
        for line in lines:
            shelf.words = line
            engine.gen(
                line,
                concepts=concepts or (recipe.concepts if prompt is None else ()),
                count=count,
                tries=tries or 1,
                size=size or recipe.size,
                steps=steps or recipe.steps,
                guidance=recipe.guidance if guidance is None else guidance,
                seed=seed,
                replayed=not no_replay and (like is None or prompt is not None),
                expected=recipe.packs,
                backend=opened,
                opening=opening,
                on_progress=on_progress,
                on_trace=pictures.show_trace if explain else None,
                on_picture=shelf.put,
            )
    shelf.finish()
