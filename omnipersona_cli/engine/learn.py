"""Learn a concept: photos and facts in, a pack out; the backbone never changes.

Everything frozen runs once (`Backend.prepare`), then the tokens alone are optimised on all three
tasks, the best by held-out score are calibrated, checked for having learned anything, written and
read back. Without steps the start is kept, an instant concept: it is calibrated and written alike,
and what only learning needs is left out.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, BackendInfo, OnStep, Work
from omnipersona_cli.engine.batches import group_sizes
from omnipersona_cli.engine.checkpoint import forget_run, sweep_done
from omnipersona_cli.engine.examine import PLACES, examine
from omnipersona_cli.engine.keep import (
    Keeping,
    check_learned,
    check_places,
    kept,
    pack_before,
    packed,
)
from omnipersona_cli.engine.material import Material, Subject, gather
from omnipersona_cli.engine.memory import UNTAUGHT, calibrate_memory
from omnipersona_cli.engine.more import earlier, runs_of, with_what_is_known
from omnipersona_cli.engine.previews import Previews
from omnipersona_cli.engine.progress import OnProgress, counting, tell
from omnipersona_cli.engine.report import Learned, report_of
from omnipersona_cli.engine.request import ANY, Opening, memory_errors, open_model
from omnipersona_cli.engine.run import instant, run
from omnipersona_cli.engine.settings import Settings
from omnipersona_cli.engine.start import start_of
from omnipersona_cli.engine.tokens import slot_name
from omnipersona_cli.errors import UsageError
from omnipersona_cli.hookspecs import Progress

USUAL = Settings()
"""The backend's own numbers, and seed 0."""

IN_THE_LIBRARY = Keeping()
"""The user's library, and no page."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What learning would do, known before any model runs."""

    name: str
    class_word: str
    kind: str
    backend: str
    facts: tuple[str, ...]
    photos: int
    held_out: int
    negatives: int
    lessons: Mapping[str, int]
    steps: int
    batch_size: int
    learning_rate: float
    lesson_size: int
    seed: int
    notes: tuple[str, ...]


def plan(
    subject: Subject,
    settings: Settings = USUAL,
    opening: Opening = ANY,
    keeping: Keeping = IN_THE_LIBRARY,
) -> Plan:
    """What `learn` would do with the same values, and raises what it would before it opens a
    backend, but for a disk that is full. Opens none."""
    keeping = keeping.begun(subject.name)
    subject, opening, learned_from = _gone_on(subject, settings, keeping, opening)
    info = _info(opening)
    _checked(settings, keeping, opening, info)
    hyper = settings.hyperparameters(info)
    material = _gathered(subject, settings, info, learned_from)
    pack_before(keeping, material, info.name)
    return Plan(
        name=material.name,
        class_word=material.class_word,
        kind=material.kind,
        backend=info.name,
        facts=tuple(fact.text for fact in material.facts),
        photos=material.album.count,
        held_out=len(material.album.held_out),
        negatives=material.learned_negatives + len(material.negatives),
        lessons=group_sizes(material.lessons),
        steps=hyper.steps,
        batch_size=hyper.batch_size,
        learning_rate=hyper.learning_rate,
        lesson_size=opening.lesson_size or (info.lesson_sizes or (0, 0))[1],
        seed=hyper.seed,
        notes=material.notes,
    )


def learn(
    subject: Subject,
    settings: Settings = USUAL,
    keeping: Keeping = IN_THE_LIBRARY,
    *,
    backend: Backend | None = None,
    opening: Opening = ANY,
    on_progress: OnProgress | None = None,
) -> Learned:
    """Learn ``subject`` and keep it. ``backend`` is one that is open already; without it,
    ``opening`` says which to open.

    Without ``keeping.force``, the same photos on another backend add a slot to the pack that is
    there, and everything else that would be lost is refused before any work is done. With
    ``keeping.more`` it goes on from the concept that is there. What happens to the concept while it
    is learned is merged; where that cannot be, the error names the file with what was learned. On
    KeyboardInterrupt a checkpoint is left and nothing else. Raises PhotoError, UsageError,
    PersonaError for a name that is taken, ResourceError for a disk or memory that is full.
    """
    began = time.monotonic()
    on_progress = on_progress or _silent
    keeping = keeping.begun(subject.name)
    check_places(keeping)
    subject, opening, learned_from = _gone_on(subject, settings, keeping, opening, backend)
    info = backend.info if backend else _info(opening)
    work = _checked(settings, keeping, opening, info)
    reading = counting(on_progress, "reading photos")
    material = _gathered(subject, settings, info, learned_from, on_step=reading)
    sweep_done()
    work = replace(work, aspect_ratio=material.aspect_ratio())
    before = pack_before(keeping, material, info.name)

    if backend is None:
        backend = open_model(opening, work, on_progress)
    opened = replace(opening, backend=backend.info.name, model=backend.model)
    revisions = registry.revisions(backend.info, opened)
    doubts = tuple(_doubts(backend, material))
    remarks = backend.remarks(texts=[fact.text for fact in material.facts])
    notes = (*material.notes, *remarks, *doubts)
    tell(on_progress, notes)
    hyper = settings.hyperparameters(backend.info)
    previews = Previews(backend, keeping, on_progress)
    with memory_errors(backend.info.name):
        start = start_of(backend, material, settings, before, keeping, on_progress)
        given = backend, opening, material, hyper, before, keeping, start
        found = run(*given, previews, on_progress) if hyper.steps else instant(*given)
        optimised, before = found.optimised, found.before
        on_progress(Progress(phase="examining"))
        if hyper.steps:
            check_learned(backend, start, optimised.tokens, material)
        examined = examine(
            backend,
            optimised.tokens,
            material,
            samples=_samples(keeping, settings),
            instant=settings.instant,
            rising=bool(material.held_out) and optimised.best_step == hyper.steps,
            doubts=doubts,
            on_progress=on_progress,
        )
        memory = calibrate_memory(backend, optimised.tokens, material) if hyper.steps else UNTAUGHT

    report = report_of(optimised, examined, memory, material, hyper)
    runs = runs_of(before.pack, slot_name(backend)) if keeping.more and before.pack else ()
    given_to = backend, optimised, material, hyper, report, before.pack, revisions
    pack = packed(*given_to, runs=runs, learned_from=learned_from)
    pack, path, changes = kept(
        pack, keeping, backend, optimised.tokens, before=before, folder=found.folder
    )
    tell(on_progress, changes)
    learned = Learned(
        pack=pack,
        path=path,
        report=report,
        seconds=time.monotonic() - began,
        seed=settings.seed,
        backend=backend.info.name,
        resumed_from=found.resumed_from,
        notes=(*notes, *found.notes, *changes),
    )
    previews.write_page(learned, material, examined, found.folder)
    forget_run(found.folder)
    return learned


def _info(opening: Opening) -> BackendInfo:
    return registry.backend_info(opening.backend or registry.DEFAULT_BACKEND)


def _checked(settings: Settings, keeping: Keeping, opening: Opening, info: BackendInfo) -> Work:
    """What memory is planned for. UsageError, before any work is done, for what this backend cannot
    do and for what does not go together."""
    if settings.instant and keeping.previews is not None:
        raise UsageError(
            "an instant concept has no checks to paint previews at",
            hint="leave out --previews; --samples 4 paints pictures of it",
        )
    registry.check_lesson_size(info, opening.lesson_size)
    return Work(
        verb="learn",
        batch=settings.batch_size or 0,
        at_once=settings.lessons_at_once or 0,
        depth=settings.hyperparameters(info).depth,
    )


def _gathered(
    subject: Subject,
    settings: Settings,
    info: BackendInfo,
    learned_from: Collection[str],
    *,
    on_step: OnStep | None = None,
) -> Material:
    return gather(
        subject,
        seed=settings.seed,
        backend=info.name,
        unknown_answer=info.unknown_answer,
        learned_from=learned_from,
        lessons=not settings.instant,
        on_step=on_step,
    )


def _doubts(backend: Backend, material: Material) -> Iterator[str]:
    """What the backend says against the photos; those that are not of its kind are pointed to the
    installed backends for others."""
    able: dict[str, list[str]] = {}
    for name, other in registry.backends().items():
        if other.pictures != backend.info.pictures:
            able.setdefault(other.pictures, []).append(name)
    elsewhere = "".join(f"; for {what}: {', '.join(sorted(able[what]))}" for what in able)
    for remark in backend.remarks(photos=[photo.image for photo in material.album.learning]):
        yield remark + elsewhere


def _gone_on(
    subject: Subject,
    settings: Settings,
    keeping: Keeping,
    opening: Opening,
    backend: Backend | None = None,
) -> tuple[Subject, Opening, Collection[str]]:
    """With ``keeping.more`` the subject with what is known of it, the opening that its tokens are
    for and the photos that they were learned from; else what was given."""
    if not keeping.more:
        return subject, opening, ()
    found = earlier(subject, settings, keeping, opening, backend.info.name if backend else "")
    return with_what_is_known(subject, found.pack), found.opening, found.learned_from


def _samples(keeping: Keeping, settings: Settings) -> int:
    """How many pictures are painted for the card, where nobody says none of an instant concept."""
    if keeping.samples is not None:
        return keeping.samples
    return 0 if settings.instant else len(PLACES)


def _silent(event: Progress) -> None:
    """Progress that nobody watches."""
