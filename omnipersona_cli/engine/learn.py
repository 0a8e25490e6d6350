"""Learn a concept: photos and facts in, a pack out; the backbone never changes.

Everything frozen runs once (`Backend.prepare`), then the tokens alone are optimised on all three
tasks, the best by held-out score are calibrated, checked for having learned anything, written and
read back.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, BackendInfo, ConceptTokens, Lesson, Prepared
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Pack, read_pack, write_pack
from omnipersona_cli.data.lessons import EditTriplet
from omnipersona_cli.engine.checkpoint import (
    forget_run,
    read_checkpoint,
    run_folder,
    write_checkpoint,
)
from omnipersona_cli.engine.examine import PLACES, examine
from omnipersona_cli.engine.keep import (
    Report,
    check_kept,
    check_learned,
    check_place,
    pack_before,
    packed,
)
from omnipersona_cli.engine.material import Material, captioned, gather
from omnipersona_cli.engine.optimise import (
    HELD_OUT_LESSONS,
    PROBES,
    HeldOut,
    Settings,
    group_of,
    optimise,
)
from omnipersona_cli.engine.page import Story, check_page, write_page
from omnipersona_cli.engine.previews import Previews
from omnipersona_cli.engine.progress import OnProgress, tell
from omnipersona_cli.engine.request import ANY, Opening, memory_errors
from omnipersona_cli.engine.tokens import (
    copy_of,
    from_named_tensors,
    named_tensors,
    slot_name,
)
from omnipersona_cli.errors import PersonaError, UsageError
from omnipersona_cli.hookspecs import Progress
from omnipersona_cli.language.mentions import check_name

Experts = Literal["none", "lora"]

MOST_TOKENS = 256
"""The most tokens of each part."""

SAMPLES = 4
"""How many pictures are painted for the report card."""


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


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A learned concept. ``seconds`` is the whole call; ``resumed_from`` the step at which an
    interrupted run was taken up, 0 for a new one."""

    pack: Pack
    path: Path
    report: Report
    seconds: float
    seed: int
    backend: str
    resumed_from: int = 0
    notes: tuple[str, ...] = ()


def plan(
    photos: Sequence[Path],
    *,
    name: str,
    class_word: str = "",
    kind: str = "",
    facts: Sequence[str] = (),
    negatives: Sequence[Image] = (),
    triplets: Sequence[EditTriplet] = (),
    opening: Opening = ANY,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Plan:
    """What `learn` would do with the same arguments. Opens no backend."""
    info = registry.backend_info(opening.backend or registry.DEFAULT_BACKEND)
    steps = info.learn_steps if steps is None else steps
    batch_size = info.batch if batch_size is None else batch_size
    learning_rate = info.learn_rate if learning_rate is None else learning_rate
    check_numbers(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    material = gather(
        photos,
        name=name,
        class_word=class_word,
        kind=kind,
        facts=facts,
        negatives=negatives,
        triplets=triplets,
        seed=seed,
        backend=info.name,
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
        lessons=_counts(material.lessons),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        notes=material.notes,
    )


def learn(
    photos: Sequence[Path],
    *,
    name: str,
    class_word: str = "",
    kind: str = "",
    facts: Sequence[str] = (),
    negatives: Sequence[Image] = (),
    triplets: Sequence[EditTriplet] = (),
    backend: Backend | None = None,
    opening: Opening = ANY,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    understand_tokens: int = 16,
    generate_tokens: int = 16,
    lambda_image: float = 1.0,
    lambda_edit: float = 1.0,
    experts: Experts = "none",
    seed: int = 0,
    resume: bool = False,
    samples: int = SAMPLES,
    previews: Path | None = None,
    page: Path | None = None,
    library: Library | None = None,
    out: Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Learned:
    """Learn ``<name>`` from ``photos`` (files and folders) and keep it.

    Without numbers of their own, ``steps``, ``batch_size`` and ``learning_rate`` are the backend's.
    ``out`` writes the pack there instead of into the library. ``force`` replaces a concept of that
    name; without it, the same photos on another backend add a slot to the pack that is there, and
    everything else is refused before any work is done. ``resume`` takes up an interrupted run of
    the same inputs. ``samples`` pictures are painted for the report card. ``previews`` is a folder
    for pictures painted at a fixed seed as it learns. ``page`` is an HTML file for the report card
    with the photos in it; ``force`` replaces that too.

    On KeyboardInterrupt a checkpoint is left and nothing else. Raises PhotoError, UsageError,
    PersonaError for a name that is taken, ResourceError for a disk or memory that is full.
    """
    began = time.monotonic()
    name = check_name(name)
    report = on_progress or _silent
    library = Library() if library is None else library
    check_numbers(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        understand_tokens=understand_tokens,
        generate_tokens=generate_tokens,
        lambdas=(lambda_image, lambda_edit),
        samples=samples,
    )
    if out is not None and out.exists() and not force:
        raise PersonaError(f"{out} is already there", hint="name another file, or add --force")
    check_place(library.folder if out is None else out.parent)
    if page is not None:
        check_page(page, force=force)
        check_place(page.parent, hint="choose another place: --report FILE")
    if previews is not None:
        check_place(previews, hint="choose another --previews")
    chosen = backend.info.name if backend else opening.backend or registry.DEFAULT_BACKEND
    report(Progress(phase="reading photos"))
    material = gather(
        photos,
        name=name,
        class_word=class_word,
        kind=kind,
        facts=facts,
        negatives=negatives,
        triplets=triplets,
        seed=seed,
        backend=chosen,
    )
    before = None if out is not None else pack_before(library, material, chosen, force)
    if backend is None:
        backend = registry.open_backend(opening, on_progress=report)
    pictures = [photo.image for photo in material.album.learning]
    texts = [fact.text for fact in material.facts]
    info = backend.info
    foreign = [it + _elsewhere(info) for it in backend.remarks(photos=pictures)]
    notes = (*material.notes, *backend.remarks(texts=texts), *foreign)
    tell(report, notes)
    settings = Settings(
        steps=info.learn_steps if steps is None else steps,
        batch_size=info.batch if batch_size is None else batch_size,
        learning_rate=info.learn_rate if learning_rate is None else learning_rate,
        lambda_image=lambda_image,
        lambda_edit=lambda_edit,
        seed=seed,
    )
    with memory_errors(info.name):
        report(Progress(phase="encoding"))
        material = captioned(material, backend)
        start = _start(
            backend, material, pictures, understand_tokens, generate_tokens, experts, seed
        )
        folder = run_folder(_key(material, backend, settings, start))
        resumed = read_checkpoint(folder) if resume else None
        if resume and resumed is None:
            tell(report, ("no interrupted run of these inputs: starting from the beginning",))
        if resumed is None:
            forget_run(folder)
        groups, held_out = _prepared(backend, material, report)
        drawn = Previews(backend, folder=previews, keep=page is not None, report=report)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            optimised = optimise(
                backend,
                start,
                groups,
                held_out,
                settings,
                resumed=resumed,
                save=lambda checkpoint: write_checkpoint(checkpoint, folder),
                on_check=drawn.on_check,
                on_progress=drawn.on_progress,
            )
        report(Progress(phase="checking"))
        check_learned(backend, start, optimised.tokens, material)
        found = examine(
            backend,
            optimised.tokens,
            material,
            samples=samples,
            rising=optimised.best_step == settings.steps,
            report=report,
        )
    figures = Report(
        calibration=found.calibration,
        card=found.card,
        checks=optimised.checks,
        losses=optimised.losses,
        best_step=optimised.best_step,
        steps=settings.steps,
        photos=material.album.count,
        held_out=len(material.album.held_out),
        negatives=material.learned_negatives + len(material.negatives),
        lessons=_counts(material.lessons),
    )
    pack = packed(backend, optimised, material, settings, figures, before)
    large = bool(optimised.tokens.extra)
    if out is None:
        path = library.save(pack, force=force or before is not None, large=large)
    else:
        write_pack(pack, out, overwrite=force, large=large)
        path = out
    pack = read_pack(path, norm_limit={slot_name(backend): backend.norm_limit})
    check_kept(pack, backend, optimised.tokens)
    forget_run(folder)
    if page is not None:
        story = Story(
            name=name,
            class_word=material.class_word,
            facts=tuple(texts),
            backend=info.name,
            seed=seed,
            report=figures,
            photos=material.album.photos,
            samples=found.samples,
            drawn=tuple(drawn.kept),
            losses=tuple(drawn.losses),
            resumed_from=resumed.step if resumed else 0,
            notes=tuple(notes),
        )
        write_page(story, page)
    return Learned(
        pack=pack,
        path=path,
        report=figures,
        seconds=time.monotonic() - began,
        seed=seed,
        backend=info.name,
        resumed_from=resumed.step if resumed else 0,
        notes=tuple(notes),
    )


def check_numbers(
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    understand_tokens: int = 16,
    generate_tokens: int = 16,
    lambdas: Sequence[float] = (),
    samples: int = SAMPLES,
) -> None:
    """UsageError for numbers with which nothing can be learned."""
    if steps is not None and steps < 1:
        raise UsageError(f"nothing is learned in {steps} steps", hint="--steps takes 1 or more")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"a batch of {batch_size} is empty", hint="--batch-size takes 1 or more")
    if learning_rate is not None and not 0 < learning_rate <= 10:
        raise UsageError(f"{learning_rate} is no learning rate", hint="1e-3 is a usual one")
    if not all(1 <= count <= MOST_TOKENS for count in (understand_tokens, generate_tokens)):
        raise UsageError(
            "a concept needs tokens of both parts",
            hint=f"--understand-tokens and --generate-tokens take 1 to {MOST_TOKENS}",
        )
    if not all(0 <= weight <= 100 for weight in lambdas):
        raise UsageError("a weight of a loss lies between 0 and 100", hint="1.0 is the default")
    if not 0 <= samples <= len(PLACES):
        raise UsageError(
            f"{samples} samples cannot be painted", hint=f"--samples takes 0 to {len(PLACES)}"
        )


def _elsewhere(info: BackendInfo) -> str:
    """The installed backends for other pictures, after a remark that these are not of ``info``'s
    kind."""
    able: dict[str, list[str]] = {}
    for name, other in registry.backends().items():
        if other.pictures != info.pictures:
            able.setdefault(other.pictures, []).append(name)
    return "".join(f"; for {what}: {', '.join(sorted(names))}" for what, names in able.items())


def _start(
    backend: Backend,
    material: Material,
    pictures: Sequence[Image],
    understand: int,
    generate: int,
    experts: Experts,
    seed: int,
) -> ConceptTokens:
    """Where optimisation starts: the backend's own features of the photos, and with "lora" the
    low-rank experts that the backend offers (``new_experts(seed=...)``)."""
    start = copy_of(
        backend.new_tokens(
            material.name, understand=understand, generate=generate, photos=pictures, seed=seed
        )
    )
    if experts == "none":
        return start
    offered = backend.new_experts(seed=seed)
    return copy_of(from_named_tensors(start.name, named_tensors(start) | dict(offered)))


def _prepared(
    backend: Backend, material: Material, report: OnProgress
) -> tuple[dict[str, list[Prepared]], HeldOut]:
    """All lessons after the frozen encoders: one call, so that nothing is encoded twice."""
    report(Progress(phase="encoding"))
    tasks = backend.info.tasks
    lessons = [lesson for lesson in material.lessons if lesson.task in tasks]
    spared = [
        lesson
        for task in tasks
        for lesson in _spread([it for it in material.held_out if it.task == task], material.name)
    ]
    if spared:  # a fact has no other face to hold out: knowing it counts as it is
        spared += _spread([it for it in lessons if it.kind == "fact"], material.name)
    probes = material.probes if "understand" in tasks else ()
    present = [probe for probe in probes if probe.present][:PROBES]
    absent = [probe for probe in probes if not probe.present][:PROBES]
    pools = (
        lessons,
        spared,
        [probe.yes for probe in present],
        [probe.no for probe in present],
        [probe.yes for probe in absent],
        [probe.no for probe in absent],
    )
    prepared = list(backend.prepare([lesson for pool in pools for lesson in pool]))
    split: list[list[Prepared]] = []
    for pool in pools:
        split.append(prepared[: len(pool)])
        prepared = prepared[len(pool) :]
    groups: dict[str, list[Prepared]] = {}
    for lesson, ready in zip(lessons, split[0], strict=True):
        groups.setdefault(group_of(lesson), []).append(ready)
    held_out = HeldOut(
        lessons=split[1],
        present_yes=split[2],
        present_no=split[3],
        absent_yes=split[4],
        absent_no=split[5],
    )
    return groups, held_out


def _spread(lessons: Sequence[Lesson], salt: str) -> list[Lesson]:
    """At most `HELD_OUT_LESSONS` of them, chosen once and for all."""
    if len(lessons) <= HELD_OUT_LESSONS:
        return list(lessons)
    order = sorted(random.Random(salt).sample(range(len(lessons)), HELD_OUT_LESSONS))
    return [lessons[index] for index in order]


def _key(material: Material, backend: Backend, settings: Settings, start: ConceptTokens) -> str:
    """What an interrupted run is found by: everything that decides how it goes on."""
    digest = sha256(material.digest().encode())
    digest.update(json.dumps([material.name, backend.fingerprint, vars(settings)]).encode())
    for key, value in named_tensors(start).items():
        digest.update(f"{key}{tuple(value.shape)}".encode())
    return digest.hexdigest()[:24]


def _counts(lessons: Sequence[Lesson]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for lesson in lessons:
        counts[group_of(lesson)] = counts.get(group_of(lesson), 0) + 1
    return counts


def _silent(event: Progress) -> None:
    """Progress that nobody watches."""
