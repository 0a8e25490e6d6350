"""The reader on the page of the pack format reads what the package writes, and nothing damaged."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnipersona_cli import reading
from omnipersona_cli.concepts import container, facts, header
from omnipersona_cli.concepts.pack import Fact, Pack, Slot, read_pack, write_pack

PAGE = Path(__file__).parent.parent.parent / "docs" / "pack-format.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def read() -> Callable[[Path], Any]:
    """The page's own reader."""
    namespace: dict[str, Any] = {}
    exec(compile(BLOCKS[0], "pack-format.md", "exec"), namespace)
    reader: Callable[[Path], Any] = namespace["read"]
    return reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A pack with two slots, one of them in other types, and with text that is not ASCII."""
    chance = np.random.default_rng(0)

    def tokens(width: int) -> dict[str, Any]:
        shapes = {"id": (1, width), "und": (4, width), "gen": (3, width)}
        return {key: chance.normal(size=shape).astype("f4") for key, shape in shapes.items()}

    half = {key: rows.astype("f2") for key, rows in tokens(6).items()}
    packed = Pack(
        name="bo",
        class_word="dog",
        facts=(Fact(text="<bo>'s toy is a red ball"), Fact(text="<bo> aime le café")),
        slots={
            "nano-1": Slot(tensors=tokens(8), about={"fingerprint": "nano-1@a:b"}),
            "half": Slot(tensors=half, about={"fingerprint": "half@a:b"}),
            "brain": Slot(
                tensors=tokens(4), about={"fingerprint": "brain@a:b"}, dtypes={"und": "BF16"}
            ),
        },
        provenance={"photos": 6},
        date="2025-01-02",
    )
    file = tmp_path / "bo.opconcept"
    write_pack(packed, file)
    return file


def test_the_reader_of_the_page_needs_nothing_but_python_and_a_sitting() -> None:
    imported = set(re.findall(r"^(?:import|from) (\w+)", BLOCKS[0], re.MULTILINE))
    assert imported <= {"array", "hashlib", "json", "struct", "sys"}
    code = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(code) <= 70


def test_the_reader_of_the_page_agrees_with_ours(read: Callable[[Path], Any], path: Path) -> None:
    told, tensors = read(path)
    ours = read_pack(path)
    assert told["concept"]["name"] == ours.name
    assert [fact["text"] for fact in told["facts"]] == [fact.text for fact in ours.facts]
    assert set(told["slots"]) == set(ours.slots)
    for slot, content in ours.slots.items():
        for key, rows in content.tensors.items():
            shape, values = tensors[f"slot/{slot}/{key}"]
            assert shape == rows.shape
            assert np.array_equal(np.array(values, dtype="f4").reshape(shape), rows.astype("f4"))


def test_the_reader_of_the_page_refuses_a_changed_byte_of_a_tensor(
    read: Callable[[Path], Any], path: Path
) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="changed"):
        read(path)


def test_the_reader_of_the_page_refuses_changed_text(
    read: Callable[[Path], Any], path: Path
) -> None:
    data = path.read_bytes()
    for old, new in ((b"a red ball", b"a rad ball"), (b'"op.eval"', b'"op.evil"')):
        assert old in data
        path.write_bytes(data.replace(old, new))
        with pytest.raises((ValueError, KeyError)):
            read(path)


def test_the_reader_of_the_page_reads_format_1_0_too(
    read: Callable[[Path], Any], path: Path
) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + length])
    for key in ("op.digest", "op.tensors"):
        del told["__metadata__"][key]
    told["__metadata__"]["op.format"] = "1"
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert read(path)[0]["concept"]["name"] == read_pack(path).name == "bo"


def test_limits_on_the_page_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    limits = {
        "slots": header.SLOT_COUNT,
        "rows of a tensor of tokens": header.ROW_COUNT,
        "aliases": header.ALIAS_COUNT,
        "class word, kind": f"{header.WORD_LENGTH} characters",
        "licence, date, and what names the base of a slot": f"{header.LINE_LENGTH} characters",
        "facts": f"{facts.FACT_COUNT}, of {facts.FACT_LENGTH} characters each",
        "tensors": container.TENSOR_LIMIT,
        "depth of JSON": reading.DEPTH,
        "header": f"{container.HEADER_LIMIT >> 20} MiB",
        "file": f"{container.FILE_LIMIT >> 20} MiB",
    }
    for what, limit in limits.items():
        assert f"| {what} | {limit} |" in page, what


def test_the_example_below_it_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(path.parent)
    exec(compile("\n".join(BLOCKS), "pack-format.md", "exec"), {})
    assert "bo" in capsys.readouterr().out
