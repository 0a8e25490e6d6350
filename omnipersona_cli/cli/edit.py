"""`op edit`: change a picture only where asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from omnipersona_cli.backend import Box, Opening
from omnipersona_cli.cli import output
from omnipersona_cli.cli.painting import PaintingOptions, painting_options, tell_seed
from omnipersona_cli.cli.picture_input import read_mask, read_picture, sent_mask, sent_picture
from omnipersona_cli.cli.picture_output import PictureOutput
from omnipersona_cli.cli.server import Server, asked_for, paint


class BoxParam(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """``x,y,width,height`` in pixels, as (left, top, right, bottom)."""

    name = "box"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Box:
        """Four whole numbers, the last two above zero."""
        if isinstance(value, tuple):
            return value
        numbers = [int(part) for part in re.findall(r"-?\d+", str(value))]
        if len(numbers) != 4 or re.search(r"[^\d\s,-]", str(value)) or min(numbers[2:]) < 1:
            self.fail(f"{value!r} is not a box: write x,y,width,height", param, ctx)
        x, y, width, height = numbers
        return x, y, x + width, y + height


@click.command(
    epilog='\b\nExamples:\n  op edit beach.png "add <bo>"\n'
    '  op edit beach.png "replace the cat with <bo>" --box 40,60,64,64\n'
    '  op gen "a forest" -o - | op edit - "add <bo>" -o bo.png'
)
@click.argument("image", metavar="IMAGE")
@click.argument("prompt")
@click.option("--mask", metavar="FILE", help="A picture, white where the source may change.")
@click.option(
    "--mask-means",
    type=click.Choice(("white", "transparent")),
    help="What may change, where part of the mask is transparent.",
)
@click.option(
    "--box", type=BoxParam(), metavar="X,Y,W,H", help="The part that may change, in pixels."
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="How strongly to change it: scales the guidance.",
)
@painting_options
@click.pass_context
def command(
    ctx: click.Context,
    image: str,
    prompt: str,
    mask: str | None,
    mask_means: Any,
    box: Box | None,
    strength: float,
    opening: Opening,
    server: Server | None,
    painting: PaintingOptions,
) -> None:
    """Change IMAGE as PROMPT says: "add <bo>", "remove <bo>", "replace the cat with <bo>".

    The result has the size of IMAGE, and outside a known region (--mask, --box, or what a finder
    knows) it stays as it is, bit for bit. An edit is painted three times where the model can tell
    the best: the concept is recognised, the hat is red (--tries 1 paints once). "put <bo> on the
    left" moves it where it is there and adds it where it is not; --explain says what was
    understood, --json how the edit was made. The colour profile and the transparency of IMAGE are
    kept. - reads it from stdin; it is replaced only where -o names it with --force, by the whole
    new picture in one step.

    A mask is white where IMAGE may change and black where it must stay. Where part of the mask is
    transparent, --mask-means says what may change: what is transparent, or what is white.
    """
    words = f"{'' if image == '-' else Path(image).stem} {prompt}"
    target = painting.output(words, pictures=painting.count)
    wanted: dict[str, Any] = {
        "mask_means": mask_means,
        "steps": painting.steps,
        "guidance": painting.guidance,
        "fast": painting.fast,
        "strength": strength,
    }
    if server is None:
        _edit_here(image, prompt, mask, target, painting, opening=opening, box=box, **wanted)
    else:
        wanted |= {**painting.asked_of_server(target), **asked_for(ctx)}
        if box is not None:
            wanted["box"] = [*box[:2], box[2] - box[0], box[3] - box[1]]
        source = sent_picture(image)
        region = None if mask is None else sent_mask(mask)
        seed = tell_seed(painting.seed)
        with output.progress() as on_progress:
            paint(
                server,
                prompt,
                source=source,
                mask=region,
                seed=seed,
                replay=not painting.no_replay,
                on_progress=on_progress,
                **wanted,
            )
    target.finish()


def _edit_here(
    image: str,
    prompt: str,
    mask: str | None,
    target: PictureOutput,
    painting: PaintingOptions,
    **wanted: Any,
) -> None:
    """Change the picture with a model that is opened for it."""
    with output.starting():
        from omnipersona_cli import engine

    source = read_picture(image)
    region = None if mask is None else read_mask(mask)
    seed = tell_seed(painting.seed)
    with output.progress() as on_progress:
        engine.edit(
            source,
            prompt,
            concepts=painting.concepts,
            mask=region,
            count=painting.count,
            tries=painting.tries,
            seed=seed,
            replayed=not painting.no_replay,
            on_progress=on_progress,
            on_trace=painting.on_trace,
            on_picture=target.put,
            **wanted,
        )
