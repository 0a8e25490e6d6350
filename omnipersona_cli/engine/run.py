"""One run of learning: every step of it, those that are left of one that was cut, or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from omnipersona_cli.backend import Backend, ConceptTokens, Opening
from omnipersona_cli.engine.checkpoint import (
    RunState,
    forget_checkpoints,
    read_checkpoint,
    run_folder,
    write_checkpoint,
)
from omnipersona_cli.engine.examine import PLACES
from omnipersona_cli.engine.keep import Before, Keeping, check_resumed, since_it_began
from omnipersona_cli.engine.material import Material, captioned
from omnipersona_cli.engine.more import begun
from omnipersona_cli.engine.optimise import CHECKS, Optimised, optimise
from omnipersona_cli.engine.pace import SHORT, examining, measured, painting, told, whole
from omnipersona_cli.engine.precision import checked_gradients, format_of
from omnipersona_cli.engine.prepared import CHECKED, prepare
from omnipersona_cli.engine.previews import Previews
from omnipersona_cli.engine.progress import OnProgress, counting, tell
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import named_tensors, slot_name


@dataclass(frozen=True, kw_only=True)
class Course:
    """What became of the tokens, in which folder, and what was there ``before``."""

    optimised: Optimised
    before: Before
    folder: Path
    resumed_from: int = 0
    notes: tuple[str, ...] = ()


def run(
    backend: Backend,
    opening: Opening,
    material: Material,
    hyper: Hyperparameters,
    before: Before,
    keeping: Keeping,
    start: ConceptTokens,
    previews: Previews,
    on_progress: OnProgress,
) -> Course:
    """All steps of learning, or those that are left of a run that was interrupted."""
    if not keeping.resume:
        tell(on_progress, _pace(backend, start, material, hyper, keeping, on_progress))
    material = captioned(material, backend, on_step=counting(on_progress, "reading places"))
    folder = run_folder(
        _key(material, backend, hyper, start, opening.lesson_size, more=keeping.more)
    )
    check_resumed(before, keeping, folder, slot_name(backend))
    if keeping.more:
        before = begun(before, folder, slot_name(backend), resume=keeping.resume)
    elif keeping.out is None:
        before = since_it_began(before, keeping, material.name, folder)
    resumed = _interrupted_run(folder, keeping, on_progress)
    groups, held_out = prepare(backend, material, on_step=counting(on_progress, "encoding"))
    agreed = checked_gradients(backend, groups, start, force=keeping.force)
    tell(on_progress, agreed)
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
    return Course(
        optimised=optimised,
        before=before,
        folder=folder,
        resumed_from=resumed.step if resumed else 0,
        notes=agreed,
    )


def instant(
    backend: Backend,
    opening: Opening,
    material: Material,
    hyper: Hyperparameters,
    before: Before,
    keeping: Keeping,
    start: ConceptTokens,
) -> Course:
    """The start as it is."""
    folder = run_folder(_key(material, backend, hyper, start, opening.lesson_size, more=False))
    check_resumed(before, keeping, folder, slot_name(backend))
    optimised = Optimised(tokens=start, best_step=0, checks=(), losses={})
    return Course(optimised=optimised, before=before, folder=folder)


def _pace(
    backend: Backend,
    start: ConceptTokens,
    material: Material,
    hyper: Hyperparameters,
    keeping: Keeping,
    on_progress: OnProgress,
) -> Iterator[str]:
    """How long it will take, where that is long. A run that is taken up tells it after a step."""
    found = measured(
        backend, start, material, hyper, on_step=counting(on_progress, "timing a lesson")
    )
    if found is None:
        return
    amount = {"checks": CHECKS + 1, "checked": CHECKED}
    if whole(found, material, hyper, **amount).seconds < SHORT:
        return  # and so are a few pictures
    samples = len(PLACES) if keeping.samples is None else keeping.samples
    timing = counting(on_progress, "timing the report card")
    timing(0, 2)
    previewed = keeping.previews is not None or keeping.page is not None
    sample = painting(backend, start) if samples or previewed else 0.0
    timing(1, 2)
    card = examining(backend, start, material, samples=samples, sample=sample)
    timing(2, 2)
    preview = sample if previewed else 0.0
    total = whole(found, material, hyper, **amount, card=card, preview=preview)
    yield from told(total, hyper, found, backend.info.name)


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


def _key(
    material: Material,
    backend: Backend,
    hyper: Hyperparameters,
    start: ConceptTokens,
    lesson_size: int,
    *,
    more: bool,
) -> str:
    """What an interrupted run is found by: everything that decides how it goes on, and not into
    which pieces its batches are cut: whoever runs out of memory goes on with smaller ones."""
    decisive = {key: value for key, value in vars(hyper).items() if key != "lessons_at_once"}
    digest = sha256(material.digest().encode())
    opened = (backend.fingerprint, format_of(backend), lesson_size)
    digest.update(json.dumps([material.name, *opened, decisive, more]).encode())
    for key, value in named_tensors(start).items():
        digest.update(f"{key}{tuple(value.shape)}".encode())
    return digest.hexdigest()[:24]
