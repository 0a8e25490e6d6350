"""Each cause that stops a fetch has its own line and hint, with the real client of the hub."""

import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from chameleon import AGAIN, INFO, REPO, failed
from hub import Hub, point_at
from huggingface_hub import close_session

from omnipersona_cli.errors import MissingError, ResourceError, UsageError
from omnipersona_cli.family import weights


@pytest.mark.parametrize(
    ("status", "code", "says", "hint"),
    [
        (404, "", "no repository", "check the name"),
        (401, "RepoNotFound", "no repository", "check the name"),
        (401, "", "wants to know who asks", "hf auth login"),
        (403, "", "is gated", "accept it at"),
        (403, "GatedRepo", "is gated", "accept it at"),
        (429, "", "too many requests", "wait some minutes"),
        (404, "RevisionNotFound", "no such revision", "the newest: op backends fetch"),
        (407, "", "the proxy to fetch", "export HTTPS_PROXY="),
        (503, "", "out of order", "wait some minutes"),
        (418, "", "does not give", "see https://huggingface.co/"),
    ],
)
def test_each_answer_of_the_hub_has_its_own_line(
    status: int, code: str, says: str, hint: str, hub: Hub
) -> None:
    hub.status, hub.code = status, code
    error = failed()
    assert isinstance(error, MissingError)
    assert says in str(error) and REPO in str(error) and str(status) in str(error)
    assert hint in error.hint and "\n" not in str(error) + error.hint


def test_a_hub_that_cannot_be_reached(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_at(f"http://127.0.0.1:{port}", tmp_path / "cache", monkeypatch)
    error = failed()
    assert "cannot be reached" in str(error) and error.hint == f"check the network, then: {AGAIN}"


@pytest.mark.parametrize(
    "address", ["huggingface.co", "ftp://127.0.0.1", "http://", "http://[::1", "http://a:99999"]
)
def test_an_address_that_is_none(hub: Hub, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    error = failed()
    assert isinstance(error, UsageError) and "unset HF_ENDPOINT" in error.hint
    assert address not in str(error)  # it may hold a password


def test_a_page_to_log_in_is_not_taken_for_the_hub(hub: Hub) -> None:
    hub.says = b"<html>Welcome to our hotel</html>"
    error = failed()
    assert isinstance(error, MissingError)
    assert "is not the hub" in str(error) and "log in to the network" in error.hint


@pytest.mark.parametrize(
    ("variable", "value", "says", "hint"),
    [
        (
            "http_proxy",
            "ftp://127.0.0.1:9",
            "is none: Unknown scheme",
            "HF_ENDPOINT and http_proxy",
        ),
        ("http_proxy", "one:two:three", "is none: Invalid port", "HF_ENDPOINT and http_proxy"),
        ("http_proxy", "http://127.0.0.1:9", "cannot be reached", "the network and http_proxy"),
        ("HF_TOKEN", "hf_\u00e4", "token for someone/chameleon cannot be sent", "unset HF_TOKEN"),
    ],
)
def test_what_is_set_wrong_for_the_network_is_named(
    variable: str, value: str, says: str, hint: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(variable, value)
    close_session()  # it reads the variables once
    try:
        error = failed()
    finally:
        close_session()
    assert isinstance(error, MissingError)
    assert says in str(error) and hint in error.hint


def test_a_download_that_breaks_off_is_gone_on_with(hub: Hub) -> None:
    hub.cut["model.safetensors"] = 20
    error = failed()
    assert "broke off" in str(error) and error.hint == f"it goes on with: {AGAIN}"
    with pytest.raises(MissingError):
        weights.locate(REPO, INFO)
    hub.cut.clear()
    assert weights.fetch(INFO, REPO) and weights.locate(REPO, INFO)


@pytest.mark.parametrize(
    ("number", "says", "hint"),
    [
        (errno.ENOSPC, "does not fit on the disk", "make room"),
        (errno.EFBIG, "does not fit on the disk", "make room"),
        (errno.EACCES, "could not be written", "HF_HOME"),
        (errno.ENOTDIR, "could not be written", "HF_HOME"),
    ],
)
def test_a_disk_that_takes_no_more(
    number: int, says: str, hint: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., object] = Path.open

    def full(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
        if path.suffix == ".incomplete" and mode != "r":
            raise OSError(number, "no")
        return real(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    error = failed()
    assert isinstance(error, ResourceError)
    assert says in str(error) and hint in error.hint
