"""An .opconcept file: written, read, rewritten."""

import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

from omnipersona_cli.concepts import container
from omnipersona_cli.concepts.pack import (
    Fact,
    RawTensor,
    Slot,
    parse_pack,
    read_header,
    read_pack,
    rewrite,
    to_bytes,
    verify,
    write_pack,
)
from omnipersona_cli.errors import MissingError, PackError, PersonaError, ResourceError


@pytest.fixture
def file(bo, tmp_path):
    path = tmp_path / "bo.opconcept"
    write_pack(bo, path)
    return path


def bfloat16(array):
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def test_a_pack_survives_save_and_load(bo, file):
    read = read_pack(file)
    assert replace(read, slots={}, hash="") == replace(bo, slots={})
    for key, array in bo.slots["nano"].tensors.items():
        assert np.array_equal(read.slots["nano"].tensors[key], array)
        assert read.slots["nano"].tensors[key].flags.writeable
    assert read.slots["nano"].about == bo.slots["nano"].about
    assert verify(file) == []


def test_a_pack_opens_with_the_safetensors_package(bo, file):
    with safe_open(file, "np") as opened:
        assert np.array_equal(opened.get_tensor("slot/nano/und"), bo.slots["nano"].tensors["und"])
        assert opened.metadata()["modelspec.trigger_phrase"] == "<bo>"


def test_the_tensor_part_is_laid_out_as_the_safetensors_package_does(bo):
    slot = bo.slots["nano"]
    mixed = replace(slot, tensors={**slot.tensors, "gen": slot.tensors["gen"].astype(np.float16)})
    media = RawTensor(dtype="U8", shape=(5,), data=b"photo")
    data = to_bytes(replace(bo, slots={"nano": mixed}, extra_tensors={"media/thumbnail": media}))
    theirs = save(load(data), container.parse_header(data, len(data)).metadata)
    length, other = (int.from_bytes(x[:8], "little") for x in (data, theirs))
    assert data[8 + length :] == theirs[8 + other :]
    assert parse_pack(theirs).name == "bo"


def test_equal_content_gives_equal_bytes(bo):
    turned = replace(
        bo,
        slots={
            "nano": replace(
                bo.slots["nano"],
                tensors=dict(reversed(bo.slots["nano"].tensors.items())),
                about=dict(reversed(bo.slots["nano"].about.items())),
            )
        },
    )
    assert to_bytes(turned) == to_bytes(bo)


def test_a_pack_that_was_read_is_written_as_it_was(file, tmp_path):
    write_pack(read_pack(file), tmp_path / "again.opconcept")
    assert (tmp_path / "again.opconcept").read_bytes() == file.read_bytes()
    assert rewrite(file.read_bytes()) == file.read_bytes()


def test_the_hash_is_of_the_header_and_moves_with_everything(bo, file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = read_header(file)
    assert header.hash == sha256(data[8 : 8 + length]).hexdigest() == read_pack(file).hash
    assert header.tensor_hash == "0x" + sha256(data[8 + length :]).hexdigest()
    one = bo.slots["nano"]
    moved = {**one.tensors, "und": one.tensors["und"] + np.float32(1)}
    for other in (
        replace(bo, facts=()),
        replace(bo, date=""),
        replace(bo, slots={"nano": replace(one, tensors=moved)}),
    ):
        assert parse_pack(to_bytes(other)).hash != header.hash


def test_the_header_tells_everything_but_values(bo, file):
    header = read_header(file)
    assert (header.name, header.class_word, header.kind) == ("bo", "dog", "animal")
    assert header.facts == bo.facts
    assert header.slots["nano"].tensors["und"].shape == (4, 8)
    assert header.evals == bo.evals
    assert header.size == file.stat().st_size


def test_model_managers_find_their_keys(file):
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "nano/op-concept"
    assert metadata["modelspec.title"] == "bo (dog)"
    assert metadata["modelspec.date"] == "2025-01-02T03:04:05Z"
    assert metadata["modelspec.license"] == "CC0-1.0"
    assert metadata["modelspec.hash_sha256"].startswith("0x")


def test_bfloat16_is_kept_to_the_bit(bo, tmp_path):
    arrays = {key: bfloat16(array) for key, array in bo.slots["nano"].tensors.items()}
    slot = Slot(tensors=arrays, dtypes=dict.fromkeys(arrays, "BF16"))
    write_pack(replace(bo, slots={"nano": slot}), tmp_path / "half.opconcept")
    read = read_pack(tmp_path / "half.opconcept")
    assert read.slots["nano"].dtypes == slot.dtypes
    assert np.array_equal(read.slots["nano"].tensors["und"], arrays["und"])
    assert to_bytes(read) == (tmp_path / "half.opconcept").read_bytes()


def test_float32_is_rounded_to_the_nearest_bfloat16(bo):
    import torch

    array = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
    slot = bo.slots["nano"]
    rounded = replace(slot, tensors={**slot.tensors, "id": array}, dtypes={"id": "BF16"})
    read = parse_pack(to_bytes(replace(bo, slots={"nano": rounded})))
    assert np.array_equal(
        read.slots["nano"].tensors["id"], torch.from_numpy(array).bfloat16().float().numpy()
    )


def test_float16_stays_float16(bo):
    arrays = {k: a.astype(np.float16) for k, a in bo.slots["nano"].tensors.items()}
    read = parse_pack(to_bytes(replace(bo, slots={"nano": Slot(tensors=arrays)})))
    assert read.slots["nano"].tensors["und"].dtype == np.float16


def test_unknown_slots_keys_and_tensors_survive_a_rewrite(bo):
    slot = bo.slots["nano"]
    more = {
        "deep.3.und": np.ones((2, 8), np.float32),
        "head.weight": np.ones((5, 2, 3), np.float32),
    }
    rich = replace(
        bo,
        slots={"nano": slot, "later-7b": replace(slot, tensors={**slot.tensors, **more})},
        facts=(Fact(text="<bo> is old", more={"key": "age", "private": True}),),
        more={"voice": {"pitch": 3}},
        extra_metadata={"op.lineage": '{"parent":"x"}', "modelspec.author": "Ann", "other": "kept"},
        extra_tensors={"future/x": RawTensor(dtype="BF16", shape=(1, 2), data=b"\0\0\x80\x3f")},
        format="1.4",
    )
    data = rewrite(to_bytes(rich), facts=[*rich.facts, Fact(text="new")])
    read = parse_pack(data)
    assert set(read.slots) == {"nano", "later-7b"}
    assert read.slots["later-7b"].tensors["head.weight"].shape == (5, 2, 3)
    assert read.facts[0].more == {"key": "age", "private": True}
    assert read.more == rich.more
    assert read.extra_metadata == rich.extra_metadata
    assert read.extra_tensors == rich.extra_tensors
    assert read.format == "1.4"
    assert to_bytes(read) == data


def test_rewriting_facts_copies_tensor_bytes(file):
    before = file.read_bytes()
    after = rewrite(before, facts=[Fact(text="something else")])
    start, other = (8 + int.from_bytes(x[:8], "little") for x in (before, after))
    assert before[start:] == after[other:]
    assert parse_pack(after).facts == (Fact(text="something else"),)


def test_renaming_takes_the_mentions_in_facts_along(file):
    renamed = parse_pack(rewrite(file.read_bytes(), name="rex"))
    assert renamed.name == "rex"
    assert renamed.facts[0].text == "<rex>'s toy is a red ball"


def test_a_long_row_is_refused_where_a_limit_is_known(bo, file):
    longest = max(np.linalg.norm(a, axis=1).max() for a in bo.slots["nano"].tensors.values())
    read_pack(file, norm_limit=float(longest) * 1.001)
    with pytest.raises(PackError, match="norm"):
        read_pack(file, norm_limit=float(longest) * 0.999)
    read_pack(file, norm_limit={"other": 0.0})
    with pytest.raises(PackError, match="norm"):
        read_pack(file, norm_limit={"nano": 0.1})


@pytest.mark.parametrize("key", ["slot", "photo"])
def test_adapters_and_photos_need_a_flag(bo, key):
    if key == "slot":
        slot = bo.slots["nano"]
        arrays = {**slot.tensors, "lora.gen.0.a": np.ones((2, 8), np.float32)}
        big = replace(bo, slots={"nano": replace(slot, tensors=arrays)})
    else:
        photo = RawTensor(dtype="U8", shape=(3,), data=b"abc")
        big = replace(bo, extra_tensors={"media/photo.0": photo})
    with pytest.raises(PackError, match="asked for"):
        to_bytes(big)
    data = to_bytes(big, large=True)
    assert rewrite(data) == data


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": {"photos": 6, "folder": "holiday"}},
        {"provenance": {"exif": {"Make": "Canon"}}},
        {"provenance": {"note": "from /home/ann/photos"}},
        {"provenance": {"user": "ann"}},
        {"provenance": {"note": "C:\\Users\\ann"}},
        {"evals": {"nano": {"report": "~/report.json"}}},
    ],
)
def test_a_pack_tells_nothing_of_its_makers_machine(bo, change):
    with pytest.raises(PackError, match="machine"):
        to_bytes(replace(bo, **change))


def test_a_base_in_a_local_folder_is_not_written(bo):
    slot = replace(bo.slots["nano"], about={"base": "/data/models/bagel"})
    with pytest.raises(PackError, match=r"op.slots.nano.base"):
        to_bytes(replace(bo, slots={"nano": slot}))


def test_a_hub_name_is_no_path(bo):
    slot = replace(bo.slots["nano"], about={"base": "ByteDance-Seed/BAGEL-7B-MoT"})
    assert to_bytes(replace(bo, slots={"nano": slot}))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../bo"},
        {"name": "Bo"},
        {"aliases": ("a b",)},
        {"class_word": "dog<|im_end|>"},
        {"class_word": "d" * 65},
        {"evals": {"nano": {"threshold": float("nan")}}},
        {"evals": {"nano": {"threshold": np.float32(1)}}},
        {"evals": {"nano": {"note": "\x1b[2J"}}},
        {"facts": tuple(Fact(text=f"fact {n}") for n in range(257))},
        {"extra_metadata": {"big": "x" * (1 << 20)}},
        {"extra_metadata": {"lone": "\ud800"}},
        {"extra_tensors": {"weights": RawTensor(dtype="U8", shape=(1,), data=b"x")}},
        {"extra_tensors": {"weights": RawTensor(dtype="I64", shape=(1,), data=b"12345678")}},
        {"extra_tensors": {"media/../x": RawTensor(dtype="U8", shape=(1,), data=b"x")}},
        {"extra_tensors": {"media/x": RawTensor(dtype="U8", shape=(2,), data=b"x")}},
        {"format": "2"},
    ],
)
def test_what_would_be_refused_is_not_written(bo, change, tmp_path):
    with pytest.raises(PackError):
        write_pack(replace(bo, **change), tmp_path / "bo.opconcept")
    assert list(tmp_path.glob("*.opconcept")) == []


@pytest.mark.parametrize(
    "arrays",
    [
        {"id": np.full((1, 8), np.nan, np.float32)},
        {"und": np.full((4, 8), np.inf, np.float32)},
        {"und": np.ones((4, 7), np.float32)},
        {"id": np.ones((2, 8), np.float32)},
        {"id": np.ones((8,), np.float32)},
        {"id": np.ones((1, 8), np.float64)},
        {"deep.0.gen": np.ones((4, 9), np.float32)},
    ],
)
def test_bad_tensors_are_not_written(bo, arrays):
    slot = bo.slots["nano"]
    bad = replace(slot, tensors={**slot.tensors, **arrays})
    with pytest.raises(PackError):
        to_bytes(replace(bo, slots={"nano": bad}))


def test_float16_that_overflows_is_not_written(bo):
    slot = bo.slots["nano"]
    big = replace(
        slot, tensors={**slot.tensors, "id": np.full((1, 8), 1e6, np.float32)}, dtypes={"id": "F16"}
    )
    with pytest.raises(PackError, match="finite"):
        to_bytes(replace(bo, slots={"nano": big}))


def test_a_slot_without_its_parts_is_not_written(bo):
    with pytest.raises(PackError, match="no tensor"):
        to_bytes(replace(bo, slots={"nano": Slot(tensors={"id": np.ones((1, 8), np.float32)})}))


def test_nothing_is_overwritten_unasked(bo, file):
    before = file.read_bytes()
    with pytest.raises(PersonaError, match="exists already"):
        write_pack(replace(bo, facts=()), file)
    assert file.read_bytes() == before
    write_pack(replace(bo, facts=()), file, overwrite=True)
    assert file.read_bytes() != before


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(bo, file, monkeypatch):
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="disk is full"):
        write_pack(replace(bo, facts=()), file, overwrite=True)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == [file.name]


def test_a_folder_that_is_not_there_is_named(bo, tmp_path):
    with pytest.raises(ResourceError, match="no folder"):
        write_pack(bo, tmp_path / "nowhere" / "bo.opconcept")


def test_a_missing_file_is_missing(tmp_path):
    for read in (read_header, read_pack, verify):
        with pytest.raises(MissingError):
            read(tmp_path / "none.opconcept")


def test_headers_and_rewrites_import_nothing_heavy(file):
    code = (
        "import sys; from pathlib import Path; from omnipersona_cli.concepts import pack, library\n"
        f"path = Path({str(file)!r}); pack.read_header(path)\n"
        "pack.rewrite(path.read_bytes(), name='rex', facts=[])\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
