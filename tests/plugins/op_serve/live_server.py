"""A real server on a free port of this machine, with nano open and <bo> in its library."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from omnipersona_cli.engine import Opening
from op_serve.running import Serving, door_for, listening, served_for, server_for
from op_serve.served import Served

TOKEN = "a-token-for-tests"


@dataclass(frozen=True, kw_only=True)
class Live:
    """A running server. ``client`` shows the token; ``stop`` ends it."""

    served: Served
    port: int
    token: str
    client: httpx2.Client
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        """Its address, no slash at the end."""
        return f"http://127.0.0.1:{self.port}"


Serve = Callable[..., Any]


@contextmanager
def running(home: Path, *, wait: bool = True, **more: Any) -> Iterator[Live]:
    """A server whose library is below ``home``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIPERSONA_HOME", str(home))
        serving = Serving(**{"opening": Opening(backend="nano"), "port": 0, "token": TOKEN, **more})
        served = served_for(serving)
    sock = listening(serving.host, serving.port)
    door = door_for(serving, sock.getsockname()[1])
    server = server_for(served, door)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    if wait:
        until(lambda: served.worker.state not in ("loading",))

    def stop() -> None:
        served.worker.end()
        server.should_exit = True
        thread.join(20)

    headers = {"authorization": f"Bearer {door.token}"} if door.token else {}
    with httpx2.Client(
        base_url=f"http://127.0.0.1:{door.port}", headers=headers, timeout=60
    ) as client:
        yield Live(served=served, port=door.port, token=door.token, client=client, stop=stop)
    stop()
    assert not thread.is_alive()


def until(there: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def png(image: Image.Image) -> bytes:
    """The picture as a PNG."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    """The picture in these bytes."""
    with Image.open(BytesIO(data)) as image:
        image.load()
        return image


@contextmanager
def neighbour(page: str = "") -> Iterator[tuple[str, list[str]]]:
    """Another server of this machine, which shows ``page``, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def data_url(data: bytes) -> str:
    """A picture as requests carry it."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def asked_about(url: str) -> dict[str, Any]:
    """A question about the picture at an address."""
    content = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return {"messages": [{"role": "user", "content": content}]}
