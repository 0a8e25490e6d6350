"""A hub on loopback that the real client talks to."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import pytest


@dataclass(kw_only=True)
class Hub:
    """What it serves: folders by repository, and every state of them that it was asked for, by
    commit. ``status`` answers every question with that status (and ``code``), ``cut`` is how many
    bytes of a file it has before it hangs up, or, with ``held``, waits; ``forged`` is what it sends
    instead of a file, ``says`` what it answers to every question. ``parts`` are the places in files
    from which on they were asked for."""

    repositories: Mapping[str, Path]
    status: int = 200
    code: str = ""
    cut: dict[str, int] = field(default_factory=dict)
    forged: dict[str, bytes] = field(default_factory=dict)
    says: bytes = b""
    held: Event | None = None
    parts: list[int] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    states: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)

    def state(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a revision: "main", or a commit."""
        if revision != "main":
            files = self.states.get((repo, revision))
            return None if files is None else (revision, files)
        files = self.files(repo)
        whole = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.states[repo, whole] = files
        return whole, files

    def files(self, repo: str) -> dict[str, bytes]:
        folder = self.repositories[repo]
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@contextmanager
def serving(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub at work; inside, the client knows no other one and keeps files in ``cache``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    Thread(target=server.serve_forever, daemon=True).start()
    point_at(f"http://127.0.0.1:{server.server_port}", cache, monkeypatch)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_at(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    constants = "huggingface_hub.constants"
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(f"{constants}.HF_XET_CACHE", str(cache / "xet"))


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bytes, headers: Mapping[str, str], *, sent: int | None = None):
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            more = {"Content-Length": str(len(body) - first)}
            if asked:
                hub.parts.append(first)
                more["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self.send_response(206 if asked else hub.status)
            for name, value in {**headers, **more}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[first:sent])
                if sent is not None:
                    self.wfile.flush()
                    if hub.held is not None:
                        hub.held.wait(60)
                    self.close_connection = True

        def do_GET(self) -> None:
            if hub.status != 200 or hub.says:
                self.answer(hub.says, {"X-Error-Code": hub.code} if hub.code else {})
                return
            found = page(hub, urlsplit(self.path).path)
            if found is None:
                self.send_error(404)
                return
            body, headers, name = found
            if name and self.command == "GET":
                hub.fetched.append(name)
            self.answer(body, headers, sent=hub.cut.get(name.rpartition("/")[2]))

        do_HEAD = do_GET

    return Handler


def page(hub: Hub, path: str) -> tuple[bytes, dict[str, str], str] | None:
    """Body and headers of what lies at ``path``, and for a file its repository and name."""
    for repo in hub.repositories:
        asked = re.fullmatch(
            rf"/api/models/{repo}(?:/(tree|revision)/([^/]+))?|/{repo}(/)resolve/([^/]+)/(.+)", path
        )
        if asked is None:
            continue
        found = hub.state(repo, asked[2] or asked[4] or "main")
        if found is None:
            return None
        commit, files = found
        if asked[1] == "tree":
            return json.dumps([entry(*one) for one in files.items()]).encode(), {}, ""
        if not asked[3]:
            names = [{"rfilename": name} for name in files]
            about = {"id": repo, "sha": commit, "siblings": names, "tags": []}
            return json.dumps(about | {"_id": "1", "private": False}).encode(), {}, ""
        name, body = asked[5], files[asked[5]]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest(name, body)}"'}
        return hub.forged.get(name, body), headers, f"{repo}/{name}"
    return None


def entry(name: str, data: bytes) -> dict[str, object]:
    about: dict[str, object] = {"type": "file", "path": name, "size": len(data)}
    if is_large(name):
        lfs = {"oid": digest(name, data), "size": len(data), "pointerSize": 134}
        return about | {"oid": "0" * 40, "lfs": lfs}
    return about | {"oid": digest(name, data)}


def is_large(name: str) -> bool:
    """True for files that the hub keeps outside of git."""
    return name.endswith((".safetensors", ".bin", ".pth"))


def digest(name: str, data: bytes) -> str:
    """As the hub names a file's content: by sha256 where it is large, else as git does."""
    if is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
