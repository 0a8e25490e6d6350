"""Nothing of a photo but what was learned leaves the machine: names, places, times and comments in
photos, their paths, captions, the weights' folder. Each is a canary that no written file may hold.
"""

from __future__ import annotations

import base64
import logging
import platform
import re
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from live_server import png, running, until
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from omnipersona_cli.cli.main import cli
from omnipersona_cli.testing import drawing
from op_bagel.backend import BagelBackend
from op_nano.backend import WEIGHTS

CANARIES = {
    "path": "kanarifolder",
    "file name": "kanarifile",
    "user": "kanariuser",
    "host": "kanarihost",
    "artist in EXIF": "kanariartist",
    "place in GPS": "kanarigps",
    "XMP": "kanarixmp",
    "comment": "kanaricomment",
    "text in a PNG": "kanaripngtext",
    "caption": "kanaricaption",
}


def photos_in(folder: Path) -> None:
    """Four photos with everything that cameras and programs write into them."""
    folder.mkdir(parents=True)
    for number in range(4):
        picture = drawing("red", number)
        path = folder / f"{CANARIES['file name']}{number}"
        exif = Image.Exif()
        exif[0x013B] = CANARIES["artist in EXIF"]
        exif.get_ifd(0x8825)[0x1B] = CANARIES["place in GPS"].encode()
        if number % 2:
            picture.save(
                path.with_suffix(".jpg"),
                exif=exif,
                comment=CANARIES["comment"],
                xmp=f"<x>{CANARIES['XMP']}</x>".encode(),
                quality=95,
            )
        else:
            text = PngInfo()
            text.add_text("Comment", CANARIES["text in a PNG"], zip=True)
            text.add_itxt("XML:com.adobe.xmp", CANARIES["XMP"])
            picture.save(path.with_suffix(".png"), exif=exif, pnginfo=text)
        path.with_suffix(".txt").write_text(f"a photo of a dog, {CANARIES['caption']}")


def contents(data: bytes) -> Iterator[bytes]:
    """What a file holds, and what is packed in it: text chunks, pictures in pages."""
    yield data
    for found in re.finditer(rb"(?:zTXt|iTXt)", data):
        for start in range(found.end(), min(found.end() + 200, len(data))):
            try:
                yield zlib.decompressobj().decompress(data[start:])
                break
            except zlib.error:
                continue
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=]+)", data):
        yield from contents(base64.b64decode(found[1]))


def held(files: list[Path]) -> list[tuple[str, str]]:
    """Which canaries are in which file's name or content."""
    return [
        (path.name, what)
        for path in files
        for what, canary in CANARIES.items()
        for content in (path.name.encode(), *contents(path.read_bytes()))
        if canary.encode() in content or canary.encode("utf-16-le") in content
    ]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos and weights under a telling name, where a telling user works."""
    folder = tmp_path / CANARIES["path"]
    photos_in(folder / "photos")
    shutil.copytree(WEIGHTS, folder / "weights")
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, CANARIES["user"])
    monkeypatch.setattr(socket, "gethostname", lambda: CANARIES["host"])
    monkeypatch.setattr(platform, "node", lambda: CANARIES["host"])
    return folder


def op(*words: object) -> int:
    """Run ``op``; its exit code."""
    return CliRunner().invoke(cli, [str(word) for word in words]).exit_code


def test_the_canaries_are_seen_where_they_are(place: Path) -> None:
    files = [path for path in (place / "photos").iterdir() if path.suffix != ".txt"]
    seen = {what for _, what in held(files)}
    inside = {"file name", "artist in EXIF", "place in GPS", "XMP", "comment", "text in a PNG"}
    assert seen == inside


def test_no_canary_is_in_anything_that_is_written(
    place: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    weights = ["-b", "nano", "--model", place / "weights"]
    learn = ["learn", place / "photos", "--name", "bo", *weights]
    with monkeypatch.context() as cut:
        calls = iter(range(1000))
        loss = BagelBackend.loss

        def interrupted(*words: object, **more: object) -> object:
            if torch.is_grad_enabled() and next(calls) == 20:
                raise KeyboardInterrupt
            return loss(*words, **more)  # type: ignore[arg-type]

        cut.setattr(BagelBackend, "loss", interrupted)
        assert op(*learn, "--steps", 30, "--samples", 0) == 130
    checkpoints = [path for path in (home / "cache").rglob("*") if path.is_file()]
    assert checkpoints
    assert held(checkpoints) == []
    previews = ["--previews", out / "previews", "--report", out / "bo.html"]
    assert op(*learn, "--steps", 2, "--samples", 1, *previews) == 0
    for metadata in ("full", "minimal", "none"):
        paint = ["gen", "<bo> at the beach", *weights, "--steps", 1, "--metadata", metadata]
        assert op(*paint, "-o", out / f"{metadata}.png") == 0
    photo = next((place / "photos").glob("*.jpg"))
    assert op("edit", photo, "remove <bo>", *weights, "--steps", 1, "-o", out / "edited.png") == 0
    assert op("concepts", "export", "bo", "-o", out / "bo.opconcept") == 0
    written = [path for folder in (home, out) for path in folder.rglob("*") if path.is_file()]
    written.remove(home / "data" / "bases.json")  # where weights are, for this machine alone
    assert {path.suffix for path in written} >= {".opconcept", ".png", ".html"}
    named = [("bo.html", "file name")]  # the page is its maker's: it shows the photos, by name
    assert held(written) == named


def test_no_canary_is_in_what_a_server_writes_logs_and_answers(
    place: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Photos are kept until they are learned from; the report card shows them, and nothing else of
    their files."""
    caplog.set_level(logging.INFO)  # below that Pillow tells tags, and nothing turns that on
    caplog.set_level(logging.DEBUG, logger="op_serve")
    answers: list[bytes] = []
    photos = [path for path in sorted((place / "photos").iterdir()) if path.suffix != ".txt"]
    with running(home) as live:

        def told(method: str, path: str, **more: object) -> object:
            answer = live.client.request(method, path, **more)  # type: ignore[arg-type]
            assert answer.status_code < 300, answer.text
            answers.append(answer.content)
            return answer.json() if answer.headers["content-type"] == "application/json" else None

        sent = [("photos", (path.name, path.read_bytes())) for path in photos]
        draft = told("POST", "/api/drafts", files=sent)["id"]  # type: ignore[index]
        wanted = {"draft": draft, "name": "bo", "steps": 2}
        job = f"/api/jobs/{told('POST', '/api/jobs', json=wanted)['id']}"  # type: ignore[index]
        done = ("done", "failed")
        until(lambda: live.client.get(job).json()["state"] in done, seconds=600)
        assert told("GET", job)["state"] == "done"  # type: ignore[index]
        for path in ("/api/state", f"{job}/card", "/api/concepts/bo", "/api/concepts/bo/pack"):
            told("GET", path)
        asked = {"prompt": "<bo> at the beach", "steps": 1}
        for metadata in ("full", "minimal", "none"):
            told("POST", "/v1/images/generations", json={**asked, "metadata": metadata})
        source = base64.b64encode(png(drawing("red", 50))).decode()
        told("POST", "/api/ask", json={"question": "is <bo> here?", "image": source})
    for number, answer in enumerate(answers):
        (home / f"answer-{number}").write_bytes(answer)
    (home / "log").write_text(caplog.text)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.name == "card.html"], "it shows the photos"
    assert not [path for path in files if path.parent.name == "photos"]
    assert held(files) == []
    assert op("concepts", "forget", "bo", "--yes") == 0
    assert list((home / "cache" / "serve").iterdir()) == []
