"""Tensors of a checkpoint folder: safetensors, or .bin weights-only; whole or sharded."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from omnipersona_cli.errors import MissingError
from omnipersona_cli.family.checkpoint import read_json
from omnipersona_cli.family.tensors import mapped, weights_only

NAMES = ("pytorch_model", "model", "diffusion_pytorch_model")
"""Stems of weight files, in the order in which they are looked for."""

SUFFIXES = (".safetensors", ".bin")


def read_tensors(folder: Path, hint: str) -> dict[str, tuple[Path, Tensor]]:
    """Every tensor of the checkpoint in ``folder`` with the file that it comes from, mapped and
    not copied. MissingError for a folder without weights or a file that is broken."""
    found: dict[str, tuple[Path, Tensor]] = {}
    for path in weight_files(folder, hint):
        whole = path.suffix == ".safetensors"
        read = mapped(path, hint=hint) if whole else weights_only(path, hint=hint).items()
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
                listed: Any = read_json(index, hint=hint).get("weight_map")
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


def _plain(name: Any) -> bool:
    """A file's name and no path: an index must not lead out of its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def identity(path: Path) -> str:
    """A hash of a small file."""
    return sha256(path.read_bytes()).hexdigest()
