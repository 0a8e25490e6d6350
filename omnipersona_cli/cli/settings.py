"""Settings from files and variables: which option each of them fills, and where a value is from.

An option is called by its long name everywhere: ``--no-report`` is ``learn: {no-report: yes}`` in a
file and ``OMNIPERSONA_LEARN_NO_REPORT`` as a variable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from omnipersona_cli import config
from omnipersona_cli.errors import UsageError, nearest, shell_word

if TYPE_CHECKING:
    from omnipersona_cli.reading import Tree

PREFIX = "OMNIPERSONA"
"""How every variable begins."""
SHARED = ("backend", "model", "device", "dtype", "memory", "offload", "quantize", "seed", "offline")
"""What may stand at the top of a settings file."""
WITHOUT_OPTION = ("HOME", "DISABLE", "SERVER", "TOKEN", "VLM", "CLIP", "DINO", "GOLDENS")
"""Variables that belong to no option, without `PREFIX`: one word, or all that begin with it."""


def long_name(option: click.Option) -> str:
    """The first long flag without its dashes; empty for an option that has none."""
    return next((flag[2:] for flag in option.opts if flag.startswith("--")), "")


def options_of(command: click.Command) -> dict[str, click.Option]:
    """A command's options by long name."""
    options = (parameter for parameter in command.params if isinstance(parameter, click.Option))
    return {long_name(option): option for option in options if long_name(option)}


def read_variables(command: click.Command, *path: str) -> None:
    """Let every option of ``command`` (reached as ``op`` ``path``) and of its subcommands be filled
    by ``OMNIPERSONA_PATH_OPTION``, before the variable that it shares with other commands."""
    for name, option in options_of(command).items():
        shared = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
        own = variable(*path, name)
        option.envvar = [own, *(one for one in shared if one != own)]
    for name, subcommand in _subcommands(command):
        read_variables(subcommand, *path, name)


def variable(*words: str) -> str:
    """The variable of an option: `PREFIX`, the commands, the long name."""
    return "_".join((PREFIX, *words)).replace("-", "_").upper()


def defaults(command: click.Command, settings: dict[str, Tree], *path: str) -> dict[str, Any]:
    """click's ``default_map`` of ``command`` from the settings of all files.

    Raises UsageError for a key that is neither an option nor a subcommand, with its file and line.
    """
    shared: dict[str, Tree] = {
        key: value for key, value in settings.items() if not isinstance(value, dict)
    }
    section = settings.get(path[0], {})
    return _defaults(command, section if isinstance(section, dict) else {}, shared, path)


def _defaults(
    command: click.Command, section: dict[str, Tree], shared: dict[str, Tree], path: tuple[str, ...]
) -> dict[str, Any]:
    options = options_of(command)
    below = dict(_subcommands(command))
    filled: dict[str, Any] = {}
    for key in section:
        _check_known((*path, key), [*options, *below], "option", f" of `op {' '.join(path)}`")
    for key, value in {**shared, **section}.items():
        option = options.get(key)
        if option is not None and option.name:
            filled[option.name] = _value(option, value, (*path, key))
    for name, subcommand in below.items():
        own = section.get(name, {})
        filled[name] = _defaults(
            subcommand, own if isinstance(own, dict) else {}, shared, (*path, name)
        )
    return filled


def _value(option: click.Option, value: Tree, keys: tuple[str, ...]) -> Tree:
    """What click takes for the option: a list where it is repeatable, else one text."""
    if option.multiple and isinstance(value, str):
        return [value]
    if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
        raise UsageError(
            f"the setting {keys[-1]!r}{_placed(keys)} is one value, not several",
            hint=f"write it as one line, `{keys[-1]}: VALUE`; see `op help config`",
        )
    return value


def check_top(
    settings: dict[str, Tree],
    names: Iterable[str],
    verbs: Callable[[], Mapping[str, click.Command]],
) -> None:
    """What stands at the top is a command's section or shared by all commands. Raises UsageError
    with file and line; for an option of some ``verbs`` alone, which are loaded then, it says of
    which."""
    known = list(names)
    for key, value in settings.items():
        section = isinstance(value, dict)
        if key in (known if section else SHARED):
            continue
        if key == "server":
            from omnipersona_cli.cli.server import named_by_a_file

            raise named_by_a_file(_placed((key,)))
        owners = [name for name, verb in verbs().items() if key in options_of(verb)]
        if owners and not section:
            raise UsageError(
                f"the setting {key!r} belongs in a command's section{_placed((key,))}",
                hint=f"write `{owners[0]}: {{{key}: {_shown(value)}}}`; "
                f"it is an option of {', '.join(owners)}",
            )
        _check_known((key,), known if section else SHARED, "command" if section else "setting")


def _shown(value: Tree) -> str:
    """A value for a hint; one that is long or no text is left to the reader."""
    return value if isinstance(value, str) and 0 < len(value) < 40 else "…"


def unknown_variables(command: click.Command, *path: str) -> Iterator[str]:
    """A sentence for each ``OMNIPERSONA_*`` variable that looks as if it were meant for ``command``
    and fills nothing."""
    known = {name for option in options_of(command).values() for name in option.envvar or ()}
    known |= {known for _, sub in _subcommands(command) for known in _variables(sub)}
    known |= {variable(name) for name in (*SHARED, *WITHOUT_OPTION)}
    for name in sorted(os.environ):
        if name in known or not name.startswith(f"{PREFIX}_"):
            continue
        if any(name.startswith(f"{PREFIX}_{word}_") for word in WITHOUT_OPTION):
            continue
        guess = nearest(name, known - {variable("GOLDENS")})  # which tests read
        if guess or name.startswith(variable(*path, "")):
            yield f"the variable {name} fills no option" + (f"; is it {guess}?" if guess else "")


def _variables(command: click.Command) -> set[str]:
    own = {name for option in options_of(command).values() for name in option.envvar or ()}
    return own.union(*(_variables(sub) for _, sub in _subcommands(command)))


def source_of(error: click.BadParameter) -> tuple[str, str]:
    """For a bad value that was not on the command line: where it is from, to be told after the
    error, and how to mend it; two empty texts otherwise."""
    ctx, option = error.ctx, error.param
    if ctx is None or not isinstance(option, click.Option) or not option.name:
        return "", ""
    source = ctx.get_parameter_source(option.name)
    if source is ParameterSource.ENVIRONMENT:
        name = next((one for one in option.envvar or () if os.environ.get(one)), "")
        return f" (from {name})", f"change it, or: unset {name}"
    if source is ParameterSource.DEFAULT_MAP:
        found = place(ctx, long_name(option))
        if found:
            path, line = found
            return f" ({path}, line {line})", f"mend that line: ${{EDITOR:-vi}} {shell_word(path)}"
    return "", ""


def place(ctx: click.Context, setting: str) -> tuple[str, int] | None:
    """The file and line that decide ``setting`` for the command of ``ctx``."""
    path = ctx.command_path.split()[1:]
    found = config.place_of(*path, setting) or config.place_of(setting)
    return (str(found[0]), found[1]) if found else None


def _placed(keys: tuple[str, ...]) -> str:
    found = config.place_of(*keys)
    return f" ({found[0]}, line {found[1]})" if found else ""


def _check_known(keys: tuple[str, ...], known: Iterable[str], what: str, of: str = "") -> None:
    names = list(known)
    if keys[-1] not in names:
        guess = nearest(keys[-1], names)
        raise UsageError(
            f"a settings file names the unknown {what} {keys[-1]!r}{of}{_placed(keys)}",
            hint=f"did you mean {guess!r}? See `op help config`" if guess else "`op help config`",
        )


def _subcommands(command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        yield from command.commands.items()
