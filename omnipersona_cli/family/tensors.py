"""Tensors of files of any size, mapped: safetensors read-only, pickles as numbers alone.

safetensors' own reader maps a file privately and writable, which Linux refuses for a file larger
than the memory that is free: 29 GB of BAGEL do not open on a computer of 24 GB, although nothing of
them would have to stay there. A read-only mapping has no such limit. The format is the library's
(https://github.com/huggingface/safetensors): a length, a header in JSON, the numbers.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from torch import Tensor

from omnipersona_cli.errors import MissingError
from omnipersona_cli.reading import Origin, read_tensor_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies in its file: dtype, shape, and the first of its bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored_tensors(path: Path, *, hint: str) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, from its header alone.

    Raises MissingError, with ``hint``, for a file that is cut off, broken, or something else.
    """
    header, begin, size = read_tensor_header(
        path, Origin(name=str(path), error=MissingError, hint=hint)
    )
    try:
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = {name: begin + entry["data_offsets"][1] for name, entry in tensors.items()}
        lost = sorted((end, name) for name, end in ends.items() if end > size)
        if lost:
            raise ValueError(f"cut off at the tensor {lost[0][1]}")
        return {name: _stored(entry, begin, size) for name, entry in tensors.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise MissingError(f"{path} is broken or cut off: {error}", hint=hint) from error


def mapped(
    path: Path, *, hint: str, names: Iterable[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a safetensors file (those called ``names``, in their order; all without any), each
    a view of the file, to be copied and never written.

    A view costs no memory until it is read. What was read of one is given back to the system before
    the next, so that a file of any size takes no more memory than its largest tensor; a view that
    is kept reads again. Raises MissingError as `stored_tensors` does.
    """
    places = stored_tensors(path, hint=hint)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # lives as long as a view does
    for name in places if names is None else names:
        yield name, _view(data, places[name])
        first = places[name].start // mmap.PAGESIZE * mmap.PAGESIZE
        length = places[name].start + places[name].size - first
        if length and hasattr(mmap, "MADV_DONTNEED"):
            data.madvise(mmap.MADV_DONTNEED, first, length)


def weights_only(path: Path, *, hint: str) -> dict[str, Tensor]:
    """Every tensor of a file that torch wrote, mapped where its form allows that, by torch's
    weights-only loading: such a file is a pickle, which can hold code, and none is ever run.

    Raises MissingError, with ``hint``, for a file that holds code, that is cut off or broken, or
    that has something else than tensors by name.
    """
    try:
        whole = is_zipfile(path)  # files older than torch 1.6 cannot be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that torch did not write
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except Exception as error:  # zip, pickle and mapping errors of a broken or hostile file
        unknown = isinstance(error, UnpicklingError) and "nsupported" in str(error)
        if unknown and _begins(path) in (b"P", b"\x80"):  # a zip, or a pickle; text is neither
            raise MissingError(
                f"{path} is a pickle with code in it, which is not run", hint=hint
            ) from error
        raise MissingError(f"{path} is not a checkpoint, or is incomplete", hint=hint) from error
    if not isinstance(found, dict):
        raise MissingError(f"{path} holds no tensors by name", hint=hint)
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise MissingError(f"{name} in {path} is not a tensor of numbers", hint=hint)
    return {str(name): tensor for name, tensor in found.items()}


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _stored(entry: dict[str, object], begin: int, size: int) -> StoredTensor:
    dtype = DTYPES[str(entry["dtype"])]
    shape = tuple(int(length) for length in _whole_numbers(entry["shape"]))
    start, end = (begin + offset for offset in _whole_numbers(entry["data_offsets"]))
    if not begin <= start <= end <= size or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor lies outside of it")
    return StoredTensor(dtype=dtype, shape=shape, start=start)


def _whole_numbers(value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        raise ValueError("its header holds no whole numbers where it should")
    return value


def _view(data: mmap.mmap, place: StoredTensor) -> Tensor:
    count = math.prod(place.shape)
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    size = place.dtype.itemsize
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nobody may write to it is meant
        if place.start % size:  # headers may have any length, numbers want an even place
            data_of_it = data[place.start : place.start + count * size]
            return torch.frombuffer(data_of_it, dtype=place.dtype).view(place.shape)
        flat = torch.frombuffer(data, dtype=place.dtype, count=count, offset=place.start)
    return flat.view(place.shape)
