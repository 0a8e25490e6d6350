"""Rules of learning: what a lesson moves, what a loss is, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, Task
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.testing.given import Given
from omnipersona_cli.testing.uses import (
    answers_without_concept,
    check_answer_losses,
    check_pieces,
    flipped,
    moved_parts,
    prepared,
)


class LearningRules(Given):
    """How a backend learns."""

    def test_an_understanding_lesson_moves_only_the_understanding_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        moved = moved_parts(backend, tokens, lessons, "understand")
        assert moved == {"id", "und"}

    def test_a_depiction_lesson_moves_only_the_generation_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        moved = moved_parts(backend, tokens, lessons, "generate")
        assert moved == {"id", "gen"}

    def test_an_edit_lesson_moves_the_generation_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        assert moved_parts(backend, tokens, lessons, "edit") >= {"id", "gen"}

    def test_a_batch_gives_one_loss_for_each_task_in_it(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        batch = prepared(backend, lessons)
        losses = backend.loss(batch, tokens, seed=0)
        assert set(losses) == set(lessons)
        for loss in losses.values():
            assert loss.ndim == 0 and torch.isfinite(loss)
            assert loss.dtype == torch.float32 and loss.device == tokens.id.device

    def test_the_loss_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        batch = prepared(backend, lessons)
        first, again = (backend.loss(batch, tokens, seed=3) for _ in range(2))
        for task in first:
            assert torch.equal(first[task], again[task])

    def test_a_batch_in_pieces_has_the_gradients_of_the_whole(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        batch = prepared(backend, lessons)
        check_pieces(backend, batch, tokens)

    def test_answers_are_weighed_as_their_lessons_are_one_by_one(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        if "understand" not in lessons:
            pytest.skip("it does not understand")
        both = [
            replace(lesson, answer=answer)
            for lesson in lessons["understand"]
            for answer in ("yes", "no")
        ]
        check_answer_losses(backend, backend.prepare(both), tokens)

    def test_long_work_counts_its_pictures(
        self, backend: Backend, lessons: dict[Task, list[Lesson]], photos: list[Image]
    ) -> None:
        for work in (
            lambda on_step: backend.prepare(
                [lesson for task in lessons for lesson in lessons[task]], on_step=on_step
            ),
            lambda on_step: backend.new_tokens(
                "bo", understand=4, generate=3, photos=photos, seed=0, on_step=on_step
            ),
        ):
            steps: list[tuple[int, int]] = []
            work(lambda done, total, told=steps: told.append((done, total)))
            assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
            assert steps and {total for _, total in steps} == {len(steps)}

    def test_learning_runs_no_frozen_encoder(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        lessons: dict[Task, list[Lesson]],
        encoder_calls: Callable[[], int],
    ) -> None:
        before = encoder_calls()
        unseen = [flipped(lesson) for task in lessons for lesson in lessons[task]]
        batch = backend.prepare(unseen)
        prepared = encoder_calls()
        assert prepared > before, "the counter sees the encoders"
        trainable = copy_of(tokens, trainable=True)
        total = torch.stack(list(backend.loss(batch, trainable, seed=0).values())).sum()
        torch.autograd.backward(total)
        assert encoder_calls() == prepared

    def test_learning_lowers_the_loss_and_leaves_no_trace(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        lessons: dict[Task, list[Lesson]],
        photos: list[Image],
        weights: Mapping[str, Tensor],
    ) -> None:
        kept = {name: value.clone() for name, value in weights.items()}
        before = answers_without_concept(backend, photos[0])
        batch = prepared(backend, lessons)
        trainable = copy_of(tokens, trainable=True)
        optimiser = torch.optim.AdamW(trainable.parameters(), lr=backend.info.learn_rate)
        losses = []
        for _ in range(6):
            total = torch.stack(list(backend.loss(batch, trainable, seed=0).values())).sum()
            torch.autograd.backward(total)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(total.detach()))
        assert losses[-1] < losses[0]
        for name, value in weights.items():
            assert torch.equal(value, kept[name]), f"{name} has changed"
            assert value.grad is None, f"{name} has a gradient"
        after = answers_without_concept(backend, photos[0])
        assert before == after
