"""Activation checkpointing: the same gradients to the bit, and a fraction of what is kept."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_bagel
import tiny_janus
import tiny_lance
import tiny_showo
import torch

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, Lesson, Opening, Task
from omnipersona_cli.engine.tokens import copy_of, named_tensors
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing

WRITERS: dict[str, Callable[[Path], Path]] = {
    "janus": tiny_janus.write,
    "showo": tiny_showo.write_tiny,
    "bagel": tiny_bagel.write_tiny,
    "lance": tiny_lance.write_tiny,
}


@pytest.fixture(scope="module", params=["nano", *WRITERS])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[bool], Backend]]:
    """The backend as it is, or as it learns in little memory."""
    name = request.param
    folder = tmp_path_factory.mktemp(name) / "model"
    model = str(WRITERS[name](folder)) if name in WRITERS else None

    def open_it(frugal: bool) -> Backend:
        how = Opening(
            backend=name,
            model=model,
            device="cpu",
            dtype="float32",
            activation_checkpointing=frugal,
        )
        return registry.open_backend(how)

    yield open_it


def lessons(backend: Backend) -> list[Lesson]:
    one, other = drawing("red", 1), drawing("blue", 2)
    texts: dict[Task, str] = {"understand": "is <bo> here?", "generate": "<bo>", "edit": "add <bo>"}
    return [
        Lesson(
            task=task,
            kind="recognise",
            request=to_turn(text),
            image=None if task == "generate" else one,
            target=None if task == "understand" else other,
            answer="yes",
        )
        for task, text in texts.items()
    ]


def learned(backend: Backend) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of one step, and the bytes that were kept for them."""
    photos = [drawing("red", seed) for seed in (1, 2)]
    start = backend.new_tokens("bo", understand=3, generate=3, photos=photos, seed=0)
    tokens = copy_of(start, trainable=True)
    ready = backend.prepare(lessons(backend))
    kept: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.requires_grad or value.grad_fn is not None or value.ndim > 1:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        losses = backend.loss(ready, tokens, seed=0)
        total = torch.stack(list(losses.values())).sum()
    torch.autograd.backward(total)
    found = {key: it.grad for key, it in named_tensors(tokens).items() if it.grad is not None}
    return found, sum(kept.values())


def test_gradients_are_the_same_to_the_bit_and_less_is_kept(
    opened: Callable[[bool], Backend],
) -> None:
    plain, much = learned(opened(False))
    again, little = learned(opened(True))
    assert plain.keys() == again.keys() and plain
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    assert little < 0.8 * much
