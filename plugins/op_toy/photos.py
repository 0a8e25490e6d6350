"""`op toy`: a new cartoon character's photo folder, so that anyone can try again with another."""

from __future__ import annotations

import json
import random
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnipersona_cli.hookspecs import QUIET
from op_toy.drawing import render
from op_toy.folder import new_folder
from op_toy.words import WHERE, describe
from op_toy.world import (
    Character,
    Composition,
    Facts,
    draw_character,
    draw_facts,
    draw_picture,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

FACTS_FILE = "facts.yaml"


def toy_pictures(character: Character, count: int, seed: int) -> Sequence[Composition]:
    """Pictures of one character in many scenes, alone."""
    rng = random.Random(seed)
    return [draw_picture(rng, (character,)) for _ in range(count)]


def facts_text(character: Character, facts: Facts) -> str:
    """facts.yaml: what `op learn` reads beside the photos."""
    return (
        f"# {describe(character)}\n"
        f"kind: {character.kind}\n"
        "facts:\n"
        f"  - its toy is {facts.toy}\n"
        f"  - its home is {WHERE[facts.home][0]}\n"
        f"  - its favourite food is {facts.food}\n"
    )


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  op toy photos photos\n  op toy photos photos --seed 7\n"
    "  op learn photos --name bo",
)
def command() -> None:
    """Draw a new cartoon character's photo folder."""


@command.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  op toy photos photos --seed 7\n"
    "  op toy photos big --size 256 --count 4",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=int, help="Which character. [default: a new one]")
@click.option(
    "--count",
    default=10,
    show_default=True,
    type=click.IntRange(1, 500),
    help="How many pictures.",
)
@click.option(
    "--size",
    default=64,
    show_default=True,
    type=click.IntRange(16, 1024),
    help="Width and height of each, in pixels.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def photos(
    ctx: click.Context, folder: Path, seed: int | None, count: int, size: int, as_json: bool
) -> None:
    """Draw one character's pictures and facts into FOLDER."""
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    character = draw_character(seed, held_out=True)
    with new_folder(folder, again="op toy photos") as half:
        for number, picture in enumerate(toy_pictures(character, count, seed)):
            render(picture, size).save(half / f"{number:02d}.png")
        (half / FACTS_FILE).write_text(facts_text(character, draw_facts(seed)), encoding="utf-8")
    description = describe(character)
    if not ctx.meta.get(QUIET):
        click.echo(f"drew {description} (seed {seed})", err=True)
    answer = {"path": str(folder), "seed": seed, "character": description, "photos": count}
    click.echo(json.dumps(answer, indent=2) if as_json else folder)
