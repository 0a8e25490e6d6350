"""`op backends`: which models can learn here, what each can do, and fetching their weights."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import click

from omnipersona_cli import registry
from omnipersona_cli.backend import TASKS, BackendInfo
from omnipersona_cli.cli import options, output
from omnipersona_cli.errors import MissingError, ResourceError, UsageError, nearest

EMBEDDED = "embedded"
"""The model name of a backend whose weights come with the package."""

UNOPENED = ("bagel",)
"""Backends that cannot open their released weights yet, so that fetching them would be in vain."""

FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
"""What is brought from a repository: weights that are not pickles, configurations, tokenizers."""


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n  op backends\n  op backends show nano\n  op backends --json",
)
@options.as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the models that can learn a concept, or look closer at one."""
    if ctx.invoked_subcommand is not None:
        return
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


@command.command(epilog="\b\nExamples:\n  op backends show nano\n  op backends show nano --json")
@click.argument("name", shell_complete=options.complete_backends)
@options.as_json
def show(name: str, as_json: bool) -> None:
    """Show what one backend can do."""
    info = registry.backend_info(name)
    if as_json:
        output.answer_json(_as_data(info))
        return
    output.answer(f"{info.name}: {info.summary}")
    rows = [
        (
            "tasks",
            ", ".join(f"{task} ({info.tasks[task]})" for task in TASKS if task in info.tasks),
        ),
        *_weights(info),
        ("pictures", info.pictures),
        ("sizes", ", ".join(_size(size) for size in info.sizes)),
        ("model", info.default_model),
        ("also", ", ".join(other for other in info.models if other != info.default_model)),
        *(("needs", f"{part.repo}, {part.what}") for part in info.parts),
        ("memory", f"{info.memory_gb:g} GB"),
        *(("", f"{size:g} GB: {model}") for model, size in info.memory_by_model.items()),
        ("painting", f"{info.steps} steps, guidance {info.guidance:g}"),
        ("learning", f"{info.learn_steps} steps of {info.batch} lessons, rate {info.learn_rate:g}"),
        ("imports", ", ".join(_imports(info))),
        ("licence", info.licence),
        *(("note", note) for note in info.notes),
    ]
    for key, value in rows:
        if value:
            output.answer(f"  {key:<9} {value}")


@command.command(epilog="\b\nExamples:\n  op backends fetch nano\n  op backends fetch nano --json")
@click.argument("name", shell_complete=options.complete_backends)
@options.model
@options.offline
@options.as_json
def fetch(name: str, model: str | None, as_json: bool) -> None:
    """Download a backend's weights, to open it offline later."""
    info = registry.backend_info(name)
    repo = model or info.default_model
    known = {info.default_model, *info.models}
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is not None and known != {EMBEDDED}
    if repo not in known and not hub_id:
        guess = nearest(repo, known)
        raise UsageError(
            f"backend {name} has no weights called {repo!r}",
            hint=f"did you mean {guess}?" if guess else f"see `op backends show {name}`",
        )
    if repo != EMBEDDED and name in UNOPENED:
        raise MissingError(
            f"fetching {repo} is not possible in this version",
            hint="nano comes with its weights and needs no download: `-b nano`",
        )
    if repo == EMBEDDED:
        output.note(f"{name}: the weights are in the package, nothing to fetch.")
        fetched = False
    else:  # "A+B" are two repositories
        files = {part.repo: part.files for part in info.parts}
        parts = [part.repo for part in info.parts if repo in (part.models or known)]
        brought = [
            _fetch_from_hub(name, one, files.get(one, FETCHED))
            for one in (*repo.split("+"), *parts)
        ]
        fetched = any(brought)
    if as_json:
        output.answer_json({"backend": name, "model": repo, "fetched": fetched})


def _weights(info: BackendInfo) -> list[tuple[str, str]]:
    """A row for each task that has weights of its own."""
    return [
        ("weights", f"{info.weights[task]} to {task}") for task in TASKS if task in info.weights
    ]


def _fetch_from_hub(name: str, repo: str, wanted_files: Sequence[str]) -> bool:
    """Bring the files of ``repo`` that match into the hub's cache, saying first how much that is;
    False where they are there.

    Pickled weights are left behind. Raises MissingError where the hub cannot be reached or has no
    such repository, ResourceError where the disk is full.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise MissingError(
            f"{repo} cannot be fetched offline", hint="leave out --offline and HF_HUB_OFFLINE"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # the HTTP library's own error; which library that is varies with the hub's version
    unreachable: Any = HfHubHTTPError.__mro__[1]
    try:
        files: Any = snapshot_download(repo, allow_patterns=list(wanted_files), dry_run=True)
        wanted = [file for file in files if file.will_download]
        if not wanted:
            output.note(f"{name}: {repo} is here already, nothing to fetch.")
            return False
        size = sum(file.file_size or 0 for file in wanted) / 1e9
        output.note(f"{name}: fetching {repo} from huggingface.co, {size:.1f} GB …")
        folder = snapshot_download(repo, allow_patterns=list(wanted_files))
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, unreachable) as error:
        raise MissingError(
            f"{repo} could not be fetched: {_first_line(error)}",
            hint=f"check the network, then: op backends fetch {name} --model {repo}",
        ) from error
    except OSError as error:
        raise ResourceError(
            f"{repo} could not be written: {_first_line(error)}",
            hint="make room on the disk, or set HF_HOME to a folder on another one",
        ) from error
    output.note(f"{name}: the weights are in {folder}")
    return True


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _as_data(info: BackendInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "summary": info.summary,
        "tasks": {task: info.tasks[task] for task in TASKS if task in info.tasks},
        "default_model": info.default_model,
        "models": list(info.models),
        "weights": {task: info.weights[task] for task in TASKS if task in info.weights},
        "parts": [{"repo": part.repo, "what": part.what} for part in info.parts],
        "sizes": [list(size) for size in info.sizes],
        "pictures": info.pictures,
        "licence": info.licence,
        "memory_gb": info.memory_gb,
        "memory_by_model": dict(info.memory_by_model),
        "steps": info.steps,
        "guidance": info.guidance,
        "learn_steps": info.learn_steps,
        "learn_rate": info.learn_rate,
        "batch": info.batch,
        "imports": _imports(info),
        "notes": list(info.notes),
    }


def _imports(info: BackendInfo) -> list[str]:
    """Programs whose concepts become slots of this backend."""
    return [other.name for other in registry.importers().values() if other.backend == info.name]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
