"""Options that several commands share; each is a decorator.

``@options.opening`` is what a command needs that opens a backend; `together` hands such a group of
options to its command as one value. Every command gets ``-q`` and
``-v`` from `talking`; they reach `omnipersona_cli.cli.output` through the context and are not
parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omnipersona_cli.backend import DEVICES, DTYPES, Opening, is_device, memory_in
from omnipersona_cli.cli import output

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])


SETTINGS_ERROR = "omnipersona.settings_error"
"""Where a command that runs without settings finds what is wrong with them, in ``meta``."""


class Device(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """One of `DEVICES`, or one GPU of several by its number: ``cuda:1``."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The device in small letters, as torch writes it."""
        text = str(value).strip().lower()
        if not is_device(text):
            names = f"{', '.join(DEVICES)}, or cuda:1 for the second GPU"
            self.fail(f"{value!r} is not a device: write {names}", param, ctx)
        return text

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The plain names that start like ``incomplete``."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in DEVICES if name.startswith(incomplete)]


class Gigabytes(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """An amount of memory: ``12G``, ``12``, ``1.5 GB`` or ``800M``; GiB as a number."""

    name = "memory"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """GiB."""
        amount = memory_in(str(value))
        if not amount:
            self.fail(f"{value!r} is no amount of memory: write 12G or 800M", param, ctx)
        return amount


def complete_backends(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Installed backends that start like ``incomplete``."""
    from click.shell_completion import CompletionItem

    from omnipersona_cli import registry

    return [
        CompletionItem(name, help=info.summary)
        for name, info in registry.backends().items()
        if name.startswith(incomplete)
    ]


def complete_importers(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Programs whose concepts can be read that start like ``incomplete``."""
    from click.shell_completion import CompletionItem

    from omnipersona_cli import registry

    return [
        CompletionItem(name, help=info.summary)
        for name, info in registry.importers().items()
        if name.startswith(incomplete)
    ]


def complete_concepts(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Concepts of the library that start like ``incomplete``."""
    from click.shell_completion import CompletionItem

    from omnipersona_cli.concepts.library import Library

    start = incomplete.lstrip("<")
    return [CompletionItem(name) for name in Library().names() if name.startswith(start)]


def _remember(key: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[key] = True

    return keep


def _go_offline(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["HF_HUB_OFFLINE"] = "1"


backend = click.option(
    "-b",
    "--backend",
    metavar="NAME",
    envvar="OMNIPERSONA_BACKEND",
    shell_complete=complete_backends,
    help="Backend to use; see `op backends`.",
)
model = click.option(
    "--model",
    metavar="REPO",
    envvar="OMNIPERSONA_MODEL",
    help="Other weights for the backend: a hub id or a folder; ./A/B is always a folder.",
)
device = click.option(
    "--device",
    type=Device(),
    metavar="|".join((*DEVICES, "cuda:N")),
    default="auto",
    envvar="OMNIPERSONA_DEVICE",
    show_default=True,
    help="Where to compute; cuda:1 is the second GPU.",
)
dtype = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    envvar="OMNIPERSONA_DTYPE",
    help="Number format; smaller ones need less memory.",
)
memory = click.option(
    "--memory",
    type=Gigabytes(),
    metavar="12G",
    envvar="OMNIPERSONA_MEMORY",
    help="Memory that may be used; what keeps to it is chosen. [default: what is free]",
)
offload = click.option(
    "--offload",
    is_flag=True,
    envvar="OMNIPERSONA_OFFLOAD",
    help="Keep layers in the computer's memory; on the card only while they are used.",
)
quantize = click.option(
    "--quantize",
    type=click.Choice(("int8", "nf4")),
    envvar="OMNIPERSONA_QUANTIZE",
    help="Hold the understanding expert in 8 or 4 bits; needs omnipersona[quantize].",
)


def _seed(help_text: str) -> Callable[[F], F]:
    return click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        envvar="OMNIPERSONA_SEED",
        help=f"Same seed, same result. {help_text}",
    )


seed = _seed("Chosen and shown when not given.")
fixed_seed = _seed(" [default: 0]")
offline = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    envvar="OMNIPERSONA_OFFLINE",
    callback=_go_offline,
    help="Never use the network.",
)
concept = click.option(
    "--concept",
    "concepts",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_concepts,
    help="Concept to use, where the prompt does not name it; repeatable.",
)
max_tokens = click.option(
    "--max-tokens",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="The longest answer.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
quiet = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_remember(output.QUIET),
    help="No notes and no progress bars.",
)
verbose = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_remember(output.VERBOSE),
    help="Show the traceback of errors.",
)


def is_folders_name(path: str) -> bool:
    """Whether a place that may not be there yet is meant as a folder."""
    return path.endswith(("/", "\\"))


class NewFile(click.Path):
    """A file to write; the name of a folder is refused."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """The path."""
        if is_folders_name(str(value)):
            self.fail(f"{value} is a folder, and a file is wanted", param, ctx)
        return super().convert(value, param, ctx)


def together(
    name: str, make: Callable[..., Any], *chosen: Callable[[F], F]
) -> Callable[[F], Callable[..., Any]]:
    """A decorator that adds the options ``chosen``, and hands what was given of them to the command
    as one argument: ``name=make(option=value, ...)``. What was not given (None) is left out, so
    that the defaults of ``make`` stand."""

    def decorate(command: F) -> Callable[..., Any]:
        @wraps(command)
        def with_one_value(*arguments: Any, **given: Any) -> Any:
            own = {key: given.pop(key) for key in keys}
            made = make(**{key: value for key, value in own.items() if value is not None})
            return command(*arguments, **given, **{name: made})

        before = len(getattr(command, "__click_params__", ()))
        for option in reversed(chosen):
            option(with_one_value)
        added = with_one_value.__click_params__[before:]  # type: ignore[attr-defined]
        keys = [option.name for option in added if option.expose_value]
        return with_one_value

    return decorate


OPENING = (backend, model, device, dtype, memory, offload, quantize, offline)
opening = together("opening", Opening, *OPENING)
"""How to open a backend: ``-b``, ``--model``, ``--device``, ``--dtype``, ``--memory``,
``--offload``, ``--quantize``, ``--offline``."""


def talking(command: click.Command) -> click.Command:
    """``command`` and all its subcommands with ``-q`` and ``-v``; a flag that the command uses for
    something of its own stays what it is."""
    taken = {flag for parameter in command.params for flag in parameter.opts}
    for flag, option in (("-q", quiet), ("-v", verbose)):
        if flag not in taken:
            option(command)
    for subcommand in command.commands.values() if isinstance(command, click.Group) else ():
        talking(subcommand)
    return command
