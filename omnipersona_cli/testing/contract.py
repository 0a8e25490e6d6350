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

import gc
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import (
    Backend,
    ComparingBackend,
    ConceptTokens,
    ExpertBackend,
    Opening,
    Prompt,
    Task,
)
from omnipersona_cli.concepts.pack import Pack, read_pack, write_pack
from omnipersona_cli.engine.tokens import from_slot, named_tensors, slot_name, to_slot
from omnipersona_cli.errors import TaskError, UsageError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing.depth import DepthRules
from omnipersona_cli.testing.learning import LearningRules
from omnipersona_cli.testing.painting import PaintingRules
from omnipersona_cli.testing.uses import edit, paint


class BackendContract(LearningRules, DepthRules, PaintingRules):
    """The rules of a backend. Every test is about the fixture ``backend``.

    ``PRETRAINED_WITH_TOKENS`` is for a backbone whose pretraining knew concept tokens: its
    ``norm_limit`` may be larger than the embedding table's.
    """

    PRETRAINED_WITH_TOKENS = False

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

    def test_a_model_that_nobody_holds_is_let_go(
        self, backend: Backend, again: Callable[[Opening], Backend]
    ) -> None:
        opened = again(Opening(device="cpu"))
        shared, alive = opened is backend, weakref.ref(opened)
        del opened
        gc.collect()
        assert shared or alive() is None, "what keeps it: a cache, a hook, a thread?"

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

    def test_experts_change_nothing_yet(
        self,
        again: Callable[[Opening], Backend],
        tokens: ConceptTokens,
        photos: list[Image],
    ) -> None:
        backend = again(Opening(device="cpu"))  # its modules get new names where experts are put
        assert backend.info.experts == hasattr(backend, "new_experts")
        if not backend.info.experts:
            return
        able = cast(ExpertBackend, backend)
        experts = dict(able.new_experts(seed=0))
        assert experts
        for key, value in experts.items():
            assert re.fullmatch(r"lora\.(und|gen|edit)\..+\.[AB]", key) and value.ndim == 2
            assert value.dtype == torch.float32
            if key.endswith(".A"):
                other = experts[f"{key[:-2]}.B"]
                assert len(value) == other.shape[1] and not other.any() and bool(value.any())
        for key, value in able.new_experts(seed=0).items():
            assert torch.equal(value, experts[key])
        turn = to_turn("is <bo> here?")
        scores = [
            backend.score(Prompt(turns=(turn,), concepts=(one,)), ("yes", "no"), image=photos[0])
            for one in (tokens, replace(tokens, extra={**tokens.extra, **experts}))
        ]
        assert torch.allclose(scores[0], scores[1], atol=1e-5)

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

    def test_pictures_that_it_looks_at_together_have_an_order(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image], others: list[Image]
    ) -> None:
        most = backend.info.most_images
        assert most >= 1
        if most == 1:
            return
        able = cast(ComparingBackend, backend)
        prompt = Prompt(turns=(to_turn("which of them shows <bo>?"),), concepts=(tokens,))

        def scores(image: Image, *more: Image) -> Tensor:
            return able.score(prompt, ("the first", "the second"), image=image, more=more)

        one, other = photos[0], others[0]
        both = scores(one, other)
        assert torch.equal(scores(one, other), both), "the same, again"
        alone = backend.score(prompt, ("the first", "the second"), image=one)
        assert torch.equal(scores(one), alone), "one picture is as ever"
        for different in (scores(other, one), alone, scores(one, one)):
            assert not torch.allclose(different, both, atol=1e-6)
        as_many = (photos * most)[: most - 1]
        assert not torch.allclose(scores(one, *as_many), scores(one, *as_many[:-1], other))
        says = [
            ["".join(able.say(prompt, image=one, more=more, max_tokens=8)) for _ in range(2)]
            for more in ((), (other,))
        ]
        assert says[0][0] == "".join(backend.say(prompt, image=one, max_tokens=8))
        assert all(first == again for first, again in says)

    def test_what_it_says_is_text_and_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image]
    ) -> None:
        prompt = Prompt(turns=(to_turn("what is <bo>?"),), concepts=(tokens,))
        texts = ["".join(backend.say(prompt, image=photos[0], max_tokens=8)) for _ in range(2)]
        assert texts[0] == texts[1]

    def test_tasks_that_are_not_declared_are_refused(
        self, backend: Backend, others: list[Image]
    ) -> None:
        prompt = Prompt(turns=(to_turn("a picture"),))
        attempts: dict[Task, Callable[[], object]] = {
            "understand": lambda: list(backend.say(prompt, max_tokens=2)),
            "generate": lambda: list(paint(backend, prompt)),
            "edit": lambda: list(edit(backend, others[0], prompt, mask=None)),
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
