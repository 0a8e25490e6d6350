"""What comes from outside is read in one bounded way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnipersona_cli import reading
from omnipersona_cli.errors import MissingError, PersonaError, UsageError
from omnipersona_cli.reading import Origin, parse_json, read_tensor_header

IT = Origin(name="it")


def tensors(path: Path, header: bytes, *, said: int | None = None) -> Path:
    """A file that begins like safetensors, its header ``said`` to be of another length."""
    path.write_bytes((len(header) if said is None else said).to_bytes(8, "little") + header)
    return path


def test_a_tensor_header_says_where_tensors_begin(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32"}}).encode()
    path = tensors(tmp_path / "a.safetensors", header)
    path.write_bytes(path.read_bytes() + b"1234")
    begin = 8 + len(header)
    assert read_tensor_header(path, IT) == ({"a": {"dtype": "F32"}}, begin, begin + 4)


@pytest.mark.parametrize("said", [100, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused_unread(said: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cut off in its header"):
        read_tensor_header(tensors(tmp_path / "a", b"{}", said=said), IT)


def test_a_header_larger_than_any_is_refused_unread(tmp_path: Path) -> None:
    """A file of 30 GB may say so; it is sparse here."""
    path = tensors(tmp_path / "a", b"{}", said=reading.TENSOR_HEADER + 1)
    os.truncate(path, 1 << 35)
    with pytest.raises(UsageError, match="no safetensors file"):
        read_tensor_header(path, IT)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b"[" * 40 + b"]" * 40, "nested too deep"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[]", "no table"),
        (b"\xff\xff", "not UTF-8"),
    ],
)
def test_a_hostile_tensor_header_is_refused(header: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        read_tensor_header(tensors(tmp_path / "a", header), IT)


def test_a_pipe_in_the_place_of_weights_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="not a file"):
        read_tensor_header(tmp_path / "a.safetensors", IT)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no file"):
        read_tensor_header(tmp_path / "a.safetensors", IT)


def test_more_values_than_are_allowed_are_refused() -> None:
    assert parse_json("[1, 2]", IT, most=3) == [1, 2]
    with pytest.raises(PersonaError, match="more than 3 values"):
        parse_json("[1, 2, 3, 4]", IT, most=3)


def test_too_many_values_are_refused_before_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.loads", lambda *_, **__: pytest.fail("built"))
    for text in ("[" + "{}," * 300 + "{}]", '{"x": [' + "1," * 300 + "1]}", "[" * 300 + "]" * 300):
        with pytest.raises(PersonaError, match="more than 100 values"):
            parse_json(text, IT, most=100)


def test_a_long_text_is_read_in_memory_of_its_own_size() -> None:
    code = """
import resource
from omnipersona_cli.errors import PersonaError
from omnipersona_cli.reading import Origin, parse_json
text = '{"image": "' + 20_000_000 * "A" + '"}'
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parse_json(text, Origin(name="it", error=PersonaError))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown = int(done.stdout) / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    assert grown < 150, f"{grown:.0f} MB for a text of 20 MB"


def test_commas_in_a_text_are_no_values() -> None:
    text = '{"x": "' + r"a, \"[{b},\" c," * 300 + '"}'
    assert isinstance(parse_json(text, IT, most=3), dict)
