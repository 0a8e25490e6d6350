"""What commands print, and how work is shown as it goes.

stdout carries the answer and nothing else; everything a person is told on the way goes to stderr.
``-q`` silences notes and bars, never warnings and errors. tqdm is imported when a bar is drawn.

Names, paths and facts may be a stranger's, and a model may say anything. Whatever is printed has
gone through `plain`, so that nothing moves the cursor, turns a line around or passes for another.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnipersona_cli.errors import PersonaError, UsageError
from omnipersona_cli.hookspecs import QUIET as QUIET

if TYPE_CHECKING:
    from tqdm import tqdm

    from omnipersona_cli.hookspecs import Progress

VERBOSE = "omnipersona.verbose"
WHEN_INTERRUPTED = "omnipersona.when_interrupted"
"""Where a command leaves the hint that is given after Ctrl-C, in ``meta``."""

START_SECONDS = 1.0
"""After so many seconds a command says that it starts."""

LINE_SECONDS = 60.0
"""How often long work says how far it is where there is no terminal."""

_JOINERS = "\u200c\u200d"  # part of Persian words and of emoji
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quiet() -> bool:
    """True under ``-q``."""
    return _setting(QUIET)


def verbose() -> bool:
    """True under ``-v``."""
    return _setting(VERBOSE)


def colour() -> bool | None:
    """click's ``color``: False where colour is unwanted, None to let click look at the terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def plain(text: str, *, lines: bool = False) -> str:
    """``text`` as a terminal may have it: what controls a terminal or reorders a line is shown as
    an escape ("\\x1b"). Line breaks and tabs stay where ``lines`` are meant.

    What belongs to words and emoji (joiners, variation selectors) stays.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        character if character in kept or not _acts(character) else _escaped(character)
        for character in text
    )


def _acts(character: str) -> bool:
    """True for what a terminal acts on or cannot show: C0 and C1, bidi and invisible controls, line
    separators, halves of surrogate pairs."""
    if character in _JOINERS:
        return False
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _escaped(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def answer(text: object) -> None:
    """A piece of the answer, on stdout. Text may have several lines; a path and a number have one,
    whatever is in them."""
    if isinstance(text, Path) and not sys.stdout.isatty():
        click.echo(_file_name(str(text)))
        return
    click.echo(plain(str(text), lines=isinstance(text, str)), color=colour())


def _file_name(name: str) -> bytes:
    """A path for another program: plain, but with the bytes that are no Unicode."""
    return b"".join(
        os.fsencode(character if "\udc80" <= character <= "\udcff" else plain(character))
        for character in name
    )


def answer_line(text: object) -> None:
    """One line of the answer, whatever is in it."""
    click.echo(plain(str(text)), color=colour())


def answer_piece(text: str) -> None:
    """A piece of an answer that arrives in pieces, on stdout; no line break follows."""
    click.echo(plain(text, lines=True), nl=False, color=colour())


def answer_json(value: Any, *, lines: bool = True) -> None:
    """The answer as one JSON object or array, on stdout; on one line without ``lines``."""
    import json

    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=not unicode, indent=2 if lines else None, default=str)
    if not (text.isascii() and "\x7f" not in text):
        text = "".join(map(_json_escaped, text))
    click.echo(text)


def _json_escaped(character: str) -> str:
    """``character`` as it may stand in JSON on a terminal; the text that it means is the same."""
    if character == "\n" or not _acts(character):
        return character
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"  # a surrogate pair


def answer_bytes(data: bytes) -> None:
    """The answer as bytes (``-o -``), on stdout. Refuses to fill a terminal with them."""
    if sys.stdout.isatty():
        raise UsageError("a picture cannot be shown in a terminal", hint="name a file: `-o bo.png`")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def answer_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under headings, in columns, on stdout. No heading where nothing follows."""
    if not rows:
        return
    table = [list(headings), *([plain(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        answer_line("  ".join(cells).rstrip())


def note(text: str) -> None:
    """Something a person may like to know, on stderr; silent under ``-q``."""
    if not quiet():
        _to_stderr(plain(text))


def warn(text: str) -> None:
    """Something a person ought to know, on stderr, even under ``-q``."""
    _to_stderr(click.style("Warning:", fg="yellow") + f" {plain(text)}")


def hint(text: str) -> None:
    """What to try next, on stderr; silent under ``-q``."""
    note(f"Hint: {text}")


def fail(error: PersonaError, *, show_traceback: bool = False) -> None:
    """What happened and what to do about it, one line each, on stderr."""
    if show_traceback:
        import traceback

        _to_stderr(plain("".join(traceback.format_exception(error)).rstrip(), lines=True))
    _to_stderr(click.style("Error:", fg="red", bold=True) + f" {_one_line(str(error))}")
    if error.hint:
        _to_stderr(f"Hint: {_one_line(error.hint)}")


@contextmanager
def starting() -> Iterator[None]:
    """Says "starting ..." where what is inside, the import of torch, is not done in a second."""
    timer = threading.Timer(START_SECONDS, _to_stderr, ["starting ..."])
    timer.daemon = True
    if not quiet():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress() -> Iterator[Callable[[Progress], None]]:
    """A callback that shows work as it goes: one line for a phase, one bar where a total is known,
    and where nobody watches, a line a minute.

    ::

        with output.progress() as on_progress:
            engine.learn(..., on_progress=on_progress)
    """
    shown = _Shown()

    def show(event: Progress) -> None:
        if not quiet():
            _show(shown, event)

    try:
        yield show
    finally:
        _close(shown.bar)


@dataclass
class _Shown:
    """What is on the screen: the phase, and the bar where there is a terminal. Elsewhere ``at`` and
    ``step`` say when the phase began and how far it was, ``told`` when the last line was written,
    and ``announced`` which phases have had theirs."""

    phase: str = ""
    bar: tqdm[Any] | None = None
    at: float = 0.0
    step: int = 0
    told: float = 0.0
    announced: set[str] = field(default_factory=set)


def _show(shown: _Shown, event: Progress) -> None:
    if event.phase != shown.phase:
        _close(shown.bar)
        shown.bar, shown.phase = None, event.phase
        shown.at = shown.told = time.monotonic()
        shown.step = event.step
    if shown.bar is None and event.total:
        shown.bar = _new_bar(event)
    if shown.bar is None and not event.note and shown.phase not in {"", *shown.announced}:
        note(f"{event.phase} ...")
        shown.announced.add(shown.phase)
    if event.note:
        note(event.note)
    if shown.bar is not None:
        _move(shown.bar, event)
    elif event.total and time.monotonic() - shown.told > LINE_SECONDS:
        shown.told = time.monotonic()
        note(f"{event.phase}: {event.step} of {event.total}{_left(shown, event)}")


def _left(shown: _Shown, event: Progress) -> str:
    """How long the phase goes on at the pace that it had so far."""
    from tqdm import tqdm

    done = event.step - shown.step
    if done <= 0:
        return ""
    seconds = (time.monotonic() - shown.at) / done * (event.total - event.step)
    return f", {tqdm.format_interval(seconds)} left"


def _new_bar(event: Progress) -> tqdm[Any] | None:
    """A bar on stderr; None when stderr is not a terminal."""
    from tqdm import tqdm

    bar = tqdm(
        total=event.total,
        initial=max(event.step - 1, 0),  # what was done before says nothing of the pace
        desc=plain(event.phase),
        file=sys.stderr,
        disable=None,  # tqdm's own word for "not a terminal"
        leave=False,
        dynamic_ncols=True,
        bar_format="{desc} {bar} {n_fmt}/{total_fmt} {remaining} left{postfix}",
    )
    return None if bar.disable else bar


def _move(bar: tqdm[Any], event: Progress) -> None:
    bar.total = event.total or bar.total
    if event.metrics:
        bar.set_postfix_str(_metrics(event.metrics), refresh=False)
    if not bar.update(event.step - bar.n) and event.step >= event.total:
        bar.refresh()  # tqdm draws ten times a second at most; the end is always worth it


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())


def _close(bar: tqdm[Any] | None) -> None:
    if bar is not None:
        bar.close()


def _to_stderr(text: str) -> None:
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):  # lifts a bar that is being drawn
            click.echo(text, err=True, color=colour())
    else:
        click.echo(text, err=True, color=colour())


def _one_line(text: str) -> str:
    return plain(" ".join(text.split()))


def _setting(key: str) -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(key))
