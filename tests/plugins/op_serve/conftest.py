"""A real server on a free port of this machine, with nano open and <bo> in its library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Live, Serve, running

from omnipersona_cli.engine import Keeping, Opening, Settings, Subject, learn


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of a cartoon character, and what is true of it."""
    from click.testing import CliRunner

    from omnipersona_cli.cli.main import cli

    folder = tmp_path_factory.mktemp("toy") / "photos"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIPERSONA_HOME", str(folder.parent / "home"))
        done = CliRunner().invoke(cli, ["toy", "photos", str(folder), "--seed", "7"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="session")
def bo_pack(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<bo>, learned briefly."""
    home = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIPERSONA_HOME", str(home))
        out = home / "bo.opconcept"
        few = [*sorted(photos.glob("*.png"))[:4], photos / "facts.yaml"]
        learn(
            Subject(photos=few, name="bo"),
            Settings(steps=6),
            Keeping(samples=0, out=out),
            opening=Opening(backend="nano"),
        )
    return out


@pytest.fixture(scope="session")
def bo_home(bo_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with <bo> in its library."""
    from omnipersona_cli.concepts.library import Library

    home = tmp_path_factory.mktemp("bo-home")
    Library(home / "data" / "concepts").add_file(bo_pack)
    return home


@pytest.fixture(scope="session")
def live(bo_home: Path) -> Iterator[Live]:
    """A server that many tests share: they leave its library as it was."""
    with running(bo_home) as server:
        yield server


@pytest.fixture
def serve(bo_pack: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts a server of the test's own: ``with serve(most_waiting=1) as live``."""
    from omnipersona_cli.concepts.library import Library

    home = tmp_path / "served"
    Library(home / "data" / "concepts").add_file(bo_pack)

    def start(**more: Any) -> Any:
        return running(home, **more)

    yield start
