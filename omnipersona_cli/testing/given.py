"""What the contract is given: a backend, and what to try it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, Opening, Task
from omnipersona_cli.engine.tokens import with_depth
from omnipersona_cli.language.mentions import to_turn


class Given:
    """What the rules are tried with. An author says the first ones, down to `encoder_calls`."""

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
