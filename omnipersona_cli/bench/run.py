"""Learn every concept, run every item, keep every answer.

The work is cut into units of one concept and one seed. A unit runs in one process and one thread,
and everything in it follows from the seeds, so that results depend neither on the number of workers
nor on where a run was interrupted.
"""

from __future__ import annotations

import multiprocessing
import queue
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from omnipersona_cli import engine, registry
from omnipersona_cli.backend import Backend
from omnipersona_cli.bench.dataset import TASKS, Concept, Dataset, Item, Task, read_dataset
from omnipersona_cli.bench.judging import Panel
from omnipersona_cli.bench.methods import Method, Recipe, chosen_methods, learner, user
from omnipersona_cli.bench.metrics import PROFILES, Profile
from omnipersona_cli.bench.protocol import (
    Outcome,
    Setup,
    asked_of,
    forgetting_probe,
    probe,
    run_item,
)
from omnipersona_cli.bench.results import Record, Results, key_of
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.data.decode import open_photo
from omnipersona_cli.engine.request import Opening
from omnipersona_cli.errors import PersonaError, UsageError, nearest
from omnipersona_cli.hookspecs import Progress

OnProgress = Callable[[Progress], None]
Keys = frozenset[tuple[str, str, int, str]]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to run. ``packs`` is a folder of packs to use for the recipe "full" instead of
    learning; ``steps`` of learning, None for the backend's own."""

    data: Path
    out: Path
    opening: Opening
    concepts: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = TASKS
    methods: tuple[str, ...] = ("full",)
    profile: Profile = "strict"
    judges: tuple[str, ...] = ()
    seeds: int = 3
    steps: int | None = None
    packs: Path | None = None
    workers: int = 1
    start_method: str = "spawn"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One concept and one seed: what one process does in one go."""

    concept: str
    seed: int


def run(order: Order, *, on_progress: OnProgress | None = None) -> list[Record]:
    """Run what is not yet there and return every record, in order.

    Raises MissingError and PersonaError for data, judges and results that cannot be used;
    whatever was finished before an error is kept.
    """
    report = on_progress or _silent
    _check(order)
    dataset = read_dataset(order.data, order.concepts)
    for note in dataset.notes:
        report(Progress(phase="reading", note=note))
    name = order.opening.backend or registry.DEFAULT_BACKEND
    report(Progress(phase=f"loading {name}"))
    backend = _opened(order)
    panel = Panel.of(order.judges)
    methods = chosen_methods(order.methods)
    for note in panel.notes():
        report(Progress(phase="reading", note=note))
    results = Results(order.out)
    records = results.begin(_setting(order, dataset, backend, panel, methods))
    done: Keys = frozenset(key_of(record) for record in records)
    total = sum(
        order.seeds * len(_items(concept, order, method, backend))
        for concept in dataset.concepts
        for method in methods
    )
    units = [
        Unit(concept=concept.name, seed=seed)
        for seed in range(order.seeds)
        for concept in dataset.concepts
    ]
    began = time.monotonic()
    finished_before = len(records)
    for event in _events(order, dataset, backend, panel, units, done):
        if isinstance(event, str):
            report(Progress(phase="running", step=len(records), total=total, note=event))
            continue
        if event.pop("timing", False):
            results.note_time(event)
            continue
        results.append(event)
        records.append(event)
        rate = (time.monotonic() - began) / (len(records) - finished_before)
        left = rate * (total - len(records))
        report(
            Progress(
                phase="running", step=len(records), total=total, metrics={"minutes left": left / 60}
            )
        )
    records = list(results.records())
    results.write_sorted(records)
    return list(results.records())


def _check(order: Order) -> None:
    """UsageError for words that do not fit together."""
    if order.profile not in PROFILES:
        raise UsageError(f"there is no profile {order.profile!r}", hint="strict, or compat")
    if order.seeds < 1 or order.workers < 1:
        raise UsageError("nothing runs without seeds and workers", hint="--seeds 3 --workers 1")
    for task in order.tasks:
        if task not in TASKS:
            guess = nearest(task, TASKS)
            raise UsageError(
                f"there is no task {task!r}",
                hint=f"did you mean {guess}?" if guess else f"there are {', '.join(TASKS)}",
            )
    chosen_methods(order.methods)


def _opened(order: Order) -> Backend:
    opening = order.opening
    return registry.open_backend(
        opening.backend or registry.DEFAULT_BACKEND,
        model=opening.model,
        device=opening.device,
        dtype=opening.dtype,
    )


def _setting(
    order: Order, dataset: Dataset, backend: Backend, panel: Panel, methods: Sequence[Method]
) -> dict[str, Any]:
    """Everything that decides the results, and nothing else."""
    from omnipersona_cli import __version__

    return {
        "op": __version__,
        "data": dataset.digest(),
        "concepts": [concept.name for concept in dataset.concepts],
        "class_words": {concept.name: concept.class_word for concept in dataset.concepts},
        "backend": backend.info.name,
        "fingerprint": backend.fingerprint,
        "judges": panel.about(),
        "profile": order.profile,
        "tasks": [task for task in TASKS if task in order.tasks],
        "methods": [method.name for method in methods],
        "seeds": order.seeds,
        "steps": order.steps,
        "packs": None if order.packs is None else _pack_digest(order.packs),
    }


def _pack_digest(folder: Path) -> dict[str, str]:
    library = Library(folder)
    return {name: library.header(name).hash for name in library.names()}


def _items(concept: Concept, order: Order, method: Method, backend: Backend) -> list[Item]:
    wanted = [item for item in concept.items if item.task in order.tasks]
    if "forgetting" in order.tasks and method.recipe:
        wanted.append(forgetting_probe(concept))
    return asked_of(method, backend, wanted)


# -- units, here or in other processes ---------------------------------------------------------

Event = Record | str
"""A record, a record of seconds (with "timing": true), or a note."""


def _events(
    order: Order,
    dataset: Dataset,
    backend: Backend,
    panel: Panel,
    units: Sequence[Unit],
    done: Keys,
) -> Iterator[Event]:
    waiting = [unit for unit in units if _unfinished(order, dataset, backend, unit, done)]
    if order.workers == 1 or len(waiting) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers: sums over threads round differently
        try:
            for unit in waiting:
                yield from run_unit(order, dataset, backend, panel, unit, done)
        finally:
            torch.set_num_threads(threads)
        return
    yield from _in_processes(order, waiting, done)


def _unfinished(order: Order, dataset: Dataset, backend: Backend, unit: Unit, done: Keys) -> bool:
    (concept,) = (it for it in dataset.concepts if it.name == unit.concept)
    return any(
        (method.name, unit.concept, unit.seed, item.id) not in done
        for method in chosen_methods(order.methods)
        for item in _items(concept, order, method, backend)
    )


def _in_processes(order: Order, units: Sequence[Unit], done: Keys) -> Iterator[Event]:
    """The units shared out among processes; their records as they come."""
    context: Any = multiprocessing.get_context(order.start_method)
    todo, came = context.Queue(), context.Queue()
    for unit in units:
        todo.put(unit)
    count = min(order.workers, len(units))
    for _ in range(count):
        todo.put(None)
    workers = [
        context.Process(target=_work, args=(order, done, todo, came), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    running = count
    try:
        while running:
            try:
                kind, value = came.get(timeout=1.0)
            except queue.Empty:
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    raise PersonaError(
                        "a worker died; the finished items are kept",
                        hint="run the same command again, with fewer --workers where memory is low",
                    ) from None
                continue
            if kind == "end":
                running -= 1
            elif kind == "error":
                raise value
            elif kind == "bug":
                raise RuntimeError(f"in a worker:\n{value}")
            else:
                yield value
    finally:
        for worker in workers:
            if worker.is_alive() and running:
                worker.terminate()
            worker.join()


def _work(order: Order, done: Keys, todo: Any, came: Any) -> None:
    """One worker's life: units until there are none."""
    try:
        torch.set_num_threads(1)
        dataset = read_dataset(order.data, order.concepts)
        backend, panel = _opened(order), Panel.of(order.judges)
        while (unit := todo.get()) is not None:
            for event in run_unit(order, dataset, backend, panel, unit, done):
                came.put(("event", event))
    except PersonaError as error:
        message = PersonaError(str(error), hint=error.hint)  # its class may not travel
        came.put(("error", message))
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception:
        came.put(("bug", traceback.format_exc()))
    else:
        came.put(("end", None))


def run_unit(
    order: Order,
    dataset: Dataset,
    backend: Backend,
    panel: Panel,
    unit: Unit,
    done: Keys,
) -> Iterator[Event]:
    """Learn what the methods need and run what is not done yet."""
    (concept,) = (it for it in dataset.concepts if it.name == unit.concept)
    bare = probe(backend, concept, None)
    for method in chosen_methods(order.methods):
        waiting = [
            item
            for item in _items(concept, order, method, backend)
            if (method.name, concept.name, unit.seed, item.id) not in done
        ]
        if not waiting:
            continue
        library = None
        if method.recipe:
            yield f"<{concept.name}>, seed {unit.seed}: {method.name}"
            library, timing = learned(order, concept, backend, method.recipe, unit.seed)
            if timing:
                yield timing | {"timing": True}
            if not method.facts_text:
                library = without_facts(library, concept.name)
        setup = Setup(
            concept=concept,
            method=method,
            backend=user(backend, method.recipe),
            library=library,
            panel=panel,
            profile=order.profile,
            seed=unit.seed,
            bare=bare,
        )
        for item in waiting:
            outcome = run_item(setup, item, paint_seed(item, unit.seed))
            yield _record(order, setup, item, outcome)


def paint_seed(item: Item, seed: int) -> int:
    """The seed of painting: one for each concept, item and seed, and the same for every method."""
    digest = sha256(f"{item.concept}/{item.id}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def learned(
    order: Order, concept: Concept, backend: Backend, recipe: Recipe, seed: int
) -> tuple[Library, Record]:
    """The library that holds the concept, learned now where it is not there yet; and what that
    took, empty where it took nothing."""
    if order.packs is not None and recipe == "full":
        library = Library(order.packs)
        library.path(concept.name)
        return library, {}
    library = Library(order.out / "packs" / f"{recipe}-{seed}")
    if concept.name in library.names():
        return library, {}
    made = engine.learn(
        list(concept.photos),
        name=concept.name,
        class_word=concept.class_word,
        facts=concept.facts,
        negatives=[open_photo(path) for path in concept.negatives],
        backend=learner(backend, recipe),
        steps=order.steps,
        seed=seed,
        library=library,
    )
    return library, {
        "concept": concept.name,
        "recipe": recipe,
        "seed": seed,
        "seconds": round(made.seconds, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def without_facts(library: Library, name: str) -> Library:
    """A library beside this one in which the concept has no written facts."""
    bare = Library(library.folder.with_name(library.folder.name + "-without-facts"))
    bare.save(replace(library.load(name), facts=()), force=True)
    return bare


def _record(order: Order, setup: Setup, item: Item, outcome: Outcome) -> Record:
    """One line of the results."""
    picture = None
    if outcome.image is not None:
        picture = Results(order.out).keep_picture(outcome.image)

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 6)

    record: Record = {
        "method": setup.method.name,
        "concept": setup.concept.name,
        "seed": setup.seed,
        "task": item.task,
        "item": item.id,
        "kind": item.kind,
        "prompt": item.prompt,
        "rewritten": outcome.rewritten,
        "gold": item.gold,
        "answer": outcome.answer,
        "probability": rounded(outcome.probability),
        "picture": picture,
        "paint_seed": outcome.seed if picture else None,
        "source": _inside(order, item.image),
        "scores": {name: rounded(value) for name, value in sorted(outcome.scores.items())},
        "failed": sorted(outcome.failed),
        "judges": dict(sorted(outcome.judges.items())),
    }
    return record | ({"trace": outcome.trace} if outcome.trace else {})


def _inside(order: Order, path: Path | None) -> str | None:
    return None if path is None else path.relative_to(order.data).as_posix()


def _silent(event: Progress) -> None:
    """Progress that nobody watches."""
