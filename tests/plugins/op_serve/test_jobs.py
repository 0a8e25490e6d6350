"""Learning as a job outlives the server that began it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from live_server import running, until

pytestmark = pytest.mark.slow


def test_learning_goes_on_where_a_killed_server_left_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path))
    command = [sys.executable, "-m", "omnipersona_cli", "serve", "-b", "nano", "--port", "0", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url, token = server.stdout.readline().strip().split("/?token=")
            headers = {"authorization": f"Bearer {token}"}
            with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
                sent = [("photos", it.read_bytes()) for it in sorted(photos.glob("*.png"))[:4]]
                draft = client.post("/api/drafts", files=sent).json()["id"]
                asked = {"draft": draft, "name": "mam", "facts": ["its toy is a kite"], "steps": 30}
                assert client.post("/api/jobs", json=asked).status_code == 202
                job = f"/api/jobs/{draft}"
                until(lambda: len(client.get(job).json()["losses"]) > 6, seconds=120)
        finally:
            server.kill()
    with running(tmp_path) as live:
        (left,) = live.client.get("/api/jobs").json()
        assert left["state"] == "stopped" and left["name"] == "mam" and left["photos"] == 4
        assert live.client.post(f"{job}/resume").status_code == 202
        until(lambda: live.client.get(job).json()["state"] not in ("waiting", "learning"))
        done = live.client.get(job).json()
        assert done["state"] == "done", done["error"]
        assert 5 <= done["resumed_from"] < 30  # a checkpoint is written every five steps
        concept = live.client.get("/api/concepts/mam").json()
        assert [fact["text"] for fact in concept["facts"]] == ["its toy is a kite"]
        assert live.client.get(f"{job}/card").status_code == 200
