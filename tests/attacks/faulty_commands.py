"""The commands that write, and what each finds on the disk, for `disk_faults`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from omnipersona_cli import engine
from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Fact, Pack, Slot, to_bytes
from omnipersona_cli.testing import drawing


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is tried, of ``program``. ``codes`` are the exit codes that doing it again may have;
    with ``toggles`` doing it twice is not doing it once, so that only soundness is looked at;
    ``grows`` is how many more files it makes each time, and what was there stays."""

    words: tuple[str, ...]
    group: tuple[str, ...] = ("concepts",)
    program: click.Command = cli
    codes: tuple[int, ...] = (0,)
    toggles: bool = False
    grows: int = 0
    before: Callable[[Path], None] = lambda home: None


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


def _toyset(home: Path) -> None:
    """Two items of a benchmark, beside what is disturbed, and what a run of it imports."""
    import op_toy.judge
    from omnipersona_cli.bench import run

    assert op_toy.judge and run
    done = CliRunner().invoke(
        cli, ["bench", "export-toy", str(home.parent / "set"), "--concepts", "1"]
    )
    assert done.exit_code == 0, done.output


@click.command()
def teach_a_server() -> None:
    """What the studio page does to teach <disc>: it goes on with a job that is there, else it sends
    photos and learns from them."""
    from starlette.testclient import TestClient

    from op_serve.app import make_app
    from op_serve.running import Serving, door_for, served_for

    serving = Serving(opening=engine.Opening(backend="sketch"), token="a-token")
    served, door = served_for(serving), door_for(serving, 80)
    headers = {"authorization": f"Bearer {door.token}", "host": "127.0.0.1"}
    with TestClient(make_app(served, door), headers=headers) as client:

        def asked(way: str, path: str, **more: Any) -> Any:
            response = client.request(way, path, **more)
            if response.status_code >= 400:
                raise click.ClickException(response.text)
            return response.json()

        while served.worker.state == "loading":
            time.sleep(0.01)
        jobs = {job["state"]: f"/api/jobs/{job['id']}" for job in asked("GET", "/api/jobs")}
        if "done" in jobs:
            return
        if job := jobs.get("stopped") or jobs.get("failed"):
            asked("POST", f"{job}/resume")
        else:
            sent = [("photos", file.read_bytes()) for file in sorted(Path("../photos").iterdir())]
            draft = asked("POST", "/api/drafts", files=sent)["id"]
            job = f"/api/jobs/{draft}"
            wanted = {"draft": draft, "name": "disc", "steps": 2}
            try:
                asked("POST", "/api/jobs", json=wanted)
            except click.ClickException:
                client.delete(job)
                raise
        while (now := asked("GET", job))["state"] in ("waiting", "learning"):
            time.sleep(0.01)
        if now["state"] != "done":
            raise click.ClickException(now["error"])


def _learning(name: str) -> tuple[str, ...]:
    numbers = ("--steps", "2", "--samples", "0", "--resume")
    return "learn", "../photos", "--name", name, "-b", "sketch", *numbers


_MEASURED = ("--judge", "toy", "--seeds", "1", "--steps", "1", "--tasks", "parg")

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
    "bench run": Command(
        words=("bench", "run", "../set", "-b", "sketch", *_MEASURED, "-o", "results"),
        group=(),
        before=_toyset,
    ),
    "serve": Command(words=(), group=(), program=teach_a_server, codes=(0, 1)),
    "edit": Command(
        words=("edit", "../blue.png", "add <disc>", "--box", "8,8,40,40", *_PAINTING, "--force"),
        group=(),
        before=_learned,
    ),
}
"""``learn`` on a name that is taken, once the call before was done, has nothing left to do."""
