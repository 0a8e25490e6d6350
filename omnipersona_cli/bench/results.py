"""A results folder: what was run, one line of JSON for each item, the pictures and the packs.

::

    run.json           what decides the results: data, backend, judge, profile, methods, seeds;
                       and the day on which it was begun
    results.jsonl      one item a line, in the order of the table once the run is finished
    times.jsonl        seconds and peak memory of learning, seconds of answers; not part of the
                       result
    run.lock           held by the run that is writing there
    pictures/          by content: <sha256>.png
    packs/<recipe>-<seed>/<c>.opconcept

A line is written and synced before the next item begins, so a killed run keeps every finished item;
a line that was cut off is dropped when the run goes on.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL.Image import Image

from omnipersona_cli.bench.dataset import BENCH_TASKS
from omnipersona_cli.bench.methods import METHODS
from omnipersona_cli.concepts.container import sweep_temporaries, write_file
from omnipersona_cli.errors import MissingError, PersonaError, ResourceError
from omnipersona_cli.reading import Origin, decode_text, parse_json, read_bytes, read_json

VERSION = 1
RUN, RESULTS, TIMES, LOCK = "run.json", "results.jsonl", "times.jsonl", "run.lock"
BEGUN = "begun"
"""The day, in run.json: judges change over time. A run may go on on another."""

_KINDS: dict[str, type] = {
    "concepts": list,
    "methods": list,
    "tasks": list,
    "seeds": int,
    "items": int,
    "backend": str,
    "profile": str,
    "judges": dict,
}
"""What is read of run.json, which may be a stranger's."""
MOST_RESULTS = 256 << 20
"""Bytes that the lines of one run may have; a thousand concepts have a few of them."""

Record = dict[str, Any]


def key_of(record: Mapping[str, Any]) -> tuple[str, str, int, str]:
    """What a record is about: method, concept, seed, item."""
    return (
        str(record["method"]),
        str(record["concept"]),
        int(record["seed"]),
        str(record["item"]),
    )


def order_of(record: Mapping[str, Any]) -> tuple[int, str, int, int, str]:
    """The order of the finished file: by method, concept, seed, task, item."""
    methods, tasks = list(METHODS), list(BENCH_TASKS)
    method, concept, seed, item = key_of(record)
    return methods.index(method), concept, seed, tasks.index(record["task"]), item


class Results:
    """One results folder, opened for a run or for a report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, setting: Mapping[str, Any]) -> list[Record]:
        """Make the folder, or take up an interrupted run of the same setting; the finished items.

        Raises PersonaError where the folder holds another run, or something else.
        """
        path = self.folder / RUN
        sweep_temporaries(self.folder, RUN.__eq__)  # of a run that was killed as it began
        wanted = json.loads(json.dumps({"version": VERSION, **setting}))
        if path.exists():
            found = self.setting()
            differing = sorted(
                key for key in {*found, *wanted} - {BEGUN} if found.get(key) != wanted.get(key)
            )
            if differing:
                raise PersonaError(
                    f"{self.folder} holds another run: {', '.join(differing)} differ",
                    hint="name another folder with -o, or delete this one",
                )
        elif any(path.name != LOCK for path in self.folder.iterdir()):
            raise PersonaError(
                f"{self.folder} is not empty and holds no run", hint="name another folder with -o"
            )
        else:
            _replace(path, json.dumps({**wanted, BEGUN: date.today().isoformat()}, indent=1) + "\n")
        records = list(self.records())
        for record in records:
            self._check_own(record, wanted)
        self.write_sorted(records)
        return records

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, made where it is not there, for one run alone.

        Raises PersonaError where another run holds it, ResourceError where it cannot be written.
        """
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / LOCK)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise PersonaError(
                f"another run is writing to {self.folder}",
                hint="wait for it, or name another folder with -o",
            ) from error
        except OSError as error:
            raise ResourceError(
                f"{self.folder} cannot be written: {error.strerror}",
                hint="name another folder with -o",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _check_own(self, record: Record, setting: Mapping[str, Any]) -> None:
        """PersonaError for a record that the run of this setting cannot have written."""
        method, concept, seed, _ = key_of(record)
        if (
            method not in setting.get("methods", ())
            or concept not in setting.get("concepts", ())
            or not 0 <= seed < setting.get("seeds", 0)
            or record["task"] not in setting.get("tasks", ())
        ):
            raise PersonaError(
                f"{self.folder / RESULTS} holds items of another run: {method}, {concept}, "
                f"seed {seed}",
                hint="name another folder with -o",
            )

    def setting(self) -> dict[str, Any]:
        """What was run. Raises MissingError, PersonaError."""
        path = self.folder / RUN
        if not path.exists():
            raise MissingError(
                f"there are no results in {self.folder}", hint="op bench run DATA -o RESULTS"
            )
        found = read_json(path, _origin(path))
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise PersonaError(
                f"{self.folder} was written by another version of op bench",
                hint="run it again: op bench run DATA -o RESULTS",
            )
        odd = [key for key, kind in _KINDS.items() if not isinstance(found.get(key), kind)]
        if odd:
            _origin(path).refuse(f"does not say {', '.join(odd)}")
        return found

    def records(self) -> Iterable[Record]:
        """Every finished item; a line that was cut off is left out."""
        path = self.folder / RESULTS
        lines = _lines(path)
        for number, line in enumerate(lines):
            try:
                record = _read(line, path)
                order_of(record)
                _check_scores(record)
            except (PersonaError, ValueError, KeyError, TypeError, AttributeError) as error:
                if number == len(lines) - 1:
                    return
                raise PersonaError(
                    f"{path} is damaged in line {number + 1}", hint="delete that line"
                ) from error
            yield record

    def append(self, record: Record) -> None:
        """Keep one finished item, on the disk before this returns."""
        _append(self.folder / RESULTS, record)

    def note_time(self, about: Record) -> None:
        """Seconds and memory, beside the results."""
        _append(self.folder / TIMES, about)

    def times(self) -> list[Record]:
        """What `note_time` kept."""
        path = self.folder / TIMES
        found: list[Record] = []
        for line in _lines(path):
            with suppress(PersonaError):  # cut off by a kill: a time that nobody will miss
                record = _read(line, path)
                if isinstance(record, dict):
                    found.append(record)
        return found

    def write_sorted(self, records: Iterable[Record]) -> None:
        """The whole file in its final order, replaced at once."""
        ordered = sorted(records, key=order_of)
        _replace(self.folder / RESULTS, "".join(_line(record) for record in ordered))

    def keep_picture(self, image: Image) -> str:
        """Save a picture under its content's name; the path within the folder."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        name = f"pictures/{sha256(buffer.getvalue()).hexdigest()[:32]}.png"
        path = self.folder / name
        if path.exists():
            return name
        with _room_to_write(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, buffer.getvalue(), overwrite=True)
        return name


def _check_scores(record: Record) -> None:
    """TypeError where the scores are not numbers by name, or the failures no names."""
    scores, failed = record["scores"], record["failed"]
    numbers = (value for value in scores.values() if value is not None)
    if not all(isinstance(number, (int, float)) for number in numbers) or not isinstance(
        failed, list
    ):
        raise TypeError("scores are numbers")


def _line(record: Record) -> str:
    return json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[bytes]:
    """Undecoded: a kill can cut the last one within a character."""
    data = read_bytes(path, _origin(path), limit=MOST_RESULTS) if path.exists() else b""
    return [line for line in data.split(b"\n") if line.strip()]


def _read(line: bytes, path: Path) -> Any:
    return parse_json(decode_text(line, _origin(path)), _origin(path))


def _origin(path: Path) -> Origin:
    return Origin(name=str(path), error=PersonaError, hint="run it again elsewhere")


def _append(path: Path, record: Record) -> None:
    with _room_to_write(path), path.open("ab") as file:
        start = file.tell()
        try:
            file.write(_line(record).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, start)  # a half line would be in the way of the next one
            raise


def _replace(path: Path, text: str) -> None:
    with _room_to_write(path):
        write_file(path, text.encode(), overwrite=True)


@contextmanager
def _room_to_write(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ResourceError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ResourceError(
            f"{path} cannot be written: {reason}",
            hint="free some space and run the same command again: finished items are kept",
        ) from error
