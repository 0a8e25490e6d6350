"""What is sent to a running server: too large, too many, misnamed, broken, or for a full disk."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import Live, asked_about, data_url, png
from PIL import Image


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is as large as this."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) * 2


@pytest.mark.parametrize("size", [(8000, 8000), (60000, 60000), (2**31 - 1, 1)])
def test_a_small_file_with_a_huge_picture_is_refused_before_it_is_decoded(
    live: Live, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*arguments: Any, **more: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    bomb = claimed_png(*size)
    tries = [
        live.client.post("/v1/chat/completions", json=asked_about(data_url(bomb))),
        live.client.post("/v1/images/edits", files={"image": bomb}, data={"prompt": "add <bo>"}),
        live.client.post("/api/drafts", files={"photos": bomb}),
        live.client.post("/api/paint", json={"prompt": "add <bo>", "source": data_url(bomb)}),
        live.client.put("/api/concepts/bo/thumbnail", content=bomb),
    ]
    assert [answer.status_code for answer in tries] == [400] * len(tries)
    told = [answer.json()["error"]["message"] for answer in tries]
    assert all("larger than 40 million pixels" in message for message in told), told


def test_a_mask_is_no_way_around_the_limit(live: Live) -> None:
    answer = live.client.post(
        "/v1/images/edits",
        files={"image": png(Image.new("RGB", (64, 64))), "mask": claimed_png(9000, 9000)},
        data={"prompt": "add <bo>"},
    )
    assert answer.status_code == 400 and "pixels" in answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(live: Live) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(60):
            yield b"x" * (1 << 20)

    length = {"content-length": str(10**12)}
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as sock:
        head = f"POST /v1/images/edits HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n"
        head += f"Authorization: Bearer {live.token}\r\nContent-Length: {length['content-length']}"
        sock.sendall(f"{head}\r\n\r\n".encode())
        assert sock.recv(400).startswith(b"HTTP/1.1 413")
    answer = live.client.post("/v1/images/generations", content=pieces())
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"


def test_too_many_files_and_too_many_fields_are_refused(live: Live) -> None:
    small = png(Image.new("RGB", (8, 8)))
    many = [("photos", (f"{n}.png", small)) for n in range(150)]
    assert live.client.post("/api/drafts", files=many).status_code == 400
    fields = {f"field{n}": "x" for n in range(300)}
    answer = live.client.post("/v1/images/edits", files={"image": small}, data=fields)
    assert answer.status_code == 400


def test_names_of_files_and_concepts_never_become_paths(live: Live) -> None:
    small = png(Image.new("RGB", (64, 64), "teal"))
    names = ["../../evil.png", "/etc/passwd", "..\\evil.png", "a\x00b.png"]
    draft = live.client.post("/api/drafts", files=[("photos", (name, small)) for name in names])
    job = live.served.jobs.get(draft.json()["id"])
    kept = sorted(path.name for path in (job.folder / "photos").iterdir())
    assert kept == ["001.png", "002.png", "003.png", "004.png"]
    for name in ("../../evil", "/tmp/evil", "a/b", "..", "evil.opconcept"):
        asked = {"draft": job.id, "name": name}
        assert live.client.post("/api/jobs", json=asked).status_code == 400
        renamed = live.client.put("/api/concepts/bo", json={"name": name})
        assert renamed.status_code == 400
    live.client.delete(f"/api/jobs/{job.id}")
    assert not job.folder.exists()


def test_a_pack_that_is_none_is_refused(live: Live) -> None:
    for data in (b"", b"PK\x03\x04", b"\xff" * 1000, (2**40).to_bytes(8, "little") + b"{}"):
        answer = live.client.post("/api/concepts", content=data)
        assert answer.status_code == 400, answer.text
    assert live.served.shown.names() == ("bo",)


def test_a_pack_whose_name_is_taken_says_what_an_address_can_say(live: Live) -> None:
    pack = live.client.get("/api/concepts/bo/pack").content
    other = live.client.post("/api/concepts?name=mam", content=pack)
    assert other.status_code == 201 and other.json()["name"] == "mam"
    facts = live.client.post("/api/concepts/mam/facts", json={"text": "it loves tuna"})
    assert facts.status_code == 200
    taken = live.client.post("/api/concepts?name=mam", content=pack)
    assert taken.status_code == 400 and "?force=true" in taken.text and "--" not in taken.text
    assert live.client.post("/api/concepts?name=mam&force=true", content=pack).status_code == 201
    assert live.client.post("/api/concepts?name=../x", content=pack).status_code == 400


def test_an_upload_that_no_disk_can_hold_is_told_and_no_bug(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", full)
    files = [("photos", b"\x89PNG" + bytes(3 << 20))]
    answer = live.client.post("/api/drafts", files=files)
    assert answer.status_code == 503 and "No space left" in answer.text
    assert "bug" not in answer.text and "TMPDIR" in answer.text
