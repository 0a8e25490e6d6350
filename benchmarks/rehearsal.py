"""A dress rehearsal: a backend at its released size, or a part of it, used as a person uses it.

    python benchmarks/rehearsal.py janus
    python benchmarks/rehearsal.py bagel --scale 0.25 --verbs ask,gen
    python benchmarks/rehearsal.py janus --model FOLDER --verbs learn --steps 3

Writes a random checkpoint in the released layout, then starts `op learn`, `op ask`, `op gen` and
`op edit` on it, each as a process of its own in a terminal, and reads what a person would: which
phase is at work, and the bars. Of each phase it prints the seconds and what one unit of it took (a
picture to encode, a step, a lesson of a check, an image code or a denoising step); of each command
the processor's seconds, the most resident memory (Linux), when the first word was said, and every
stretch of over ten seconds without a word or a bar. What a random model says and paints is nothing;
how long it takes is what the released one takes.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from checkpoints import WRITERS, write

KINDS = {"BF16": torch.bfloat16, "F32": torch.float32}
VERBS = ("learn", "ask", "gen", "edit")
SILENT = 10.0
"""Seconds without a word or a bar that are told of."""
ANSWER = 12
"""Tokens of an answer."""
BAR = re.compile(
    r"^(?P<phase>[a-z][a-z ]*?)\s[\s#\d█▏▎▍▌▋▊▉]*?(?P<step>\d+)/(?P<total>\d+) \S+ left"
)
LINE = re.compile(r"^(?P<phase>[a-z][^:]*?) \.\.\.$")


@dataclass
class Phase:
    """A phase of a command: when it began and ended, and how many units it did."""

    name: str
    began: float
    ended: float = 0.0
    first: int = -1
    units: int = 0
    barred: bool = False


@dataclass
class Watched:
    """What was seen of one command."""

    phases: list[Phase] = field(default_factory=list)
    silences: list[tuple[float, str]] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)
    first_word: float = 0.0
    seconds: float = 0.0
    processor: float = 0.0
    memory: float = 0.0
    code: int = 0


def watched(command: Sequence[str], environment: dict[str, str]) -> Watched:
    """Run ``command`` in a terminal and read along."""
    seen = Watched()
    began = time.monotonic()
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 120))
    child = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=environment)
    os.close(slave)
    stop = threading.Event()
    sampler = threading.Thread(target=_sample, args=(child.pid, seen, stop), daemon=True)
    sampler.start()
    last, text = 0.0, ""
    while True:
        ready, _, _ = select.select([master], [], [], 0.2)
        now = time.monotonic() - began
        if not ready:
            continue
        try:
            data = os.read(master, 65536)
        except OSError:  # the other end is closed
            data = b""
        if now - last > SILENT and not (seen.phases and seen.phases[-1].barred):
            seen.silences.append((now - last, seen.phases[-1].name if seen.phases else "start"))
        last = now
        if not data:
            break
        text += data.decode(errors="replace")
        *whole, text = re.split(r"[\r\n]", text)
        for line in (*whole, text):
            _read(seen, _plain(line), now)
    _, status, usage = os.wait4(child.pid, 0)
    stop.set()
    sampler.join()
    os.close(master)
    seen.code = os.waitstatus_to_exitcode(status)
    seen.seconds = time.monotonic() - began
    seen.processor = usage.ru_utime + usage.ru_stime
    for phase, following in zip(seen.phases, [*seen.phases[1:], None], strict=True):
        phase.ended = seen.seconds if following is None else following.began
    return seen


def _plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip()


def _read(seen: Watched, line: str, now: float) -> None:
    """One line of the terminal, perhaps not whole yet."""
    if not line:
        return
    seen.first_word = seen.first_word or now
    bar, told = BAR.match(line), LINE.match(line)
    if bar is None and told is None:
        if not seen.lines or seen.lines[-1][1] != line:
            seen.lines.append((now, line))
        return
    name = (bar or told)["phase"]  # type: ignore[index]
    if not seen.phases or seen.phases[-1].name != name:
        seen.phases.append(Phase(name=name, began=now))
        click.echo(f"  {now:8.1f} s: {name}", err=True)
    if bar is not None:
        phase = seen.phases[-1]
        phase.barred = True
        phase.first = int(bar["step"]) - 1 if phase.first < 0 else phase.first
        phase.units = int(bar["step"]) - max(phase.first, 0)


def _sample(pid: int, seen: Watched, stop: threading.Event) -> None:
    """The most resident memory, GiB."""
    while not stop.wait(0.25):
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        except OSError:
            return
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found is not None:
            seen.memory = max(seen.memory, int(found[1]) / 2**20)


def table(verb: str, seen: Watched) -> Iterator[str]:
    """The lines that are printed of one command; phases that come again are added up."""
    ended = "" if seen.code == 0 else f", exit code {seen.code}"
    yield (
        f"op {verb}: {seen.seconds:.0f} s, of the processor {seen.processor:.0f} s; "
        f"{seen.memory:.1f} GiB at most; first word after {seen.first_word:.1f} s{ended}"
    )
    for name in dict.fromkeys(phase.name for phase in seen.phases):
        mine = [phase for phase in seen.phases if phase.name == name]
        seconds = sum(phase.ended - phase.began for phase in mine)
        units = sum(phase.units for phase in mine)
        each = f"{units:6} x {seconds / units:8.2f} s" if units else ""
        times = f", {len(mine)} times" if len(mine) > 1 else ""
        yield f"  {name:28}{seconds:8.1f} s  {each}{times}"
    for seconds, name in seen.silences:
        yield f"  SILENT for {seconds:.0f} s in: {name}"
    for at, line in seen.lines:
        yield f"  {at:8.1f} s | {line[:110]}"


def with_norms(folder: Path) -> None:
    """Make norms of the random numbers do nothing: with weights near zero a model would say the
    same whatever it sees, and nothing could be learned."""
    for path in folder.rglob("*.safetensors"):
        with path.open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            for name, entry in header.items():
                if name.endswith("weight") and len(entry["shape"]) == 1:
                    ones = torch.ones(entry["shape"], dtype=KINDS[entry["dtype"]])
                    file.seek(8 + length + entry["data_offsets"][0])
                    file.write(ones.view(torch.uint8).numpy().tobytes())


def pictures(folder: Path, photos: int, side: int) -> None:
    """Photos of a red disc, as many of others, a scene."""
    from omnipersona_cli.testing import drawing

    for name, colour, count in (("photos", "red", photos), ("others", "blue", photos)):
        (folder / name).mkdir()
        for number in range(count):
            picture = drawing(colour, number).resize((side, side))
            picture.save(folder / name / f"{number}.png")
    drawing("green", 99).resize((side, side)).save(folder / "scene.png")


def commands(backend: str, model: Path | None, steps: int) -> dict[str, list[str]]:
    """What a person would type, by verb."""
    named = ["-b", backend, *(["--model", str(model.absolute())] if model else [])]
    learn = ["photos", "--name", "bo", "--kind", "ball", "--negatives", "others", "--force"]
    mask = ["--box", "200,200,500,500"]
    return {
        "learn": ["learn", *learn, "--steps", str(steps), *named],
        "ask": ["ask", "scene.png", "is <bo> here?"],
        "say": ["ask", "scene.png", "what is it?", "--max-tokens", str(ANSWER), *named],
        "gen": ["gen", "<bo> at the beach", "--seed", "1"],
        "edit": ["edit", "scene.png", "add <bo>", "--seed", "1", *mask],
    }


@click.command()
@click.argument("backend")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Of the released size.")
@click.option("--verbs", default=",".join(VERBS), show_default=True)
@click.option("--steps", type=int, default=3, show_default=True, help="Steps of learning.")
@click.option("--photos", type=int, default=10, show_default=True, help="And as many of others.")
@click.option("--side", type=int, default=1024, show_default=True, help="Pixels of the photos.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A checkpoint to use.")
@click.option("--home", type=click.Path(path_type=Path), help="Keep what is learned there.")
@click.argument("more", nargs=-1)
def main(
    backend: str,
    scale: float,
    verbs: str,
    steps: int,
    photos: int,
    side: int,
    model: Path | None,
    home: Path | None,
    more: tuple[str, ...],
) -> None:
    """Rehearse BACKEND; what stands after -- is added to `op learn`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model is None and backend in WRITERS:
            model = write(backend, folder / "model", scale=scale)
            with_norms(folder / "model")
        pictures(folder, photos, side)
        home = (home or folder / "home").absolute()
        environment = {**os.environ, "OMNIPERSONA_HOME": str(home), "COLUMNS": "120"}
        wanted = commands(backend, model, steps)
        wanted["learn"] += more
        os.chdir(folder)
        for verb in verbs.split(","):
            for each in ("ask", "say") if verb == "ask" else (verb,):
                seen = watched(
                    [sys.executable, "-m", "omnipersona_cli", *wanted[each]], environment
                )
                for line in table(" ".join(wanted[each][:3]), seen):
                    click.echo(line)


if __name__ == "__main__":
    main()
