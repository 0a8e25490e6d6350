"""Safetensors files of any size, read through a read-only mapping."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnipersona_cli.errors import MissingError
from omnipersona_cli.family.tensors import DTYPES, mapped, stored_tensors

HINT = "op backends fetch chameleon"


def written(path: Path, header: dict[str, object], data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_every_dtype_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    values = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.5, 1.0]])
    tensors = {name: values.to(dtype) for name, dtype in DTYPES.items()}
    save_file({**tensors, "empty": torch.zeros(0, 3), "one": torch.tensor(4.0)}, path)
    wanted = load_file(path)
    found = dict(mapped(path, hint=HINT))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert torch.equal(
            found[name].flatten().view(torch.uint8), value.flatten().view(torch.uint8)
        )


def test_numbers_at_an_odd_place_are_read(tmp_path: Path) -> None:
    numbers = torch.tensor([1.5, -2.0])
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header: dict[str, object] = {"a": entry}
    while (8 + len(json.dumps(header))) % 4 == 0:
        header["__metadata__"] = {"note": "x" * (len(json.dumps(header)) % 3 + 1)}
    path = written(tmp_path / "odd.safetensors", header, numbers.numpy().tobytes())
    assert torch.equal(dict(mapped(path, hint=HINT))["a"], numbers)


def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    size = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    header = {"large": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    path = written(tmp_path / "large.safetensors", dict(header))
    os.truncate(path, path.stat().st_size + size)  # a hole: takes no room on the disk
    large = dict(mapped(path, hint=HINT))["large"]
    assert large.shape == (size,) and int(large[-1]) == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_what_was_read_of_a_tensor_is_given_back_before_the_next(tmp_path: Path) -> None:
    def from_files() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024

    path, size = tmp_path / "many.safetensors", 1 << 22
    save_file({f"{n}": torch.ones(size, dtype=torch.uint8) for n in range(16)}, path)
    before = from_files()
    for name, value in mapped(path, hint=HINT, names=[f"{n}" for n in range(16)]):
        assert int(value.sum()) == size, name
        assert from_files() - before < 3 * size


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        [],
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(entry: object, tmp_path: Path) -> None:
    path = written(tmp_path / "lie.safetensors", {"a": entry}, bytes(8))
    with pytest.raises(MissingError, match=r"lie\.safetensors is broken or cut off"):
        stored_tensors(path, hint=HINT)


@pytest.mark.parametrize("data", [b"", b"abc", bytes(8), b"\xff" * 16, b"\x02" + bytes(7) + b"[]"])
def test_what_is_no_safetensors_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    path.write_bytes(data)
    with pytest.raises(MissingError) as error:
        dict(mapped(path, hint=HINT))
    assert error.value.hint == HINT
