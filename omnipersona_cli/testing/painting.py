"""Rules of painting and editing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import cast

import pytest
import torch
from PIL import Image as images
from PIL.Image import Image

from omnipersona_cli.backend import Backend, ConceptTokens, FastBackend, Prompt
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing.given import Given
from omnipersona_cli.testing.uses import edit, near, paint


class PaintingRules(Given):
    """How a backend paints and edits."""

    def test_same_seed_same_picture(self, backend: Backend, tokens: ConceptTokens) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        one, other, again = (
            next(iter(paint(backend, prompt, seeds=(seed,)))) for seed in (5, 6, 5)
        )
        assert one.size == backend.info.sizes[0] and one.mode == "RGB"
        assert one.tobytes() == again.tobytes()
        assert one.tobytes() != other.tobytes()

    def test_a_seed_means_the_same_alone_and_among_others(
        self, backend: Backend, tokens: ConceptTokens
    ) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        _, second = paint(backend, prompt, seeds=(5, 6))
        (alone,) = paint(backend, prompt, seeds=(6,))
        assert near(second, alone)

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
        one, other, again = (next(iter(paint(quick, prompt, seeds=(seed,)))) for seed in (5, 6, 5))
        assert one.size == backend.info.sizes[0]
        assert one.tobytes() == again.tobytes() != other.tobytes()

    def test_painting_reports_its_steps(self, backend: Backend) -> None:
        steps: list[tuple[int, int]] = []
        prompt = Prompt(turns=(to_turn("a picture"),))
        list(paint(backend, prompt, on_step=lambda done, total: steps.append((done, total))))
        assert steps and steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})

    def test_an_estimate_is_the_picture_on_its_way_and_looking_changes_nothing(
        self, backend: Backend, tokens: ConceptTokens, others: list[Image]
    ) -> None:
        if not backend.info.estimates:
            takes = {
                name
                for paints in (backend.gen, backend.edit)
                for name in signature(paints).parameters
            }
            assert "on_estimate" not in takes, "who shows estimates says so"
            return
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        mask = images.new("L", others[0].size)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        ways: list[Callable[..., Iterator[Image]]] = []
        if "generate" in backend.info.tasks:
            ways.append(partial(paint, backend, prompt))
        if "edit" in backend.info.tasks:
            ways.append(partial(edit, backend, others[0], prompt, mask=mask))
        for way in ways:
            estimates: list[Image] = []

            def look_on(done: int, total: int, look: Callable[[], Image]) -> None:
                if done in (1, total // 2, total):
                    estimates.append(look())  # noqa: B023

            (alone,), (looked_at,) = way(), way(on_estimate=look_on)
            assert looked_at.tobytes() == alone.tobytes()
            assert {(it.size, it.mode) for it in estimates} == {(alone.size, "RGB")}
            assert near(estimates[-1], alone), "the last estimate is the picture"
            assert estimates[0].tobytes() != estimates[-1].tobytes(), (
                "an estimate is not the picture yet"
            )

    def test_an_edit_keeps_the_size_and_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, others: list[Image]
    ) -> None:
        if "edit" not in backend.info.tasks:
            pytest.skip("it does not edit")
        source = others[0].resize((others[0].width + 5, others[0].height - 3))
        mask = images.new("L", source.size, 255)
        prompt = Prompt(turns=(to_turn("add <bo>."),), concepts=(tokens,))
        edited = [
            next(iter(edit(backend, source, prompt, mask=mask, seeds=(7,)))) for _ in range(2)
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
        pictures = [next(iter(paint(backend, prompt))) for prompt in (both, one)]
        assert pictures[0].tobytes() != pictures[1].tobytes()

    def test_a_name_without_a_concept_is_plain_text(self, backend: Backend) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <nobody>"),))
        assert next(iter(paint(backend, prompt))).mode == "RGB"
