"""A safetensors file as raw bytes: strings, and tensors that nobody looks into.

Layout: 8 bytes little-endian header length, the header as JSON, then the tensor part. The header
maps each tensor to dtype, shape and offsets into the tensor part, ``__metadata__`` to strings.
Own code rather than the safetensors package, for three reasons: it needs no numpy, so listing and
editing stay fast; it refuses what that package lets pass (size, dtypes, names, duplicate keys in
``__metadata__``); and it writes equal content as equal bytes.

Everything here takes files from strangers. What is wrong with one is a PackError that says so.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from omnipersona_cli.errors import PackError, ResourceError, TakenError, shell_word
from omnipersona_cli.filetypes import file_type, tensors_of_others
from omnipersona_cli.reading import BINARY, Origin, decode_text, parse_json, read_bytes
from omnipersona_cli.reading import read_start as _start_of

HEADER_LIMIT = 1 << 20
"""Bytes of JSON that a header may have."""
FILE_LIMIT = 64 << 20
"""Bytes that a file may have."""
TENSOR_LIMIT = 4096
"""Tensors that a file may have."""

BYTES_PER_VALUE = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}
"""The allowed dtypes, in the order in which the safetensors package lays tensors out."""

_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_BROKEN_HINT = "get the file again from where it came, or teach it anew: op learn --help"
_FILE = Origin(name="it", error=PackError, hint="op concepts")
_HEADER = Origin(name="the header", error=PackError, hint=_BROKEN_HINT)
_HOSTILE_HINT = "only .opconcept files are opened; nothing in this one was run or unpacked"


@dataclass(frozen=True, kw_only=True)
class RawTensor:
    """A tensor that is only carried: ``data`` is little-endian, row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor as the header describes it; offsets are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header after its checks; ``hash`` is the sha256 of its bytes, ``start`` where the
    tensor part begins, ``size`` the bytes of the whole file."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    start: int
    size: int
    hash: str


def read_file(path: Path) -> bytes:
    """All of a regular file of at most `FILE_LIMIT` bytes."""
    return read_bytes(path, _FILE, limit=FILE_LIMIT)


def read_start(path: Path) -> tuple[bytes, int]:
    """Length and header of a file, whatever they are, and the size of the file in bytes."""
    return _start_of(path, _FILE, limit=8 + HEADER_LIMIT, largest=FILE_LIMIT)


def parse_header(data: bytes, size: int) -> Header:
    """Check the header at the start of ``data``, of a file of ``size`` bytes."""
    _check_size(size)
    length = int.from_bytes(data[:8], "little")
    if size < 10 or data[8:9] != b"{":
        raise _no_safetensors(data)
    if length > HEADER_LIMIT:
        raise PackError(f"its header is larger than {HEADER_LIMIT >> 20} MiB", hint=_HOSTILE_HINT)
    if 8 + length > size or len(data) < 8 + length:
        raise PackError("it is cut off in the header", hint=_BROKEN_HINT)
    text = data[8 : 8 + length]
    content = parse_json(decode_text(text, _HEADER), _HEADER)
    if not isinstance(content, dict):
        raise PackError("its header is not a table", hint=_BROKEN_HINT)
    strings = content.pop("__metadata__", {})
    metadata: dict[str, str] = {}
    for key, value in strings.items() if isinstance(strings, dict) else [("", None)]:
        if not isinstance(value, str):
            raise PackError("its metadata is not made of strings", hint=_BROKEN_HINT)
        metadata[key] = value
    if "op.format" not in metadata:
        kind = tensors_of_others(content)
        raise PackError(f"it is not a concept but {kind.what}", hint=kind.hint)
    check_format(metadata)  # before the layout, which a newer format may have changed
    return Header(
        metadata=metadata,
        entries=_parse_entries(content, start=8 + length, size=size),
        start=8 + length,
        size=size,
        hash=sha256(text).hexdigest(),
    )


def check_format(metadata: Mapping[str, str]) -> str:
    """``op.format``, refused when it is absent or its major version is above 1."""
    version = metadata.get("op.format", "")
    if not re.fullmatch(r"[1-9][0-9]{0,4}(\.[0-9]{1,5})?", version, re.ASCII):
        raise PackError(
            "it is a safetensors file, but not a concept" if not version else "its format is odd",
            hint="concepts are made by: op learn PHOTOS --name NAME",
        )
    if int(version.split(".")[0]) > 1:
        raise PackError(
            f"it was written by a newer op (format {version}, this one reads 1)",
            hint="pip install --upgrade omnipersona",
        )
    return version


def tensors_of(data: bytes, header: Header) -> dict[str, RawTensor]:
    """The tensors by name, as they follow each other; ``data`` is the file of ``header``."""
    return {
        name: RawTensor(dtype=e.dtype, shape=e.shape, data=data[e.begin : e.end])
        for name, e in sorted(header.entries.items(), key=lambda item: (item[1].begin, item[1].end))
    }


def lay_out(tensors: Mapping[str, RawTensor]) -> tuple[list[str], bytes]:
    """Names in their order and the tensor part: wide dtypes first, so that everything is aligned,
    then by name. The safetensors package writes the same order."""
    ranks = {dtype: rank for rank, dtype in enumerate(BYTES_PER_VALUE)}
    order = sorted(tensors, key=lambda name: (ranks[tensors[name].dtype], name))
    return order, b"".join(tensors[name].data for name in order)


def to_bytes(metadata: Mapping[str, str], tensors: Mapping[str, RawTensor]) -> bytes:
    """The file: equal content gives equal bytes. The header is padded to a multiple of 8."""
    order, part = lay_out(tensors)
    content: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    begin = 0
    for name in order:
        tensor = tensors[name]
        end = begin + len(tensor.data)
        content[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + part


def write_file(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """All of ``data`` at ``path`` or nothing: a temporary file beside it, fsync, rename.

    A symbolic link at ``path`` is replaced, never followed. Without ``overwrite`` anything there,
    even a dangling link, is a PersonaError; so is a disk that is full, as ResourceError.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        sweep_temporaries(path.parent, path.name.__eq__)
        if not overwrite and is_taken(path):
            raise _taken(path)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        with open(descriptor, "wb") as file:
            _claim(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":
                file.close()  # an open file has no other name there
            if overwrite:
                os.replace(temporary, path)
            else:
                _place(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def place_file(path: Path, data: bytes, *, force: bool) -> None:
    """`write_file` into a folder that is made where it is not there; ``force`` lets it replace what
    is. Raises TakenError, ResourceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    if not force and os.path.lexists(path):
        raise TakenError(f"{path} is already there", hint="name another file, or add --force")
    write_file(path, data, overwrite=force)


def is_taken(path: Path) -> bool:
    """True where anything has this name, even a dangling link. Unlike `os.path.lexists` it raises
    OSError where the disk does not say: to take that for "nothing is there" would lose a file."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def temporaries(folder: Path, of: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """What is half-written in ``folder``, of files whose names ``of`` says yes to, or of any. May
    raise OSError."""
    with os.scandir(folder) as found:
        shapes = ((entry.name, re.fullmatch(_TEMPORARY, entry.name)) for entry in found)
        names = [name for name, shape in shapes if shape and (of is None or of(shape[1]))]
    yield from (folder / each for each in sorted(names))


def sweep_temporaries(folder: Path, of: Callable[[str], bool]) -> list[Path]:
    """Remove those `temporaries` whose writer is gone, and tell which; nothing where the system
    cannot say who writes."""
    gone = []
    with suppress(OSError):
        for path in temporaries(folder, of):
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
            with suppress(OSError), open(os.open(path, flags), "rb") as file:
                if _claim(file.fileno()):
                    path.unlink()
                    gone.append(path)
    return gone


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> ResourceError:
    """The error to raise for an OSError while writing at ``path``."""
    if error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}:
        return ResourceError(f"the disk is full: cannot write {path}", hint="df -h")
    if error.errno in {errno.ENOENT, errno.ENOTDIR} and not path.parent.is_dir():
        return ResourceError(
            f"there is no folder {path.parent}", hint=f"mkdir -p {shell_word(path.parent)}"
        )
    reason = (error.strerror or type(error).__name__).lower()
    return ResourceError(
        f"cannot write {path}: {reason}", hint="choose another place: -o FILE, or OMNIPERSONA_HOME"
    )


_TEMPORARY = r"\.(.+)\.[0-9a-f]{12}\.tmp"


def _check_size(size: int) -> None:
    if size > FILE_LIMIT:
        raise PackError(
            f"it is larger than {FILE_LIMIT >> 20} MiB", hint="a concept is a few hundred kB"
        )


def _no_safetensors(data: bytes) -> PackError:
    """A file that is not safetensors, named by its first bytes."""
    if not data:
        return PackError("it is empty", hint=_BROKEN_HINT)
    kind = file_type(data)
    if kind is None:
        return PackError("it is not a concept file", hint=_HOSTILE_HINT)
    return PackError(f"it is not a concept but {kind.what}", hint=kind.hint)


def _parse_entries(content: Mapping[str, Any], *, start: int, size: int) -> dict[str, Entry]:
    """Every tensor of the header: allowed, in range, without holes or overlaps."""
    if len(content) > TENSOR_LIMIT:
        raise PackError(f"it has more than {TENSOR_LIMIT} tensors", hint=_HOSTILE_HINT)
    entries = {name: _parse_entry(name, content[name], start) for name in content}
    reached = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            what = "overlaps another" if entry.begin < reached else "leaves a hole before it"
            raise PackError(f"tensor {name} {what}", hint=_HOSTILE_HINT)
        reached = entry.end
    if reached > size:
        raise PackError("it is cut off: tensors are missing", hint=_BROKEN_HINT)
    if reached < size:
        raise PackError("there are bytes after the last tensor", hint=_HOSTILE_HINT)
    return entries


def _parse_entry(name: str, value: Any, start: int) -> Entry:
    if len(name) > 200 or not _TENSOR_NAME.fullmatch(name):
        raise PackError(f"a tensor has an odd name: {name[:40]!a}", hint=_HOSTILE_HINT)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise PackError(f"tensor {name} is not described properly", hint=_BROKEN_HINT)
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in BYTES_PER_VALUE:
        raise PackError(
            f"tensor {name} has the type {str(dtype)[:20]!a}",
            hint=f"allowed: {', '.join(BYTES_PER_VALUE)}",
        )
    if dtype == "U8" and not name.startswith("media/"):
        raise PackError(f"tensor {name} holds bytes: only media/ may", hint=_HOSTILE_HINT)
    shape = _whole_numbers(value["shape"])
    offsets = _whole_numbers(value["data_offsets"])
    if shape is None or len(shape) > 8 or offsets is None or len(offsets) != 2:
        raise PackError(f"tensor {name} has an odd shape or place", hint=_HOSTILE_HINT)
    if math.prod(max(side, 1) for side in shape) > FILE_LIMIT:  # sides beside a 0 take no bytes
        raise PackError(f"tensor {name} has an odd shape or place", hint=_HOSTILE_HINT)
    if offsets[1] - offsets[0] != math.prod(shape) * BYTES_PER_VALUE[dtype]:
        raise PackError(f"tensor {name}: its shape and its bytes differ", hint=_HOSTILE_HINT)
    return Entry(dtype=dtype, shape=shape, begin=start + offsets[0], end=start + offsets[1])


def _whole_numbers(values: Any) -> tuple[int, ...] | None:
    """A tuple of whole numbers from 0 to 2^31, or None where it is anything else."""
    if isinstance(values, list) and all(type(v) is int and 0 <= v < 2**31 for v in values):
        return tuple(values)
    return None


def _claim(descriptor: int) -> bool:
    """Hold a file for as long as it is open, so that others know that its writer lives. False
    where another holds it, or where the file system knows no locks."""
    try:
        import fcntl
    except ImportError:  # Windows, where an open file cannot be removed anyway
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _place(temporary: Path, path: Path) -> None:
    """Rename without replacing: a hard link fails where something exists, a rename does not."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _taken(path) from None
    except OSError:  # a file system without hard links
        if is_taken(path):
            raise _taken(path) from None
        os.rename(temporary, path)


def _taken(path: Path) -> TakenError:
    return TakenError(f"{path} exists already", hint="--force replaces it; -o FILE goes elsewhere")
