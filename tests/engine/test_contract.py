"""The backend that the engine is tested with keeps the rules of all backends."""

from collections.abc import Callable, Mapping

import pytest
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import Backend, Opening
from omnipersona_cli.testing import BackendContract, SketchBackend, open_sketch


class TestSketch(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Backend:
        return SketchBackend()

    @pytest.fixture
    def photos(self, draw: Callable[..., Image]) -> list[Image]:
        return [draw("red", seed) for seed in range(4)]

    @pytest.fixture
    def others(self, draw: Callable[..., Image]) -> list[Image]:
        return [draw("blue", 10), draw("green", 11)]

    @pytest.fixture
    def weights(self, backend: Backend) -> Mapping[str, Tensor]:
        assert isinstance(backend, SketchBackend)
        return {"words": backend.words}

    @pytest.fixture
    def text_table(self, backend: Backend) -> Tensor:
        assert isinstance(backend, SketchBackend)
        return backend.words

    @pytest.fixture
    def again(self) -> Callable[[Opening], Backend]:
        return open_sketch

    @pytest.fixture
    def encoder_calls(self, backend: Backend) -> Callable[[], int]:
        assert isinstance(backend, SketchBackend)
        return lambda: backend.encoded
