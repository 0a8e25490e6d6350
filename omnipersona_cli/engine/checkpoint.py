"""Where a learning run stands, on disk: one safetensors file, replaced whole, never unpickled.

Everything random in a run follows from the seed and the step, so tokens, optimiser moments, the
best tokens so far and the step are all there is to keep; torch's generator state is kept beside
them, for backends that draw from it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from omnipersona_cli.config import cache_folder
from omnipersona_cli.engine.heldout import Check
from omnipersona_cli.errors import ResourceError

FORMAT = "1"
FILE = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
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


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace the checkpoint in ``folder``, whole or not at all.

    Raises ResourceError where the folder cannot be written.
    """
    groups = {"tokens": checkpoint.tokens, "best": checkpoint.best, "moments": checkpoint.moments}
    tensors = {"random": checkpoint.random} | {
        f"{group}/{key}": value.detach().cpu().contiguous()
        for group, values in groups.items()
        for key, value in values.items()
    }
    plain = {
        "format": FORMAT,
        "step": checkpoint.step,
        "checks": [vars(check) for check in checkpoint.checks],
        "losses": dict(checkpoint.losses),
    }
    data = save(tensors, metadata={"run": json.dumps(plain, sort_keys=True)})
    part = folder / f".{FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / FILE)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise ResourceError(
            f"the checkpoint cannot be written to {folder}: {error.strerror or error}",
            hint="free some space, or choose another place: export OMNIPERSONA_HOME=FOLDER",
        ) from error


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in ``folder``; None where there is none that can be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    groups: dict[str, dict[str, Tensor]] = {"tokens": {}, "best": {}, "moments": {}}
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads(file.metadata()["run"])
            random = file.get_tensor("random")
            for key in file.keys():
                group, _, name = key.partition("/")
                if group in groups:
                    groups[group][name] = file.get_tensor(key)
        if plain["format"] != FORMAT:
            return None
        return Checkpoint(
            step=int(plain["step"]),
            random=random,
            checks=tuple(Check(**values) for values in plain["checks"]),
            losses=dict(plain["losses"]),
            **groups,
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def forget_run(folder: Path) -> None:
    """Remove a run that is done, or that is to begin again."""
    shutil.rmtree(folder, ignore_errors=True)
