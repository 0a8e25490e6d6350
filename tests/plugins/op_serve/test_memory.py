"""`--memory`: what the server opens has room for every verb, and says where learning has none."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_janus
from live_server import Live, Serve, until

from omnipersona_cli import registry
from omnipersona_cli.backend import Opening, Verb
from omnipersona_cli.errors import ResourceError
from omnipersona_cli.family.footprint import Means, needed
from omnipersona_cli.family.room import describe
from op_serve.work import room_for


def takes(verb: Verb, opening: Opening, means: Means) -> float:
    """GiB."""
    what = describe(registry.backend_info(opening.backend), opening, None)
    assert what is not None
    return needed(what, verb, means)


@pytest.fixture
def too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room to learn; nano itself learns in what it edits in."""

    def refused(opening: Opening) -> Any:
        raise ResourceError(
            "nano takes 9.0 GB to learn, and 1.0 GB are allowed", hint="op backends show nano"
        )

    monkeypatch.setattr("op_serve.work._room_to_learn", refused)


def drafted(live: Live, photos: Path) -> dict[str, str]:
    """What starts to learn from a few photos."""
    sent = [("photos", path.read_bytes()) for path in sorted(photos.glob("*.png"))[:3]]
    return {"draft": live.client.post("/api/drafts", files=sent).json()["id"], "name": "mam"}


def test_a_server_without_room_to_learn_does_all_else_and_says_so(
    serve: Serve, photos: Path, too_little: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "op_serve"), serve() as live:
        asked = {"messages": [{"role": "user", "content": "what is <bo>'s toy?"}]}
        assert live.client.post("/v1/chat/completions", json=asked).status_code == 200
        wish = {"prompt": "<bo>", "steps": 1}
        assert live.client.post("/v1/images/generations", json=wish).status_code == 200
        refused = live.client.post("/api/jobs", json=drafted(live, photos))
    assert refused.status_code == 503 and refused.headers["x-should-retry"] == "false"
    message = refused.json()["error"]["message"]
    assert "to learn, and" in message and "GB are allowed" in message
    assert "op backends show nano" in message
    (logged,) = (it.message.partition(":")[0] for it in caplog.records)
    assert message.startswith(f"{logged}. Hint: ")


def test_what_was_to_be_learned_before_that_was_known_fails_with_the_reason(
    serve: Serve, photos: Path, too_little: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = threading.Event()

    def slow_room(*arguments: Any, **more: Any) -> Any:
        known.wait(60)
        return room_for(*arguments, **more)

    monkeypatch.setattr("op_serve.work.room_for", slow_room)
    with serve(wait=False) as live:
        assert live.client.post("/api/jobs", json=drafted(live, photos)).status_code == 202
        known.set()
        (job,) = live.served.jobs.all()
        until(lambda: job.state == "failed")
    assert "GB are allowed" in job.error and "op backends show nano" in job.hint


def test_the_means_that_are_chosen_keep_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnipersona_cli.family.device.has_bfloat16", lambda: False)
    folder = str(tiny_janus.write(tmp_path / "tiny", hidden=64, layers=8))
    janus = Opening(backend="janus", model=folder, device="cpu")
    frugal = takes(
        "learn", janus, Means(dtype="bfloat16", activation_checkpointing=True, at_once=1)
    )
    allowed = Opening(backend="janus", model=folder, device="cpu", memory=frugal + 0.0001)
    room = room_for(allowed, teaches=True)
    assert room.opening.dtype == "bfloat16" and room.at_once == 1 and room.too_large is None
    assert "--dtype bfloat16" in room.notes[0]
    spared = room_for(allowed, teaches=False)
    assert spared.opening.dtype == "bfloat16" and spared.at_once == 0
    with pytest.raises(ResourceError, match="to answer, and"):
        room_for(Opening(backend="janus", model=folder, memory=0.01), teaches=True)


def test_one_lesson_at_a_time_comes_before_other_means(serve: Serve, photos: Path) -> None:
    nano, usual = Opening(backend="nano"), Means(dtype="float32", at_once=1)
    allowed = replace(nano, memory=takes("learn", nano, usual) + 0.001)
    room = room_for(allowed, teaches=True)
    assert room.opening == allowed and room.at_once == 1 and room.too_large is None
    with serve(opening=allowed) as live:
        asked = {**drafted(live, photos), "steps": 2}
        assert live.client.post("/api/jobs", json=asked).status_code == 202
        (job,) = live.served.jobs.all()
        until(lambda: job.state not in ("waiting", "learning"))
    assert job.state == "done", job.error
