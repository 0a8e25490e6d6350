"""Slots fit the backbone that they were learned on, and no other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from omnipersona_cli.concepts.pack import Pack, Slot
from omnipersona_cli.engine.tokens import from_slot, named_tensors, slot_name, to_slot
from omnipersona_cli.errors import PackError, SlotError
from omnipersona_cli.hookspecs import Base
from omnipersona_cli.testing import SketchBackend, drawing


@pytest.fixture
def backend():
    return SketchBackend()


@pytest.fixture
def pack(backend):
    tokens = backend.new_tokens("bo", understand=4, generate=3, photos=[drawing("red", 1)], seed=0)
    return Pack(name="bo", slots={"sketch": to_slot(tokens, backend, {"seed": 0})})


def test_a_slot_is_named_after_the_base(backend):
    assert slot_name(backend) == "sketch"


def test_tokens_come_back_as_they_went_in(backend, pack):
    again = to_slot(from_slot(pack, backend), backend, {"seed": 0})
    for key, value in pack.slots["sketch"].tensors.items():
        assert np.array_equal(value, again.tensors[key])
    assert again.about == pack.slots["sketch"].about
    assert all(
        value.dtype == torch.float32 for value in named_tensors(from_slot(pack, backend)).values()
    )


@pytest.mark.parametrize(("told", "kept"), [(2, 2), (None, 0), (9, 0), (-1, 0), ("2", 0)])
def test_how_many_tokens_hold_facts_is_read_from_the_recipe(backend, pack, told, kept):
    slot = pack.slots["sketch"]
    about = {**slot.about, "recipe": {} if told is None else {"fact_tokens": told}}
    tokens = from_slot(replace(pack, slots={"sketch": replace(slot, about=about)}), backend)
    assert tokens.fact_tokens == kept
    assert len(tokens.of_looks().und) == len(tokens.und) - kept


def test_a_pack_of_another_base_names_both_and_the_way_out(backend, pack):
    other = replace(pack, slots={"bagel-7b": pack.slots["sketch"]})
    with pytest.raises(SlotError, match=r"bagel-7b.*sketch") as caught:
        from_slot(other, backend)
    assert "op learn" in caught.value.hint


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("deepseek-community/Janus-Pro-1B", ""),
        ("deepseek-community/Janus-Pro-7B", " --model deepseek-community/Janus-Pro-7B"),
        ("distilled", " --model FOLDER"),
    ],
)
def test_the_way_out_names_the_weights_that_are_not_the_usual_ones(pack, model, named):
    base = Base(backend="janus", model=model, fingerprint=f"{model}@0", width=8, norm_limit=1.0)
    with pytest.raises(SlotError) as caught:
        from_slot(pack, base)
    assert caught.value.hint == f"op learn PHOTOS --name {pack.name} -b janus{named}"


def test_another_revision_is_refused(backend, pack):
    backend.fingerprint = "sketch@2:0"
    with pytest.raises(SlotError, match=r"sketch@1:0.*sketch@2:0") as caught:
        from_slot(pack, backend)
    assert caught.value.hint.endswith("--force"), "the old slot is in the way of the new one"


@pytest.mark.parametrize(
    "rows",
    [np.full((4, 48), np.nan), np.zeros((4, 47)), np.full((4, 48), 9.0), np.zeros(48)],
    ids=["not finite", "too narrow", "too large", "no rows"],
)
def test_tensors_that_cannot_be_right_are_refused(backend, pack, rows):
    slot = pack.slots["sketch"]
    broken = Slot(tensors={**slot.tensors, "und": rows.astype(np.float32)}, about=slot.about)
    with pytest.raises(PackError):
        from_slot(replace(pack, slots={"sketch": broken}), backend)
