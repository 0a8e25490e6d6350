"""Opening backends by name."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from omnipersona_cli import registry
from omnipersona_cli.backend import BackendInfo, Opening
from omnipersona_cli.errors import MissingError, ResourceError, UsageError
from omnipersona_cli.hookspecs import Progress

TEST = Opening(backend="test")


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


def test_opener_gets_the_opening_with_its_own_name(
    opener: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener.open_backend = lambda opening: opening  # type: ignore[attr-defined]
    asked = Opening(backend="test", model="big", device="cuda", dtype="bfloat16")
    assert registry.open_backend(asked) == asked
    monkeypatch.setattr(registry, "DEFAULT_BACKEND", "test")
    assert registry.open_backend(Opening()) == Opening(backend="test")


def test_opening_says_what_is_loaded(opener: ModuleType) -> None:
    opener.open_backend = lambda opening: opening  # type: ignore[attr-defined]
    events: list[Progress] = []
    registry.open_backend(TEST, on_progress=events.append)
    assert events == [Progress(phase="loading test")]


def test_a_size_of_lessons_that_a_backend_does_not_have_is_refused_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "backends", lambda: {"test": info("nowhere:nothing")})
    with pytest.raises(UsageError, match="pictures of one size, 8x8") as caught:
        registry.open_backend(replace(TEST, lesson_size=4))
    assert caught.value.hint == "leave out --size"
    free = replace(info("nowhere:nothing"), lesson_sizes=(256, 512))
    monkeypatch.setattr(registry, "backends", lambda: {"test": free})
    for size, hint in ((100, "--size 256"), (600, "--size 512")):
        with pytest.raises(UsageError, match=f"256 to 512 pixels a side, not of {size}") as caught:
            registry.open_backend(replace(TEST, lesson_size=size))
        assert caught.value.hint == hint


def test_unknown_backend_suggests_the_nearest() -> None:
    with pytest.raises(MissingError, match="no backend called 'nanno'") as caught:
        registry.open_backend(Opening(backend="nanno"))
    assert "did you mean nano?" in caught.value.hint


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_memory_that_runs_out_is_an_error_with_a_way_out(
    opener: ModuleType, error: Exception
) -> None:
    def fails(opening: Opening) -> None:
        raise error

    opener.open_backend = fails  # type: ignore[attr-defined]
    with pytest.raises(ResourceError, match="test ran out of memory") as caught:
        registry.open_backend(TEST)
    assert "-b nano" in caught.value.hint


def test_another_error_of_the_opener_stays_what_it_is(opener: ModuleType) -> None:
    def fails(opening: Opening) -> None:
        raise RuntimeError("a bug")

    opener.open_backend = fails  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="a bug"):
        registry.open_backend(TEST)


def test_missing_package_is_named_with_the_command_that_installs_it(opener: ModuleType) -> None:
    def fails(*given: object) -> None:
        raise ModuleNotFoundError("No module named 'flash.attn'", name="flash.attn")

    opener.open_backend = fails  # type: ignore[attr-defined]
    with pytest.raises(MissingError, match="needs the Python package 'flash'") as caught:
        registry.open_backend(TEST)
    assert caught.value.hint == "pip install flash"


def test_missing_file_of_our_own_stays_a_bug(opener: ModuleType) -> None:
    def fails(*given: object) -> None:
        raise ModuleNotFoundError("No module named 'op_test.model'", name="op_test.model")

    opener.open_backend = fails  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError):
        registry.open_backend(TEST)


def test_load_imports_what_an_entry_names() -> None:
    assert registry.load("pathlib:Path") is Path


@pytest.mark.parametrize(("chosen", "used"), [(None, 1), ("", 1), ("2", 2)])
def test_a_backend_says_how_many_threads_it_is_fastest_with(
    chosen: str | None, used: int, opener: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(info("test_opener:open_backend"), threads=1)
    monkeypatch.setattr(registry, "backends", lambda: {"test": few})
    opener.open_backend = lambda opening: opening  # type: ignore[attr-defined]
    monkeypatch.delenv("OMP_NUM_THREADS")
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        registry.open_backend(TEST)
        assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(before)
