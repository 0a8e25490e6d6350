"""The library as a whole: is it sound, what may go, and how to leave nothing of a concept.

Besides packs there are undo copies, temporaries of writers that were killed, and below the cache
runs, in which `op learn` keeps checkpoints until its pack is written, and jobs, in which `op serve`
keeps photos, previews and report card of what it taught.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from omnipersona_cli.concepts import container, pack, undo
from omnipersona_cli.concepts.bases import forget_bases
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.errors import MissingError, PackError, PersonaError, nearest
from omnipersona_cli.language.mentions import check_name, names_in
from omnipersona_cli.reading import Origin, parse_json, read_json, read_tensor_header

KEPT_DAYS = 14
"""Days for which undo copies and abandoned runs are kept where the caller gives no number."""

JOBS = "serve"
"""The folder below the cache in which each job of `op serve` has a folder, with a `JOB` in it."""
JOB = "job.json"
"""What a job is about, ``name`` among other things."""

ENDED = ".done"
"""How the folder of a run ends whose pack is where it was wanted, until it is removed."""

_DAY = 24 * 3600
_BUSY = 600  # seconds: a run that wrote since then is going on


@dataclass(frozen=True, kw_only=True)
class LibraryFinding:
    """Something about the library. ``bad`` where it should not stay; ``mended`` is what was done
    about it, empty for nothing."""

    what: str
    bad: bool = True
    mended: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A learning run that has not ended, or what a kill left of one that has. ``concept`` is ""
    where the checkpoint does not say."""

    folder: Path
    concept: str
    size: int
    written: float

    @property
    def ended(self) -> bool:
        """Whether its pack is where it was wanted."""
        return self.folder.name.endswith(ENDED)

    @property
    def said(self) -> str:
        """What it is, in words."""
        about = f" of <{self.concept}>" if self.concept else ""
        what = "the rest of an ended run" if self.ended else "an unfinished run"
        return f"{what}{about} from {_day(self.written)}, {_said(self.size)}"


def check_library(library: Library, *, repair: bool = False) -> tuple[LibraryFinding, ...]:
    """Everything that is wrong in the library, and what is merely left there; with ``repair``
    what can be mended without loss is.

    Raises ResourceError where the library cannot be read, or, to be repaired, not be written.
    """
    if not library.folder.is_dir():
        return ()
    found = [*_check_temporaries(library.folder)]
    if repair:
        with library.changing():  # which clears temporaries away
            found = [_mended(finding, "removed") for finding in found]
            for name in library.names():
                found += _check_pack(library, name, repair=True)
    else:
        for name in library.names():
            found += _check_pack(library, name, repair=False)
    found += _check_undo(library.folder, repair=repair)
    for run in runs():
        found.append(LibraryFinding(what=f"{run.said}: {run.folder}", bad=False))
    return tuple(found)


def sweep(library: Library, *, days: float = KEPT_DAYS) -> tuple[str, ...]:
    """Remove temporaries, and undo copies and unfinished runs older than ``days``; says what."""
    if library.folder.is_dir():
        left = [path for folder in _folders(library) for path in _temporaries(folder)]
        with library.changing():
            gone = [f"a half-written file: {path.name}" for path in left]
            for copy in undo.copies(library.folder):
                if _older(copy.path, days):
                    copy.path.unlink()
                    gone.append(f"an undo copy of <{copy.name}>")
    else:
        gone = []
    for run in runs():
        if run.ended or time.time() - run.written > max(days * _DAY, _BUSY):
            shutil.rmtree(run.folder, ignore_errors=True)
            gone.append(run.said)
    return tuple(gone)


def forget(library: Library, name: str) -> tuple[str, ...]:
    """Remove all that is kept of a concept: its pack, undo copies, temporaries, and runs and jobs,
    with their photos and previews. Says what went. Can be repeated after a cut.

    Raises MissingError where nothing was kept.
    """
    name = check_name(name)
    gone = []
    with library.changing():  # which clears temporaries away
        copies, others = undo.of_concept(library.folder, name), library.names()
        names = {name} | {copy.name for copy in copies if copy.name not in others}
        for run in runs():
            if run.concept in names:
                shutil.rmtree(run.folder, ignore_errors=True)
                gone.append(f"an unfinished run from {_day(run.written)}")
        for job in _jobs(names):
            shutil.rmtree(job, ignore_errors=True)
            gone.append("photos and previews that op serve taught it from")
        for copy in copies:
            copy.path.unlink()
            gone.append("an undo copy")
        path = library.folder / f"{name}{pack.SUFFIX}"
        if container.is_taken(path):
            path.unlink()
            gone.append("the pack")
        container.sync_folder(library.folder)
        forget_bases(library)
    if not gone:
        guess = nearest(name, library.names())
        hint = f"did you mean <{guess}>? op concepts" if guess else "op concepts"
        raise MissingError(f"nothing is kept of <{name}>", hint=hint)
    return tuple(gone)


def mentioned_by(library: Library, name: str) -> tuple[str, ...]:
    """The other concepts whose facts mention ``name``."""
    found = []
    for other in library.names():
        with suppress(PersonaError):
            facts = library.header(other).facts
            if other != name and any(name in names_in(fact.text) for fact in facts):
                found.append(other)
    return tuple(found)


def runs() -> tuple[Run, ...]:
    """The learning runs that have not ended, and what is left of others, the oldest first."""
    from omnipersona_cli.config import cache_folder

    found = []
    with suppress(OSError):
        for folder in (cache_folder() / "runs").iterdir():
            with suppress(OSError):
                if folder.is_dir() and not folder.is_symlink():
                    found.append(_run(folder))
    return tuple(sorted(found, key=lambda run: run.written))


def _jobs(names: Collection[str]) -> list[Path]:
    """The folders of jobs of `op serve` that taught a concept, by all names it had."""
    from omnipersona_cli.config import cache_folder

    found = []
    with suppress(OSError):
        for folder in (cache_folder() / JOBS).iterdir():
            with suppress(PersonaError):
                record = read_json(folder / JOB, Origin(name=JOB))
                if isinstance(record, dict) and record.get("name") in names:
                    found.append(folder)
    return found


def _run(folder: Path) -> Run:
    files = [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    stats = [entry.stat(follow_symlinks=False) for entry in files]
    concept = next(
        (name for entry in files if (name := _concept_in(Path(entry.path)))),
        "",
    )
    return Run(
        folder=folder,
        concept=concept,
        size=sum(stat.st_size for stat in stats),
        written=max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime),
    )


def _concept_in(path: Path) -> str:
    """The concept that a checkpoint names in its metadata ("run", "concept"), or that a pack is of;
    or nothing."""
    if path.name.endswith(pack.SUFFIX):
        with suppress(PersonaError):
            return pack.read_header(path).name
        return ""
    origin = Origin(name="it", error=PackError)
    with suppress(PersonaError):
        header, _, _ = read_tensor_header(path, origin)
        metadata = header.get("__metadata__")
        text = metadata.get("run") if isinstance(metadata, dict) else None
        run = parse_json(text, origin) if isinstance(text, str) else None
        concept = run.get("concept") if isinstance(run, dict) else None
        return check_name(concept) if isinstance(concept, str) else ""
    return ""


def _check_pack(library: Library, name: str, *, repair: bool) -> Iterator[LibraryFinding]:
    path = library.folder / f"{name}{pack.SUFFIX}"
    problems = pack.verify(path)
    if not problems:
        header = pack.read_header(path)
        if header.name != name:
            yield LibraryFinding(what=f"{path.name} holds the concept <{header.name}>")
        elif not header.sealed:
            yield _rewritten(
                path, LibraryFinding(what=f"<{name}> is of format 1.0", bad=False), repair
            )
        return
    for problem in problems:
        finding = LibraryFinding(what=f"{path.name}: {problem}")
        if not repair:
            yield finding
        elif len(problems) == 1 and problem == pack.UNCLEAN:
            yield _rewritten(path, finding, repair)
        else:
            yield _restored(library, name, finding)
            return


def _rewritten(path: Path, finding: LibraryFinding, repair: bool) -> LibraryFinding:
    if not repair:
        return finding
    container.write_file(path, pack.rewrite(container.read_file(path)), overwrite=True)
    return _mended(finding, "written anew")


def _restored(library: Library, name: str, finding: LibraryFinding) -> LibraryFinding:
    """The last sound undo copy in the place of a broken pack, which becomes the undo copy."""
    for copy in reversed(undo.copies(library.folder)):
        if copy.name == name and not copy.renamed and not pack.verify(copy.path):
            library.undo_under_lock(name)
            return _mended(finding, "the undo copy is in its place")
    return finding


def _check_temporaries(folder: Path) -> Iterator[LibraryFinding]:
    for place in (folder, folder / undo.FOLDER):
        for path in _temporaries(place):
            yield LibraryFinding(what=f"a half-written file: {path}")


def _check_undo(folder: Path, *, repair: bool) -> Iterator[LibraryFinding]:
    for copy in undo.copies(folder):
        problems = pack.verify(copy.path)
        what = f"an undo copy of <{copy.name}> from {_day(copy.path.stat().st_mtime)}"
        yield LibraryFinding(what=f"{what}: {problems[0]}" if problems else what, bad=False)


def _folders(library: Library) -> tuple[Path, ...]:
    return library.folder, library.folder / undo.FOLDER


def _temporaries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(container.temporaries(folder))
    return []


def _older(path: Path, days: float) -> bool:
    return time.time() - path.stat(follow_symlinks=False).st_mtime > days * _DAY


def _mended(finding: LibraryFinding, how: str) -> LibraryFinding:
    return LibraryFinding(what=finding.what, bad=finding.bad, mended=how)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def _said(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
