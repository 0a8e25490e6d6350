"""All that is asked of the engine, in one place: what a request says, and doing it.

Functions here run in the worker's thread and know nothing of HTTP. They look at their ticket at
every step, so that work that nobody waits for ends within two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, BackendInfo, Box, Task, Verb, Work
from omnipersona_cli.concepts.library import Library, NoConceptError
from omnipersona_cli.errors import ResourceError
from omnipersona_cli.hookspecs import Progress
from omnipersona_cli.language.mentions import check_name, names_in
from op_serve.pictures import opened
from op_serve.worker import Ticket

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnipersona_cli.engine import (
        Answer,
        Learned,
        Opening,
        Picture,
        Plan,
        Settings,
        Subject,
        Trace,
    )
    from omnipersona_cli.engine.region import MaskMeans


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What of this machine is served: the library, and the names in it that are (None: all)."""

    library: Library
    only: frozenset[str] | None = None

    def names(self) -> tuple[str, ...]:
        """The names that are served, sorted."""
        names = self.library.names()
        return names if self.only is None else tuple(name for name in names if name in self.only)

    def check(self, names: Sequence[str]) -> None:
        """MissingError for a concept that is not served, as for one that is not there."""
        for name in names:
            if self.only is not None and check_name(name) not in self.only:
                raise NoConceptError(check_name(name), self.names(), hint="op concepts")

    def meant(self, text: str, concepts: Sequence[str], *, bare: bool = True) -> tuple[str, ...]:
        """``concepts``, or, where ``bare`` names count, the known names that stand without brackets
        in a text which mentions nothing in brackets: programs that show HTML swallow "<bo>"."""
        if bare and not concepts and not names_in(text):
            concepts = [name for name in self.names() if _stands_in(name, text)]
        self.check((*concepts, *names_in(text)))
        return tuple(check_name(name) for name in concepts)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `ask` is asked. ``left_out`` pictures were sent besides ``images``, before them, and are
    not looked at."""

    text: str
    images: tuple[Image, ...] = ()
    left_out: int = 0
    concepts: tuple[str, ...] = ()
    earlier: tuple[tuple[str, str], ...] = ()
    max_tokens: int = 100
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Painting:
    """What is to be painted, or, where there is a ``source``, how it is to be changed."""

    prompt: str
    concepts: tuple[str, ...] = ()
    count: int = 1
    tries: int | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    fast: bool = False
    seed: int | None = None
    replay: bool = True
    expected: Mapping[str, str] = field(default_factory=dict)
    source: Image | None = None
    mask: Image | None = None
    mask_means: MaskMeans | None = None
    box: Box | None = None
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What is to be learned from the photos in a folder. ``previews`` and ``page`` are where
    pictures painted on the way, and the report card with the photos, are put."""

    photos: Path
    name: str
    kind: str = ""
    facts: tuple[str, ...] = ()
    steps: int | None = None
    seed: int = 0
    force: bool = False
    resume: bool = False
    previews: Path | None = None
    page: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Room:
    """How the backend is opened so that whatever may be asked for keeps to the memory there is;
    ``notes`` say what is done for that, ``too_large`` why nothing can be learned then. Learning
    keeps ``at_once`` lessons in memory (0: the backend's own number), and a question is about
    ``images`` pictures at most (0: as many as the backend looks at)."""

    opening: Opening
    notes: tuple[str, ...] = ()
    at_once: int = 0
    images: int = 0
    too_large: ResourceError | None = None


def room_for(opening: Opening, *, teaches: bool) -> Room:
    """Every verb gets room, and learning where it ``teaches`` and there is enough besides.

    Raises ResourceError where a verb does not fit, with what would.
    """
    info = info_of(opening.backend)
    verbs: dict[Task, Verb] = {"understand": "ask", "generate": "gen", "edit": "edit"}
    notes, too_large, at_once = [], None, 0
    for task, verb in verbs.items():
        if task in info.tasks:
            opening, note = registry.fitted(opening, Work(verb=verb))
            notes.append(note)
    if teaches:
        try:
            opening, note, at_once = _room_to_learn(opening)
            notes.append(note)
        except ResourceError as error:
            too_large = error
            notes.append(f"{error}: nothing is learned here ({error.hint})")
    images = _room_to_look(info, opening)
    if images < info.most_images:
        notes.append(f"there is no room for questions about {images + 1} pictures or more")
    told = tuple(dict.fromkeys(note for note in notes if note))
    return Room(opening=opening, notes=told, at_once=at_once, images=images, too_large=too_large)


def _room_to_look(info: BackendInfo, opening: Opening) -> int:
    """How many pictures a question may be about, opened as it is."""
    for images in range(info.most_images, 1, -1):
        with suppress(ResourceError):
            if registry.fitted(opening, Work(verb="ask", images=images))[0] == opening:
                return images
    return 1


def _room_to_learn(opening: Opening) -> tuple[Opening, str, int]:
    """One lesson at a time, which changes nothing but the time, comes before any other means."""
    work = Work(verb="learn")
    usual = None
    with suppress(ResourceError):
        usual, note = registry.fitted(opening, work)
        if usual == opening:
            return usual, note, 0
    slower, note_of_slower = registry.fitted(opening, replace(work, at_once=1))
    return (usual, note, 0) if slower == usual else (slower, note_of_slower, 1)


def open_backend(opening: Opening) -> Backend:
    """The backend that the server keeps open."""
    from omnipersona_cli import engine

    return engine.opened_for((), opening)


def info_of(backend: str) -> BackendInfo:
    """The description of the backend that is served; MissingError where there is none."""
    return registry.backend_info(backend or registry.DEFAULT_BACKEND)


def pictures_of(
    question: str,
    sent: Sequence[bytes],
    concepts: Sequence[str],
    *,
    info: BackendInfo,
    library: Library,
) -> tuple[Image, ...]:
    """The pictures that a question is about, opened once it is known that so many can be."""
    from omnipersona_cli.engine import check_images

    check_images(question, len(sent), concepts=concepts, info=info, library=library)
    return tuple(map(opened, sent))


def answer(
    backend: Backend,
    ticket: Ticket[Any],
    question: Question,
    *,
    library: Library,
    on_text: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Answer:
    """Answer a question."""
    from omnipersona_cli import engine

    def piece(text: str) -> None:
        ticket.go_on()
        if on_text is not None:
            on_text(text)

    return engine.ask(
        question.text,
        image=question.images,
        concepts=question.concepts,
        earlier=question.earlier,
        max_tokens=question.max_tokens,
        seed=question.seed,
        backend=backend,
        library=library,
        on_progress=_watched(ticket, on_progress),
        on_text=piece,
    )


def paint(
    backend: Backend,
    ticket: Ticket[Any],
    painting: Painting,
    *,
    library: Library,
    on_progress: Callable[[Progress], None] | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_picture: Callable[[Picture], None] | None = None,
    estimates: int = 0,
    on_estimate: Callable[[int, Image], None] | None = None,
) -> tuple[Picture, ...]:
    """Paint pictures, or change the source. ``on_estimate`` gets the number of a picture and what
    it looks like on its way, up to ``estimates`` times for each."""
    from omnipersona_cli import engine
    from omnipersona_cli.engine.progress import Looking

    looking = Looking(most=estimates, show=on_estimate) if on_estimate is not None else None
    alike: dict[str, Any] = {
        "concepts": painting.concepts,
        "count": painting.count,
        "steps": painting.steps,
        "guidance": painting.guidance,
        "fast": painting.fast,
        "seed": painting.seed,
        "replayed": painting.replay,
        "backend": backend,
        "library": library,
        "on_progress": _watched(ticket, on_progress),
        "on_trace": on_trace,
        "on_picture": on_picture,
        "looking": looking,
    }
    if painting.source is None:
        return engine.gen(
            painting.prompt,
            size=painting.size,
            tries=painting.tries or 1,
            expected=painting.expected,
            **alike,
        )
    return engine.edit(
        painting.source,
        painting.prompt,
        mask=painting.mask,
        mask_means=painting.mask_means,
        box=painting.box,
        tries=painting.tries,
        strength=painting.strength,
        **alike,
    )


def recall(
    backend: Backend,
    prompt: str,
    *,
    concepts: Sequence[str],
    facts: Mapping[str, Sequence[str]],
    library: Library,
) -> Trace:
    """What replay would make of ``prompt``. ``facts`` are a person's corrections, by concept: what
    the pack says of the same attribute is left out."""
    from omnipersona_cli.engine.replay import replay, surety_of
    from omnipersona_cli.engine.request import open_request

    request = open_request(
        prompt, concepts=concepts, backend=backend, library=library, task="generate"
    )
    known = {
        name: corrected(told, facts.get(name, ()), name) for name, told in request.facts.items()
    }
    return replay(
        backend,
        request.text,
        concepts=request.concepts,
        facts=known,
        surety=surety_of(request),
    )


def corrected(facts: Sequence[str], corrections: Sequence[str], name: str) -> tuple[str, ...]:
    """The facts ``facts`` without those that speak of the attribute of a correction, and the
    corrections."""
    from omnipersona_cli.language.facts import parse_fact

    def attribute(text: str) -> str:
        parsed = parse_fact(text, name)
        return parsed.attribute if parsed else ""

    changed = {attribute(text) for text in corrections} - {""}
    return (*(text for text in facts if attribute(text) not in changed), *corrections)


def plan(teaching: Teaching, opening: Opening) -> Plan:
    """What learning would do. Opens no backend and may run in any thread."""
    from omnipersona_cli import engine

    return engine.plan(_subject(teaching), _settings(teaching), opening)


def learn(
    backend: Backend,
    ticket: Ticket[Any],
    teaching: Teaching,
    *,
    library: Library,
    at_once: int = 0,
    on_progress: Callable[[Progress], None],
) -> Learned:
    """Learn a concept, ``at_once`` lessons at a time, and keep it in the library."""
    from omnipersona_cli import engine

    keeping = engine.Keeping(
        library=library,
        force=teaching.force,
        resume=teaching.resume,
        previews=teaching.previews,
        page=teaching.page,
    )
    return engine.learn(
        _subject(teaching),
        replace(_settings(teaching), lessons_at_once=at_once or None),
        keeping,
        backend=backend,
        on_progress=_watched(ticket, on_progress),
    )


def about_of(png: bytes) -> dict[str, Any]:
    """How a picture says that it was made. Raises PhotoError."""
    from tempfile import TemporaryDirectory

    from omnipersona_cli import engine

    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            path.write_bytes(png)
            return engine.read_about(path)
    except OSError as error:
        raise not_kept(error) from error


def not_kept(error: OSError) -> ResourceError:
    """The refusal of what was sent, where the disk for temporary files is full."""
    return ResourceError(
        f"what was sent cannot be kept: {error.strerror or error}",
        hint="df -h, and export TMPDIR=FOLDER where there is room",
    )


def progress_data(event: Progress) -> dict[str, Any]:
    """A beat of long work as plain values, its pictures left out."""
    return {
        "phase": event.phase,
        "step": event.step,
        "total": event.total,
        "metrics": dict(event.metrics),
        "note": event.note,
    }


def _subject(teaching: Teaching) -> Subject:
    from omnipersona_cli import engine

    return engine.Subject(
        photos=[teaching.photos],
        name=teaching.name,
        class_word=teaching.kind,
        kind=teaching.kind,
        facts=teaching.facts,
    )


def _settings(teaching: Teaching) -> Settings:
    from omnipersona_cli import engine

    return engine.Settings(steps=teaching.steps, seed=teaching.seed)


def _watched(
    ticket: Ticket[Any], on_progress: Callable[[Progress], None] | None
) -> Callable[[Progress], None]:
    """``on_progress`` that also ends work nobody waits for."""

    def beat(event: Progress) -> None:
        ticket.go_on()
        if on_progress is not None:
            on_progress(event)

    return beat


def _stands_in(name: str, text: str) -> bool:
    return bool(re.search(rf"(?<![\w<-]){re.escape(name)}(?![\w>-])", text, re.IGNORECASE))
