"""Drawings, a library and the sketch backend, for tests of the engine."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine import Keeping, Settings, Subject, learn
from omnipersona_cli.testing import SketchBackend, SketchPlugin, drawing

FACTS = "kind: disc\nfacts:\n  - <bo>'s toy is a red ball\n  - <bo> lives in the forest\n"


@pytest.fixture
def draw() -> Callable[[str, int], Image]:
    """Draws a disc: ``draw("red", seed)``."""
    return drawing


@pytest.fixture
def sketch() -> Iterator[SketchBackend]:
    """The sketch backend, opened, and installed as a plugin for this test."""
    plugin = SketchPlugin()
    registry.plugin_manager().register(plugin, name="sketch-for-tests")
    yield SketchBackend()
    registry.plugin_manager().unregister(plugin)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ten photos of a red disc and its facts."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(10):
        drawing("red", seed).save(folder / f"{seed}.png")
    (folder / "facts.yaml").write_text(FACTS)
    return folder


@pytest.fixture
def bo(photos: Path) -> Subject:
    """<bo>, the red disc on the photos."""
    return Subject(photos=[photos], name="bo")


@pytest.fixture(scope="session")
def lesson_learned(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """<bo> and <mam>, learned once on the sketch backend, in a library of their own."""
    home = tmp_path_factory.mktemp("learned")
    library = Library(home / "concepts")
    others = home / "others"
    others.mkdir()
    for seed in range(5):
        drawing("blue", seed).save(others / f"{seed}.png")
    plugin = SketchPlugin()
    registry.plugin_manager().register(plugin, name="sketch-for-learning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIPERSONA_HOME", str(home))
        result = learn(
            Subject(photos=[photos], name="bo"),
            Settings(seed=2),
            Keeping(library=library),
            backend=SketchBackend(),
        )
        learn(
            Subject(photos=[others], name="mam", facts=["its toy is a blue car"]),
            Settings(steps=20),
            Keeping(library=library),
            backend=SketchBackend(),
        )
    registry.plugin_manager().unregister(plugin)
    return SimpleNamespace(result=result, folder=library.folder)


@pytest.fixture
def library(home: Path) -> Library:
    """An empty library."""
    return Library(home / "data" / "concepts")


@pytest.fixture
def learned(
    sketch: SketchBackend, lesson_learned: SimpleNamespace, library: Library
) -> SimpleNamespace:
    """A library that holds <bo> and <mam>, the backend, and what learning <bo> reported."""
    shutil.copytree(lesson_learned.folder, library.folder)
    return SimpleNamespace(result=lesson_learned.result, backend=sketch, library=library)
