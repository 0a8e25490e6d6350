"""The rules that every backend keeps, as tests.

Subclass `BackendContract` and say what is under test::

    class TestMine(BackendContract):
        @pytest.fixture(scope="class")
        @classmethod
        def backend(cls) -> Backend: return open_mine(Opening(device="cpu"))

        @pytest.fixture
        def photos(self) -> list[Image]: ...        # four pictures of one thing

        @pytest.fixture
        def others(self) -> list[Image]: ...        # two pictures of other things

        @pytest.fixture
        def weights(self, backend) -> Mapping[str, Tensor]: return backend.net.state_dict()

        @pytest.fixture
        def text_table(self, backend) -> Tensor: return backend.net.embed_tokens.weight

        @pytest.fixture
        def encoder_calls(self, backend) -> Iterator[Callable[[], int]]: ...

        @pytest.fixture
        def again(self) -> Callable[[Opening], Backend]: return open_mine
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import (
    Backend,
    ConceptTokens,
    FastBackend,
    Lesson,
    OnStep,
    Opening,
    Part,
    Prompt,
    Task,
)
from omnipersona_cli.concepts.pack import Pack, read_pack, write_pack
from omnipersona_cli.engine.tokens import (
    copy_of,
    from_slot,
    named_tensors,
    slot_name,
    to_slot,
    with_depth,
)
from omnipersona_cli.errors import PackError, TaskError, UsageError
from omnipersona_cli.language.mentions import to_turn

STEPS = 2
"""Sampling steps that the contract asks for: enough to see that steps are taken."""


class BackendContract:
    """The rules of a backend. Every test is about the fixture ``backend``.

    ``PRETRAINED_WITH_TOKENS`` is for a backbone whose pretraining knew concept tokens: its
    ``norm_limit`` may be larger than the embedding table's.
    """

    PRETRAINED_WITH_TOKENS = False

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Backend:
        """The opened backend under test."""
        raise NotImplementedError("say which backend is under test")

    @pytest.fixture
    def photos(self) -> list[Image]:
        """A few pictures of one thing, of the kind that the backend knows."""
        raise NotImplementedError("give a few pictures of one thing")

    @pytest.fixture
    def others(self) -> list[Image]:
        """At least two pictures of other things."""
        raise NotImplementedError("give pictures of other things")

    @pytest.fixture
    def weights(self, backend: Backend) -> Mapping[str, Tensor]:
        """Every frozen tensor of the backbone, by name, not copied."""
        raise NotImplementedError("give the backbone's state_dict()")

    @pytest.fixture
    def text_table(self, backend: Backend) -> Tensor:
        """The base's text embedding table [V, d]."""
        raise NotImplementedError("give the language model's embedding table")

    @pytest.fixture
    def again(self) -> Callable[[Opening], Backend]:
        """The opener under test. It gets a device and a dtype, and adds the small model's name."""
        raise NotImplementedError("open the small model as an opening says")

    @pytest.fixture
    def encoder_calls(self, backend: Backend) -> Callable[[], int]:
        """How often a vision tower or an image encoder ran so far; count with forward hooks."""
        raise NotImplementedError("count the forward calls of the frozen encoders")

    @pytest.fixture
    def tokens(self, backend: Backend, photos: list[Image]) -> ConceptTokens:
        """New tokens of <bo>."""
        return backend.new_tokens("bo", understand=4, generate=3, photos=photos, seed=0)

    @pytest.fixture
    def deep(self, backend: Backend, tokens: ConceptTokens) -> ConceptTokens | None:
        """New tokens of <bo>, with some of two layers more that are no longer nothing; None for a
        backend that takes none."""
        depth = min(2, backend.info.deep_layers)
        if not depth:
            return None
        chance = torch.Generator().manual_seed(1)
        length = min(float(tokens.und.detach().norm(dim=1).mean()), backend.norm_limit / 2)

        def drawn(rows: Tensor) -> Tensor:
            noise = torch.randn(rows.shape, generator=chance)
            unit: Tensor = noise / noise.norm(dim=1, keepdim=True)
            return (length * unit).to(rows.device)

        more = with_depth(tokens, depth).extra
        new = {key: drawn(rows) for key, rows in more.items() if key not in tokens.extra}
        return replace(tokens, extra={**tokens.extra, **new})

    @pytest.fixture
    def lessons(
        self, backend: Backend, photos: list[Image], others: list[Image]
    ) -> dict[Task, list[Lesson]]:
        """Two lessons of each task that the backend does."""
        here, paint, add = (
            to_turn(text) for text in ("is <bo> here?", "a picture of <bo>", "add <bo>.")
        )
        lessons: dict[Task, list[Lesson]] = {
            "understand": [
                Lesson(
                    task="understand", kind="recognise", request=here, image=image, answer=answer
                )
                for image, answer in ((photos[0], "yes"), (others[0], "no"))
            ],
            "generate": [
                Lesson(task="generate", kind="depict", request=paint, target=photo)
                for photo in photos[:2]
            ],
            "edit": [
                Lesson(task="edit", kind="edit", request=add, image=other, target=photo)
                for other, photo in zip(others[:2], photos[:2], strict=True)
            ],
        }
        return {task: lessons[task] for task in backend.info.tasks}

    def test_a_slot_can_be_named_after_it(self, backend: Backend) -> None:
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", slot_name(backend))
        assert "@" in backend.fingerprint
        assert backend.width > 0 and torch.device(backend.device)

    def test_the_fingerprint_is_that_of_the_weights_and_not_of_how_they_are_opened(
        self, backend: Backend, again: Callable[[Opening], Backend]
    ) -> None:
        assert again(Opening(device="cpu")).fingerprint == backend.fingerprint
        for dtype in ("float32", "bfloat16"):
            try:
                opened = again(Opening(device="cpu", dtype=dtype))
            except UsageError as error:
                assert dtype == "bfloat16" and error.hint, "float32 is what every backend runs in"
            else:
                assert opened.fingerprint == backend.fingerprint

    def test_a_row_may_be_ten_times_as_long_as_the_longest_of_the_table(
        self, backend: Backend, text_table: Tensor
    ) -> None:
        limit = 10 * float(text_table.float().norm(dim=1).max())
        if self.PRETRAINED_WITH_TOKENS:
            assert backend.norm_limit >= limit
        else:
            assert backend.norm_limit == pytest.approx(limit)

    def test_new_tokens_have_the_promised_shape(
        self, backend: Backend, tokens: ConceptTokens
    ) -> None:
        assert tokens.id.shape == (1, backend.width)
        assert tokens.und.shape == (4, backend.width)
        assert tokens.gen.shape == (3, backend.width)
        for rows in (tokens.id, tokens.und, tokens.gen):
            assert rows.dtype == torch.float32 and rows.requires_grad
            assert rows.device.type == torch.device(backend.device).type
            assert torch.isfinite(rows).all()
            assert float(rows.detach().norm(dim=1).max()) <= backend.norm_limit * 1.001

    def test_new_tokens_follow_the_seed(
        self, backend: Backend, photos: list[Image], tokens: ConceptTokens
    ) -> None:
        again = backend.new_tokens("bo", understand=4, generate=3, photos=photos, seed=0)
        for old, new in zip(tokens.parameters(), again.parameters(), strict=True):
            assert torch.equal(old, new)

    def test_it_sees_one_row_of_features_in_each_picture(
        self, backend: Backend, photos: list[Image], others: list[Image]
    ) -> None:
        features = backend.see([photos[0], others[0]])
        assert features.shape == (2, backend.width)
        assert features.dtype == torch.float32 and features.device.type == "cpu"
        assert not features.requires_grad and torch.isfinite(features).all()
        assert not torch.equal(features[0], features[1])
        assert torch.allclose(backend.see([others[0]])[0], features[1], atol=1e-5)

    def test_experts_are_refused_or_change_nothing_yet(
        self,
        again: Callable[[Opening], Backend],
        tokens: ConceptTokens,
        photos: list[Image],
    ) -> None:
        backend = again(Opening(device="cpu"))  # its modules get new names where experts are put
        try:
            experts = dict(backend.new_experts(seed=0))
        except TaskError as error:
            assert error.hint
            return
        assert experts
        for key, value in experts.items():
            assert re.fullmatch(r"lora\.(und|gen|edit)\..+\.[AB]", key) and value.ndim == 2
            assert value.dtype == torch.float32
            if key.endswith(".A"):
                other = experts[f"{key[:-2]}.B"]
                assert len(value) == other.shape[1] and not other.any() and bool(value.any())
        for key, value in backend.new_experts(seed=0).items():
            assert torch.equal(value, experts[key])
        turn = to_turn("is <bo> here?")
        scores = [
            backend.score(Prompt(turns=(turn,), concepts=(one,)), ("yes", "no"), image=photos[0])
            for one in (tokens, replace(tokens, extra={**tokens.extra, **experts}))
        ]
        assert torch.allclose(scores[0], scores[1], atol=1e-5)

    def test_an_understanding_lesson_moves_only_the_understanding_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        moved = _moved(backend, tokens, lessons, "understand")
        assert moved == {"id", "und"}

    def test_a_depiction_lesson_moves_only_the_generation_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        moved = _moved(backend, tokens, lessons, "generate")
        assert moved == {"id", "gen"}

    def test_an_edit_lesson_moves_the_generation_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        assert _moved(backend, tokens, lessons, "edit") >= {"id", "gen"}

    def test_deep_tokens_that_add_nothing_change_nothing(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        deep: ConceptTokens | None,
        photos: list[Image],
    ) -> None:
        if deep is None:
            return
        nothing = with_depth(tokens, deep.depth)
        assert nothing.depth == deep.depth > 0
        assert _uses(backend, nothing, photos[0]) == _uses(backend, tokens, photos[0])

    def test_deep_tokens_change_what_their_part_serves_and_leave_no_trace(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        deep: ConceptTokens | None,
        photos: list[Image],
    ) -> None:
        if deep is None:
            return
        before = _answers_without_concept(backend, photos[0])
        plain, changed = (_uses(backend, one, photos[0]) for one in (tokens, deep))
        assert changed == _uses(backend, deep, photos[0])
        # codes of a small model are the same until much is added, at several seeds
        strong = {key: value * 30 for key, value in deep.extra.items() if key.endswith("gen")}
        louder = replace(deep, extra={**deep.extra, **strong})
        ways = [backend]
        if backend.info.fast:
            ways.append(cast(FastBackend, backend).faster())
        for way in ways:
            painted, other = (
                _uses(way, one, photos[0], seeds=range(1, 7)) for one in (tokens, louder)
            )
            for use in plain:
                assert plain[use] != changed[use] or painted[use] != other[use], f"{use} is as was"
        assert _answers_without_concept(backend, photos[0]) == before

    def test_a_lesson_moves_the_deep_tokens_of_its_own_part_alone(
        self, backend: Backend, deep: ConceptTokens | None, lessons: dict[Task, list[Lesson]]
    ) -> None:
        if deep is None:
            return
        parts: dict[Task, Part] = {"understand": "und", "generate": "gen"}
        for task in lessons.keys() & parts.keys():
            part = parts[task]
            layers = {f"deep.{layer}.{part}" for layer in range(1, deep.depth + 1)}
            assert _moved(backend, deep, lessons, task) == {"id", part, *layers}

    def test_deep_tokens_have_the_same_gradients_in_pieces_and_weigh_answers_the_same(
        self, backend: Backend, deep: ConceptTokens | None, lessons: dict[Task, list[Lesson]]
    ) -> None:
        if deep is None:
            return
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
        found = []
        for at_once in (len(batch), 1):
            own = copy_of(deep, trainable=True)
            losses = backend.loss(batch, own, seed=3, at_once=at_once)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            found.append([value.grad for value in own.parameters()])
        for one, other in zip(*found, strict=True):
            assert one is not None and other is not None
            assert float((one - other).norm()) <= 1e-3 * float(one.norm())
        asked = [one for one in batch if one.task == "understand"]
        with torch.no_grad():
            alone = [backend.loss([one], deep, seed=0)["understand"] for one in asked]
        if asked:
            weighed = backend.answer_losses(asked, deep)
            assert torch.allclose(weighed.cpu(), torch.stack(alone).cpu(), rtol=1e-3, atol=1e-4)

    def test_a_batch_gives_one_loss_for_each_task_in_it(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
        losses = backend.loss(batch, tokens, seed=0)
        assert set(losses) == set(lessons)
        for loss in losses.values():
            assert loss.ndim == 0 and torch.isfinite(loss)
            assert loss.dtype == torch.float32 and loss.device == tokens.id.device

    def test_the_loss_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
        first, again = (backend.loss(batch, tokens, seed=3) for _ in range(2))
        for task in first:
            assert torch.equal(first[task], again[task])

    def test_a_batch_in_pieces_has_the_gradients_of_the_whole(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
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
        batch = backend.prepare(both)
        with torch.no_grad():
            alone = [backend.loss([one], tokens, seed=0)["understand"] for one in batch]
        found = backend.answer_losses(batch, tokens)
        assert found.shape == (len(both),) and found.dtype == torch.float32
        assert not found.requires_grad
        assert torch.allclose(found.cpu(), torch.stack(alone).cpu(), rtol=1e-3, atol=1e-4)

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
        unseen = [_flipped(lesson) for task in lessons for lesson in lessons[task]]
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
        before = _answers_without_concept(backend, photos[0])
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
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
        after = _answers_without_concept(backend, photos[0])
        assert before == after

    def test_a_concept_makes_a_difference(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image]
    ) -> None:
        turn = to_turn("is <bo> here?")
        scores = [
            backend.score(Prompt(turns=(turn,), concepts=concepts), ("yes", "no"), image=photos[0])
            for concepts in ((), (tokens,))
        ]
        assert scores[0].shape == (2,) and not torch.equal(scores[0], scores[1])

    def test_scores_are_log_probabilities(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image]
    ) -> None:
        prompt = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(tokens,))
        scores = backend.score(prompt, ("yes", "no"), image=photos[0])
        again = backend.score(prompt, ("yes", "no"), image=photos[0])
        assert torch.equal(scores, again)
        assert scores.dtype == torch.float32 and scores.device.type == "cpu"
        assert float(scores.max()) <= 0 and float(scores.exp().sum()) <= 1.0001

    def test_what_it_says_is_text_and_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image]
    ) -> None:
        prompt = Prompt(turns=(to_turn("what is <bo>?"),), concepts=(tokens,))
        texts = ["".join(backend.say(prompt, image=photos[0], max_tokens=8)) for _ in range(2)]
        assert texts[0] == texts[1]

    def test_same_seed_same_picture(self, backend: Backend, tokens: ConceptTokens) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        one, other, again = (
            next(iter(_paint(backend, prompt, seeds=(seed,)))) for seed in (5, 6, 5)
        )
        assert one.size == backend.info.sizes[0] and one.mode == "RGB"
        assert one.tobytes() == again.tobytes()
        assert one.tobytes() != other.tobytes()

    def test_a_seed_means_the_same_alone_and_among_others(
        self, backend: Backend, tokens: ConceptTokens
    ) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        _, second = _paint(backend, prompt, seeds=(5, 6))
        (alone,) = _paint(backend, prompt, seeds=(6,))
        assert _near(second, alone)

    def test_painting_faster_changes_painting_alone(
        self, backend: Backend, tokens: ConceptTokens
    ) -> None:
        assert bool(backend.info.fast) == hasattr(backend, "faster"), "who can must say so"
        if not backend.info.fast:
            return
        quick = cast(FastBackend, backend).faster()
        steps, estimates = quick.info.steps, quick.info.estimates
        assert quick.info == replace(backend.info, fast="", steps=steps, estimates=estimates)
        assert quick.fingerprint == backend.fingerprint and backend.info.fast
        question = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(tokens,))
        scores = [one.score(question, ["yes", "no"]) for one in (quick, backend)]
        assert torch.equal(*scores)
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        one, other, again = (next(iter(_paint(quick, prompt, seeds=(seed,)))) for seed in (5, 6, 5))
        assert one.size == backend.info.sizes[0]
        assert one.tobytes() == again.tobytes() != other.tobytes()

    def test_painting_reports_its_steps(self, backend: Backend) -> None:
        steps: list[tuple[int, int]] = []
        prompt = Prompt(turns=(to_turn("a picture"),))
        list(_paint(backend, prompt, on_step=lambda done, total: steps.append((done, total))))
        assert steps and steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})

    def test_an_estimate_is_the_picture_on_its_way_and_looking_changes_nothing(
        self, backend: Backend, tokens: ConceptTokens, others: list[Image]
    ) -> None:
        if not backend.info.estimates:
            takes = {
                name for way in (backend.gen, backend.edit) for name in signature(way).parameters
            }
            assert "on_estimate" not in takes, "who shows estimates says so"
            return
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        mask = images.new("L", others[0].size)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        ways: list[Callable[..., Iterator[Image]]] = []
        if "generate" in backend.info.tasks:
            ways.append(partial(_paint, backend, prompt))
        if "edit" in backend.info.tasks:
            ways.append(partial(_edit, backend, others[0], prompt, mask=mask))
        for paint in ways:
            seen: list[Image] = []

            def look_on(done: int, total: int, look: Callable[[], Image]) -> None:
                if done in (1, total // 2, total):
                    seen.append(look())  # noqa: B023

            (alone,), (looked_at,) = paint(), paint(on_estimate=look_on)
            assert looked_at.tobytes() == alone.tobytes()
            assert {(it.size, it.mode) for it in seen} == {(alone.size, "RGB")}
            assert _near(seen[-1], alone), "the last estimate is the picture"
            assert seen[0].tobytes() != seen[-1].tobytes(), "an estimate is not the picture yet"

    def test_an_edit_keeps_the_size_and_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, others: list[Image]
    ) -> None:
        if "edit" not in backend.info.tasks:
            pytest.skip("it does not edit")
        source = others[0].resize((others[0].width + 5, others[0].height - 3))
        mask = images.new("L", source.size, 255)
        prompt = Prompt(turns=(to_turn("add <bo>."),), concepts=(tokens,))
        edited = [
            next(iter(_edit(backend, source, prompt, mask=mask, seeds=(7,)))) for _ in range(2)
        ]
        assert edited[0].size == source.size
        assert edited[0].tobytes() == edited[1].tobytes()

    def test_two_concepts_stand_in_one_prompt(
        self, backend: Backend, tokens: ConceptTokens, others: list[Image]
    ) -> None:
        mam = backend.new_tokens("mam", understand=4, generate=3, photos=others, seed=1)
        turn = to_turn("<bo> and <mam> in the snow")
        both = Prompt(turns=(turn,), concepts=(tokens, mam))
        one = Prompt(turns=(turn,), concepts=(tokens,))
        pictures = [next(iter(_paint(backend, prompt))) for prompt in (both, one)]
        assert pictures[0].tobytes() != pictures[1].tobytes()

    def test_a_name_without_a_concept_is_plain_text(self, backend: Backend) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <nobody>"),))
        assert next(iter(_paint(backend, prompt))).mode == "RGB"

    def test_tasks_that_are_not_declared_are_refused(
        self, backend: Backend, others: list[Image]
    ) -> None:
        prompt = Prompt(turns=(to_turn("a picture"),))
        attempts: dict[Task, Callable[[], object]] = {
            "understand": lambda: list(backend.say(prompt, max_tokens=2)),
            "generate": lambda: list(_paint(backend, prompt)),
            "edit": lambda: list(_edit(backend, others[0], prompt, mask=None)),
        }
        for task, attempt in attempts.items():
            if task in backend.info.tasks:
                continue
            with pytest.raises(TaskError):
                attempt()

    def test_a_pack_survives_save_and_load(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image], tmp_path: Path
    ) -> None:
        slot = to_slot(tokens, backend, {"seed": 0})
        pack = Pack(name="bo", slots={slot_name(backend): slot})
        write_pack(pack, tmp_path / "bo.opconcept")
        loaded = from_slot(read_pack(tmp_path / "bo.opconcept"), backend)
        for key, value in named_tensors(tokens).items():
            assert torch.equal(named_tensors(loaded)[key], value.detach().cpu())
        turn = to_turn("is <bo> here?")
        scores = [
            backend.score(Prompt(turns=(turn,), concepts=(one,)), ("yes", "no"), image=photos[0])
            for one in (tokens, loaded)
        ]
        assert torch.equal(scores[0], scores[1])

    def test_a_pack_keeps_deep_tokens_and_those_that_do_not_fit_are_refused(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        deep: ConceptTokens | None,
        tmp_path: Path,
    ) -> None:
        def loaded(tokens: ConceptTokens) -> ConceptTokens:
            pack = Pack(name="bo", slots={slot_name(backend): to_slot(tokens, backend, {})})
            write_pack(pack, tmp_path / "bo.opconcept", overwrite=True)
            return from_slot(read_pack(tmp_path / "bo.opconcept"), backend)

        if deep is None:
            with pytest.raises(PackError, match="of those after the first"):
                loaded(with_depth(tokens, 1))
            return
        kept = loaded(deep)
        assert named_tensors(kept).keys() == named_tensors(deep).keys()
        for key, value in named_tensors(deep).items():
            assert torch.equal(named_tensors(kept)[key], value.detach().cpu())
        for key, rows in (
            (f"deep.{backend.info.deep_layers + 1}.und", deep.und),
            ("deep.0.gen", deep.gen),
            ("deep.1.und", deep.und[1:]),
            ("deep.1.gen", deep.gen * backend.norm_limit * 1e3),
        ):
            with pytest.raises(PackError, match=key if key[5] == "1" else "layer") as refused:
                loaded(replace(deep, extra={**deep.extra, key: rows}))
            assert refused.value.hint


def _uses(
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
        found["painted"] = b"".join(it.tobytes() for it in _paint(backend, prompt, seeds=seeds))
    if "edit" in backend.info.tasks:
        prompt = Prompt(turns=(to_turn("add <bo>."),), concepts=(tokens,))
        mask = images.new("L", photo.size)
        mask.paste(255, (photo.width // 2, 0, photo.width, photo.height))
        edited = _edit(backend, photo, prompt, mask=mask, seeds=seeds)
        found["edited"] = b"".join(it.tobytes() for it in edited)
    return found


def _moved(
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


def _flipped(lesson: Lesson) -> Lesson:
    """The lesson upside down: pictures that nobody has encoded before and remembered."""
    image, target = (
        None if one is None else one.transpose(images.Transpose.FLIP_TOP_BOTTOM)
        for one in (lesson.image, lesson.target)
    )
    return replace(lesson, image=image, target=target)


def _answers_without_concept(backend: Backend, photo: Image) -> list[bytes]:
    """What the backbone says and paints when nothing learned is in the prompt, to the bit."""
    answers = []
    if "understand" in backend.info.tasks:
        question = Prompt(turns=(to_turn("is it a cat?"),))
        answers.append(backend.score(question, ("yes", "no"), image=photo).numpy().tobytes())
        answers.append("".join(backend.say(question, image=photo, max_tokens=6)).encode())
    if "generate" in backend.info.tasks:
        painted = _paint(backend, Prompt(turns=(to_turn("a cat in the forest"),)))
        answers.append(next(iter(painted)).tobytes())
    if "edit" in backend.info.tasks:
        mask = images.new("L", photo.size, 255)
        edited = _edit(backend, photo, Prompt(turns=(to_turn("make it blue"),)), mask=mask)
        answers.append(next(iter(edited)).tobytes())
    return answers


def _paint(
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


def _edit(
    backend: Backend,
    image: Image,
    prompt: Prompt,
    *,
    mask: Image | None,
    seeds: Sequence[int] = (1,),
    **more: Any,
) -> Iterator[Image]:
    return backend.edit(image, prompt, mask=mask, steps=STEPS, guidance=None, seeds=seeds, **more)


def _near(one: Image, other: Image) -> bool:
    """Equal but for the rounding that another batch size may bring."""
    gap = np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    return bool(gap.max() <= 2)
