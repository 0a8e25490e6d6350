"""Fail, or die at, the n-th call that touches the disk, for every n until a command makes no more.

`make faults` runs all of it: every command that writes, with each of EIO, ENOSPC and EINTR, and
killed before and after each call (a write is cut in its middle). What needs a model runs on the
sketch backend; photos and data sets that are only read are not disturbed. After each try:

- no traceback, only a sentence;
- every pack in the library is sound, and no concept is lost: it is a pack or an undo copy;
- the same command again, on a healthy disk, comes to the same end as one that nothing disturbed
  (`op learn` with --resume, `op serve` started anew); of a state of the disk that an earlier try
  left as well, to the byte, this is known already;
- nothing half-written is left.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from faulty_commands import COMMANDS, Command, photos, prepare

from omnipersona_cli import registry
from omnipersona_cli.concepts import undo
from omnipersona_cli.concepts.pack import verify
from omnipersona_cli.concepts.upkeep import JOBS
from omnipersona_cli.testing import SketchPlugin

CALLS = (
    *("open", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir"),
    *("scandir", "listdir", "stat", "lstat"),
)
WRITING = os.O_WRONLY | os.O_RDWR
CUT = 137
"""The exit code of a process that was killed here."""
MODES = ("EIO", "ENOSPC", "EINTR", "killed before", "killed after")


@dataclass(kw_only=True)
class Tally:
    """What came of the tries."""

    tried: int = 0
    again: int = 0
    refused: int = 0
    lost: int = 0
    tracebacks: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another's as well."""
        for name in ("tried", "again", "refused", "lost", "tracebacks", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@contextmanager
def faults(root: Path, at: int, mode: str) -> Iterator[list[str]]:
    """Disturb the ``at``-th call, counted from 1, that touches what is below ``root``; yields the
    names of calls as they are made. 0 disturbs none."""
    made: list[str] = []
    ours: set[int] = set()
    real = {name: getattr(os, name) for name in CALLS}
    real_open = builtins.open

    def disturb(name: str, act: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        made.append(name)
        if len(made) != at:
            return act()
        if mode in errno.__dict__:
            number = getattr(errno, mode)
            half()
            raise OSError(number, os.strerror(number))
        if mode == "killed after":
            act()
        else:
            half()
        os._exit(CUT)

    def is_ours(target: object, *, read: bool = False) -> bool:
        if isinstance(target, int):
            return target in ours
        try:
            path = Path(os.path.abspath(os.fsdecode(os.fspath(target))))  # type: ignore[call-overload]
        except TypeError:
            return False
        return path.is_relative_to(root) and not (read and path.match("photos/*.png"))

    def wrap(name: str) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            target = words[0] if words else "."
            if not is_ours(target, read=name == "open" and not words[1] & WRITING):
                return real[name](*words, **more)
            found = disturb(name, lambda: real[name](*words, **more))
            if name == "open":
                ours.add(found)
            return found

        return call

    class Written(io.FileIO):
        """A file opened for writing, unbuffered, so that every write is a call."""

        def write(self, data: Any) -> int:
            whole = bytes(data)
            cut = whole[: len(whole) // 2]
            super_write = super().write
            return int(disturb("write", lambda: super_write(whole), lambda: super_write(cut)))

    def opened(file: Any, mode: str = "r", *words: Any, **more: Any) -> Any:
        if not is_ours(file, read="r" in mode):
            return real_open(file, mode, *words, **more)
        if isinstance(file, int):
            return Written(file, mode) if "w" in mode else real_open(file, mode, *words, **more)
        return disturb("open", lambda: real_open(file, mode, *words, **more))

    for name in CALLS:
        setattr(os, name, wrap(name))
    builtins.open = opened  # type: ignore[assignment]
    try:
        yield made
    finally:
        builtins.open = real_open
        for name in CALLS:
            setattr(os, name, real[name])


def run(home: Path, command: Command, at: int = 0, mode: str = "") -> tuple[int, int, str]:
    """``command`` in a process of its own: exit code, calls made (-1 when killed), traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code, made, bug = 1, [], "did not start"
        try:
            os.close(reading)
            os.chdir(home)
            os.environ["OMNIPERSONA_HOME"] = str(home)
            with faults(home, at, mode) as made:
                words = [*command.group, *command.words]
                done = CliRunner().invoke(command.program, words)
            code = done.exit_code
            bug = ""
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                bug = repr(done.exception)
            elif code not in (0, 1, 2, 3):
                bug = f"exit code {code}: {done.output}"
            elif code and "Error:" not in done.output:
                bug = f"no word about what happened: {done.output}"
        finally:
            os.write(writing, pickle.dumps((code, len(made), bug)))
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(said) if said else (CUT, -1, "")


def state(home: Path) -> dict[str, bytes]:
    """All packs, in the library and outside, pictures and the bench's results. A page tells of the
    run that wrote it: that it is there, and whole, is all that is alike."""
    found = {
        str(path.relative_to(home)): path.read_bytes()
        for kind in ("*.opconcept", "*.png", "results.jsonl")
        for path in sorted(home.rglob(kind))
        if undo.FOLDER not in path.parts and JOBS not in path.parts
    }
    pages = {path.name: path.read_bytes() for path in home.glob("*.html")}
    return found | {name: page.rstrip()[-7:] for name, page in pages.items()}


def all_of(home: Path) -> str:
    """A digest of everything below ``home``; what is half-written has a name by chance."""
    digest = sha256()
    for path in sorted(home.rglob("*")):
        name = re.sub(r"[0-9a-f]{12}(?=\.tmp)", "", str(path.relative_to(home)))
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def unsound(home: Path, broken_before: bool) -> str:
    """What must never be, in words."""
    folder = home / "data" / "concepts"
    for path in folder.glob("*.opconcept"):
        if not broken_before and (problems := verify(path)):
            return f"{path.name}: {problems[0]}"
    return ""


def lost(home: Path, kept: dict[bytes, str]) -> str:
    """A concept whose tensors are nowhere any more."""
    here = {tensors_of(path) for path in (home / "data" / "concepts").rglob("*.opconcept")}
    return next((name for part, name in kept.items() if part not in here), "")


def tensors_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def leftovers(home: Path) -> list[str]:
    runs = home / "cache" / "runs"
    sent = (home / "cache" / JOBS).glob("*/photos")
    halves = (*home.rglob("*.tmp"), *home.rglob("*.part"))
    return [path.name for path in (*halves, *runs.glob("*"), *sent)]


@contextmanager
def sketch_backend() -> Iterator[None]:
    """The sketch backend installed for the commands that need one, where it is not already."""
    if "sketch" in registry.backends():
        yield
        return
    plugin = SketchPlugin()
    registry.plugin_manager().register(plugin, name="sketch-for-faults")
    try:
        yield
    finally:
        registry.plugin_manager().unregister(plugin)


def attack(name: str, modes: tuple[str, ...] = MODES, stride: int = 1) -> Tally:
    """Every disturbance of one command; with ``stride`` each of so many."""
    command, tally = COMMANDS[name], Tally()
    with tempfile.TemporaryDirectory() as place, sketch_backend():
        clean, goal, home = (Path(place).resolve() / part for part in ("clean", "goal", "home"))
        clean.mkdir()
        prepare(clean)
        photos(clean.parent)
        command.before(clean)
        kept = {tensors_of(p): p.name for p in (clean / "data" / "concepts").glob("*.opconcept")}
        shutil.copytree(clean, goal, symlinks=True)
        code, calls, bug = run(goal, command)
        assert code == 0 and not bug, (name, code, bug)
        met: dict[str, str] = {}
        for mode in modes:
            for at in range(1, calls + 1, stride):
                shutil.rmtree(home, ignore_errors=True)
                shutil.copytree(clean, home, symlinks=True)
                code, _, bug = run(home, command, at, mode)
                problem = _look(command, home, goal, name, kept, tally, code, bug, met)
                if problem:
                    tally.wrong.append(f"{name}, {mode} at call {at} of {calls}: {problem}")
    return tally


def _look(
    command: Command,
    home: Path,
    goal: Path,
    name: str,
    kept: dict[bytes, str],
    tally: Tally,
    code: int,
    bug: str,
    met: dict[str, str],
) -> str:
    tally.tried += 1
    tally.refused += code != 0
    if bug:
        tally.tracebacks += 1
        return bug
    if problem := unsound(home, name == "fsck --repair"):
        tally.lost += 1
        return problem
    if name not in ("forget", "gc", "fsck --repair") and (gone := lost(home, kept)):
        tally.lost += 1
        return f"{gone} is lost"
    left_by_it = all_of(home)
    if left_by_it not in met:
        tally.again += 1
        met[left_by_it] = _again(command, home, goal, tally)
    return met[left_by_it]


def _again(command: Command, home: Path, goal: Path, tally: Tally) -> str:
    """What is wrong when the same command is given again; empty when nothing."""
    before = state(home)
    code, _, bug = run(home, command)
    if bug:
        tally.tracebacks += 1
        return f"again: {bug}"
    if command.toggles:
        return ""
    if code not in command.codes:
        return f"again: exit code {code}"
    now, wanted = state(home), state(goal)
    if command.grows:
        kept = before.items() <= now.items() and len(now) == len(before) + command.grows
    else:
        kept = now == wanted
    if not kept:
        tally.lost += 1
        return f"again: {sorted(now)} instead of {sorted(wanted)}, or other bytes"
    if left := leftovers(home):
        return f"again: {left} is left"
    return ""


def portion(name: str) -> tuple[str, Tally, float]:
    """`attack`, and the peak of memory in MiB, in a process of its own."""
    tally = attack(name)
    peak = max(resource.getrusage(who).ru_maxrss for who in (0, resource.RUSAGE_CHILDREN)) / 1024
    return name, tally, peak


def main() -> int:
    """All of it; with a file, what is done is kept there, and a run that was cut goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", type=Path, help="keep what is done here, and go on from it")
    words = parser.parse_args()
    began, whole, highest, done = time.monotonic(), Tally(), 0.0, set()
    if words.log is not None and words.log.exists():
        for line in words.log.read_text().splitlines():
            said = json.loads(line)
            done.add(said["command"])
            whole.add(Tally(**said["tally"]))
    wanted = [name for name in reversed(words.commands) if name not in done]  # the longest first
    os.environ["PYTHONWARNINGS"] = "ignore"  # of locks that killed processes leave
    context = multiprocessing.get_context("spawn")
    with context.Pool(words.workers, maxtasksperchild=1) as pool:
        for name, tally, peak in pool.imap_unordered(portion, wanted):
            print(f"{name:<16} {_figures(tally)}", *tally.wrong[:5], sep="\n  ", flush=True)
            whole.add(tally)
            highest = max(highest, peak)
            if words.log is not None:
                with words.log.open("a") as log:
                    log.write(json.dumps({"command": name, "tally": asdict(tally)}) + "\n")
    print(
        f"faults: {_figures(whole)}, wrong {len(whole.wrong)}, "
        f"{time.monotonic() - began:.0f} s, peak {highest:.0f} MiB"
    )
    return bool(whole.wrong)


def _figures(tally: Tally) -> str:
    return (
        f"tried {tally.tried} (again from {tally.again} states), refused {tally.refused}, "
        f"lost {tally.lost}, tracebacks {tally.tracebacks}"
    )


if __name__ == "__main__":
    sys.exit(main())
