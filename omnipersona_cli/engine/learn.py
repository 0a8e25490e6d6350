"""Learn a concept: photos and facts in, a pack out; the backbone never changes.

Everything frozen runs once (`Backend.prepare`), then the tokens alone are optimised on all three
tasks, the best by held-out score are calibrated, checked for having learned anything, written and
read back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, ConceptTokens, Work
from omnipersona_cli.engine.batches import group_sizes
from omnipersona_cli.engine.checkpoint import (
    RunState,
    forget_checkpoints,
    forget_run,
    read_checkpoint,
    run_folder,
    sweep_done,
    write_checkpoint,
)
from omnipersona_cli.engine.examine import examine
from omnipersona_cli.engine.keep import (
    Keeping,
    check_learned,
    check_places,
    check_resumed,
    kept,
    pack_before,
    packed,
)
from omnipersona_cli.engine.material import Material, Subject, captioned, gather
from omnipersona_cli.engine.memory import calibrate_memory
from omnipersona_cli.engine.optimise import CHECKS, optimise
from omnipersona_cli.engine.pace import measured, told, whole
from omnipersona_cli.engine.precision import checked_gradients, format_of
from omnipersona_cli.engine.prepared import CHECKED, prepare
from omnipersona_cli.engine.previews import Previews
from omnipersona_cli.engine.progress import OnProgress, counting, tell
from omnipersona_cli.engine.report import Learned, report_of
from omnipersona_cli.engine.request import ANY, Opening, memory_errors, open_model
from omnipersona_cli.engine.settings import Hyperparameters, Settings
from omnipersona_cli.engine.tokens import copy_of, from_named_tensors, named_tensors, slot_name
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
    seed: int
    notes: tuple[str, ...]


def plan(subject: Subject, settings: Settings = USUAL, opening: Opening = ANY) -> Plan:
    """What `learn` would do with the same values. Opens no backend."""
    info = registry.backend_info(opening.backend or registry.DEFAULT_BACKEND)
    hyper = settings.hyperparameters(info)
    material = gather(
        subject, seed=settings.seed, backend=info.name, unknown_answer=info.unknown_answer
    )
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
    there, and everything else that would be lost is refused before any work is done. What happens
    to the concept while it is learned is merged; where that cannot be, the error names the file
    with what was learned. On KeyboardInterrupt a checkpoint is left and nothing else. Raises
    PhotoError, UsageError, PersonaError for a name that is taken, ResourceError for a disk or
    memory that is full.
    """
    began = time.monotonic()
    on_progress = on_progress or _silent
    check_places(keeping)
    chosen = backend.info.name if backend else opening.backend or registry.DEFAULT_BACKEND
    reading = counting(on_progress, "reading photos")
    unknown = (backend.info if backend else registry.backend_info(chosen)).unknown_answer
    material = gather(
        subject,
        seed=settings.seed,
        backend=chosen,
        unknown_answer=unknown,
        on_step=reading,
    )
    sweep_done()
    before = pack_before(keeping, material, chosen)

    if backend is None:
        work = Work(
            verb="learn",
            batch=settings.batch_size or 0,
            at_once=settings.lessons_at_once or 0,
        )
        backend = open_model(opening, work, on_progress)
    doubts = tuple(_doubts(backend, material))
    notes = (*material.notes, *backend.remarks(texts=[fact.text for fact in material.facts]))
    notes = (*notes, *doubts)
    tell(on_progress, notes)
    hyper = settings.hyperparameters(backend.info)
    with memory_errors(backend.info.name):
        start = _start(backend, material, settings, on_progress)
        if not keeping.resume:
            tell(on_progress, _pace(backend, start, material, hyper, on_progress))
        material = captioned(material, backend, on_step=counting(on_progress, "reading places"))
        folder = run_folder(_key(material, backend, hyper, start))
        check_resumed(before, keeping, folder, slot_name(backend))
        resumed = _interrupted_run(folder, keeping, on_progress)
        groups, held_out = prepare(backend, material, on_step=counting(on_progress, "encoding"))

        agreed = checked_gradients(backend, groups, start, force=keeping.force)
        tell(on_progress, agreed)
        previews = Previews(backend, keeping, on_progress)
        optimised = optimise(
            backend,
            start,
            groups,
            held_out,
            hyper,
            resumed=resumed,
            save=lambda checkpoint: write_checkpoint(checkpoint, folder, concept=material.name),
            on_check=previews.on_check,
            on_progress=previews.on_progress,
        )

        on_progress(Progress(phase="examining"))
        check_learned(backend, start, optimised.tokens, material)
        examined = examine(
            backend,
            optimised.tokens,
            material,
            samples=keeping.samples,
            rising=optimised.best_step == hyper.steps,
            doubts=doubts,
            on_progress=on_progress,
        )
        memory = calibrate_memory(backend, optimised.tokens, material)

    report = report_of(optimised, examined, memory, material, hyper)
    pack = packed(backend, optimised, material, hyper, report, before.pack)
    pack, path, changes = kept(
        pack, keeping, backend, optimised.tokens, before=before, folder=folder
    )
    tell(on_progress, changes)
    forget_run(folder)
    learned = Learned(
        pack=pack,
        path=path,
        report=report,
        seconds=time.monotonic() - began,
        seed=settings.seed,
        backend=backend.info.name,
        resumed_from=resumed.step if resumed else 0,
        notes=(*notes, *agreed, *changes),
    )
    previews.write_page(learned, material, examined)
    return learned


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


def _pace(
    backend: Backend,
    start: ConceptTokens,
    material: Material,
    hyper: Hyperparameters,
    on_progress: OnProgress,
) -> Iterator[str]:
    """How long it will take, where that is long. A run that is taken up tells it after a step."""
    pace = measured(
        backend, start, material, hyper, on_step=counting(on_progress, "timing a lesson")
    )
    if pace is not None:
        seconds = whole(pace, material, hyper, checks=CHECKS + 1, checked=CHECKED)
        yield from told(seconds, hyper, pace, backend.info.name)


def _start(
    backend: Backend, material: Material, settings: Settings, on_progress: OnProgress
) -> ConceptTokens:
    """Where optimisation starts: the backend's own features of the photos, and with "lora" the
    low-rank experts that the backend offers (``new_experts(seed=...)``)."""
    for_facts = _for_facts(backend, material)
    start = backend.new_tokens(
        material.name,
        understand=settings.understand_tokens + for_facts,
        generate=settings.generate_tokens,
        photos=[photo.image for photo in material.album.learning],
        seed=settings.seed,
        on_step=counting(on_progress, "starting tokens"),
    )
    start = copy_of(replace(start, fact_tokens=for_facts))
    if settings.experts == "none":
        return start
    experts = dict(backend.new_experts(seed=settings.seed))
    tensors = named_tensors(start) | experts
    return copy_of(from_named_tensors(start.name, tensors, fact_tokens=for_facts))


def _for_facts(backend: Backend, material: Material) -> int:
    """How many understanding tokens there are for facts, besides those for looks."""
    asked = any(lesson.kind == "fact" for lesson in material.lessons)
    return backend.info.fact_tokens if asked else 0


def _interrupted_run(folder: Path, keeping: Keeping, on_progress: OnProgress) -> RunState | None:
    """The run of the same inputs to go on with; one that is not asked for is forgotten."""
    damage: list[str] = []
    resumed = read_checkpoint(folder, on_damage=damage.append) if keeping.resume else None
    tell(on_progress, damage)
    if resumed is None:
        forget_checkpoints(folder)
        if keeping.resume:
            tell(on_progress, ("no interrupted run of these inputs: starting from the beginning",))
    return resumed


def _key(material: Material, backend: Backend, hyper: Hyperparameters, start: ConceptTokens) -> str:
    """What an interrupted run is found by: everything that decides how it goes on, and not into
    which pieces its batches are cut: whoever runs out of memory goes on with smaller ones."""
    decisive = {key: value for key, value in vars(hyper).items() if key != "lessons_at_once"}
    digest = sha256(material.digest().encode())
    bound = [material.name, backend.fingerprint, decisive, format_of(backend)]
    digest.update(json.dumps(bound).encode())
    for key, value in named_tensors(start).items():
        digest.update(f"{key}{tuple(value.shape)}".encode())
    return digest.hexdigest()[:24]


def _silent(event: Progress) -> None:
    """Progress that nobody watches."""
