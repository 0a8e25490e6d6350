"""Drawings, a library and the sketch backend, for tests of the engine."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image as images
from PIL import ImageDraw
from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.backend import BackendInfo
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.hookspecs import Subject, hookimpl
from omnipersona_cli.testing import SKETCH, SketchBackend


def drawing(colour: str, seed: int) -> Image:
    """A disc of one colour on a background and at a place of the seed's choosing."""
    chance = random.Random(seed)
    ground = tuple(chance.randrange(140, 230) for _ in range(3))
    image = images.new("RGB", (64, 64), ground)
    x, y = chance.randrange(22, 42), chance.randrange(24, 40)
    ImageDraw.Draw(image).ellipse((x - 18, y - 18, x + 18, y + 18), fill=colour)
    ImageDraw.Draw(image).line((0, seed % 60, 63, 60 - seed % 50), fill="grey", width=2)
    return image


class Plugin:
    """The sketch backend, a finder of saturated discs and pictures of other discs."""

    @hookimpl
    def op_backends(self) -> Sequence[BackendInfo]:
        return (SKETCH,)

    @hookimpl
    def op_find_subject(self, photo: Image, kind: str) -> Subject | None:
        saturated = photo.convert("HSV").getchannel("S").point([0] * 150 + [255] * 106)
        box = saturated.getbbox()
        return None if box is None else Subject(box=box, mask=saturated)

    @hookimpl
    def op_negatives(
        self, kind: str, count: int, seed: int, photos: Sequence[Image], backend: str
    ) -> Sequence[Image]:
        colours = ("blue", "green", "purple", "orange")
        return [drawing(colours[index % 4], 100 + index) for index in range(min(count, 12))]


@pytest.fixture
def draw() -> Callable[[str, int], Image]:
    """Draws a disc: ``draw("red", seed)``."""
    return drawing


@pytest.fixture
def sketch() -> Iterator[SketchBackend]:
    """The sketch backend, opened, and installed as a plugin for this test."""
    plugin = Plugin()
    registry.plugin_manager().register(plugin, name="sketch-for-tests")
    yield SketchBackend()
    registry.plugin_manager().unregister(plugin)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with ten photos of a red disc and its facts."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(10):
        drawing("red", seed).save(folder / f"{seed}.png")
    (folder / "facts.yaml").write_text(
        "kind: disc\nfacts:\n  - <bo>'s toy is a red ball\n  - <bo> lives in the forest\n"
    )
    return folder


@pytest.fixture
def library(home: Path) -> Library:
    """The library of this test."""
    return Library(home / "data" / "concepts")


@pytest.fixture
def learned(sketch: SketchBackend, photos: Path, library: Library) -> SimpleNamespace:
    """<bo>, learned on the sketch backend."""
    from omnipersona_cli.engine import learn

    result = learn([photos], name="bo", backend=sketch, library=library, seed=1)
    return SimpleNamespace(result=result, backend=sketch, library=library, photos=photos)
