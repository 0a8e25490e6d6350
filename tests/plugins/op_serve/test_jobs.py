"""Learning as a job outlives the server that began it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from live_server import Live, running, until

from omnipersona_cli.backend import Opening
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.data.decode import open_photo
from op_serve import concepts
from op_serve.jobs import MOST_JOBS
from op_serve.running import Serving, served_for
from op_serve.work import Shown


def drafted(live: Live, photos: Path) -> str:
    """The number of a job with four photos."""
    sent = [("photos", it.read_bytes()) for it in sorted(photos.glob("*.png"))[:4]]
    return str(live.client.post("/api/drafts", files=sent).json()["id"])


def test_a_second_server_leaves_the_photos_of_the_first_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as live:
        draft = drafted(live, photos)
        monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path))
        second = served_for(Serving(opening=Opening(backend="nano")))
        assert second.jobs.all() == []
        assert (
            live.client.post(f"/api/drafts/{draft}/plan", json={"name": "mam"}).status_code == 200
        )
        second.jobs.close()
        folder = live.served.jobs.get(draft).folder
        live.stop()
        assert folder.exists()
    alone = served_for(Serving(opening=Opening(backend="nano")))
    assert alone.jobs.all() == [] and not folder.exists(), "a draft of a server that is gone"
    alone.jobs.close()
    assert list(folder.parent.iterdir()) == []


def test_a_job_that_finds_no_place_in_the_queue_can_be_started_again(
    photos: Path, tmp_path: Path
) -> None:
    with running(tmp_path, most_waiting=1) as live:
        draft = drafted(live, photos)
        asked = {"draft": draft, "name": "mam", "steps": 1}
        go_on = threading.Event()
        busy = live.served.worker.submit("other work", lambda backend, ticket: go_on.wait(60))
        until(lambda: live.served.worker.running)
        live.served.worker.submit("more", lambda backend, ticket: None)
        assert live.client.post("/api/jobs", json=asked).status_code == 429
        assert live.client.get(f"/api/jobs/{draft}").json()["state"] == "draft"
        go_on.set()
        busy.result.result(60)
        until(lambda: not live.served.worker.waiting)
        assert live.client.post("/api/jobs", json=asked).status_code == 202
        live.client.post(f"/api/jobs/{draft}/stop")


def test_what_is_thrown_away_leaves_no_run_and_drafts_make_room_first(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path))
    with running(tmp_path) as live:
        job = drafted(live, photos)
        asked = {"draft": job, "name": "mam", "steps": 400}
        assert live.client.post("/api/jobs", json=asked).status_code == 202
        until(lambda: live.client.get(f"/api/jobs/{job}").json()["phase"] == "learning")
        live.client.post(f"/api/jobs/{job}/stop")
        until(lambda: live.client.get(f"/api/jobs/{job}").json()["state"] == "stopped")
        runs = tmp_path / "cache" / "runs"
        assert list(runs.iterdir())
        for _ in range(MOST_JOBS):
            drafted(live, photos)
        assert live.client.get(f"/api/jobs/{job}").json()["state"] == "stopped"
        assert live.client.delete(f"/api/jobs/{job}").status_code == 204
        assert list(runs.iterdir()) == []


def test_a_server_of_some_concepts_knows_no_jobs_of_others(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path))
    left = tmp_path / "cache" / "serve" / "0123456789abcdef"
    (left / "photos").mkdir(parents=True)
    (left / "job.json").write_text('{"name": "kim", "state": "stopped", "photos": 4}')
    some = served_for(Serving(opening=Opening(backend="nano"), only=frozenset()))
    assert some.jobs.all() == [] and left.exists()
    some.jobs.close()


@pytest.mark.slow
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


def test_a_thumbnail_takes_no_fact_away_that_was_told_meanwhile(
    photos: Path, bo_pack: Path, tmp_path: Path
) -> None:
    shown = Shown(library=Library(tmp_path))
    shown.library.add_file(bo_pack)
    image = open_photo(photos / "00.png")
    done = threading.Event()

    def show() -> None:
        for turn in itertools.count():
            concepts.keep_thumbnail(shown, "bo", image if turn % 2 else None)
            if done.is_set():
                return

    showing = threading.Thread(target=show)
    showing.start()
    told = [f"<bo>'s friend{letter} is red" for letter in "abcdefgh"]
    for fact in told:
        concepts.add_fact(shown, "bo", fact)
    done.set()
    showing.join()
    assert {fact.text for fact in shown.library.header("bo").facts} >= set(told)
