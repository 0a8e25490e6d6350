"""Fail, or die at, the n-th call that touches the disk, for every n until a command makes no more.

`make faults` runs all of it: every command that writes, with each of EIO, ENOSPC and EINTR, and
killed before and after each call (a write is cut in its middle). `op learn`, `op gen` and `op edit`
run on the sketch backend; the photos they read are not disturbed. After each try:

- no traceback, only a sentence;
- every pack in the library is sound, and no concept is lost: it is a pack or an undo copy;
- the same command again, on a healthy disk, comes to the same end as one that nothing disturbed
  (of `op learn`, with --resume); of a state of the disk that an earlier try left as well, to the
  byte, this is known already;
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

import numpy as np
from click.testing import CliRunner

from omnipersona_cli import engine, registry
from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts import undo
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Fact, Pack, Slot, to_bytes, verify
from omnipersona_cli.testing import SketchPlugin, drawing

CALLS = (
    *("open", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir"),
    *("scandir", "listdir", "stat", "lstat"),
)
CUT = 137
"""The exit code of a process that was killed here."""
MODES = ("EIO", "ENOSPC", "EINTR", "killed before", "killed after")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is tried. ``codes`` are the exit codes that doing it again may have; with ``toggles``
    doing it twice is not doing it once, so that only soundness is looked at; ``grows`` is how many
    more files it makes each time, and what was there stays."""

    words: tuple[str, ...]
    group: tuple[str, ...] = ("concepts",)
    codes: tuple[int, ...] = (0,)
    toggles: bool = False
    grows: int = 0
    before: Callable[[Path], None] = lambda home: None


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


def concept(name: str, *facts: str, seed: int = 0) -> Pack:
    """A small concept."""
    chance = np.random.default_rng(seed)
    rows = {"id": 1, "und": 2, "gen": 2}
    return Pack(
        name=name,
        class_word="dog",
        facts=tuple(Fact(text=text) for text in facts),
        slots={
            "nano": Slot(
                tensors={k: chance.normal(size=(n, 4)).astype(np.float32) for k, n in rows.items()},
                about={"base": "embedded"},
            )
        },
    )


def prepare(home: Path) -> None:
    """Two concepts in the library, and another <bo> and a new <kit> outside of it."""
    library = Library(home / "data" / "concepts")
    library.save(concept("bo", "<bo> is brown", "<bo> likes <mam>"))
    library.save(concept("mam", "<mam> is old", seed=1))
    (home / "kit.opconcept").write_bytes(to_bytes(concept("kit", seed=2)))
    (home / "bo.opconcept").write_bytes(to_bytes(concept("bo", "<bo> is new", seed=3)))
    (home / "taken.opconcept").write_bytes(b"taken")


def photos(place: Path) -> None:
    """Photos to learn from and a picture to edit, outside of what is disturbed."""
    (place / "photos").mkdir()
    for seed in range(3):
        drawing("red", seed).save(place / "photos" / f"{seed}.png")
    drawing("blue", 5).save(place / "blue.png")


def _learned(home: Path) -> None:
    subject = engine.Subject(photos=[home.parent / "photos"], name="disc")
    library = Library(home / "data" / "concepts")
    opening = engine.Opening(backend="sketch")
    keeping = engine.Keeping(library=library, samples=0)
    engine.learn(subject, engine.Settings(steps=1), keeping, opening=opening)
    shutil.rmtree(home / "cache", ignore_errors=True)


def _changed(home: Path) -> None:
    Library(home / "data" / "concepts").change_facts("bo", lambda facts: facts[:1])


def _removed(home: Path) -> None:
    Library(home / "data" / "concepts").remove("bo")


def _renamed(home: Path) -> None:
    Library(home / "data" / "concepts").rename("bo", "rex")


def _broken(home: Path) -> None:
    _changed(home)
    path = home / "data" / "concepts" / "bo.opconcept"
    path.write_bytes(path.read_bytes()[:-1])
    (path.parent / ".bo.opconcept.0123456789ab.tmp").write_bytes(b"half")


def _measured(home: Path) -> None:
    """A results folder as `op bench run` leaves it, with one item in it."""
    from omnipersona_cli.bench.results import Results

    results = Results(home / "results")
    setting = {"methods": ["full"], "concepts": ["bo"], "seeds": 1, "tasks": ["generation"]}
    about = {"method": "full", "concept": "bo", "seed": 0, "item": "1", "task": "generation"}
    said = {"prompt": "<bo>", "rewritten": "<bo>", "answer": "", "picture": None, "gold": ""}
    with results.held():
        results.begin({**setting, "backend": "sketch", "profile": "strict", "judges": {}})
        results.append({**about, **said, "kind": "prompt", "scores": {"rec": 1.0}, "failed": []})


def _learning(name: str) -> tuple[str, ...]:
    numbers = ("--steps", "2", "--samples", "0", "--resume")
    return "learn", "../photos", "--name", name, "-b", "sketch", *numbers


_PAINTING = ("-b", "sketch", "--seed", "1", "--tries", "1", "-o", "out.png")

COMMANDS = {
    "facts add": Command(words=("facts", "bo", "add", "<bo> sleeps")),
    "facts rm": Command(words=("facts", "bo", "rm", "<bo> is brown"), codes=(0, 3)),
    "rename": Command(words=("rename", "bo", "rex")),
    "rm": Command(words=("rm", "bo", "mam", "--yes")),
    "import": Command(words=("import", "kit.opconcept")),
    "import as": Command(words=("import", "kit.opconcept", "--name", "cat")),
    "import --force": Command(words=("import", "bo.opconcept", "--force")),
    "export": Command(words=("export", "bo", "-o", "out.opconcept"), codes=(0, 1)),
    "export --force": Command(words=("export", "bo", "-o", "taken.opconcept", "--force")),
    "undo a change": Command(words=("undo",), toggles=True, before=_changed),
    "undo a removal": Command(words=("undo", "bo"), codes=(0, 3), before=_removed),
    "undo a renaming": Command(words=("undo",), toggles=True, before=_renamed),
    "forget": Command(words=("forget", "bo", "--yes"), codes=(0, 3), before=_changed),
    "fsck --repair": Command(words=("fsck", "--repair"), before=_broken),
    "gc": Command(words=("gc", "--days", "0"), before=_changed),
    "learn": Command(words=_learning("disc"), group=(), codes=(0, 1)),
    "learn --force": Command(words=(*_learning("bo"), "--force"), group=()),
    "learn -o": Command(words=(*_learning("disc"), "-o", "new.opconcept"), group=(), codes=(0, 1)),
    "learn --report": Command(
        words=(*_learning("disc"), "--report", "page.html", "--previews", "previews"),
        group=(),
        codes=(0, 1),
    ),
    "gen": Command(
        words=("gen", "<disc> here", *_PAINTING), group=(), codes=(0, 1), before=_learned
    ),
    "gen -n": Command(
        words=("gen", "<disc> here", *_PAINTING[:-1], "pictures/", "-n", "2"),
        group=(),
        grows=2,
        before=_learned,
    ),
    "gen -n --force": Command(
        words=("gen", "<disc> here", *_PAINTING, "-n", "2", "--force"), group=(), before=_learned
    ),
    "toy photos": Command(
        words=("toy", "photos", "drawn", "--seed", "3", "--count", "2", "--size", "16"),
        group=(),
        codes=(0, 1),
    ),
    "bench report": Command(
        words=("bench", "report", "results", "--html", "page.html"), group=(), before=_measured
    ),
    "edit": Command(
        words=("edit", "../blue.png", "add <disc>", "--box", "8,8,40,40", *_PAINTING, "--force"),
        group=(),
        before=_learned,
    ),
}
"""``learn`` on a name that is taken, once the call before was done, has nothing left to do."""


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

    def is_ours(target: object) -> bool:
        if isinstance(target, int):
            return target in ours
        try:
            return Path(os.path.abspath(os.fsdecode(os.fspath(target)))).is_relative_to(root)  # type: ignore[call-overload]
        except TypeError:
            return False

    def wrap(name: str) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            target = words[0] if words else "."
            if not is_ours(target):
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
        if not is_ours(file):
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


def run(home: Path, words: tuple[str, ...], at: int = 0, mode: str = "") -> tuple[int, int, str]:
    """`op` in a process of its own: exit code, calls made (-1 when killed), traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code, made, bug = 1, [], "did not start"
        try:
            os.close(reading)
            os.chdir(home)
            os.environ["OMNIPERSONA_HOME"] = str(home)
            with faults(home, at, mode) as made:
                done = CliRunner().invoke(cli, list(words))
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
    """All packs, in the library and outside, and pictures. A page tells of the run that wrote it:
    that it is there, and whole, is all that is alike."""
    found = {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted((*home.rglob("*.opconcept"), *home.rglob("*.png")))
        if undo.FOLDER not in path.parts
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
    return [path.name for path in (*home.rglob("*.tmp"), *home.rglob("*.part"), *runs.glob("*"))]


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
        words = (*command.group, *command.words)
        command.before(clean)
        kept = {tensors_of(p): p.name for p in (clean / "data" / "concepts").glob("*.opconcept")}
        shutil.copytree(clean, goal, symlinks=True)
        code, calls, bug = run(goal, words)
        assert code == 0 and not bug, (name, code, bug)
        met: dict[str, str] = {}
        for mode in modes:
            for at in range(1, calls + 1, stride):
                shutil.rmtree(home, ignore_errors=True)
                shutil.copytree(clean, home, symlinks=True)
                code, _, bug = run(home, words, at, mode)
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
    code, _, bug = run(home, (*command.group, *command.words))
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
