"""Released checkpoints on disk: found, looked at before they are opened, told apart.

Nothing here downloads: `op backends fetch` does, and says so first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from omnipersona_cli.errors import MissingError, TaskError, UsageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def find_folder(backend: str, model: str) -> Path:
    """The folder of a checkpoint: a local one, or the hub repository ``model`` in the cache.

    Raises MissingError with the command that fetches it.
    """
    local = Path(model).expanduser()
    if local.is_dir():
        return local.resolve()
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise MissingError(
            f"the weights of {model} are not here",
            hint=f"op backends fetch {backend} --model {model}",
        ) from error


def read_config(folder: Path, model_type: str, sections: Sequence[str]) -> dict[str, Any]:
    """``config.json`` of a checkpoint of the family ``model_type`` that has all ``sections``.

    Raises TaskError for another family or a config without a section, MissingError for a folder
    without a readable config or without a file of weights that its index names.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingError(
            f"there is no readable config.json in {folder}",
            hint=f"--model names a folder in the layout of a released {model_type} checkpoint",
        ) from error
    found = config.get("model_type")
    if found != model_type:
        raise TaskError(
            f"{folder} holds a checkpoint of the family {found!r}, not {model_type!r}",
            hint="`op backends` lists the families; -b names one",
        )
    for section in sections:
        if not isinstance(config.get(section), dict):
            raise TaskError(
                f"{path} has no {section}: this checkpoint cannot do what {model_type} needs",
                hint="`op backends show` names checkpoints that can",
            )
    _check_weights(folder)
    return config


def _check_weights(folder: Path) -> None:
    """Every file of weights is there and no shorter than its header says."""
    files = [SINGLE]
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    for name in files:
        path = folder / name
        if not path.is_file():
            raise MissingError(
                f"{path} is missing", hint="fetch the checkpoint again: op backends fetch"
            )
        header = _header(path)
        ends = [it["data_offsets"][1] for key, it in header[1].items() if key != "__metadata__"]
        if path.stat().st_size < 8 + header[0] + max(ends, default=0):
            last = max(
                (key for key in header[1] if key != "__metadata__"),
                key=lambda key: header[1][key]["data_offsets"][1],
            )
            raise MissingError(
                f"{path} is cut off: the tensor {last} is not whole",
                hint="fetch the checkpoint again: op backends fetch",
            )


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Length and content of a safetensors header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < 1 << 27:
                raise ValueError("no header")
            return length, json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise MissingError(
            f"{path} is no safetensors file", hint="fetch the checkpoint again: op backends fetch"
        ) from error


def check_loaded(folder: Path, info: dict[str, Any]) -> None:
    """Raises TaskError, naming the tensor, where weights did not fit the model."""
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        found = info.get(what)
        if found:
            first = sorted(str(it) for it in found)[0]
            raise TaskError(
                f"{folder}: {what.replace('_', ' ')}, first of all {first}",
                hint="fetch the checkpoint again: op backends fetch",
            )


def fingerprint(name: str, folder: Path) -> str:
    """``name@<hash>`` of configuration, tokenizer and the headers of all weights (names, shapes,
    sizes): what a slot is bound to."""
    digest = sha256()
    for part in ("config.json", "tokenizer.json"):
        if (folder / part).is_file():
            digest.update((folder / part).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(json.dumps(_header(path)[1], sort_keys=True).encode())
        with path.open("rb") as file:  # headers of two trainings are alike: some values are not
            file.seek(-min(4096, path.stat().st_size), 2)
            digest.update(file.read())
    return f"{name}@{digest.hexdigest()[:16]}"


def place(device: str, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """Where to run and in which type: "auto" is a GPU where there is one; bfloat16 there, float32
    on a CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.partition(":")[0], True):
        raise MissingError(f"there is no {device} device here", hint="leave out --device")
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in types:
        raise UsageError(f"there is no type {dtype!r}", hint=f"--dtype takes {', '.join(types)}")
    usual = "float32" if device == "cpu" else "bfloat16"
    return torch.device(device), types[dtype or usual]
