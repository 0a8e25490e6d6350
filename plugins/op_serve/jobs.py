"""Learning as jobs: photos are sent first, looked at, and learned from when their turn comes.

A job lives in a folder of its own in the cache, so that one which was interrupted, even by the end
of the server, can go on. Its photos are deleted when it is done. Several servers share the place:
what another one left is taken up by a server that is alone there.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from filelock import FileLock

from omnipersona_cli.backend import Backend
from omnipersona_cli.concepts.container import sweep_temporaries, write_file
from omnipersona_cli.concepts.upkeep import JOB, runs
from omnipersona_cli.errors import MissingError, PersonaError, ResourceError, UsageError
from omnipersona_cli.hookspecs import Progress
from omnipersona_cli.language.mentions import check_name
from omnipersona_cli.reading import Origin, read_json
from op_serve import work
from op_serve.pictures import check_pixels, png_of, to_base64
from op_serve.refusals import trail_of
from op_serve.work import Room, Shown, Teaching
from op_serve.worker import Stopped, Ticket, Worker

if TYPE_CHECKING:
    from omnipersona_cli.engine import Learned, Opening

JobState = Literal["draft", "waiting", "learning", "done", "stopped", "failed"]
STATES: tuple[JobState, ...] = get_args(JobState)

CARD = "card.html"
MOST_JOBS = 32
MOST_LOSSES = 600
"""How many points of the loss curve are kept; beyond it every second one is dropped."""

log = logging.getLogger("op_serve")

_SUFFIXES = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"RIFF", ".webp"), (b"GIF8", ".gif"))
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(kw_only=True)
class Job:
    """One concept being learned. Written by the worker's thread, read by the event loop."""

    id: str
    folder: Path
    teaching: Teaching
    state: JobState = "draft"
    photos: int = 0
    phase: str = ""
    step: int = 0
    total: int = 0
    resumed_from: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    previews: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    hint: str = ""
    grade: str = ""
    ticket: Ticket[Learned] | None = None
    learning_since: tuple[float, int] | None = None
    listeners: set[Callable[[dict[str, Any]], None]] = field(default_factory=set)

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the steps taken so far; None where there is none yet."""
        if self.learning_since is None or self.state != "learning" or not self.total:
            return None
        began, first = self.learning_since
        taken = self.step - first
        if taken < 1:
            return None
        return (time.monotonic() - began) / taken * (self.total - self.step)

    @property
    def card(self) -> Path:
        """The report card, with the photos in it; there once the job is done."""
        return self.folder / CARD

    def tell(self, event: dict[str, Any]) -> None:
        """Hand an event to everybody who watches."""
        for listener in tuple(self.listeners):
            listener(event)


class Jobs:
    """All jobs of one server, by id; the newest last. ``room`` is what there is for learning, once
    the model is opened."""

    def __init__(self, folder: Path, *, worker: Worker, shown: Shown, opening: Opening) -> None:
        self.folder = folder
        self.worker = worker
        self.shown = shown
        self.opening = opening
        self.room = Room(opening=opening)
        self._jobs: dict[str, Job] = {}
        self._changing = threading.Lock()
        self._here = _presence(folder) if shown.only is None else None
        if self._here is not None and _alone(folder, self._here):
            self._jobs |= {job.id: job for job in _left_behind(folder)}

    def close(self) -> None:
        """Leave the place to other servers; nothing is done here any more."""
        if self._here is not None:
            self._here.release()
            Path(self._here.lock_file).unlink(missing_ok=True)

    def all(self) -> list[Job]:
        """Every job."""
        return list(self._jobs.values())

    def get(self, identifier: str) -> Job:
        """One job. Raises MissingError."""
        if identifier not in self._jobs:
            raise MissingError("there is no such job", hint="GET /api/jobs lists them")
        return self._jobs[identifier]

    def draft(self, photos: Iterable[bytes]) -> Job:
        """Keep photos to learn from; the oldest job that nothing happens to makes room."""
        self._check_learns()
        sent = list(photos)
        if not sent:
            raise UsageError("there is no photo", hint="send 5 to 10 photos under the name photos")
        for photo in sent:
            check_pixels(photo)
        identifier = secrets.token_hex(8)
        folder = self.folder / identifier
        try:
            (folder / "photos").mkdir(parents=True)
            for number, photo in enumerate(sent, 1):
                (folder / "photos" / f"{number:03d}{_suffix(photo)}").write_bytes(photo)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ResourceError(
                f"the photos cannot be kept: {error.strerror or error}",
                hint="free some space, or export OMNIPERSONA_HOME=FOLDER",
            ) from error
        teaching = Teaching(photos=folder / "photos", name="")
        job = Job(id=identifier, folder=folder, teaching=teaching, photos=len(sent))
        with self._changing:
            self._make_room()
            self._jobs[identifier] = job
        return job

    def plan(self, job: Job, teaching: Teaching) -> dict[str, Any]:
        """What `op learn --dry-run` says. Decodes every photo; not for the event loop."""
        planned = work.plan(replace(teaching, photos=job.folder / "photos"), self.opening)
        return {key: _plain(value) for key, value in vars(planned).items()}

    def start(self, job: Job, teaching: Teaching) -> None:
        """Queue a draft, or a job that was stopped or failed, for learning."""
        self._check_learns()
        if job.state not in ("draft", "stopped", "failed"):
            raise UsageError(f"this job is {job.state}", hint="GET /api/jobs")
        self._check_room()
        name = check_name(teaching.name)
        if not teaching.force and not teaching.resume and name in self.shown.library.names():
            header = self.shown.library.header(name)
            if self.opening.backend in {
                str(slot.about.get("backend", "")) for slot in header.slots.values()
            }:
                raise PersonaError(
                    f"there is a concept <{name}> already",
                    hint="choose another name, or say that it may be replaced (force)",
                )
        previews = job.folder / "previews"
        if not (job.folder / "photos").is_dir():
            raise MissingError("the photos of this job are gone", hint="send them again")
        previews.mkdir(exist_ok=True)
        job.card.unlink(missing_ok=True)
        job.teaching = replace(
            teaching, name=name, photos=job.folder / "photos", previews=previews, page=job.card
        )
        before = job.state, job.error, job.hint
        job.error = job.hint = ""
        job.state, job.phase, job.learning_since = "waiting", "", None
        try:
            _write(job)
            job.ticket = self.worker.submit(
                f"learning <{name}>",
                lambda backend, ticket: self._learn(job, backend, ticket),
                patient=True,
            )
        except PersonaError:  # too much waits: it can be started again
            job.state, job.error, job.hint = before
            if job.state == "draft":
                (job.folder / JOB).unlink(missing_ok=True)
            else:
                _write(job)
            raise
        job.ticket.result.add_done_callback(lambda _: self._finish(job))
        job.tell(self.data(job))

    def stop(self, job: Job) -> None:
        """Stop learning at the next step; it can go on later."""
        if job.ticket is not None and job.state in ("waiting", "learning"):
            self.worker.cancel(job.ticket)

    def go_on(self, job: Job) -> None:
        """Take a stopped job up where it was left."""
        self.start(job, replace(job.teaching, resume=True))

    def forget(self, job: Job) -> None:
        """Stop it, and delete all that is left of it; the concept stays."""
        self.stop(job)
        with self._changing:
            self._jobs.pop(job.id, None)
        if job.ticket is None or job.ticket.result.done():
            self._drop(job)
        job.tell({"id": job.id, "state": "forgotten"})

    def data(self, job: Job) -> dict[str, Any]:
        """A job as plain values, whole."""
        return {
            "id": job.id,
            "state": job.state,
            "name": job.teaching.name,
            "kind": job.teaching.kind,
            "facts": list(job.teaching.facts),
            "photos": job.photos,
            "position": self.worker.position(job.ticket) if job.ticket else 0,
            "phase": job.phase,
            "step": job.step,
            "total": job.total,
            "seconds_left": job.seconds_left,
            "losses": list(job.losses),
            "previews": list(job.previews),
            "notes": list(job.notes),
            "resumed_from": job.resumed_from,
            "grade": job.grade,
            "error": job.error,
            "hint": job.hint,
            "card": job.state == "done" and job.card.is_file(),
        }

    def _learn(self, job: Job, backend: Backend, ticket: Ticket[Learned]) -> Learned:
        self._check_room()  # it may have been queued before the model was there
        job.state = "learning"
        job.tell({"id": job.id, "state": "learning", "position": 0})
        return work.learn(
            backend,
            ticket,
            job.teaching,
            library=self.shown.library,
            at_once=self.room.at_once,
            on_progress=lambda event: _follow(job, event),
        )

    def _check_room(self) -> None:
        error = self.room.too_large
        if error is not None:
            raise ResourceError(str(error), hint=error.hint)

    def _finish(self, job: Job) -> None:
        """Called once, in whichever thread ends the work."""
        assert job.ticket is not None
        error = job.ticket.result.exception()
        if error is None:
            learned = job.ticket.result.result()
            job.state = "done"
            job.grade = learned.report.card.grade
            job.resumed_from = learned.resumed_from
            shutil.rmtree(job.folder / "photos", ignore_errors=True)
        elif isinstance(error, Stopped):
            job.state = "stopped"
        else:
            job.state = "failed"
            known = isinstance(error, PersonaError)
            if not known:
                log.error("a bug while learning <%s>\n%s", job.teaching.name, trail_of(error))
            job.error = str(error) if known else "this is a bug in op"
            job.hint = error.hint if isinstance(error, PersonaError) else "see the server's log"
        if job.id in self._jobs:
            _write(job)
        else:
            self._drop(job)
        job.tell(self.data(job))

    def _drop(self, job: Job) -> None:
        """Remove its folder, and what of an unfinished run is no other's."""
        names = {other.teaching.name for other in self._jobs.values()}
        if job.state in ("stopped", "failed") and job.teaching.name not in names:
            with suppress(OSError):
                began = (job.folder / "photos").stat().st_mtime
                for run in runs():
                    if run.concept == job.teaching.name and run.written >= began:
                        shutil.rmtree(run.folder, ignore_errors=True)
        shutil.rmtree(job.folder, ignore_errors=True)

    def _check_learns(self) -> None:
        if self.shown.only is not None:
            raise UsageError(
                "only some concepts are served here, and none is learned",
                hint="op serve without --concepts",
            )

    def _make_room(self) -> None:
        idle = [job for job in self._jobs.values() if job.state not in ("waiting", "learning")]
        idle.sort(key=lambda job: job.state != "draft")  # nothing was made of a draft yet
        for job in idle[: max(0, len(self._jobs) - MOST_JOBS + 1)]:
            del self._jobs[job.id]
            shutil.rmtree(job.folder, ignore_errors=True)
        if len(self._jobs) >= MOST_JOBS:
            raise ResourceError("too many concepts are being learned", hint="wait for one")


def _follow(job: Job, event: Progress) -> None:
    """Keep what a beat says, and tell it on."""
    told: dict[str, Any] = {"id": job.id}
    if event.note and not event.total:  # with a step comes how long it takes, which is told anyway
        if event.note not in job.notes:
            job.notes.append(event.note)
        told["notes"] = list(job.notes)
    else:
        job.phase = event.phase
        told["phase"] = event.phase
    if event.total:
        job.step, job.total = event.step, event.total
        if event.phase == "learning":
            if job.learning_since is None:
                job.learning_since = (time.monotonic(), event.step)
        else:
            job.learning_since = None
        told |= {"step": job.step, "total": job.total, "seconds_left": job.seconds_left}
    if "loss" in event.metrics:
        point = (event.step, float(event.metrics["loss"]))
        while job.losses and job.losses[-1][0] >= event.step:
            job.losses.pop()  # a resumed run goes back to its last checkpoint
        job.losses.append(point)
        if len(job.losses) > MOST_LOSSES:
            job.losses[:] = job.losses[::2]
        told["loss"] = point
    for image in event.images:
        preview = {"step": event.step, "png": to_base64(png_of(image))}
        job.previews[:] = [it for it in job.previews if it["step"] < event.step] + [preview]
        told["preview"] = preview
    job.tell(told)


def _presence(folder: Path) -> FileLock | None:
    """A lock that says that a server works in ``folder``; None where the disk does not give one."""
    with suppress(OSError, NotImplementedError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{secrets.token_hex(8)}.lock")
        lock.acquire(timeout=0)
        return lock
    return None


def _alone(folder: Path, here: FileLock) -> bool:
    """Whether no other server works in ``folder``; locks of those that were killed are removed."""
    others = [path for path in folder.glob("*.lock") if path != Path(here.lock_file)]
    for path in others:
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except OSError:  # held, which is a Timeout, or not to be told: then nothing is swept
            return False
    return True


def _left_behind(folder: Path) -> list[Job]:
    """Jobs of an earlier server, the oldest first; drafts, and what is no job, are deleted. What
    the disk does not give now stays for a later server."""
    found = []
    with suppress(OSError):
        dated = ((path.stat().st_mtime, path) for path in folder.iterdir())
        for _, path in sorted(dated):
            if not _ID.fullmatch(path.name):
                continue
            try:
                found.append(_job_in(path))
            except (ValueError, KeyError, TypeError, PersonaError) as error:
                if not isinstance(error.__cause__, OSError):
                    shutil.rmtree(path, ignore_errors=True)
    return found


def _job_in(folder: Path) -> Job:
    """The job that was kept in ``folder``. Raises MissingError for a draft, PersonaError caused by
    an OSError where the disk fails, and ValueError, KeyError, TypeError or PersonaError for what is
    no job."""
    sweep_temporaries(folder, JOB.__eq__)
    record: Any = read_json(folder / JOB, Origin(name=JOB))
    teaching = Teaching(
        photos=folder / "photos",
        name=check_name(record["name"]),
        kind=str(record["kind"]),
        facts=tuple(str(fact) for fact in record["facts"]),
        steps=record["steps"],
        seed=int(record["seed"]),
        force=bool(record["force"]),
    )
    state: JobState = record["state"] if record["state"] in STATES else "stopped"
    if state in ("waiting", "learning"):
        state = "done" if _has_learned(teaching.name, folder / CARD) else "stopped"
    if state == "done":
        shutil.rmtree(teaching.photos, ignore_errors=True)
    return Job(
        id=folder.name,
        folder=folder,
        teaching=teaching,
        state=state,
        photos=int(record.get("photos", 0)),
        grade=str(record.get("grade", "")),
        error=str(record.get("error", "")),
    )


def _has_learned(name: str, card: Path) -> bool:
    """Whether the job was killed between the end of its run, which writes the card last, and its
    own."""
    return card.is_file() and not any(run.concept == name and not run.ended for run in runs())


def _write(job: Job) -> None:
    """Keep what a later server has to know."""
    teaching = job.teaching
    record = {
        "state": job.state,
        "name": teaching.name,
        "kind": teaching.kind,
        "facts": list(teaching.facts),
        "steps": teaching.steps,
        "seed": teaching.seed,
        "force": teaching.force,
        "photos": job.photos,
        "grade": job.grade,
        "error": job.error,
    }
    with suppress(ResourceError):  # learning goes on; only a later server will not know of it
        write_file(job.folder / JOB, json.dumps(record).encode(), overwrite=True)


def _suffix(data: bytes) -> str:
    return next((suffix for start, suffix in _SUFFIXES if data.startswith(start)), ".img")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
