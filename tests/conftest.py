"""Every test runs offline, on the CPU, and far from the files of whoever runs it."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

PRIVATE = ("NO_COLOR", "FORCE_COLOR", "TERM", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """mypy first: nothing takes as long in one piece, and other cores have work meanwhile."""
    items.sort(key=lambda item: "test_lint.py" not in item.nodeid)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """OMNIPERSONA_HOME for this test alone; no setting of the person running it gets in."""
    import os

    for name in [*os.environ]:
        if name.startswith("OMNIPERSONA_") and name != "OMNIPERSONA_GOLDENS":
            monkeypatch.delenv(name)
    for name in PRIVATE:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("OMNIPERSONA_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the processes that a test starts
    yield folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anywhere but this machine fails at once."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family != socket.AF_UNIX and host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test may not use the network: {address!r}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session", autouse=True)
def plain_numbers() -> Iterator[None]:
    """Models open in float32, whatever this processor is good at: results are compared closely."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnipersona_cli.family.device.has_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> None:
    """A suite that a shell runs in the background has Ctrl-C ignored, and so would the processes
    that tests start and stop."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """One thread: tensors here are small, and equal threads give equal sums."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def root() -> Path:
    """The repository."""
    return Path(__file__).parent.parent
