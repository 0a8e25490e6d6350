"""What the contract has a backend do: learn a lesson, answer, paint and edit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as images
from PIL.Image import Image

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, OnStep, Prepared, Prompt, Task
from omnipersona_cli.engine.tokens import copy_of, named_tensors
from omnipersona_cli.language.mentions import to_turn

STEPS = 2
"""Sampling steps that the contract asks for: enough to see that steps are taken."""


def uses(
    backend: Backend, tokens: ConceptTokens, photo: Image, seeds: Sequence[int] = (1,)
) -> dict[str, bytes]:
    """What the backbone says and paints of a concept, to the bit."""
    found = {}
    if "understand" in backend.info.tasks:
        prompt = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(tokens,))
        for name, image in (("seen", photo), ("asked", None)):
            scores = backend.score(prompt, ("yes", "no"), image=image)
            found[name] = scores.numpy().tobytes()
    if "generate" in backend.info.tasks:
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        found["painted"] = b"".join(it.tobytes() for it in paint(backend, prompt, seeds=seeds))
    if "edit" in backend.info.tasks:
        prompt = Prompt(turns=(to_turn("add <bo>."),), concepts=(tokens,))
        mask = images.new("L", photo.size)
        mask.paste(255, (photo.width // 2, 0, photo.width, photo.height))
        edited = edit(backend, photo, prompt, mask=mask, seeds=seeds)
        found["edited"] = b"".join(it.tobytes() for it in edited)
    return found


def moved_parts(
    backend: Backend, tokens: ConceptTokens, lessons: Mapping[Task, list[Lesson]], task: Task
) -> set[str]:
    """The parts into which one lesson of ``task`` sends a gradient that is not zero."""
    if task not in lessons:
        pytest.skip(f"it does not {task}")
    trainable = copy_of(tokens, trainable=True)
    batch = backend.prepare(lessons[task][:1])
    torch.autograd.backward(backend.loss(batch, trainable, seed=0)[task])
    return {
        name
        for name, value in named_tensors(trainable).items()
        if re.fullmatch(r"id|und|gen|deep\..+", name)
        and value.grad is not None
        and bool(value.grad.abs().max() > 0)
    }


def prepared(backend: Backend, lessons: Mapping[Task, list[Lesson]]) -> Sequence[Prepared]:
    """Lessons of all tasks as one batch."""
    return backend.prepare([lesson for task in lessons for lesson in lessons[task]])


def check_pieces(backend: Backend, batch: Sequence[Prepared], tokens: ConceptTokens) -> None:
    """Losses and gradients of a batch are the same at once and lesson by lesson."""
    found = []
    for at_once in (len(batch), 1):
        own = copy_of(tokens, trainable=True)
        losses = backend.loss(batch, own, seed=3, at_once=at_once)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        found.append((losses, [value.grad for value in own.parameters()]))
    (whole, gradients), (pieces, theirs) = found
    for task in whole:
        assert torch.allclose(pieces[task], whole[task], rtol=1e-4)
    for one, other in zip(gradients, theirs, strict=True):
        assert one is not None and other is not None
        assert float((one - other).norm()) <= 1e-3 * float(one.norm())


def check_answer_losses(backend: Backend, batch: Sequence[Prepared], tokens: ConceptTokens) -> None:
    """Lessons of understanding are weighed as they are one by one."""
    with torch.no_grad():
        alone = [backend.loss([one], tokens, seed=0)["understand"] for one in batch]
    found = backend.answer_losses(batch, tokens)
    assert found.shape == (len(batch),) and found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.allclose(found.cpu(), torch.stack(alone).cpu(), rtol=1e-3, atol=1e-4)


def flipped(lesson: Lesson) -> Lesson:
    """The lesson upside down: pictures that nobody has encoded before and remembered."""
    image, target = (
        None if one is None else one.transpose(images.Transpose.FLIP_TOP_BOTTOM)
        for one in (lesson.image, lesson.target)
    )
    return replace(lesson, image=image, target=target)


def answers_without_concept(backend: Backend, photo: Image) -> list[bytes]:
    """What the backbone says and paints when nothing learned is in the prompt, to the bit."""
    answers = []
    if "understand" in backend.info.tasks:
        question = Prompt(turns=(to_turn("is it a cat?"),))
        answers.append(backend.score(question, ("yes", "no"), image=photo).numpy().tobytes())
        answers.append("".join(backend.say(question, image=photo, max_tokens=6)).encode())
    if "generate" in backend.info.tasks:
        painted = paint(backend, Prompt(turns=(to_turn("a cat in the forest"),)))
        answers.append(next(iter(painted)).tobytes())
    if "edit" in backend.info.tasks:
        mask = images.new("L", photo.size, 255)
        edited = edit(backend, photo, Prompt(turns=(to_turn("make it blue"),)), mask=mask)
        answers.append(next(iter(edited)).tobytes())
    return answers


def paint(
    backend: Backend,
    prompt: Prompt,
    *,
    seeds: Sequence[int] = (1,),
    on_step: OnStep | None = None,
    **more: Any,
) -> Iterator[Image]:
    return backend.gen(
        prompt, size=None, steps=STEPS, guidance=None, seeds=seeds, on_step=on_step, **more
    )


def edit(
    backend: Backend,
    image: Image,
    prompt: Prompt,
    *,
    mask: Image | None,
    seeds: Sequence[int] = (1,),
    **more: Any,
) -> Iterator[Image]:
    return backend.edit(image, prompt, mask=mask, steps=STEPS, guidance=None, seeds=seeds, **more)


def near(one: Image, other: Image) -> bool:
    """Equal but for the rounding that another batch size may bring."""
    gap = np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    return bool(gap.max() <= 2)
