"""The commands as Markdown, from click itself: usage, words of help, options and examples."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from omnipersona_cli.cli.main import HOUSEKEEPING, VERBS, cli


def commands() -> str:
    """Every command: verbs, then housekeeping, then what plugins add."""
    root = click.Context(cli, info_name="op")
    names = cli.list_commands(root)
    added = [name for name in names if name not in VERBS and name not in HOUSEKEEPING]
    groups = (
        ("The four verbs, and a conversation", [name for name in names if name in VERBS]),
        ("Keeping house", [name for name in names if name in HOUSEKEEPING]),
        ("Brought by plugins", added),
    )
    lines: list[str] = []
    for title, members in groups:
        if members:
            lines += [f"## {title}", ""]
        for name in members:
            command = cli.get_command(root, name)
            assert command is not None
            lines += _command(click.Context(command, info_name=name, parent=root), level=3)
    return "\n".join(lines)


def _command(context: click.Context, *, level: int) -> Iterator[str]:
    command, path = context.command, context.command_path
    yield f"{'#' * level} `{path}`"
    yield ""
    yield from _prose(command.help or "")
    yield "```text"
    yield f"{path} {' '.join(command.collect_usage_pieces(context))}"
    yield "```"
    yield ""
    yield from _options(command, context)
    yield from _examples(command)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(
                click.Context(inner, info_name=name, parent=context), level=min(level + 1, 6)
            )


def _prose(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).replace("\b", "").split("\n\n"):
        if paragraph.strip():
            yield _plain(" ".join(paragraph.split()))
            yield ""


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        names, said = record
        if said:  # an argument stands in the line of usage, and is explained in the words above
            rows.append(f"| `{names}` | {_plain(said)} |")
    if rows:
        yield "| option | what it does |"
        yield "| --- | --- |"
        yield from rows
        yield ""


def _examples(command: click.Command) -> Iterator[str]:
    text = inspect.cleandoc(command.epilog or "").replace("\b", "").strip()
    if text.startswith("Examples:"):
        yield "```console"
        for line in text.removeprefix("Examples:").strip().splitlines():
            for one in line.strip().split("  |  "):
                yield f"$ {one.strip()}"
        yield "```"
        yield ""


def _plain(text: str) -> str:
    """Angle brackets that Markdown would take for HTML, escaped outside code."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        parts[index] = parts[index].replace("<", "&lt;").replace(">", "&gt;").replace("*", "\\*")
    return "`".join(parts)
