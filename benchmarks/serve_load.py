"""What `op serve` stands, and what it costs beside the model and the command line.

    python benchmarks/serve_load.py --clients 50 --seconds 60

A server is started as a person starts it, in a process of its own, with nano open and four concepts
in its library. Then, all on this machine:

1. the storm: so many clients at once ask, paint and give up in the middle, each its own mixture.
   Every answer is compared with the one that this client has to get (the fact of the concept that
   it asked about, the bytes that its seed paints alone); one that is another's is *wrong*, one that
   does not come is *lost*. A full queue may send a client away with 429 and a time to come back.
   /health is asked ten times a second meanwhile, and the server's memory is read.
2. one client: asks and paintings one after another through the server, and the same through the
   engine in this process, in turns: the photo is decoded and the PNG is made on both sides. The
   server says of each answer how long its model worked on it (``server-timing``), and the rest of
   the time until the client has the answer is what the server adds, the client's own part included.
3. the command line: `op ask` as it opens the model each time, and with ``--server``.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import httpx2

TOYS = {"bo": "a red ball", "mam": "a blue car", "tiko": "a green kite", "lu": "a yellow boat"}
PROMPTS = {seed: f"<{name}> in the snow" for seed, name in enumerate(TOYS)}
"""What is painted with each seed."""

STEPS = 2
PATIENCE = 120.0
"""Seconds after which an answer counts as lost."""

Address = tuple[str, str]
"""URL and token of a server."""


@dataclass(kw_only=True)
class Storm:
    """What clients met: ``answers`` by kind, what went ``wrong`` or was ``lost``, seconds of each
    answer by kind, seconds of each look at /health, and bytes of memory of the server by second."""

    answers: Counter[str] = field(default_factory=Counter)
    sent_away: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    health: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


async def storm(
    server: Address, alone: Mapping[int, str], *, clients: int, seconds: float, pid: int = 0
) -> Storm:
    """``clients`` at once for so many seconds. ``alone`` are the pictures (base64) by seed that
    `painted_alone` saw; with ``pid`` the memory of that process is read."""
    seen = Storm()
    url, token = server
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {token}"},
        timeout=PATIENCE,
        limits=limits,
    ) as client:
        end = time.monotonic() + seconds
        watching = asyncio.create_task(_watch(client, seen, pid))
        await asyncio.gather(
            *(_talk(client, seen, alone, random.Random(number), end) for number in range(clients))
        )
        watching.cancel()
    return seen


async def painted_alone(server: Address) -> dict[int, str]:
    """What every seed of `PROMPTS` paints while nobody else asks for anything."""
    url, token = server
    async with httpx2.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=PATIENCE
    ) as client:
        answers = [await client.post("/v1/images/generations", json=_wish(it)) for it in PROMPTS]
    return {seed: _picture(answer) for seed, answer in zip(PROMPTS, answers, strict=True)}


def _wish(seed: int) -> dict[str, Any]:
    return {"prompt": PROMPTS[seed], "seed": seed, "steps": STEPS}


def _picture(answer: httpx2.Response) -> str:
    return str(answer.raise_for_status().json()["data"][0]["b64_json"])


async def _talk(
    client: httpx2.AsyncClient,
    seen: Storm,
    alone: Mapping[int, str],
    chance: random.Random,
    end: float,
) -> None:
    """One client until the end."""
    kinds = ("ask", "stream", "paint", "give up")
    while time.monotonic() < end:
        kind = chance.choices(kinds, (5, 2, 2, 1))[0]
        began = time.monotonic()
        try:
            done = await _ONE[kind](client, seen, alone, chance)
        except httpx2.HTTPError as error:
            seen.lost.append(f"{kind}: {type(error).__name__}")
            continue
        if done:
            seen.answers[kind] += 1
            seen.seconds.setdefault(kind, []).append(time.monotonic() - began)
        else:
            seen.sent_away += 1
            await asyncio.sleep(0.2 + 0.3 * chance.random())


async def _ask(
    client: httpx2.AsyncClient, seen: Storm, alone: Mapping[int, str], chance: random.Random
) -> bool:
    name = chance.choice(list(TOYS))
    asked = {"messages": [{"role": "user", "content": f"what is <{name}>'s toy?"}]}
    answer = await client.post("/v1/chat/completions", json=asked)
    if answer.status_code == 429:
        return False
    said = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    if said != TOYS[name]:
        seen.wrong.append(f"<{name}> was answered {said!r}")
    return True


async def _stream(
    client: httpx2.AsyncClient, seen: Storm, alone: Mapping[int, str], chance: random.Random
) -> bool:
    name = chance.choice(list(TOYS))
    body = {"question": f"what is <{name}>'s toy?"}
    answer = await client.post("/api/ask", json=body)
    if answer.status_code == 429:
        return False
    answer.raise_for_status()
    pieces = "".join(re.findall(r'"event": "piece", "text": "([^"]*)"', answer.text))
    if pieces != TOYS[name]:
        seen.wrong.append(f"<{name}> was streamed {pieces!r}")
    return True


async def _paint(
    client: httpx2.AsyncClient, seen: Storm, alone: Mapping[int, str], chance: random.Random
) -> bool:
    seed = chance.choice(list(alone))
    answer = await client.post("/v1/images/generations", json=_wish(seed))
    if answer.status_code == 429:
        return False
    if _picture(answer) != alone[seed]:
        seen.wrong.append(f"seed {seed} was painted another picture")
    return True


async def _give_up(
    client: httpx2.AsyncClient, seen: Storm, alone: Mapping[int, str], chance: random.Random
) -> bool:
    """Ask for what takes long, and leave before it is there."""
    body = {"prompt": "<bo>", "steps": 1000, "stream": True}
    try:
        answer = await client.post(
            "/v1/images/generations", json=body, timeout=chance.uniform(0.05, 1.0)
        )
    except httpx2.TimeoutException:
        return True
    if answer.status_code == 200:
        seen.wrong.append("a thousand steps were done at once")
    return answer.status_code != 429


_ONE: dict[str, Callable[..., Any]] = {
    "ask": _ask,
    "stream": _stream,
    "paint": _paint,
    "give up": _give_up,
}


async def _watch(client: httpx2.AsyncClient, seen: Storm, pid: int) -> None:
    while True:
        began = time.monotonic()
        answer = await client.get("/health")
        seen.health.append(time.monotonic() - began)
        if answer.status_code != 200:
            seen.wrong.append(f"/health said {answer.status_code}")
        if pid and len(seen.health) % 10 == 1:
            seen.memory.append(resident(pid))
        await asyncio.sleep(0.1)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds (Linux)."""
    fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


# -- one client, and the command line -------------------------------------------------------------


def compared(server: Address, home: Path, photo: Path, rounds: int) -> list[str]:
    """Rows of Markdown: the same through the server and through the engine in this process."""
    os.environ["OMNIPERSONA_HOME"] = str(home)
    from omnipersona_cli import engine
    from omnipersona_cli.data.decode import open_stored
    from omnipersona_cli.engine.picture import png_bytes

    backend = engine.opened_for((), engine.Opening(backend="nano"))
    picture = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
    seeing = [
        {"type": "text", "text": "is <bo> here?"},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    url, token = server
    with httpx2.Client(
        base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=PATIENCE
    ) as client:

        def asked(content: Any) -> float:
            body = {"messages": [{"role": "user", "content": content}]}
            return worked(client.post("/v1/chat/completions", json=body))

        def painted(seed: int) -> float:
            body = {"prompt": "<bo> in the snow", "seed": seed}
            return worked(client.post("/v1/images/generations", json=body))

        def looked_at(_: int) -> None:
            engine.ask("is <bo> here?", image=open_stored(photo).image, backend=backend)

        def painted_here(seed: int) -> None:
            for made in engine.gen("<bo> in the snow", seed=seed, backend=backend):
                png_bytes(made)

        pairs: dict[str, tuple[Callable[[int], float], Callable[[int], Any]]] = {
            "ask for a fact": (
                lambda _: asked("what is <bo>'s toy?"),
                lambda _: engine.ask("what is <bo>'s toy?", backend=backend),
            ),
            "ask who is in a picture": (lambda _: asked(seeing), looked_at),
            "paint a picture": (painted, painted_here),
        }
        return [_row(what, *both, rounds) for what, both in pairs.items()]


def worked(answer: httpx2.Response) -> float:
    """Seconds that the model worked for an answer."""
    return float(answer.raise_for_status().headers["server-timing"].partition("dur=")[2]) / 1e3


def _row(what: str, there: Callable[[int], float], here: Callable[[int], Any], rounds: int) -> str:
    took, models, alone = [], [], []
    for number in range(rounds + 1):
        for served in (True, False) if number % 2 else (False, True):
            began = time.perf_counter()
            model = there(number) if served else here(number)
            seconds = time.perf_counter() - began
            if number and served:  # the first is to warm up
                took.append(seconds)
                models.append(model)
            elif number:
                alone.append(seconds)
    added = [one - model for one, model in zip(took, models, strict=True)]
    medians = [statistics.median(it) for it in (took, models, added, alone)]
    whole, model, more, engine = (f"{1e3 * it:.1f} ms" for it in medians)
    share = 100 * statistics.median(part / of for part, of in zip(added, models, strict=True))
    rate = 1 / medians[0]
    return f"| {what} | {whole} | {model} | {more} ({share:.1f} %) | {engine} | {rate:.1f} |"


def command_line(server: Address, home: Path, times: int) -> list[str]:
    """Rows of Markdown: `op ask` with a model of its own, and through the server."""
    url, token = server
    rows = []
    for what, more in (("op ask", []), ("op ask --server", ["--server", f"{url}/?token={token}"])):
        took = []
        for _ in range(times):
            began = time.perf_counter()
            words = [*OP, "ask", "what is <bo>'s toy?", *more]
            env = {**os.environ, "OMNIPERSONA_HOME": str(home)}
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
            took.append(time.perf_counter() - began)
            assert done.stdout.strip() == TOYS["bo"], done.stdout
        middle = statistics.median(took)
        rows.append(f"| `{what}` | {middle:.2f} s | {1 / middle:.2f} |")
    return rows


# -- the server ------------------------------------------------------------------------------------

OP = (sys.executable, "-m", "omnipersona_cli")


def furnish(home: Path, photos: Path) -> None:
    """A library below ``home`` with the four concepts, of which one was learned, briefly."""
    from omnipersona_cli import engine
    from omnipersona_cli.concepts.library import Library

    library = Library(home / "data" / "concepts")
    engine.learn(
        engine.Subject(photos=sorted(photos.glob("*.png"))[:4], name="bo"),
        engine.Settings(steps=6),
        engine.Keeping(library=library, samples=0),
        opening=engine.Opening(backend="nano"),
    )
    spread(library)


def spread(library: Any) -> None:
    """Copies of <bo> under the other names; each has the fact of its own toy, and no other."""
    from omnipersona_cli.concepts.facts import new_fact

    pack = library.load("bo")
    for name, toy in TOYS.items():
        fact = new_fact(f"<{name}>'s toy is {toy}", name=name)
        library.save(replace(pack, name=name, facts=(fact,), hash=""), force=True)


@contextmanager
def served(home: Path, most_waiting: int) -> Iterator[tuple[Address, int]]:
    """A running `op serve`, and its process id."""
    words = [*OP, "serve", "-b", "nano", "--port", "0", "-q", "--max-queue", str(most_waiting)]
    env = {**os.environ, "OMNIPERSONA_HOME": str(home)}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, token = process.stdout.readline().strip().split("/?token=")
            while httpx2.get(f"{url}/health", timeout=PATIENCE).json()["status"] == "loading":
                time.sleep(0.1)
            yield (url, token), process.pid
        finally:
            process.send_signal(signal.SIGINT)


@click.command()
@click.option("--clients", default=50, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--max-queue", default=32, show_default=True)
@click.option("--rounds", default=30, show_default=True, help="Of one client.")
@click.option("--times", default=3, show_default=True, help="Of the command line.")
def main(clients: int, seconds: float, max_queue: int, rounds: int, times: int) -> None:
    """Measure, and print Markdown."""
    with TemporaryDirectory() as folder:
        home, photos = Path(folder) / "home", Path(folder) / "photos"
        os.environ["OMNIPERSONA_HOME"] = str(home)
        subprocess.run([*OP, "toy", "photos", str(photos), "--seed", "7", "-q"], check=True)
        furnish(home, photos)
        with served(home, max_queue) as (server, pid):
            alone = asyncio.run(painted_alone(server))
            seen = asyncio.run(storm(server, alone, clients=clients, seconds=seconds, pid=pid))
            print(storm_table(seen, clients, seconds))
            rows = compared(server, home, photos / "00.png", rounds)
            print("\n| one client | server | its model | added | engine alone | per second |")
            print("| --- | --- | --- | --- | --- | --- |", *rows, sep="\n")
            print("\n| command line | median | per second |", "| --- | --- | --- |", sep="\n")
            print(*command_line(server, home, times), sep="\n")
    sys.exit(bool(seen.wrong or seen.lost))


def storm_table(seen: Storm, clients: int, seconds: float) -> str:
    """The storm as Markdown."""
    rows = [
        f"| {clients} clients, {seconds:.0f} s | answers | median | slowest |",
        "| --- " * 4 + "|",
    ]
    for kind, took in sorted(seen.seconds.items()):
        middle, slowest = statistics.median(took), max(took)
        rows.append(f"| {kind} | {seen.answers[kind]} | {middle:.2f} s | {slowest:.2f} s |")
    rows.append(
        f"| /health | {len(seen.health)} | {1e3 * statistics.median(seen.health):.0f} ms "
        f"| {1e3 * max(seen.health):.0f} ms |"
    )
    told = [
        f"{sum(seen.answers.values()) / seconds:.1f} requests per second; "
        f"{seen.sent_away} were sent away by a full queue; {_some(seen.wrong)} wrong, "
        f"{_some(seen.lost)} lost"
    ]
    if len(seen.memory) > 4:
        quarter = max(1, len(seen.memory) // 4)
        early = statistics.median(seen.memory[quarter : 2 * quarter]) / 2**20
        late = statistics.median(seen.memory[-quarter:]) / 2**20
        told.append(f"memory of the server: {early:.0f} MiB, {late:.0f} MiB at the end")
    return "\n".join([*rows, "", *told])


def _some(what: Sequence[str]) -> str:
    return f"{len(what)} ({what[0]})" if what else "0"


if __name__ == "__main__":
    main()
