"""Where a learning run stands, on disk: safetensors files, written whole, never unpickled.

Everything random in a run follows from the seed and the step, so tokens, optimiser moments, the
best tokens so far and the step are all there is to keep; torch's generator state is kept beside
them, for backends that draw from it.

A checkpoint carries the sha256 of its own file, counted with zeros where the digest stands, so that
one that was damaged is not gone on from. The last two are kept. At the end of a run the pack is
put beside them, until it is where it was wanted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from omnipersona_cli.concepts.container import write_file
from omnipersona_cli.concepts.upkeep import ENDED
from omnipersona_cli.config import cache_folder
from omnipersona_cli.engine.heldout import Check
from omnipersona_cli.errors import PersonaError, ResourceError
from omnipersona_cli.reading import Origin, parse_json

FORMAT = "2"
KEPT = 2
"""How many checkpoints of a run are kept."""

LEARNED = "learned.opconcept"
"""The pack of a run, beside its checkpoints."""

BEGUN = "begun.opconcept"
"""The concept as it was when a run began, beside its checkpoints."""

_FILE = r"checkpoint-[0-9]{8}\.safetensors"
_DIGEST = rb'"digest":"([0-9a-f]{64})"'
_ZEROS = "0" * 64
_HEADER_LIMIT = 1 << 24


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run after ``step`` optimiser steps.

    ``tokens`` and ``best`` are under the slot's names; ``moments`` are AdamW's, by token name and
    moment ("und|mean"); ``random`` is torch's generator state. One that was read is on the CPU.
    """

    step: int
    tokens: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    random: Tensor
    checks: tuple[Check, ...] = ()
    losses: Mapping[str, float] = field(default_factory=dict)


def run_folder(key: str) -> Path:
    """Where the run with this key keeps its checkpoint."""
    return cache_folder() / "runs" / key


def write_checkpoint(checkpoint: RunState, folder: Path, *, concept: str = "") -> None:
    """Put the checkpoint into ``folder``, whole or not at all, and leave the one before it.

    ``concept`` is whose run it is. Raises ResourceError where the folder cannot be written.
    """
    groups = {"tokens": checkpoint.tokens, "best": checkpoint.best, "moments": checkpoint.moments}
    tensors = {"random": checkpoint.random} | {
        f"{group}/{key}": value.detach().cpu().contiguous()
        for group, values in groups.items()
        for key, value in values.items()
    }
    plain = {
        "format": FORMAT,
        "concept": concept,
        "step": checkpoint.step,
        "checks": [vars(check) for check in checkpoint.checks],
        "losses": dict(checkpoint.losses),
    }
    run = json.dumps(plain, sort_keys=True)
    data = save(tensors, metadata={"run": run, "digest": _ZEROS})
    digest = sha256(data).hexdigest()
    sealed = data.replace(f'"digest":"{_ZEROS}"'.encode(), f'"digest":"{digest}"'.encode(), 1)
    _put(sealed, folder / f"checkpoint-{checkpoint.step:08d}.safetensors")
    with suppress(OSError):
        for older in _files(folder)[KEPT:]:
            older.unlink()


def keep_beginning(data: bytes | None, folder: Path) -> None:
    """Put the bytes of the concept's pack into ``folder``; None where there is no concept yet.

    Raises ResourceError where the folder cannot be written.
    """
    if data is not None:
        _put(data, folder / BEGUN)
        return
    with suppress(OSError):
        (folder / BEGUN).unlink()


def _put(data: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data, overwrite=True)
    except (OSError, ResourceError) as error:
        reason = str(error) if isinstance(error, ResourceError) else error.strerror or str(error)
        raise ResourceError(
            f"the checkpoint cannot be written to {path.parent}: {reason}",
            hint="free some space, or choose another place: export OMNIPERSONA_HOME=FOLDER",
        ) from error


def read_checkpoint(
    folder: Path, *, on_damage: Callable[[str], None] | None = None
) -> RunState | None:
    """The last checkpoint in ``folder`` that is as it was written; None where there is none.

    A damaged one is removed, and ``on_damage`` gets a sentence about it.
    """
    try:
        files = _files(folder)
    except OSError:
        return None
    for path in files:
        with suppress(OSError):
            found = _read(path)
            if found is not None:
                return found
            path.unlink()
            if on_damage is not None:
                on_damage(f"the checkpoint {path.name} is damaged: going on from before it")
    return None


def forget_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that is to begin again; a pack beside them stays."""
    with suppress(OSError):
        for path in _files(folder):
            path.unlink()


def forget_run(folder: Path) -> None:
    """Remove a run whose pack is where it was wanted: all of it, or, after a cut, what
    `sweep_done` removes."""
    done = folder.with_name(folder.name + ENDED)
    try:
        os.rename(folder, done)
    except OSError:
        done = folder
    shutil.rmtree(done, ignore_errors=True)


def sweep_done() -> None:
    """Remove what is left of runs that were done when they were cut."""
    with suppress(OSError):
        for folder in (cache_folder() / "runs").iterdir():
            if folder.name.endswith(ENDED):
                shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest first. May raise OSError."""
    if not folder.is_dir():
        return []
    names = [name for name in os.listdir(folder) if re.fullmatch(_FILE, name)]
    return [folder / name for name in sorted(names, reverse=True)]


def _read(path: Path) -> RunState | None:
    """The checkpoint at ``path``; None where it is damaged. May raise OSError."""
    if not _is_sealed(path):
        return None
    groups: dict[str, dict[str, Tensor]] = {"tokens": {}, "best": {}, "moments": {}}
    try:
        with safe_open(path, framework="pt") as file:
            plain: Any = parse_json(file.metadata()["run"], Origin(name=path.name))
            random = file.get_tensor("random")
            for key in file.keys():
                group, _, name = key.partition("/")
                if group in groups:
                    groups[group][name] = file.get_tensor(key)
        if plain["format"] != FORMAT:
            return None
        return RunState(
            step=int(plain["step"]),
            random=random,
            checks=tuple(Check(**values) for values in plain["checks"]),
            losses=dict(plain["losses"]),
            **groups,
        )
    except (SafetensorError, PersonaError, KeyError, TypeError, ValueError):
        return None


def _is_sealed(path: Path) -> bool:
    """True where the file has the digest that it says. May raise OSError."""
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > _HEADER_LIMIT:
            return False
        header = file.read(length)
        sealed = re.search(_DIGEST, header)
        if sealed is None:
            return False
        digest = sha256(
            start + header[: sealed.start(1)] + _ZEROS.encode() + header[sealed.end(1) :]
        )
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest().encode() == sealed[1]
