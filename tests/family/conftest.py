"""A repository, and a hub that serves it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chameleon import REPO, with_others
from hub import Hub, serving
from safetensors.torch import save_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(3)}, path / "model.safetensors")
    return with_others(path)


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub(repositories={REPO: folder, "someone/eye": folder})
    with serving(served, tmp_path / "cache", monkeypatch) as working:
        yield working
