"""What `op gen` and `op edit` share: their options, and prompts from a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omnipersona_cli.cli import options, output, server
from omnipersona_cli.cli.answers import untold
from omnipersona_cli.cli.picture_output import PictureOutput
from omnipersona_cli.errors import UsageError
from omnipersona_cli.language.characters import one_line
from omnipersona_cli.reading import TEXT_LIMIT, Origin, decode_text, read_text, said_size

if TYPE_CHECKING:
    from omnipersona_cli.engine.picture import Metadata
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
            self.fail(f"{value!r} is not a size: write 512 or 512x768", param, ctx)
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
fast = click.option(
    "--fast", is_flag=True, help="In less time, where the backend can (op backends show NAME)."
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


@dataclass(frozen=True, kw_only=True)
class PaintingOptions:
    """What a person says of pictures to be made; None is the backend's own."""

    count: int
    tries: int | None = None
    steps: int | None = None
    guidance: float | None = None
    fast: bool = False
    seed: int | None = None
    concepts: tuple[str, ...] = ()
    no_replay: bool = False
    explain: bool = False
    metadata: Metadata = "full"
    out: str | None = None
    force: bool = False
    as_json: bool = False

    def output(self, words: str, *, pictures: int) -> PictureOutput:
        """Where they go, named by ``words``; refused now where ``pictures`` of them cannot."""
        target = PictureOutput(
            out=self.out,
            words=words,
            metadata=self.metadata,
            force=self.force,
            as_json=self.as_json,
            explain=self.explain,
        )
        target.check(pictures)
        return target

    def on_trace(self, trace: Trace) -> None:
        """What is told of a replay: all of it where that was asked for, and always what nobody
        knew."""
        self.on_trace_data(trace.to_dict())

    def on_trace_data(self, trace: Mapping[str, Any]) -> None:
        """`on_trace` of a trace in plain values."""
        if self.explain:
            show_steps(trace, off=self.no_replay)
        for concept, attribute in trace["unknown"]:
            output.note(f"painting without {untold(concept, attribute)}")

    def asked_of_server(self, target: PictureOutput) -> dict[str, Any]:
        """The same for `server.paint`, whose pictures go to ``target``."""
        return {
            "concepts": self.concepts,
            "bare_names": False,
            "n": self.count,
            "tries": self.tries,
            "metadata": self.metadata,
            "on_trace": self.on_trace_data,
            "on_picture": target.put_made,
        }


def painting_options(command: F) -> Callable[..., Any]:
    """The options of every command that makes pictures: ``opening``, ``server``, ``painting``."""
    painting = options.together(
        "painting",
        PaintingOptions,
        count,
        tries,
        steps,
        guidance,
        fast,
        options.seed,
        options.concept,
        no_replay,
        explain,
        metadata,
        out,
        force,
        options.as_json,
    )
    return options.opening(server.option(painting(command)))


def show_steps(trace: Mapping[str, Any], *, off: bool) -> None:
    """What was recalled, for a person, on stderr; asked for, so ``-q`` does not silence it."""
    if understood := trace.get("instruction"):
        click.echo(output.plain(f"understood: {understood}"), err=True)
    if not trace["steps"]:
        told = "off (--no-replay)" if off else "nothing to recall"
        click.echo(f"replay: {told}", err=True)
    for step in trace["steps"]:
        asked, answered = step["prompt"], step["answer"] or "(nothing)"
        line = f"{step['stage']}: {asked} -> {answered} [{step['source']}]"
        click.echo(output.plain(line), err=True)


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
    name = "the list of prompts on stdin" if file == "-" else f"the list of prompts {file}"
    origin = Origin(name=name, hint="one prompt a line, in UTF-8")
    if file == "-":
        data = sys.stdin.buffer.read(TEXT_LIMIT + 1)
        if len(data) > TEXT_LIMIT:
            origin.refuse(f"is larger than {said_size(TEXT_LIMIT)}")
        text = decode_text(data, origin)
    else:
        text = read_text(Path(file), origin)
    lines = [one_line(line) for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UsageError(f"there is no prompt in {file}", hint="write one prompt a line")
    return prompts
