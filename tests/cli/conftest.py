"""A library with <bo> in it and a backend that needs no weights, for tests of the verbs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from omnipersona_cli import registry
from omnipersona_cli.cli.main import cli
from omnipersona_cli.testing import SketchPlugin, drawing

FACTS = "kind: disc\nfacts:\n  - <bo>'s toy is a red ball\n  - <bo> lives in the forest\n"


@pytest.fixture(scope="session")
def disc_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of <bo>, learned once from ten drawings."""
    from omnipersona_cli.engine import Keeping, Opening, Settings, Subject, learn

    home = tmp_path_factory.mktemp("disc")
    photos = home / "photos"
    photos.mkdir()
    for seed in range(10):
        drawing("red", seed).save(photos / f"{seed}.png")
    (photos / "facts.yaml").write_text(FACTS)
    plugin = SketchPlugin()
    registry.plugin_manager().register(plugin, name="sketch-for-the-pack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIPERSONA_HOME", str(home))
        out = home / "bo.opconcept"
        learn(
            Subject(photos=[photos], name="bo"),
            Settings(seed=2),
            Keeping(out=out),
            opening=Opening(backend="sketch"),
        )
    registry.plugin_manager().unregister(plugin)
    return out


@pytest.fixture
def sketch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The sketch backend installed; the test runs in an empty folder with ``photos`` in it."""
    plugin = SketchPlugin()
    registry.plugin_manager().register(plugin, name="sketch-for-tests")
    monkeypatch.setenv("OMNIPERSONA_BACKEND", "sketch")
    work = tmp_path / "work"
    photos = work / "photos"
    photos.mkdir(parents=True)
    for seed in range(5):
        drawing("red", seed).save(photos / f"{seed}.png")
    drawing("red", 50).save(work / "red.png")
    drawing("blue", 50).save(work / "blue.png")
    monkeypatch.chdir(work)
    yield SimpleNamespace(work=work, photos=photos)
    registry.plugin_manager().unregister(plugin)


@pytest.fixture
def disc(sketch: SimpleNamespace, disc_pack: Path) -> SimpleNamespace:
    """As ``sketch``, with <bo> in the library."""
    from omnipersona_cli.concepts.library import Library

    Library().add_file(disc_pack)
    return sketch


@pytest.fixture
def op() -> Callable[..., Result]:
    """Runs `op` with these words: ``op("gen", "<bo>")``."""

    def run(*words: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, list(words), input=stdin)

    return run
