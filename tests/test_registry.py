"""Opening backends by name."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from omnipersona_cli import registry
from omnipersona_cli.backend import BackendInfo
from omnipersona_cli.errors import MissingError


def info(opens: str) -> BackendInfo:
    return BackendInfo(
        name="test",
        summary="A test.",
        opens=opens,
        tasks={},
        default_model="m",
        sizes=((8, 8),),
        pictures="dots",
        licence="MIT",
        memory_gb=1,
    )


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that opens the backend "test"; its `open_backend` is for the test to set."""
    module = ModuleType("test_opener")
    monkeypatch.setitem(sys.modules, "test_opener", module)
    monkeypatch.setattr(registry, "backends", lambda: {"test": info("test_opener:open_backend")})
    return module


def test_default_backend_is_installed() -> None:
    assert registry.DEFAULT_BACKEND in registry.backends()


def test_opener_gets_model_device_and_dtype(opener: ModuleType) -> None:
    opener.open_backend = lambda *given: given  # type: ignore[attr-defined]
    assert registry.open_backend("test") == (None, "auto", None)
    opened = registry.open_backend("test", model="big", device="cuda", dtype="bfloat16")
    assert opened == ("big", "cuda", "bfloat16")


def test_unknown_backend_suggests_the_nearest() -> None:
    with pytest.raises(MissingError, match="no backend called 'nanno'") as caught:
        registry.open_backend("nanno")
    assert "did you mean nano?" in caught.value.hint


def test_missing_package_is_named_with_the_command_that_installs_it(opener: ModuleType) -> None:
    def fails(*given: object) -> None:
        raise ModuleNotFoundError("No module named 'flash.attn'", name="flash.attn")

    opener.open_backend = fails  # type: ignore[attr-defined]
    with pytest.raises(MissingError, match="needs the Python package 'flash'") as caught:
        registry.open_backend("test")
    assert caught.value.hint == "pip install flash"


def test_missing_file_of_our_own_stays_a_bug(opener: ModuleType) -> None:
    def fails(*given: object) -> None:
        raise ModuleNotFoundError("No module named 'op_test.model'", name="op_test.model")

    opener.open_backend = fails  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError):
        registry.open_backend("test")


def test_load_imports_what_an_entry_names() -> None:
    assert registry.load("pathlib:Path") is Path
