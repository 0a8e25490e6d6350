"""Damage is noticed to the bit, in text and in tensors; format 1.0 is read and written as 1.1."""

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from omnipersona_cli.concepts.container import parse_header
from omnipersona_cli.concepts.digest import DIGEST, TENSORS
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import (
    Fact,
    Pack,
    RawTensor,
    Slot,
    age_note,
    parse_pack,
    read_header,
    rewrite,
    to_bytes,
    verify,
    verify_bytes,
)
from omnipersona_cli.errors import PackError


@pytest.fixture
def small():
    """The smallest pack that has a part of every kind."""
    arrays = {"id": (1, 2), "und": (2, 2), "gen": (1, 2), "deep.0.gen": (1, 2)}
    return Pack(
        name="bo",
        aliases=("rex",),
        class_word="dog",
        kind="animal",
        facts=(Fact(text="<bo>'s toy is a bäll", more={"key": "toy"}),),
        slots={
            "nano": Slot(
                tensors={
                    key: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1
                    for key, shape in arrays.items()
                },
                about={"base": "embedded", "seed": 7},
                dtypes={"gen": "BF16"},
            )
        },
        evals={"nano": {"threshold": 0.25}},
        provenance={"photos": 6},
        licence="CC0-1.0",
        date="2025-01-02",
        extra_metadata={"other": 'one\n"two"\u007f'},
        extra_tensors={
            "media/photo.0": RawTensor(dtype="U8", shape=(3,), data=b"abc"),
            "media/photo.1": RawTensor(dtype="U8", shape=(3,), data=b"xyz"),
        },
    )


def split(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header, part):
    text = json.dumps(header, ensure_ascii=False).encode()
    return len(text).to_bytes(8, "little") + text + part


def as_1_0(data):
    """The pack as format 1.0 wrote it."""
    header, part = split(data)
    metadata = header["__metadata__"]
    for key in (DIGEST, TENSORS):
        del metadata[key]
    metadata["op.format"] = "1"
    return join(header, part)


def test_every_flipped_bit_is_refused(small):
    data = bytearray(to_bytes(small, large=True))
    assert verify_bytes(bytes(data)) == []
    passed = []
    for place in range(len(data)):
        for bit in range(8):
            data[place] ^= 1 << bit
            if not verify_bytes(bytes(data)):
                passed.append((place, bit))
            data[place] ^= 1 << bit
    assert passed == []


def test_no_header_with_a_flipped_bit_is_shown(small):
    """Listing reads headers alone, and shows only what was written."""
    data = bytearray(to_bytes(small, large=True))
    end = 8 + int.from_bytes(data[:8], "little")
    for place in range(end):
        for bit in range(8):
            data[place] ^= 1 << bit
            with pytest.raises(PackError):
                read_from(bytes(data), end)
            data[place] ^= 1 << bit


def read_from(data, end):
    from omnipersona_cli.concepts.header import interpret

    return interpret(parse_header(data[:end], len(data)))


def test_the_one_harmless_flip_is_the_case_of_an_escaped_digit(small):
    """JSON writes U+001F as \\u001f or \\u001F: the text is the same. The safetensors package
    writes such escapes, op only for control characters."""
    data = to_bytes(replace(small, extra_metadata={"other": "\u001f"}), large=True)
    assert data.count(rb"\u001f") == 1
    other = data.replace(rb"\u001f", rb"\u001F")
    assert verify_bytes(other) == []
    assert parse_pack(other).extra_metadata == parse_pack(data).extra_metadata
    assert rewrite(other) == data


@pytest.mark.parametrize("key", ["op.format", "op.facts", TENSORS, "modelspec.license", "other"])
def test_a_key_that_was_taken_away_is_noticed(small, key):
    header, part = split(to_bytes(small, large=True))
    del header["__metadata__"][key]
    assert verify_bytes(join(header, part))


@pytest.mark.parametrize("key", ["op.future", "op.hash.other"])
def test_a_key_of_ours_that_was_added_is_noticed(small, key):
    header, part = split(to_bytes(small, large=True))
    header["__metadata__"][key] = "x"
    assert "digest differs" in verify_bytes(join(header, part))[0]


def test_a_licence_that_was_added_is_noticed(small):
    header, part = split(to_bytes(replace(small, licence=""), large=True))
    header["__metadata__"]["modelspec.license"] = "CC0-1.0"
    assert verify_bytes(join(header, part))


def test_pictures_of_one_size_cannot_change_places(small):
    """Nothing but the names in the header tells them apart."""
    header, part = split(to_bytes(small, large=True))
    one, two = (header[f"media/photo.{n}"] for n in (0, 1))
    one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    assert verify_bytes(join(header, part)) == [
        "its tensors were changed or damaged: their digest differs"
    ]


def test_tags_of_other_programs_are_carried_and_covered_by_the_next_change(small):
    header, part = split(to_bytes(small, large=True))
    header["__metadata__"] |= {"modelspec.author": "me", "user.notes": "one\ntwo"}
    tagged = join(header, part)
    assert verify_bytes(tagged) == []
    changed = rewrite(tagged, facts=[Fact(text="new")])
    assert parse_pack(changed).extra_metadata["modelspec.author"] == "me"
    header, part = split(changed)
    header["__metadata__"]["modelspec.author"] = "you"
    assert verify_bytes(join(header, part))


def test_the_digest_is_what_the_page_says(small):
    """Computed here once more, from the rule alone."""
    header, part = split(to_bytes(small, large=True))
    metadata = header.pop("__metadata__")
    said = json.loads(metadata[DIGEST])
    assert said["keys"] == sorted(metadata.keys() - {DIGEST})

    def line(*values):
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    lines = {name: line(name, entry["dtype"], entry["shape"]) for name, entry in header.items()}
    text = b"".join(line(key, metadata[key]) for key in said["keys"])
    text += b"".join(lines[name] for name in sorted(lines))
    assert said["sha256"] == sha256(text).hexdigest()
    whole = b"".join(
        lines[name] + part[slice(*header[name]["data_offsets"])] for name in sorted(lines)
    )
    assert metadata[TENSORS] == sha256(whole).hexdigest()


def test_format_1_0_is_read_with_a_note_and_written_as_1_1(small, tmp_path):
    old = as_1_0(to_bytes(small, large=True))
    path = tmp_path / "bo.opconcept"
    path.write_bytes(old)
    header = read_header(path)
    assert "format 1.0" in age_note(header)
    assert verify(path) == []
    new = rewrite(old, facts=header.facts)
    assert new == to_bytes(small, large=True)
    library = Library(tmp_path / "library")
    kept = library.add_file(path)
    assert age_note(read_header(kept)) == ""
    assert kept.read_bytes() == new


@pytest.mark.parametrize("version", ["1", "1.0"])
def test_a_pack_does_not_lose_its_digest_by_calling_itself_1_0(small, version):
    header, part = split(to_bytes(small, large=True))
    header["__metadata__"]["op.format"] = version
    assert "digest differs" in verify_bytes(join(header, part))[0]


def test_1_1_without_a_digest_is_refused(small):
    header, part = split(to_bytes(small, large=True))
    del header["__metadata__"][DIGEST]
    assert "op.digest is missing" in verify_bytes(join(header, part))[0]
