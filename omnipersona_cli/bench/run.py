"""Learn every concept, run every item, keep every answer.

The work is cut into units of one concept and one seed. A unit runs in one process and one thread,
and everything in it follows from the seeds, so that results depend neither on the number of workers
nor on where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend
from omnipersona_cli.bench.clock import Clock, Unit
from omnipersona_cli.bench.dataset import BENCH_TASKS, Dataset, check_pictures, read_dataset
from omnipersona_cli.bench.judging import Panel
from omnipersona_cli.bench.methods import chosen_methods
from omnipersona_cli.bench.metrics import PROFILES
from omnipersona_cli.bench.results import Record, Results, key_of
from omnipersona_cli.bench.unit import (
    ConceptLearned,
    Event,
    Finished,
    Key,
    Keys,
    Order,
    Scored,
    items_of,
    opened,
    run_unit,
    sweep_cut,
)
from omnipersona_cli.bench.workers import in_processes
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.errors import TaskError, UsageError, nearest
from omnipersona_cli.hookspecs import OnProgress, Progress


def run(order: Order, *, on_progress: OnProgress | None = None) -> list[Record]:
    """Run what is not yet there and return every record, in order.

    Raises MissingError and PersonaError for data, judges and results that cannot be used;
    whatever was finished before an error is kept.
    """
    on_progress = on_progress or _silent
    _check(order)
    dataset = read_dataset(order.data, order.concepts)
    for note in dataset.notes:
        on_progress(Progress(phase="reading", note=note))
    check_pictures(dataset)
    panel = Panel.of(order.judges)
    for note in panel.notes():
        on_progress(Progress(phase="reading", note=note))
    name = order.opening.backend or registry.DEFAULT_BACKEND
    if "deep" in order.methods and not registry.backend_info(name).deep_layers:
        raise TaskError(
            f"{name} takes no tokens for layers after the first, which the method deep learns",
            hint="--method all leaves out what cannot be",
        )
    on_progress(Progress(phase=f"loading {name}"))
    backend = opened(order)
    planned = _planned(order, dataset, backend)
    setting = _setting(order, dataset, backend, panel, sum(map(len, planned.values())))
    results = Results(order.out)
    with results.held():
        sweep_cut(order)
        records = results.begin(setting)
        if order.retry_failed:
            records = [record for record in records if not record["failed"]]
            results.write_sorted(records)
        _run_units(order, dataset, backend, panel, planned, results, records, on_progress)
        results.write_sorted(list(results.records()))
    return list(results.records())


def _run_units(
    order: Order,
    dataset: Dataset,
    backend: Backend,
    panel: Panel,
    planned: Mapping[Unit, Sequence[Key]],
    results: Results,
    records: Sequence[Record],
    on_progress: OnProgress,
) -> None:
    """Everything that is not done yet, kept as it comes."""
    done: Keys = frozenset(key_of(record) for record in records)
    units = list(planned)
    left = {unit: [key for key in keys if key not in done] for unit, keys in planned.items()}
    clock = Clock(
        items=sum(map(len, left.values())),
        before=len(records),
        learnings={
            (unit, method.recipe)
            for unit, keys in left.items()
            for method in chosen_methods(order.methods)
            if method.recipe and any(key[0] == method.name for key in keys)
        },
        workers=min(order.workers, len(units)),
    )
    on_progress(clock.progress(f"{len(dataset.concepts)} concepts, {order.seeds} seeds: {clock}"))
    for event in _events(order, dataset, backend, panel, [u for u in units if left[u]], done):
        if isinstance(event, Scored):
            results.append(event.record)
            clock.scored(event.record, event.seconds)
            on_progress(clock.progress())
        elif isinstance(event, ConceptLearned):
            clock.learned(event.unit, event.recipe, event.about)
            if event.about:
                results.note_time(event.about)
        elif isinstance(event, Finished):
            for about in clock.finished(event.unit):
                results.note_time(about)
            on_progress(
                clock.progress(f"<{event.unit.concept}>, seed {event.unit.seed} is done: {clock}")
            )
        else:
            on_progress(clock.progress(event.note))


def _check(order: Order) -> None:
    """UsageError for words that do not fit together."""
    if order.profile not in PROFILES:
        raise UsageError(f"there is no profile {order.profile!r}", hint="strict, or compat")
    if order.seeds < 1 or order.workers < 1:
        raise UsageError("nothing runs without seeds and workers", hint="--seeds 3 --workers 1")
    for task in order.tasks:
        if task not in BENCH_TASKS:
            guess = nearest(task, BENCH_TASKS)
            raise UsageError(
                f"there is no task {task!r}",
                hint=f"did you mean {guess}?" if guess else f"there are {', '.join(BENCH_TASKS)}",
            )
    chosen_methods(order.methods)


def _setting(
    order: Order, dataset: Dataset, backend: Backend, panel: Panel, items: int
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
        "tasks": [task for task in BENCH_TASKS if task in order.tasks],
        "methods": [method.name for method in chosen_methods(order.methods)],
        "seeds": order.seeds,
        "items": items,
        "steps": order.steps,
        "packs": None if order.packs is None else _pack_digest(order.packs),
    }


def _pack_digest(folder: Path) -> dict[str, str]:
    library = Library(folder)
    return {name: library.header(name).hash for name in library.names()}


def _planned(order: Order, dataset: Dataset, backend: Backend) -> dict[Unit, list[Key]]:
    """The keys of all that each unit measures, in the order of the run."""
    return {
        Unit(concept=concept.name, seed=seed): [
            (method.name, concept.name, seed, item.id)
            for method in chosen_methods(order.methods)
            for item in items_of(concept, order, method, backend)
        ]
        for seed in range(order.seeds)
        for concept in dataset.concepts
    }


# -- units, here or in other processes ---------------------------------------------------------


def _events(
    order: Order,
    dataset: Dataset,
    backend: Backend,
    panel: Panel,
    units: Sequence[Unit],
    done: Keys,
) -> Iterator[Event]:
    if order.workers == 1 or len(units) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers: sums over threads round differently
        try:
            for unit in units:
                yield from run_unit(order, dataset, backend, panel, unit, done)
        finally:
            torch.set_num_threads(threads)
        return
    yield from in_processes(order, units, done)


def _silent(event: Progress) -> None:
    """Progress that nobody watches."""
