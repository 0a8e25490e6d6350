"""One unit of a run: what one concept and one seed need is learned, and every item is asked.

A unit runs in one process and one thread, and everything in it follows from the seeds.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch

from omnipersona_cli import engine, registry
from omnipersona_cli.backend import Backend
from omnipersona_cli.bench.clock import Unit
from omnipersona_cli.bench.dataset import BENCH_TASKS, BenchTask, Concept, Dataset, Item
from omnipersona_cli.bench.judging import Panel
from omnipersona_cli.bench.methods import (
    BenchMethod,
    Recipe,
    chosen_methods,
    depth_of,
    learner,
    user,
)
from omnipersona_cli.bench.metrics import Profile
from omnipersona_cli.bench.protocol import (
    Outcome,
    Setup,
    asked_of,
    forgetting_probe,
    probe,
    run_item,
)
from omnipersona_cli.bench.results import Record, Results
from omnipersona_cli.concepts.container import sweep_temporaries
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import SUFFIX, read_header
from omnipersona_cli.concepts.upkeep import runs
from omnipersona_cli.data.decode import open_photo
from omnipersona_cli.engine.checkpoint import LEARNED, forget_run, sweep_done
from omnipersona_cli.engine.request import Opening
from omnipersona_cli.errors import PersonaError

Key = tuple[str, str, int, str]
"""Of an item: method, concept, seed, item (`results.key_of`)."""

Keys = frozenset[Key]
"""What is done."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to run. ``packs`` is a folder of packs to use for the recipe "full" instead of
    learning; ``steps`` of learning, None for the backend's own; ``retry_failed`` asks anew where a
    judge failed in an earlier run."""

    data: Path
    out: Path
    opening: Opening
    concepts: tuple[str, ...] = ()
    tasks: tuple[BenchTask, ...] = BENCH_TASKS
    methods: tuple[str, ...] = ("full",)
    profile: Profile = "strict"
    judges: tuple[str, ...] = ()
    seeds: int = 3
    steps: int | None = None
    packs: Path | None = None
    workers: int = 1
    retry_failed: bool = False
    start_method: str = "spawn"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One finished item, and how long it took: None where it is another method's, copied."""

    record: Record
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ConceptLearned:
    """One recipe of one unit: ``about`` is empty where the pack was there already."""

    unit: Unit
    recipe: Recipe
    about: Record


@dataclass(frozen=True, kw_only=True)
class Began:
    """Something that will take a while."""

    note: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A unit of which nothing is left to do."""

    unit: Unit


Event = Scored | ConceptLearned | Began | Finished


def opened(order: Order) -> Backend:
    return registry.open_backend(order.opening)


def items_of(concept: Concept, order: Order, method: BenchMethod, backend: Backend) -> list[Item]:
    wanted = [item for item in concept.items if item.task in order.tasks]
    if "forgetting" in order.tasks and method.recipe:
        wanted.append(forgetting_probe(concept))
    return asked_of(method, backend, wanted)


def run_unit(
    order: Order,
    dataset: Dataset,
    backend: Backend,
    panel: Panel,
    unit: Unit,
    done: Keys,
) -> Iterator[Event]:
    """Learn what the methods need and run what is not done yet.

    Where full replayed nothing, without-replay does the very same thing, with the same tokens and
    seeds: it is not done twice.
    """
    (concept,) = (concept for concept in dataset.concepts if concept.name == unit.concept)
    bare = probe(backend, concept, None)
    plain: dict[str, Record] = {}  # what full did without replaying anything
    for method in chosen_methods(order.methods):
        waiting = [
            item
            for item in items_of(concept, order, method, backend)
            if (method.name, concept.name, unit.seed, item.id) not in done
        ]
        if not waiting:
            continue
        library = None
        if method.recipe:
            library = library_of(order, method.recipe, unit.seed)
            about: Record = {}
            if concept.name not in library.names():
                recipe = "" if method.recipe == "full" else f" ({method.name})"
                yield Began(note=f"learning <{concept.name}>{recipe}, seed {unit.seed}")
                about = learn(order, concept, backend, method.recipe, unit.seed, library)
            yield ConceptLearned(unit=unit, recipe=method.recipe, about=about)
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
            if method.name == "without-replay" and item.id in plain:
                yield Scored(record=plain[item.id] | {"method": method.name}, seconds=None)
                continue
            began = time.monotonic()
            outcome = run_item(setup, item, paint_seed(item, unit.seed))
            record = _record(order, setup, item, outcome)
            if method.name == "full" and "trace" not in record:
                plain[item.id] = record
            yield Scored(record=dict(record), seconds=time.monotonic() - began)
    yield Finished(unit=unit)


def paint_seed(item: Item, seed: int) -> int:
    """The seed of painting: one for each concept, item and seed, and the same for every method."""
    digest = sha256(f"{item.concept}/{item.id}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def library_of(order: Order, recipe: Recipe, seed: int) -> Library:
    """Where a recipe's packs are kept, or come from."""
    if order.packs is not None and recipe == "full":
        return Library(order.packs)
    return Library(order.out / "packs" / f"{recipe}-{seed}")


def sweep_cut(order: Order) -> None:
    """Remove what is left where learning was cut after its pack was kept: what is half-written
    beside packs, and the runs."""
    sweep_done()
    kept = set()
    with suppress(OSError):
        for folder in (order.out / "packs").iterdir():
            sweep_temporaries(folder, lambda name: name.endswith(SUFFIX))
            for path in folder.glob(f"*{SUFFIX}"):
                with suppress(PersonaError):
                    kept.add(read_header(path).hash)
    for run in runs():
        with suppress(PersonaError):
            if read_header(run.folder / LEARNED).hash in kept:
                forget_run(run.folder)


def learn(
    order: Order, concept: Concept, backend: Backend, recipe: Recipe, seed: int, library: Library
) -> Record:
    """Learn the concept into the library; what that took."""
    if order.packs is not None and recipe == "full":
        library.path(concept.name)  # says that there is none: nothing is learned into it
    subject = engine.Subject(
        photos=concept.photos,
        name=concept.name,
        class_word=concept.class_word,
        facts=concept.facts,
        negatives=[open_photo(path) for path in concept.negatives],
    )
    learned = engine.learn(
        subject,
        engine.Settings(
            steps=0 if recipe == "instant" else order.steps,
            depth=depth_of(backend, recipe),
            seed=seed,
        ),
        engine.Keeping(library=library, samples=0),  # the bench paints pictures of its own
        backend=learner(backend, recipe),
    )
    about: Record = {
        "concept": concept.name,
        "recipe": recipe,
        "seed": seed,
        "seconds": round(learned.seconds, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    if torch.cuda.is_available():
        about["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return about


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
        "details": dict(sorted(outcome.details.items())),
    }
    return record | ({"trace": outcome.trace} if outcome.trace else {})


def _inside(order: Order, path: Path | None) -> str | None:
    return None if path is None else path.relative_to(order.data).as_posix()
