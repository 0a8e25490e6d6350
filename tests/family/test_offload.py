"""Weights that move as they are used: the same bits, and a layer's worth of copies at most.

No card is here: the copies are made in the same memory, which shows all but the copying itself.
"""

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_lance
import torch
from torch import Tensor

from omnipersona_cli.backend import Lesson, Opening, Prompt
from omnipersona_cli.engine.tokens import copy_of, named_tensors
from omnipersona_cli.errors import UsageError
from omnipersona_cli.family.offload import check_offload, offload
from omnipersona_cli.family.recompute import recompute
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing
from op_bagel.backend import BagelBackend
from op_bagel.model import Bagel
from op_lance import loading
from op_lance.backend import LanceBackend
from op_nano.backend import NanoBackend, open_backend


class Copies:
    """Moves by copying, and knows how many bytes of copies were alive at most."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0
        self.moved = 0

    def __call__(self, value: Tensor) -> Tensor:
        copy = value.clone()
        self.alive.add(copy)
        self.moved += 1
        self.most = max(self.most, sum(it.nbytes for it in self.alive))
        return copy


def fresh() -> NanoBackend:
    from op_nano import backend

    backend._opened.cache_clear()
    opened = open_backend(Opening(device="cpu"))
    backend._opened.cache_clear()
    assert isinstance(opened, NanoBackend)
    return opened


def lance(folder: Path) -> LanceBackend:
    if not folder.exists():
        tiny_lance.write_tiny(folder)
    return loading.open_backend(Opening(model=str(folder), device="cpu"))


OPENED: dict[str, Callable[[Path], NanoBackend | LanceBackend]] = {
    "nano": lambda _: fresh(),
    "lance": lance,
}


def mixture(backend: BagelBackend | LanceBackend) -> Bagel:
    return backend.bagel if isinstance(backend, BagelBackend) else backend.mixture


def results(backend: BagelBackend | LanceBackend) -> list[Tensor]:
    """Scores, pixels and gradients."""
    photo = drawing("red", 1)
    start = backend.new_tokens("bo", understand=3, generate=3, photos=[photo], seed=0)
    ask, paint = to_turn("is <bo> here?"), to_turn("<bo>")
    found = [backend.score(Prompt(turns=(ask,), concepts=(start,)), ["yes", "no"], image=photo)]
    prompt = Prompt(turns=(paint,), concepts=(start,))
    (painted,) = backend.gen(prompt, size=None, steps=2, guidance=None, seeds=[1])
    found.append(torch.frombuffer(bytearray(painted.tobytes()), dtype=torch.uint8))
    tokens = copy_of(start, trainable=True)
    lessons = [
        Lesson(task="understand", kind="recognise", request=ask, image=photo, answer="yes"),
        Lesson(task="generate", kind="depict", request=paint, target=photo),
    ]
    losses = backend.loss(backend.prepare(lessons), tokens, seed=0)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    return found + [it.grad for it in named_tensors(tokens).values() if it.grad is not None]


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("frugal", [False, True])
def test_results_are_the_same_to_the_bit_and_copies_are_few(
    frugal: bool, name: str, tmp_path: Path
) -> None:
    """Few where layers are computed again; else a graph holds those of all layers."""
    plain = results(OPENED[name](tmp_path / "tiny"))
    backend, copies = OPENED[name](tmp_path / "tiny"), Copies()
    model = mixture(backend)
    layers = model.language_model.model.layers
    offload(layers, copies)
    if frugal:
        recompute(layers)
    if isinstance(backend, LanceBackend):
        backend.need_expert()
    own = {name: id(value) for name, value in model.named_parameters()}
    moved = results(backend)
    assert len(plain) == len(moved)
    assert all(torch.equal(one, other) for one, other in zip(plain, moved, strict=True))
    largest = max(sum(value.nbytes for value in layer.parameters()) for layer in layers)
    assert copies.moved and (copies.most <= largest) == frugal
    assert {name: id(value) for name, value in model.named_parameters()} == own


def test_what_is_not_used_never_moves() -> None:
    backend, copies = fresh(), Copies()
    experts = [
        module
        for name, module in backend.bagel.language_model.model.layers.named_modules()
        if name.endswith("_moe_gen")
    ]
    offload(experts, copies)
    backend.score(
        Prompt(turns=(to_turn("is a dog here?"),)), ["yes", "no"], image=drawing("red", 1)
    )
    assert copies.moved == 0


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_only_a_card_with_memory_of_its_own_can_be_spared(device: str) -> None:
    with pytest.raises(UsageError, match="computes in the computer's") as caught:
        check_offload(device)
    assert caught.value.hint == "leave out --offload"
    check_offload("cuda:1")
