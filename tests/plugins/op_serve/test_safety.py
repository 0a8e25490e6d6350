"""Attacks on a running server, each of which has to fail: the nine rules of a local server."""

from __future__ import annotations

import json
import logging
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from live_server import Live, Serve, asked_about, neighbour, until

from omnipersona_cli.errors import UsageError
from op_serve import guard
from op_serve.running import Serving, door_for

QUESTION = {"messages": [{"role": "user", "content": "is <bo> here?"}]}
EVERYWHERE = [
    ("GET", "/health"),
    ("GET", "/"),
    ("GET", "/page/main.js"),
    ("GET", "/nothing/here"),
    ("OPTIONS", "/v1/images/generations"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/api/recall"),
    ("GET", "/api/state"),
    ("POST", "/mcp"),
    ("GET", "/openapi.json"),
]


@pytest.fixture
def stranger(live: Live) -> Iterator[httpx2.Client]:
    """A client without the token."""
    with httpx2.Client(base_url=live.url, timeout=30) as client:
        yield client


# 1. This machine only, or a token.


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_an_address_that_others_reach_always_has_a_token(host: str) -> None:
    with pytest.raises(UsageError, match="everybody who reaches"):
        door_for(Serving(opening=opening(), host=host, token=""), 80)
    assert len(door_for(Serving(opening=opening(), host=host), 80).token) >= 32


def test_a_server_listens_on_this_machine_alone(live: Live) -> None:
    others = {
        str(info[4][0])
        for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        if not str(info[4][0]).startswith("127.")
    }
    for address in others:
        with pytest.raises(OSError):
            socket.create_connection((address, live.port), timeout=1).close()


# 2. Its own names only: a foreign name that points here is a rebinding attack.


@pytest.mark.parametrize(("method", "path"), EVERYWHERE)
@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_a_foreign_name_gets_nothing_even_with_the_token(
    live: Live, method: str, path: str, name: str
) -> None:
    host = f"{name}:{live.port}" if name else ""
    answer = live.client.request(method, path, headers={"host": host}, json={})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_host"


def test_a_name_that_was_allowed_is_answered(serve: Serve) -> None:
    with serve(hosts=("studio.home",)) as live:
        assert live.client.get("/health", headers={"host": "studio.home"}).status_code == 200


# 3. Pages of other servers may neither change nor read anything.

FOREIGN: list[dict[str, str]] = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "https://127.0.0.1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/sdapi/v1/txt2img"),
        ("POST", "/api/concepts/bo/facts"),
        ("DELETE", "/api/concepts/bo"),
        ("GET", "/api/state"),
        ("GET", "/api/concepts/bo/pack"),
        ("POST", "/mcp"),
    ],
)
def test_the_cookie_does_not_help_a_foreign_page(
    live: Live, stranger: httpx2.Client, method: str, path: str, headers: dict[str, str]
) -> None:
    cookie = cookie_of(live, stranger)
    answer = stranger.request(
        method, path, headers={**headers, "cookie": cookie}, json={"text": "x"}
    )
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "foreign_origin"
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_server_without_a_token_is_closed_to_foreign_pages_too(serve: Serve) -> None:
    with serve(token="") as live:
        for headers in FOREIGN:
            answer = live.client.post("/v1/chat/completions", json=QUESTION, headers=headers)
            assert answer.status_code == 403
        assert live.client.get("/health").json()["waiting"] == 0 == live.served.worker.done


def test_only_pages_that_were_named_are_told_that_they_may(serve: Serve) -> None:
    with serve(origins=("http://friend.example",)) as live:
        for origin, told in (("http://friend.example", True), ("http://evil.example", False)):
            asked = {"origin": origin, "access-control-request-headers": "x-stainless-lang,x-evil"}
            answer = live.client.request("OPTIONS", "/v1/models", headers=asked)
            assert (answer.headers.get("access-control-allow-origin") == origin) is told
            assert "access-control-allow-credentials" not in answer.headers
            assert answer.headers.get("access-control-allow-headers", "x-stainless-lang") == (
                "x-stainless-lang"
            )
        friend = live.client.post(
            "/v1/chat/completions", json=QUESTION, headers={"origin": "http://friend.example"}
        )
        assert friend.status_code == 200
        assert friend.headers["access-control-allow-origin"] == "http://friend.example"


# 4. The token.


@pytest.mark.parametrize(("method", "path"), [pair for pair in EVERYWHERE if pair[1] != "/health"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer a-token-for-test"},
        {"authorization": "Bearer täken".encode()},
        {"authorization": "Basic !!!"},
        {"cookie": "op_1=a-token-for-tests"},
        {"cookie": 'op_1="\\'},
    ],
    ids=str,
)
def test_without_the_token_nothing_is_answered(
    live: Live, stranger: httpx2.Client, method: str, path: str, headers: Any
) -> None:
    if method == "OPTIONS":
        assert not stranger.request(method, path, headers=headers).content
        return
    headers = {
        key: value.replace("op_1", f"op_{live.port}") if key == "cookie" else value
        for key, value in headers.items()
    }
    answer = stranger.request(method, path, headers=headers, json={})
    assert answer.status_code == 401


def test_the_token_leaves_the_address_at_the_first_visit(
    live: Live, stranger: httpx2.Client
) -> None:
    answer = stranger.get("/", params={"token": live.token, "view": "paint"})
    assert answer.status_code == 303 and answer.headers["location"] == "/?view=paint"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and live.token not in cookie
    stranger.cookies.clear()
    assert stranger.get("/", params={"token": "wrong"}).status_code == 401


def test_secrets_are_compared_in_constant_time(
    live: Live, stranger: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, Any]] = []
    compare = guard.hmac.compare_digest

    def watched(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(guard.hmac, "compare_digest", watched)
    stranger.get("/v1/models", headers={"authorization": "Bearer wrong"})
    stranger.get("/v1/models", headers={"cookie": f"op_{live.port}=wrong"})
    stranger.get("/", params={"token": "wrong"})
    secrets = {live.token.encode(), door(live).cookie_value.encode()}
    assert {other for one, other in compared if one == b"wrong"} == secrets
    assert all(isinstance(one, bytes) for pair in compared for one in pair)


def test_logs_hold_neither_tokens_nor_prompts(
    live: Live,
    stranger: httpx2.Client,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    for noisy in ("httpx2", "httpcore2"):  # the client's own, which is not the server
        monkeypatch.setattr(logging.getLogger(noisy), "disabled", True)
    secret = "the-secret-prompt"
    stranger.get("/", params={"token": live.token})
    live.client.get("/v1/models", params={"api_key": live.token})
    live.client.post("/v1/images/generations", json={"prompt": secret, "steps": 1})
    live.client.post("/v1/images/generations", json={"prompt": secret, "size": secret})
    live.client.post("/api/recall", json={"prompt": secret})

    def broken(*arguments: Any, **more: Any) -> None:
        raise ValueError(f"cannot do {secret}")

    monkeypatch.setattr("op_serve.images.paint", broken)
    assert live.client.post("/v1/images/generations", json={"prompt": secret}).status_code == 500
    assert "POST /v1/images/generations 200" in caplog.text
    assert "ValueError" in caplog.text and "test_safety.py" in caplog.text  # where, without words
    assert secret not in caplog.text and live.token not in caplog.text


# 5. What a page may do.


def test_every_answer_forbids_what_the_page_does_not_need(live: Live) -> None:
    for method, path in EVERYWHERE:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            answer = live.client.request(method, path, headers=headers, json={})
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy and "http:" not in policy and "*" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"


# 6. What is sent here: test_uploads.


# 7. A bounded queue, and news of it (a full one: test_openai_dialect).


def test_learning_holds_the_model_and_others_are_told_by_whom(serve: Serve, photos: Path) -> None:
    with serve(most_waiting=1) as live:
        sent = [("photos", path.read_bytes()) for path in sorted(photos.glob("*.png"))[:3]]
        draft = live.client.post("/api/drafts", files=sent).json()["id"]
        asked = {"draft": draft, "name": "mam", "steps": 5000}
        assert live.client.post("/api/jobs", json=asked).status_code == 202
        until(lambda: live.served.worker.running)
        waiting = threading.Thread(
            target=lambda: live.client.post("/v1/chat/completions", json=QUESTION)
        )
        waiting.start()
        until(lambda: live.served.worker.waiting == 1)
        full = live.client.post("/v1/chat/completions", json=QUESTION)
        assert full.status_code == 429 and int(full.headers["retry-after"]) > 0
        assert "learning <mam>" in full.json()["error"]["message"]
        assert live.client.get("/health").json() | {"version": ""} == {
            "status": "ready",
            "waiting": 1,
            "version": "",
        }
        (job,) = live.client.get("/api/jobs").json()
        assert job["state"] == "learning" and job["position"] == 0
        live.client.post(f"/api/jobs/{job['id']}/stop")
        waiting.join(20)
        assert not waiting.is_alive()


# 8. Nothing is fetched, and no file of this machine is read.


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page/....//app.py",
        "/page//etc/passwd",
        "/page/..\\app.py",
        "/pictures/..%2f..%2fetc%2fpasswd",
        "/api/concepts/..%2f..%2f..%2fetc%2fpasswd",
        "/api/concepts/%2fetc%2fpasswd/pack",
        "/api/concepts/..%2fbo/thumbnail",
        "/api/jobs/..%2f..",
        "/api/jobs/..%2f../card",
        "/v1/models/..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out_of_what_is_served(live: Live, path: str) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as sock:
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {live.token}"
        sock.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.split(b" ")[1] in (b"400", b"404", b"405"), answer
    assert b"root:" not in answer and b"make_app" not in answer


def test_addresses_of_pictures_are_not_fetched_and_files_not_read(live: Live, photos: Path) -> None:
    file = photos / "00.png"
    with neighbour() as (url, asked):
        for place in (
            f"{url}/a.png",
            "file:///etc/passwd",
            file.as_uri(),
            str(file),
            f"//{url[7:]}",
        ):
            answers = [
                live.client.post("/v1/chat/completions", json=asked_about(place)),
                live.client.post("/api/ask", json={"question": "what is this?", "image": place}),
                live.client.post("/api/paint", json={"prompt": "add <bo>", "source": place}),
                live.client.post("/api/paint", json={"prompt": "add <bo>", "mask": place}),
                live.client.post(
                    "/v1/images/edits",
                    data={"image": place, "prompt": "add <bo>"},
                    files={"x": b""},
                ),
            ]
            assert [answer.status_code for answer in answers] == [400] * len(answers), place
        assert asked == []


def test_errors_name_no_place_of_this_machine(live: Live) -> None:
    home = str(live.served.shown.library.folder)
    asks = [
        live.client.get("/api/concepts/mam"),
        live.client.post("/v1/chat/completions", json={"model": "mam", **QUESTION}),
        live.client.post("/api/concepts", content=b"no pack"),
        live.client.get("/api/jobs/0123456789abcdef"),
        live.client.get("/api/state"),
    ]
    assert all(home not in answer.text and "/tmp" not in answer.text for answer in asks)


# 9. The floors of what reads the network.


def test_versions_with_known_holes_are_not_accepted() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    extra = tomllib.loads(text)["project"]["optional-dependencies"]["serve"]
    assert {"python-multipart>=0.0.34", "starlette>=1.10"} <= set(extra)


def opening() -> Any:
    from omnipersona_cli.engine import Opening

    return Opening(backend="nano")


def door(live: Live) -> guard.Door:
    return guard.Door(token=live.token, port=live.port)


def cookie_of(live: Live, client: httpx2.Client) -> str:
    """The cookie of a browser that was let in."""
    cookie = f"op_{live.port}={door(live).cookie_value}"
    assert client.get("/v1/models", headers={"cookie": cookie}).status_code == 200
    return cookie


def test_json_that_is_none_is_an_error_of_the_client(live: Live) -> None:
    for body in (b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, json.dumps("text").encode()):
        answer = live.client.post("/v1/images/generations", content=body)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
