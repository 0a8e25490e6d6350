"""The `op` command: find the subcommand, run it, turn errors into words and exit codes.

Commands are listed from a table and imported when they run; plugins add theirs through
``op_commands``. Exit codes: 0 done, 1 failed for a stated reason, 2 wrong usage, 3 something named
is not here, 130 interrupted. A bug keeps its traceback.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

import click

from omnipersona_cli import __version__, config
from omnipersona_cli.cli import options, output, settings
from omnipersona_cli.cli.options import SETTINGS_ERROR
from omnipersona_cli.cli.signals import ending_like_ctrl_c
from omnipersona_cli.cli.streams import mend_streams
from omnipersona_cli.errors import (
    MissingError,
    PersonaError,
    ResourceError,
    UsageError,
    memory_ran_out,
    nearest,
)

INTERRUPTED = 130

BUG = "This is a bug in op. Please report it together with what `op doctor` prints."


class Command(NamedTuple):
    """One line of the command table: shown by `op --help`, imported when run."""

    summary: str
    command: str
    """``"module:click_command"``."""


VERBS = {
    "learn": Command("Learn a concept from photos.", "omnipersona_cli.cli.learn:command"),
    "gen": Command("Paint a picture of what was learned.", "omnipersona_cli.cli.gen:command"),
    "edit": Command("Change a picture.", "omnipersona_cli.cli.edit:command"),
    "ask": Command("Answer a question, about a picture or not.", "omnipersona_cli.cli.ask:command"),
    "chat": Command("Ask on, line by line.", "omnipersona_cli.cli.chat:command"),
}
HOUSEKEEPING = {
    "concepts": Command("List and keep what was learned.", "omnipersona_cli.cli.concepts:command"),
    "backends": Command("List the models that can learn.", "omnipersona_cli.cli.backends:command"),
    "bench": Command("Measure a backend on a benchmark.", "omnipersona_cli.cli.bench:command"),
    "doctor": Command("Show versions, devices and settings.", "omnipersona_cli.cli.doctor:command"),
    "completion": Command(
        "Print the completion script of a shell.", "omnipersona_cli.cli.completion:command"
    ),
    "help": Command("Explain a command or a topic.", "omnipersona_cli.cli.help:command"),
}
WITHOUT_SETTINGS = ("completion", "doctor", "help")
"""Commands that must work when a settings file does not."""


class Failure(click.ClickException):
    """An expected failure on its way out through click, which gives it the last word."""

    def __init__(self, error: PersonaError, *, show_traceback: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.exit_code = error.exit_code  # type: ignore[misc]  # a class variable for click alone
        self.show_traceback = show_traceback

    def show(self, file: IO[Any] | None = None) -> None:
        """Print what happened and the hint."""
        output.fail(self.error, show_traceback=self.show_traceback)


class Op(click.Group):
    """A group that lists every command and imports only the one that runs.

    Every command, a plugin's too, takes ``-q`` and ``-v``. Plugins that something was asked of and
    that failed are told of in one line each, after the answer.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs, housekeeping, then what plugins add."""
        return [*VERBS, *HOUSEKEEPING, *_added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None for a name that nobody knows."""
        from omnipersona_cli.registry import load

        entry = VERBS.get(cmd_name) or HOUSEKEEPING.get(cmd_name)
        if entry is not None:
            return _ready(load(entry.command), cmd_name)
        entry = _added().get(cmd_name)
        if entry is None:
            return None
        try:
            command = load(entry.command)
            if not isinstance(command, click.Command):
                raise TypeError(f"{entry.command} is not a click command")
        except (Exception, SystemExit) as error:  # a stranger's code
            if ctx.resilient_parsing:  # a shell asks for completions: the others are still good
                return None
            raise MissingError(
                f"the command {cmd_name} of a plugin cannot be loaded: "
                f"{type(error).__name__}: {error}",
                hint="see which plugin brings it: op doctor",
            ) from error
        return _ready(command, cmd_name)

    def verbs(self, ctx: click.Context) -> dict[str, click.Command]:
        """The verbs by name, imported now."""
        found = {name: self.get_command(ctx, name) for name in VERBS}
        return {name: command for name, command in found.items() if command is not None}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """click's, with the nearest name suggested for an unknown one."""
        name = args[0]
        built_in = name in VERBS or name in HOUSEKEEPING  # asked first: it needs no plugins
        if not built_in and not name.startswith("-") and name not in _added():
            guess = nearest(name, self.list_commands(ctx))
            raise UsageError(
                f"there is no command {name!r}",
                hint=f"did you mean `op {guess}`? See `op --help`" if guess else "see `op --help`",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, in three sections, without importing a command."""
        sections = {"Commands": VERBS, "Housekeeping": HOUSEKEEPING, "From plugins": _added()}
        for title, entries in sections.items():
            if entries:
                with formatter.section(title):
                    formatter.write_dl([(name, entry.summary) for name, entry in entries.items()])

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """click's, with wrong usage told in our words."""
        mend_streams()
        with _in_our_words():
            try:
                return super().make_context(info_name, args, parent, **extra)
            except click.exceptions.Exit:  # after `op --help`
                _warn_of_plugins()
                raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; expected errors leave as `Failure`, bugs as they are."""
        with ending_like_ctrl_c(), _in_our_words():
            try:
                return super().invoke(ctx)
            except (KeyboardInterrupt, EOFError, click.Abort):
                output.note("Interrupted.")
                if output.WHEN_INTERRUPTED in ctx.meta:
                    output.hint(ctx.meta[output.WHEN_INTERRUPTED])
                ctx.exit(INTERRUPTED)
            finally:
                if ctx.invoked_subcommand != "doctor":  # whose answer they are
                    _warn_of_plugins()


def _ready(command: click.Command, name: str) -> click.Command:
    """With what every command takes: ``-q`` and ``-v``, and a variable for each option."""
    options.talking(command)
    settings.read_variables(command, name)
    return command


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except (click.exceptions.Exit, click.Abort, Failure):
        raise
    except Exception as error:
        expected = _expected(error)
        if expected is not None:
            raise Failure(expected, show_traceback=output.verbose()) from error
        if not isinstance(error, click.ClickException) and not _closed_pipe(error):
            error.add_note(BUG)
        raise


def _expected(error: Exception) -> PersonaError | None:
    """The failure in a person's words; None when nobody expected it."""
    if isinstance(error, PersonaError):
        return error
    if isinstance(error, click.UsageError):
        where, mend = (
            settings.source_of(error) if isinstance(error, click.BadParameter) else ("", "")
        )
        told: PersonaError = UsageError(
            f"{error.format_message().rstrip('.') if where else error.format_message()}{where}",
            hint=mend or _usage_hint(error),
        )
    elif memory_ran_out(error):
        told = ResourceError(
            "there is not enough memory",
            hint="try a smaller --size, `--dtype bfloat16`, or the small model: `-b nano`",
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        told = ResourceError(
            f"the disk is full{_at(error)}", hint="free some space, or name another place with -o"
        )
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        told = UsageError(
            f"{str(error.filename)[:40]} … is too long to be the name of a file",
            hint='name a shorter one; words for the model come after it, in quotes: "<bo> is here"',
        )
    elif isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        told = ResourceError(
            f"permission denied{_at(error)}",
            hint="name a place that you may use with -o, or set OMNIPERSONA_HOME",
        )
    elif isinstance(error, OSError) and error.errno in _DISK:
        told = ResourceError(
            f"the disk failed{_at(error)}: {str(error.strerror).lower()}",
            hint="try again; if it stays, look at the disk: dmesg | tail",
        )
    else:
        return None
    told.__cause__ = error
    return told


_DISK = {
    getattr(errno, name)
    for name in ("EIO", "EINTR", "ESTALE", "ENXIO", "ENODEV", "ETIMEDOUT", "ENOLCK", "EREMOTEIO")
    if hasattr(errno, name)
}
"""What a disk, or a network that stands for one, says when it fails."""


def _usage_hint(error: click.UsageError) -> str:
    """Words that a shell has split, and a name that it read as a redirection, want quotes."""
    path = error.ctx.command_path if error.ctx else "op"
    examples = {"gen": '"<bo> at the beach"', "edit": 'photo.png "add <bo>"'}
    example = examples.get(error.ctx.info_name or "" if error.ctx else "")
    if example and "unexpected extra argument" in error.format_message():
        return f"quote the words, angle brackets too: {path} {example}; see `op help shell`"
    return f"see `{path} --help`"


def _closed_pipe(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _at(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _added() -> dict[str, Command]:
    """What plugins add. A built-in command cannot be replaced."""
    from omnipersona_cli.registry import commands

    known = commands(reserved=(*VERBS, *HOUSEKEEPING))
    return {name: Command(info.summary, info.command) for name, info in known.items()}


def _warn_of_plugins() -> None:
    """One line for each thing of a plugin that is left out; nothing where no plugin was asked."""
    registry = sys.modules.get("omnipersona_cli.registry")
    for problem in registry.problems_so_far() if registry else ():
        output.warn(f"plugin {problem.plugin}: {problem.message}; see `op doctor`")


@click.group(
    cls=Op,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    epilog="\b\nExamples:\n  op toy photos ./bo\n  op learn ./bo --name bo\n  op help shell",
)
@click.version_option(__version__, prog_name="op")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Teach unified multimodal models a person, a pet or a thing."""
    ctx.color = output.colour()
    if ctx.invoked_subcommand is None:
        output.answer(ctx.get_help())
        return
    try:
        _fill_options(ctx, ctx.invoked_subcommand)
    except PersonaError as error:
        if ctx.invoked_subcommand not in WITHOUT_SETTINGS:
            raise
        ctx.meta[SETTINGS_ERROR] = error


def _fill_options(ctx: click.Context, name: str) -> None:
    """From the files of settings; variables that fill nothing are told of."""
    found = config.load_config()
    names = [*VERBS, *HOUSEKEEPING]
    if not found.keys() <= {*names, *settings.SHARED}:
        names += _added()
    group = cast(Op, ctx.command)
    settings.check_top(found, names, lambda: group.verbs(ctx))
    command = group.get_command(ctx, name)
    if command is not None:
        ctx.default_map = {name: settings.defaults(command, found, name)}
        for sentence in settings.unknown_variables(command, name):
            output.warn(sentence)
