"""What is in a checkpoint's files: checked and named before its weights are read, then read one
tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from omnipersona_cli import reading
from omnipersona_cli.backend import OnStep, counted
from omnipersona_cli.errors import MissingError, PersonaError, UsageError
from omnipersona_cli.family.tensors import mapped, stored_tensors
from omnipersona_cli.reading import TENSOR_HEADER, Origin

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]
"""Names of tensors and their shapes."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
JSON_LIMIT = 16 << 20
"""Bytes of a configuration, or of an index that places every tensor."""


def read_config(folder: Path, *, types: Iterable[str], backend: str) -> dict[str, Any]:
    """config.json, whose model_type must be one of ``types``."""
    config = read_json(folder / "config.json", hint=f"op backends fetch {backend}")
    kind = config.get("model_type")
    if kind not in tuple(types):
        told = f"a model of type {kind!r}" if kind else "a model of no named type"
        raise UsageError(
            f"{folder} holds {told}, and {backend} opens {' or '.join(types)}",
            hint=f"op backends show {backend}",
        )
    check_plain(config, folder, backend=backend)
    return config


def check_plain(config: Mapping[str, Any], folder: Path, *, backend: str) -> None:
    """UsageError for a configuration that says that another library has quantised the weights:
    their numbers mean nothing without it, or without scales that nobody here reads."""
    told = config.get("quantization_config")
    if told:
        by = told.get("quant_method") if isinstance(told, Mapping) else None
        raise UsageError(
            f"the weights in {folder} are quantised ({by or 'no method is named'}), "
            f"and {backend} reads plain ones",
            hint=f"take the weights that those were made of; op backends show {backend} names some",
        )


def read_json(path: Path, *, hint: str, optional: bool = False) -> dict[str, Any]:
    """A configuration or an index; MissingError where it is missing or no JSON object. Empty where
    an ``optional`` file is not there."""
    if not path.is_file():
        if optional:
            return {}
        raise MissingError(f"{path} is missing", hint=hint)
    origin = Origin(name=str(path), error=MissingError, hint=hint)
    found = reading.read_json(path, origin, limit=JSON_LIMIT)
    if not isinstance(found, dict):
        origin.refuse("is not a JSON object")
    return found


def tensor_files(folder: Path, *, backend: str) -> dict[str, Path]:
    """Every tensor's name and the file that it is in. Raises MissingError with the name of a file
    that is missing or broken, and for pickled weights, which are never opened."""
    hint = f"op backends fetch {backend}"
    index = folder / INDEX
    if index.is_file():
        try:
            placed = read_json(index, hint=hint)["weight_map"]
            files = {str(name): folder / Path(str(file)).name for name, file in placed.items()}
        except (KeyError, AttributeError) as error:
            raise MissingError(f"{index} is broken", hint=hint) from error
    elif (folder / SINGLE).is_file():
        files = dict.fromkeys(_names_in(folder / SINGLE, hint), folder / SINGLE)
    else:
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        what = "only pickled weights, which are not safe to open" if pickled else "no weights"
        raise MissingError(f"{folder} has {what}: {SINGLE} is missing", hint=hint)
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise MissingError(f"the weights are not whole: {path} is missing", hint=hint)
        held = _names_in(path, hint)
        lost = sorted(name for name, file in files.items() if file == path and name not in held)
        if lost:
            raise MissingError(f"{path} lacks the tensor {lost[0]}", hint=hint)
    return files


def configured(make: Callable[[], T], folder: Path, *, backend: str) -> T:
    """What ``make`` builds from the folder's configuration.

    Raises MissingError where it cannot: whatever is raised about numbers that came out of a file
    (strict fields, divisions, sizes that do not fit) is about that file.
    """
    try:
        return make()
    except PersonaError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise MissingError(
            f"{folder / 'config.json'} describes no model: {reason}",
            hint=f"op backends fetch {backend}",
        ) from error


def shapes_of(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model that is built without memory for its numbers."""
    with torch.device("meta"):
        model = make()
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_shapes(
    files: Mapping[str, Path], wanted: Mapping[str, tuple[int, ...]], *, backend: str
) -> None:
    """MissingError, with file and tensor, where one of ``wanted`` is missing or of another shape.
    Tensors that nobody wants are left alone."""
    hint = f"op backends fetch {backend}"
    lost = sorted(name for name in wanted if name not in files)
    if lost:
        raise MissingError(f"{places(files)} lacks the tensor {lost[0]}", hint=hint)
    for path in sorted({files[name] for name in wanted}):
        with safe_open(path, framework="pt") as file:
            for name in sorted(key for key in wanted if files[key] == path):
                shape = tuple(file.get_slice(name).get_shape())
                if shape != wanted[name]:
                    raise MissingError(misfit(path, name, shape), hint=hint)


def shapes_in(path: Path, *, backend: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a safetensors file, from its header alone."""
    hint = f"op backends fetch {backend}"
    return {name: place.shape for name, place in stored_tensors(path, hint=hint).items()}


def numbered(shapes: Shapes, start: str) -> int:
    """How many numbers follow ``start`` in names of tensors ("layers.": how many layers)."""
    number = re.compile(re.escape(start) + r"(\d+)\.")
    return len({match[1] for name in shapes if (match := number.match(name))})


def check_tensors(module: nn.Module, shapes: Shapes, path: Path, *, backend: str) -> None:
    """MissingError where ``path``, whose tensors are ``shapes``, lacks one of ``module``'s, has one
    of another shape, or one that the module has no place for: the first of each kind is named."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing = sorted(wanted.keys() - shapes.keys())
    extra = sorted(shapes.keys() - wanted.keys())
    both = wanted.keys() & shapes.keys()
    misshapen = sorted(name for name in both if wanted[name] != shapes[name])
    faults = []
    if missing:
        faults.append(f"lacks {missing[0]}{_and_more(missing)}")
    if misshapen:
        name = misshapen[0]
        found, needed = list(shapes[name]), list(wanted[name])
        faults.append(f"has {name} as {found} instead of {needed}{_and_more(misshapen)}")
    if extra:
        faults.append(f"has {extra[0]}, which the model does not have{_and_more(extra)}")
    if faults:
        raise MissingError(f"{path} {'; '.join(faults)}", hint=f"op backends fetch {backend}")


def fill(
    module: nn.Module,
    path: Path,
    names: Sequence[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    backend: str,
    place: Callable[[str, Tensor], Tensor] | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Read the tensors ``names`` of a safetensors file into ``module``, whose own are on the meta
    device; ``on_step`` counts them.

    One tensor at a time is read, brought to ``dtype`` and laid on ``device``; fp8 files are read
    the same way. A tensor that is right already stays a view of the mapped file, which costs
    no memory until it is used. ``place`` brings one elsewhere, by its name.
    """
    with torch.inference_mode(False):  # also a view made there could never serve a gradient
        stored = mapped(path, hint=f"op backends fetch {backend}", names=counted(names, on_step))
        for name, value in stored:
            here = value.to(device=device, dtype=dtype) if place is None else place(name, value)
            put(module, name, here)


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """``value`` in the place of the parameter ``name`` of ``module``, frozen."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    # a tensor that is made in inference mode could never serve a gradient
    with torch.inference_mode(False), torch.no_grad():
        owner._parameters[leaf] = nn.Parameter(value.contiguous(), requires_grad=False)


def misfit(path: Path, name: str, shape: tuple[int, ...]) -> str:
    """What is wrong with a tensor of a shape that its configuration does not have."""
    return f"{path}: the tensor {name} has the shape {list(shape)}, unlike its configuration"


def places(files: Mapping[str, Path]) -> str:
    """The file that all tensors are in, or the first and the last of several."""
    found = sorted(set(files.values()))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1].name}"


@contextmanager
def silently(on_step: OnStep | None = None) -> Iterator[None]:
    """Without transformers' bars and warnings: what they would say is checked here, and there is
    one bar at a time. ``on_step`` counts the weights that `from_pretrained` reads inside."""
    from transformers.utils import logging

    def hooked(make: Callable[..., Any], args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if args and more.get("desc") == "Loading weights":
            return counted(list(args[0]), on_step)
        return make(*args, **more)

    told: Any = logging
    verbosity, bar = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    before = told.set_tqdm_hook(hooked)
    try:
        yield
    finally:
        told.set_tqdm_hook(before)
        told.set_verbosity(verbosity)
        if bar:
            told.enable_progress_bar()


def require(files: Mapping[str, Path], name: str, *, why: str, backend: str) -> None:
    """MissingError unless a tensor called ``name`` is there."""
    if name not in files:
        raise MissingError(
            f"the checkpoint has no {why}: the tensor {name} is missing",
            hint=f"op backends show {backend} names checkpoints that have one",
        )


def fingerprint(folder: Path, files: Mapping[str, Path], model: str) -> str:
    """ "<short name>@<hash>" of configuration, tokenizer and weights identity.

    The weights' identity is their headers (names, shapes, dtypes) and a sample of the data of each
    file: reading tens of gigabytes at every start is not an option.
    """
    digest = sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        digest.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    for path in sorted(set(files.values())):
        digest.update(path.name.encode() + _sample(path))
    name = Path(model).name if Path(model).is_dir() else model.rpartition("/")[2]
    return f"{short_name(name)}@{digest.hexdigest()[:16]}"


def restore_float32(module: torch.nn.Module, files: Mapping[str, Path], part: str) -> None:
    """Give ``module`` the numbers of the file's tensors under ``part`` ("vqmodel") in float32.

    Loading a model in bfloat16 rounds all of it; `.float()` afterwards widens numbers that are
    rounded already, and codes of an image tokenizer still flip.
    """
    module.float()
    own = module.state_dict()
    with torch.no_grad():
        for path in sorted(set(files.values())):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    key = f".{name}".partition(f".{part}.")[2]
                    if key in own and files.get(name) == path:
                        own[key].copy_(file.get_tensor(name))


def largest_norm(path: Path, name: str, rows: int = 8192) -> float:
    """The largest l2 norm of a row of one tensor, read piece by piece; always from the file, so
    that it is the same in every dtype and for a model that is not read at all."""
    found = 0.0
    with safe_open(path, framework="pt") as file:
        whole = file.get_slice(name)
        for start in range(0, whole.get_shape()[0], rows):
            found = max(found, float(whole[start : start + rows].float().norm(dim=1).max()))
    return found


def short_name(name: str) -> str:
    """A name that a slot can have."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:64]
    return plain or "model"


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _names_in(path: Path, hint: str) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise MissingError(f"{path} is broken: {error}", hint=hint) from error


def _sample(path: Path, pieces: int = 16, piece: int = 65_536) -> bytes:
    """Header and evenly spaced parts of a safetensors file, and its size; of another file no
    header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")  # of something else, this is any number
        header = file.read(length if length <= min(TENSOR_HEADER, size) else 0)
        parts = [start, header, str(size).encode()]
        for number in range(pieces):
            file.seek(size * number // pieces)
            parts.append(file.read(piece))
    return b"".join(parts)
