"""Tensors of a checkpoint folder: safetensors or .bin, whole or sharded, nothing unpickled."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from omnipersona_cli.errors import MissingError
from omnipersona_cli.family.tensors import unpickled

NAMES = ("pytorch_model", "model", "diffusion_pytorch_model")
"""Stems of weight files, in the order in which they are looked for."""

SUFFIXES = (".safetensors", ".bin")


def read_tensors(folder: Path, hint: str) -> dict[str, tuple[Path, Tensor]]:
    """Every tensor of the checkpoint in ``folder`` with the file that it comes from, mapped and
    not copied. MissingError for a folder without weights or a file that is broken."""
    found: dict[str, tuple[Path, Tensor]] = {}
    for path in weight_files(folder, hint):
        whole = path.suffix == ".safetensors"
        read = _safetensors(path, hint) if whole else unpickled(path, hint=hint).items()
        found |= {name: (path, tensor) for name, tensor in read}
    return found


def weight_files(folder: Path, hint: str) -> list[Path]:
    """The files of the first checkpoint in ``folder``: one, or all that an index lists."""
    for suffix in SUFFIXES:
        for stem in NAMES:
            whole, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                listed: Any = read_json(index, hint).get("weight_map")
                if (
                    not isinstance(listed, dict)
                    or not listed
                    or not all(map(_plain, listed.values()))
                ):
                    raise MissingError(f"{index} does not list files by tensor", hint=hint)
                for tensor, name in listed.items():
                    if not (folder / name).is_file():
                        raise MissingError(
                            f"there is no {folder / name}, which holds {tensor}", hint=hint
                        )
                return [folder / name for name in sorted(set(listed.values()))]
    raise MissingError(
        f"there are no weights in {folder}: no {NAMES[0]}.safetensors and no {NAMES[0]}.bin",
        hint=hint,
    )


def read_json(path: Path, hint: str, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object; empty where an optional file is not there."""
    if optional and not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"there is no {path}", hint=hint) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise MissingError(f"{path} is not JSON", hint=hint) from error
    if not isinstance(found, dict):
        raise MissingError(f"{path} is not a JSON object", hint=hint)
    return found


def _plain(name: Any) -> bool:
    """A file's name and no path: an index must not lead out of its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def identity(path: Path) -> str:
    """A hash of a small file."""
    return sha256(path.read_bytes()).hexdigest()


def _safetensors(path: Path, hint: str) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise MissingError(f"{path} is broken{_cut_off(path)}", hint=hint) from error


def _cut_off(path: Path) -> str:
    """Where a safetensors file ends too early, as words; nothing where its header is no help."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if 8 + length > size:
                return ": it is cut off in its header"
            header = json.loads(file.read(length))
        ends = {
            name: 8 + length + entry["data_offsets"][1]
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return ""
    lost = [name for name, end in sorted(ends.items(), key=lambda one: one[1]) if end > size]
    return f": it is cut off at the tensor {lost[0]}" if lost else ""
