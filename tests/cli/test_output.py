"""What goes to stdout, what to stderr, and what -q, NO_COLOR and a terminal change."""

import io
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from omnipersona_cli.cli import options, output
from omnipersona_cli.errors import PersonaError, UsageError
from omnipersona_cli.hookspecs import Progress


def run(body: Callable[[], object], *args: str, color: bool = False) -> Result:
    @click.command()
    @options.quiet
    @options.verbose
    def command() -> None:
        body()

    return CliRunner().invoke(command, args, color=color, catch_exceptions=False)


def everything() -> None:
    output.answer(Path("bo.png"))
    output.note("a note")
    output.warn("a warning")
    output.hint("a hint")
    output.fail(PersonaError("it failed", hint="mend it"))


def test_only_the_answer_is_on_stdout() -> None:
    result = run(everything)
    assert result.stdout == "bo.png\n"
    assert result.stderr.splitlines() == [
        "a note",
        "Warning: a warning",
        "Hint: a hint",
        "Error: it failed",
        "Hint: mend it",
    ]


def test_quiet_silences_notes_but_no_warning_and_no_error() -> None:
    result = run(everything, "-q")
    assert result.stdout == "bo.png\n"
    assert result.stderr.splitlines() == [
        "Warning: a warning",
        "Error: it failed",
        "Hint: mend it",
    ]


def test_errors_are_coloured_on_a_terminal_and_not_under_no_color(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "\x1b[" in run(everything, color=True).stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run(everything, color=True).stderr
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in run(everything, color=True).stderr


def test_json_is_one_document_that_keeps_its_letters() -> None:
    result = run(lambda: output.answer_json([{"name": "bö", "path": Path("x")}]))
    assert json.loads(result.stdout) == [{"name": "bö", "path": "x"}]
    assert "bö" in result.stdout


def test_bytes_go_to_stdout_unchanged() -> None:
    assert run(lambda: output.answer_bytes(b"\x89PNG\r\n")).stdout_bytes == b"\x89PNG\r\n"


def test_bytes_never_go_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(UsageError, match="terminal"):
        output.answer_bytes(b"\x89PNG")


def test_table_has_columns_and_no_heading_without_rows() -> None:
    result = run(lambda: output.answer_table(("name", "size"), [("bo", 3), ("mamba", 14)]))
    assert result.stdout == "name   size\nbo     3\nmamba  14\n"
    assert run(lambda: output.answer_table(("name",), [])).stdout == ""


def learn() -> None:
    with output.progress() as on_progress:
        on_progress(Progress(phase="loading", note="loading nano ..."))
        for step in range(3):
            on_progress(Progress(phase="learning", step=step + 1, total=3, metrics={"loss": 0.5}))
        on_progress(Progress(phase="checking"))


def test_progress_is_a_line_for_each_phase_where_nobody_watches() -> None:
    result = run(learn)
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["loading nano ...", "learning ...", "checking ..."]


def test_progress_is_silent_under_quiet() -> None:
    assert run(learn, "-q").output == ""


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with output.progress() as on_progress:
        on_progress(Progress(phase="learning", step=0, total=40))
        on_progress(Progress(phase="learning", step=0, total=40, note="a note"))
        on_progress(Progress(phase="learning", step=40, total=40, metrics={"loss": 0.25}))
    drawn = screen.getvalue()
    assert "learning" in drawn and "40/40" in drawn and "loss 0.25" in drawn
    assert "a note\n" in drawn
    assert "learning ..." not in drawn


def test_a_bar_begins_where_the_work_does_and_grows_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with output.progress() as on_progress:
        on_progress(Progress(phase="encoding", total=1))
        on_progress(Progress(phase="encoding", step=3, total=57))
        on_progress(Progress(phase="encoding", step=57, total=57))
        on_progress(Progress(phase="learning", step=501, total=1000))
    drawn = screen.getvalue()
    assert "0/1" in drawn and "57/57" in drawn and "encoding ..." not in drawn
    assert "500/1000 ? left" in drawn, "what was done before says nothing of the pace"


def test_long_work_says_where_it_is_once_a_minute_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("omnipersona_cli.cli.output.time.monotonic", lambda: now[0])

    def slow() -> None:
        with output.progress() as on_progress:
            for step in range(1, 8):
                on_progress(Progress(phase="learning", step=step, total=100))
                now[0] += 20.0
            on_progress(Progress(phase="checking", step=1, total=2))
            on_progress(Progress(phase="learning", step=8, total=100))

    assert run(slow).stderr.splitlines() == [
        "learning ...",
        "learning: 5 of 100, 31:40 left",
        "checking ...",
    ]
    assert run(slow, "-q").output == ""


def test_a_start_that_takes_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class AtOnce(threading.Timer):
        def start(self) -> None:
            self.function(*self.args, **self.kwargs)

    monkeypatch.setattr("omnipersona_cli.cli.output.threading.Timer", AtOnce)

    def begin() -> None:
        with output.starting():
            pass

    assert run(begin).stderr == "starting ...\n"
    assert run(begin, "-q").output == ""
    monkeypatch.undo()
    assert run(begin).output == "", "not where it is quick"
