"""`op serve` and `op mcp`, as commands. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import click

from omnipersona_cli.backend import (
    DEVICES,
    DTYPES,
    Opening,
    Quantize,
    is_device,
    memory_in,
)
from omnipersona_cli.errors import UsageError
from op_serve.needs import need

HELP = {"help_option_names": ["-h", "--help"]}


def _device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not is_device(value):
        raise click.BadParameter(f"{value!r} is not a device: {', '.join(DEVICES)}, or cuda:1")
    return value


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> float:
    amount = 0.0 if value is None else memory_in(value)
    if value is not None and not amount:
        raise click.BadParameter(f"{value!r} is no amount of memory: write 12G or 800M")
    return amount


def opening(command: Any) -> Any:
    """How to open the backend, as for every verb; `_opening` reads it."""
    for option in (
        click.option(
            "--offline", is_flag=True, envvar="OMNIPERSONA_OFFLINE", help="Never use the network."
        ),
        click.option(
            "--quantize",
            type=click.Choice(("int8", "nf4")),
            envvar="OMNIPERSONA_QUANTIZE",
            help="Hold the understanding expert in 8 or 4 bits; needs omnipersona[quantize].",
        ),
        click.option(
            "--offload",
            is_flag=True,
            envvar="OMNIPERSONA_OFFLOAD",
            help="Keep layers in the computer's memory; on the card only while they are used.",
        ),
        click.option(
            "--memory",
            metavar="12G",
            envvar="OMNIPERSONA_MEMORY",
            callback=_memory,
            help="Memory that may be used; what keeps to it is chosen. [default: what is free]",
        ),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            envvar="OMNIPERSONA_DTYPE",
            help="Number format; smaller ones need less memory.",
        ),
        click.option(
            "--device",
            metavar="|".join((*DEVICES, "cuda:N")),
            default="auto",
            show_default=True,
            envvar="OMNIPERSONA_DEVICE",
            callback=_device,
            help="Where to compute; cuda:1 is the second GPU.",
        ),
        click.option("--model", metavar="REPO", envvar="OMNIPERSONA_MODEL", help="Other weights."),
        click.option(
            "-b", "--backend", metavar="NAME", envvar="OMNIPERSONA_BACKEND", help="Which backend."
        ),
    ):
        command = option(command)
    return command


def _opening(
    *, offline: bool, backend: str | None, quantize: Quantize | None, **given: Any
) -> Opening:
    """What the options of `opening` say; with ``--offline`` the network is left alone from now."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return Opening(backend=backend or "", quantize=quantize or "", **given)


@click.command(
    context_settings=HELP,
    epilog="\b\nExamples:\n  op serve\n  op serve -b bagel --memory 16G --idle-unload 30\n"
    "  op serve --no-token --concepts bo,mam --port 9000",
)
@opening
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--token",
    metavar="TEXT",
    envvar="OMNIPERSONA_TOKEN",
    help="What clients have to show. [default: a new one]",
)
@click.option("--no-token", is_flag=True, help="Let every program on this machine in.")
@click.option("--concepts", metavar="A,B", help="Serve these concepts only, and learn none.")
@click.option(
    "--max-queue",
    type=click.IntRange(1, 10_000),
    default=16,
    show_default=True,
    help="How many requests may wait.",
)
@click.option(
    "--idle-unload",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    help="Let the model go when nothing was asked for so long.",
)
@click.option(
    "--metadata",
    type=click.Choice(("full", "minimal", "none")),
    default="full",
    show_default=True,
    help="How much pictures say of how they were made.",
)
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="Another name of this server."
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="A server whose pages may talk to this one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the address alone.")
@click.option("-v", "--verbose", is_flag=True, help="Log every request.")
def serve(
    host: str,
    port: int,
    token: str | None,
    no_token: bool,
    concepts: str | None,
    max_queue: int,
    idle_unload: float | None,
    metadata: Any,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **how: Any,
) -> None:
    """Keep the model open: for the page in your browser, for programs that speak the OpenAI
    dialect, and for agents (MCP).

    The address, with its token, is printed on stdout. Ctrl-C stops it; what is being learned
    keeps its place, and can go on after the next start.
    """
    need("serve", "starlette", "uvicorn", "python_multipart")
    if token is not None and no_token:
        raise UsageError("a token and none were asked for", hint="give --token or --no-token")
    if token == "":
        raise UsageError("the token is empty", hint="op serve --no-token lets everybody in")
    from op_serve import running

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    if verbose:
        logging.getLogger("op_serve").setLevel(logging.INFO)
    running.serve(
        running.Serving(
            opening=_opening(**how),
            host=host,
            port=port,
            token="" if no_token else token,
            only=_names(concepts),
            most_waiting=max_queue,
            idle_seconds=None if idle_unload is None else 60 * idle_unload,
            metadata=metadata,
            hosts=hosts,
            origins=origins,
        ),
        say=lambda line: None if quiet else click.echo(line, err=True),
        answer=lambda address: click.echo(json.dumps({"address": address}) if as_json else address),
    )


@click.command(
    context_settings=HELP,
    epilog="\b\nExamples:\n  op mcp\n  op mcp --root ~/Pictures --root /tmp/art\n"
    '  {"command": "op", "args": ["mcp", "--root", "/home/me/Pictures"]}',
)
@opening
@click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder whose pictures the agent may use. [default: the current one]",
)
@click.option("--concepts", metavar="A,B", help="Serve these concepts only, and learn none.")
def mcp(
    roots: tuple[Path, ...],
    concepts: str | None,
    **how: Any,
) -> None:
    """Serve an agent that started this as its tool: ask, paint, edit, learn, and the concepts.

    It speaks MCP on stdin and stdout. Pictures are named by absolute paths below the --root
    folders; everything else on this machine stays closed.
    """
    need("mcp", "mcp.server.mcpserver", "anyio")
    from op_serve import running

    running.serve_agent(
        _opening(**how),
        roots=[root.resolve() for root in roots or (Path(),)],
        only=_names(concepts),
    )


def _names(concepts: str | None) -> frozenset[str] | None:
    from omnipersona_cli.language.mentions import check_name

    if concepts is None:
        return None
    return frozenset(check_name(name.strip()) for name in concepts.split(",") if name.strip())
