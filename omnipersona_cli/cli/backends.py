"""`op backends`: which models can learn here, what each can do, and fetching their weights."""

from __future__ import annotations

import string
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from omnipersona_cli import registry
from omnipersona_cli.backend import TASKS, BackendInfo, Opening
from omnipersona_cli.cli import options, output

if TYPE_CHECKING:
    from omnipersona_cli.family.room import Cell, Place


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n  op backends\n  op backends show nano\n  op backends --json",
)
@options.as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the models that can learn a concept, or look closer at one."""
    if ctx.invoked_subcommand is None:
        _list(as_json)


@command.command("list", epilog="Example:  op backends list --json")
@options.as_json
def list_backends(as_json: bool) -> None:
    """List the models that can learn a concept."""
    _list(as_json)


def _list(as_json: bool) -> None:
    infos = list(registry.backends().values())
    if as_json:
        output.answer_json([_as_data(info) for info in infos])
        return
    output.answer_table(
        ("name", "pictures", "size", "memory", "licence", "summary"),
        [
            (
                info.name,
                info.pictures,
                _size(info.sizes[0]),
                f"{info.memory_gb:g} GB",
                info.licence,
                info.summary,
            )
            for info in infos
        ],
    )


@command.command(epilog="\b\nExamples:\n  op backends show nano\n  op backends show janus --json")
@click.argument("name", shell_complete=options.complete_backends)
@options.model
@options.as_json
def show(name: str, model: str | None, as_json: bool) -> None:
    """Show what one backend can do, and on which cards each verb fits."""
    from omnipersona_cli.family import room, weights

    info = registry.backend_info(name)
    weights.check_known(info, model or info.default_model)
    opening = Opening(backend=name, model=model)
    cells, described = room.table(info, opening), room.describe(info, opening, None)
    here = described is not None and described.here
    if as_json:
        output.answer_json(
            _as_data(info) | {"cards": [_cell(cell) for cell in cells], "counted": here}
        )
        return
    output.answer(f"{info.name}: {info.summary}")
    rows = [
        (
            "tasks",
            ", ".join(f"{task} ({info.tasks[task]})" for task in TASKS if task in info.tasks),
        ),
        *_weights(info),
        ("pictures", info.pictures),
        ("questions", f"about {_pictures(info.most_images)}"),
        ("sizes", ", ".join(_size(size) for size in info.sizes)),
        ("model", info.default_model),
        ("also", ", ".join(other for other in info.models if other != info.default_model)),
        *(("needs", f"{part.repo}, {part.what}") for part in info.components),
        ("memory", f"{info.memory_gb:g} GB"),
        *(("", f"{size:g} GB: {model}") for model, size in info.memory_by_model.items()),
        ("painting", f"{info.steps} steps, guidance {info.guidance:g}"),
        ("--fast", info.fast),
        ("learning", f"{info.learn_steps} steps of {info.batch} lessons, rate {info.learn_rate:g}"),
        ("--depth", _depth(info)),
        ("--experts", "lora" if info.experts else ""),
        ("replay", f"led by the {info.replay_leads}"),
        ("imports", ", ".join(_imports(info))),
        ("licence", info.licence),
        *(("note", note) for note in info.notes),
    ]
    for key, value in rows:
        if value:
            output.answer(f"  {key:<9} {value}")
    if cells:
        _answer_cards(cells)
    if cells and model and not here:
        output.answer(f"  of the released weights: none of {model} are here to be counted")


@command.command(epilog="\b\nExamples:\n  op backends fetch nano\n  op backends fetch nano --json")
@click.argument("name", shell_complete=options.complete_backends)
@options.model
@click.option("--revision", default="", metavar="COMMIT", help="Not the newest, but this one.")
@options.offline
@options.as_json
def fetch(name: str, model: str | None, revision: str, as_json: bool) -> None:
    """Download a backend's weights, to open it offline later.

    Size and digest of every file are compared with what the hub says of that revision. A concept
    keeps the revision that it was learned on, and is used with it where it is here.
    """
    info = registry.backend_info(name)
    repo = model or info.default_model
    from omnipersona_cli.family import weights

    with output.progress() as on_progress:
        fetched = weights.fetch(
            info,
            repo,
            revision=revision,
            bars=sys.stderr.isatty() and not output.quiet(),
            on_progress=on_progress,
        )
    if as_json:
        output.answer_json({"backend": name, "model": repo, "fetched": fetched})


def _answer_cards(cells: Sequence[Cell]) -> None:
    """GB of each verb on each card; a letter stands for the flags that it takes."""
    verbs = list(dict.fromkeys(cell.verb for cell in cells))
    places = list(dict.fromkeys(cell.place for cell in cells))
    flags = list(dict.fromkeys(cell.flags for cell in cells if cell.fits and cell.flags))
    letters = {way: string.ascii_lowercase[number] for number, way in enumerate(flags)}

    def shown(place: Place, verb: str) -> str:
        (cell,) = (it for it in cells if it.place == place and it.verb == verb)
        letter = letters.get(cell.flags, "") if cell.fits else ""
        return f"{cell.takes:.1f} {letter}".strip() if cell.fits else "-"

    output.answer_table(
        ("memory in GB", *verbs),
        [(place.name, *(shown(place, verb) for verb in verbs)) for place in places],
    )
    for way in flags:
        output.answer(f"  {letters[way]}: {' '.join(way)}")
    output.answer("  computed from shapes (- does not fit); Apple was never run")


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "card": cell.place.name,
        "device": cell.place.kind,
        "verb": cell.verb,
        "fits": cell.fits,
        "gb": round(cell.takes, 2),
        "flags": list(cell.flags),
    }


def _weights(info: BackendInfo) -> list[tuple[str, str]]:
    """A row for each task that has weights of its own."""
    return [
        ("weights", f"{info.weights[task]} to {task}") for task in TASKS if task in info.weights
    ]


def _as_data(info: BackendInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "summary": info.summary,
        "tasks": {task: info.tasks[task] for task in TASKS if task in info.tasks},
        "default_model": info.default_model,
        "models": list(info.models),
        "weights": {task: info.weights[task] for task in TASKS if task in info.weights},
        "parts": [{"repo": part.repo, "what": part.what} for part in info.components],
        "sizes": [list(size) for size in info.sizes],
        "pictures": info.pictures,
        "most_images": info.most_images,
        "licence": info.licence,
        "memory_gb": info.memory_gb,
        "memory_by_model": dict(info.memory_by_model),
        "steps": info.steps,
        "guidance": info.guidance,
        "fast": info.fast,
        "learn_steps": info.learn_steps,
        "learn_rate": info.learn_rate,
        "batch": info.batch,
        "deep_layers": info.deep_layers,
        "depth": info.depth,
        "experts": info.experts,
        "replay_leads": info.replay_leads,
        "imports": _imports(info),
        "notes": list(info.notes),
    }


def _depth(info: BackendInfo) -> str:
    """How many layers may have tokens of their own; "" where the first alone has."""
    if not info.deep_layers:
        return ""
    usual = f", {info.depth} where nothing is said" if info.depth else ""
    return f"up to {info.deep_layers} layers after the first{usual}"


def _pictures(most: int) -> str:
    return "one picture at a time" if most == 1 else f"up to {most} pictures at a time"


def _imports(info: BackendInfo) -> list[str]:
    """Programs whose concepts become slots of this backend."""
    return [one.name for one in registry.importers().values() if one.backend == info.name]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
