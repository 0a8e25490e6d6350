"""What `op gen` and `op edit` share: options, names of files, where pictures go."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omnipersona_cli.cli import options, output
from omnipersona_cli.errors import PersonaError, ResourceError, UsageError

if TYPE_CHECKING:
    from omnipersona_cli.engine.picture import Metadata, Picture
    from omnipersona_cli.engine.replay import Trace

F = TypeVar("F", bound=Callable[..., Any])

METADATA = ("full", "minimal", "none")


class Pixels(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """``512`` or ``512x768``: width and height in pixels."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Two whole numbers."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,5})(?:\s*[x×*]\s*(\d{1,5}))?", str(value).strip().lower())  # noqa: RUF001
        if match is None:
            self.fail(f"{value!r} is no size; write 512 or 512x768", param, ctx)
        return int(match[1]), int(match[2] or match[1])


count = click.option(
    "-n", "--count", type=click.IntRange(1, 1000), default=1, help="How many pictures."
)
tries = click.option(
    "--tries",
    type=click.IntRange(1, 64),
    help="Paint each so often; keep the one in which the concepts are recognised best.",
)
steps = click.option("--steps", type=click.IntRange(1, 1000), help="Steps of painting.")
guidance = click.option(
    "--guidance", type=click.FloatRange(0, 100), help="How closely to follow the words."
)
no_replay = click.option(
    "--no-replay", is_flag=True, help="Do not say first what is known about the concepts."
)
explain = click.option("--explain", is_flag=True, help="Show what was recalled and rewritten.")
metadata = click.option(
    "--metadata",
    type=click.Choice(METADATA),
    default="full",
    show_default=True,
    help="How much the picture says of how it was made.",
)
out = click.option(
    "-o", "--out", metavar="FILE|DIR|-", help="Where to put pictures; - writes to stdout."
)
force = click.option("--force", is_flag=True, help="Write over files that are there.")


def painting(command: F) -> F:
    """The options of every command that makes pictures."""
    for option in (
        options.opening,
        count,
        tries,
        steps,
        guidance,
        options.seed,
        options.concept,
        no_replay,
        explain,
        metadata,
        out,
        force,
        options.as_json,
    )[::-1]:
        command = option(command)
    return command


def show_trace(trace: Trace) -> None:
    """What was recalled, for a person, on stderr; asked for, so ``-q`` does not silence it."""
    if not trace.steps:
        click.echo("replay: nothing to recall", err=True)
    for step in trace.steps:
        asked, answered = (step.prompt, step.answer or "(nothing)")
        click.echo(f"{step.stage}: {asked} -> {answered} [{step.source}]", err=True)


def trace_data(trace: Trace) -> dict[str, Any]:
    """The trace as plain values."""
    return {
        "request": trace.request,
        "rewritten": trace.rewritten,
        "steps": [vars(step) for step in trace.steps],
    }


@dataclass(kw_only=True)
class Shelf:
    """Where pictures go as they are made: ``-o`` a file, a folder, or "-".

    Without ``-o`` they get numbered names in the current folder, and never replace a file.
    Names of several pictures in one file's place are numbered too (``bo.png``, ``bo-2.png``).
    """

    out: str | None
    words: str
    metadata: Metadata
    force: bool
    as_json: bool
    explain: bool = False
    kept: list[dict[str, Any]] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)

    def check(self, count: int) -> None:
        """Refuse before painting what could not be kept."""
        if self.out == "-":
            if count > 1 or self.as_json:
                raise UsageError(
                    "stdout takes one picture and nothing else",
                    hint="name a folder: -o pictures/",
                )
            if sys.stdout.isatty():
                output.answer_bytes(b"")
            return
        target = self.out
        if target and not self._is_folder(target):
            if Path(target).suffix.lower() != ".png":
                raise UsageError(
                    f"pictures are written as PNG, not {Path(target).suffix or 'without a suffix'}",
                    hint=f"-o {Path(target).with_suffix('.png')}, or a folder: -o {target}/",
                )
            if Path(target).exists() and not self.force:
                raise PersonaError(f"{target} is already there", hint="add --force to replace it")
            check_folder(Path(target).parent)
        else:
            check_folder(Path(target or ""))

    def put(self, picture: Picture) -> None:
        """Keep one picture and say where."""
        from omnipersona_cli.engine.picture import png_bytes, save_png

        if self.out == "-":
            output.answer_bytes(png_bytes(picture, metadata=self.metadata))
            return
        path = save_png(picture, self._next(), metadata=self.metadata, force=self.force)
        if self.as_json:
            about: Mapping[str, Any] = picture.about
            told = {"path": str(path), **about}
            if self.explain:
                told["trace"] = trace_data(picture.trace)
            self.kept.append(told)
        else:
            output.answer(path)

    def finish(self) -> None:
        """The JSON, when that was asked for."""
        if self.as_json:
            output.answer_json(self.kept[0] if len(self.kept) == 1 else self.kept)

    def _next(self) -> Path:
        if self.out and not self._is_folder(self.out):
            path = Path(self.out)
            number = self.used.get(path.stem, 0) + 1
            self.used[path.stem] = number
            return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        folder = Path(self.out) if self.out else Path()
        stem = slug(self.words)
        number = self.used.get(stem, 0) + 1
        while not self.force and (folder / _numbered(stem, number)).exists():
            number += 1
        self.used[stem] = number
        return folder / _numbered(stem, number)

    @staticmethod
    def _is_folder(target: str) -> bool:
        return target.endswith(("/", "\\")) or Path(target).is_dir()


def check_folder(folder: Path) -> None:
    """ResourceError where no picture could be put into ``folder``, or the folder not be made. It is
    tried beside the nearest folder that is there; nothing is left behind."""
    from tempfile import TemporaryFile

    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with TemporaryFile(dir=there) as file:
            file.write(b"\0")
    except OSError as error:
        reason = "not a folder" if there.is_file() else error.strerror or str(error)
        raise ResourceError(
            f"{there} cannot be written: {reason}", hint="choose another place with -o"
        ) from error


def slug(words: str) -> str:
    """A short file name from a prompt: "<bo> at the beach!" -> "bo-at-the-beach"."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40].rstrip("-") or "picture"


def tell_seed(chosen: int | None) -> int:
    """The seed, chosen and told where none was given."""
    import secrets

    if chosen is not None:
        return chosen
    seed = secrets.randbelow(2**31)
    output.note(f"seed {seed}")
    return seed


def prompts_from(file: str) -> Sequence[str]:
    """One prompt a line; empty lines and # comments are skipped. "-" is stdin."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file} cannot be read as a list of prompts", hint="one prompt a line, in UTF-8"
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UsageError(f"there is no prompt in {file}", hint="write one prompt a line")
    return prompts


def _numbered(stem: str, number: int) -> str:
    return f"{stem}-{number:03d}.png"
