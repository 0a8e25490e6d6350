"""The command as a whole: help, errors in words, exit codes, settings."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from omnipersona_cli import __version__
from omnipersona_cli.cli import main, options
from omnipersona_cli.errors import MissingError, PackError, PersonaError, UsageError

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """`op` in this process; bugs are raised, as Python would show them."""

    def invoke(*args: str, input: str | None = None) -> Result:
        return CliRunner().invoke(main.cli, args, input=input, prog_name="op")

    return invoke


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Makes `op gen` do what the test wants."""

    def replace(body: Callable[[], object]) -> None:
        @click.command()
        @options.opening
        @options.quiet
        @options.verbose
        def command(**settings: object) -> None:
            body()

        monkeypatch.setattr(main, "gen_of_the_test", command, raising=False)
        entry = main.Command("A test.", "omnipersona_cli.cli.main:gen_of_the_test")
        monkeypatch.setitem(main.VERBS, "gen", entry)

    return replace


def failing(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


def test_bare_op_shows_help(run: Run) -> None:
    bare = run()
    assert bare.exit_code == 0
    assert bare.stdout == run("--help").stdout == run("-h").stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"op, version {__version__}\n"


def test_verbs_come_first_housekeeping_after_plugins_last(run: Run) -> None:
    listed = re.findall(r"^  (\w+)  ", run("--help").stdout, re.MULTILINE)
    ours = [*main.VERBS, *main.HOUSEKEEPING]
    assert listed[: len(ours)] == ours
    assert "toy" in listed[len(ours) :]


def test_summaries_are_short_sentences() -> None:
    entries = {**main.VERBS, **main.HOUSEKEEPING, **main._added()}
    for entry in entries.values():
        assert len(entry.summary) < 60 and entry.summary.endswith(".")


@pytest.mark.parametrize("name", [*main.VERBS, *main.HOUSEKEEPING, "toy"])
def test_every_command_has_help_that_ends_with_examples(run: Run, name: str) -> None:
    for flag in ("-h", "--help"):
        shown = run(name, flag)
        assert shown.exit_code == 0, shown.output
        assert re.search(rf"Examples?:.*op {name}", shown.stdout.split("Options:")[-1], re.DOTALL)


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand by what is typed, plugins' too."""

    def under(path: str, ctx: click.Context) -> Iterator[tuple[str, click.Command]]:
        group = ctx.command
        assert isinstance(group, click.Group)
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            yield f"{path} {name}", command
            if isinstance(command, click.Group):
                yield from under(f"{path} {name}", click.Context(command, parent=ctx))

    yield from under("op", click.Context(main.cli))


COMMANDS = dict(all_commands())


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_command_can_be_quiet_and_verbose(typed: str) -> None:
    flags = [flag for parameter in COMMANDS[typed].params for flag in parameter.opts]
    for flag in ("-q", "--quiet", "-v", "--verbose"):
        assert flags.count(flag) == 1, f"{typed} {flag}"


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_option_says_what_it_does(typed: str) -> None:
    given = [one for one in COMMANDS[typed].params if isinstance(one, click.Option)]
    assert [one.opts for one in given if not one.help] == []


@pytest.mark.parametrize(
    "typed",
    [
        typed
        for typed, command in COMMANDS.items()
        if typed != "op mcp"  # what it prints is the protocol
        and not (isinstance(command, click.Group) and not command.invoke_without_command)
    ],
)
def test_every_command_that_answers_can_answer_in_json(typed: str) -> None:
    assert "--json" in [flag for param in COMMANDS[typed].params for flag in param.opts]


@pytest.mark.parametrize("device", ["cpu", "CUDA", "cuda:1", "mps", "auto"])
def test_device_may_name_one_gpu_of_several(run: Run, device: str) -> None:
    found = json.loads(run("doctor", "-q", "--json", "--device", device).stdout)
    assert {"name": "device", "value": device.lower(), "source": "flag"} in found["settings"]


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "gpu", "cpu:0", "cuda:123"])
def test_device_that_cannot_be_is_wrong_usage(run: Run, device: str) -> None:
    result = run("gen", "a dog", "--device", device)
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert f"{device!r} is not a device: write auto, cpu, cuda, mps, or cuda:1" in error
    assert hint == "Hint: see `op gen --help`"


def test_unknown_command_suggests_the_nearest(run: Run) -> None:
    result = run("lern")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "Error: there is no command 'lern'",
        "Hint: did you mean `op learn`? See `op --help`",
    ]


def test_unknown_option_is_wrong_usage_in_one_line_and_a_hint(run: Run) -> None:
    result = run("backends", "--jsn")
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error.startswith("Error: No such option '--jsn'")
    assert hint == "Hint: see `op backends --help`"


def test_unknown_option_of_op_itself_is_wrong_usage_too(run: Run) -> None:
    result = run("--nope")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "Hint: see `op --help`")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PersonaError("it failed", hint="do this"), 1),
        (PackError("it failed", hint="do this"), 1),
        (UsageError("it failed", hint="do this"), 2),
        (MissingError("it failed", hint="do this"), 3),
    ],
)
def test_expected_error_is_two_lines_and_its_exit_code(
    run: Run, verb: Callable[..., None], error: PersonaError, code: int
) -> None:
    verb(failing(error))
    result = run("gen")
    assert result.exit_code == code
    assert (result.stdout, result.stderr) == ("", "Error: it failed\nHint: do this\n")


def test_error_stays_one_line_whatever_it_says(run: Run, verb: Callable[..., None]) -> None:
    verb(failing(PersonaError("two\nlines")))
    assert run("gen").stderr == "Error: two lines\n"


def test_verbose_shows_the_traceback_of_an_expected_error(
    run: Run, verb: Callable[..., None]
) -> None:
    verb(failing(PersonaError("it failed")))
    result = run("gen", "-v")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("Error: it failed\n")


def test_bug_keeps_its_traceback_and_asks_for_a_report(run: Run, verb: Callable[..., None]) -> None:
    verb(failing(KeyError("oops")))
    result = run("gen")
    assert isinstance(result.exception, KeyError)
    assert result.exception.__notes__ == [main.BUG]
    assert "op doctor" in main.BUG


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort(), EOFError()])
def test_interruption_exits_130(run: Run, verb: Callable[..., None], error: BaseException) -> None:
    verb(failing(error))
    result = run("gen")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_a_commands_own_exit_code_passes_through(run: Run, verb: Callable[..., None]) -> None:
    verb(lambda: click.get_current_context().exit(1))
    result = run("gen")
    assert (result.exit_code, result.stderr) == (1, "")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "denied: /root/x"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "denied: /x"),
    ],
)
def test_what_the_machine_lacks_is_an_expected_error(
    run: Run, verb: Callable[..., None], error: Exception, words: str
) -> None:
    verb(failing(error))
    result = run("gen")
    assert result.exit_code == 1
    assert words in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("Hint: ")


def test_out_of_gpu_memory_hints_at_a_smaller_model(run: Run, verb: Callable[..., None]) -> None:
    import torch

    verb(failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")))
    result = run("gen")
    assert result.exit_code == 1
    assert "-b nano" in result.stderr


def test_other_errors_of_torch_stay_bugs(run: Run, verb: Callable[..., None]) -> None:
    verb(failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    assert isinstance(run("gen").exception, RuntimeError)


def settings_seen(run: Run, verb: Callable[..., None], *args: str) -> dict[str, object]:
    seen: dict[str, object] = {}
    verb(lambda: seen.update(click.get_current_context().params))
    result = run("gen", *args)
    assert result.exit_code == 0, result.output
    return seen


def test_flag_beats_variable_beats_project_beats_user_beats_default(
    run: Run,
    verb: Callable[..., None],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_seen(run, verb)["device"] == "auto"
    home.mkdir()
    (home / "config.yaml").write_text("device: mps\nbackend: from-user\n")
    assert settings_seen(run, verb)["device"] == "mps"
    (tmp_path / "omnipersona.yaml").write_text("gen: {device: cuda}\n")
    assert settings_seen(run, verb)["device"] == "cuda"
    monkeypatch.setenv("OMNIPERSONA_DEVICE", "cpu")
    assert settings_seen(run, verb)["device"] == "cpu"
    monkeypatch.setenv("OMNIPERSONA_BACKEND", "from-variable")
    seen = settings_seen(run, verb, "--device", "auto")
    assert (seen["device"], seen["backend"]) == ("auto", "from-variable")


@pytest.mark.parametrize(
    ("content", "words", "hint"),
    [
        ("bakend: nano\n", "unknown setting 'bakend'", "did you mean 'backend'?"),
        ("gne: {steps: 3}\n", "unknown command 'gne'", "did you mean 'gen'?"),
        ("backend: [\n", "not YAML", "op help config"),
    ],
)
def test_broken_settings_stop_a_verb_but_not_help_and_doctor(
    run: Run,
    verb: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    words: str,
    hint: str,
) -> None:
    verb(lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omnipersona.yaml").write_text(content)
    result = run("gen")
    assert result.exit_code == 2
    assert words in result.stderr and hint in result.stderr
    assert run("help", "config").exit_code == 0
    assert words in run("doctor").stdout


def test_section_of_a_plugins_command_is_accepted(
    run: Run, verb: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb(lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omnipersona.yaml").write_text("toy: {seed: 3}\n")
    assert run("gen").exit_code == 0


def test_unknown_option_in_a_section_is_refused(
    run: Run, verb: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb(lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omnipersona.yaml").write_text("gen: {devise: cpu}\n")
    result = run("gen")
    assert result.exit_code == 2
    assert "unknown option 'devise' of `op gen`" in result.stderr and "'device'" in result.stderr


def test_offline_forbids_the_hub(
    run: Run, verb: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    seen = []
    verb(lambda: seen.append(os.environ["HF_HUB_OFFLINE"]))
    assert run("gen", "--offline").exit_code == 0
    assert seen == ["1"]


def test_interrupt_of_the_real_process_exits_130(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "from omnipersona_cli.cli import doctor, main\n"
        # A suite that runs in the background inherits interrupts that are ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(): print('ready', flush=True); time.sleep(30)\n"
        "doctor._devices = wait\n"
        "main.cli(['doctor'], prog_name='op')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "Interrupted.\n")


def test_closed_pipe_is_no_bug() -> None:
    op = f"'{sys.executable}' -m omnipersona_cli"
    done = subprocess.run(
        ["sh", "-c", f"{op} help | true"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
