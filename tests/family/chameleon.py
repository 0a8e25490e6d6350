"""A family of nobody's, for tests of finding and fetching: its names, and a repository of it."""

from pathlib import Path

import pytest

from omnipersona_cli.backend import BackendInfo, Component
from omnipersona_cli.errors import PersonaError
from omnipersona_cli.family import weights

REPO = "someone/chameleon"
INFO = BackendInfo(
    name="chameleon",
    summary="For tests.",
    opens="nowhere:nothing",
    tasks={"understand": "native"},
    default_model=REPO,
    models=(REPO, "someone/other"),
    components=(
        Component(repo="someone/eye", what="to look", files=("config.json",)),
        Component(repo="someone/ear", what="to listen", files=("*",), models=("someone/other",)),
    ),
    sizes=((8, 8),),
    pictures="dots",
    licence="MIT",
    memory_gb=1,
)
AGAIN = f"op backends fetch chameleon --model {REPO}"
BESIDE = ("pytorch_model.bin", "README.md", "assets/teaser.png", ".gitattributes")
"""Files that lie in repositories and that nobody asks for."""


def with_others(folder: Path) -> Path:
    for name in BESIDE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not asked for")
    return folder


def failed() -> PersonaError:
    """How fetching it fails."""
    with pytest.raises(PersonaError) as caught:
        weights.fetch(INFO, REPO)
    return caught.value
