"""The four verbs on the embedded backbone, as a person runs them: each its own process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def op(*words: str, folder: Path, code: int = 0) -> str:
    """Run `op` in ``folder`` and give its answer; ``code`` is the exit code that is expected."""
    done = subprocess.run(
        [sys.executable, "-m", "omnipersona_cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stdout.strip()


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """A folder with a toy character's photos, some of them learned as <bo>."""
    op("toy", "photos", "photos", "--seed", "7", folder=tmp_path)
    op("gen", "a forest", "--seed", "1", "--metadata", "none", "-o", "before.png", folder=tmp_path)
    op("learn", "photos", "--name", "bo", "--steps", "4", "--samples", "1", folder=tmp_path)
    return tmp_path


def test_all_four_verbs_and_a_model_that_learning_does_not_change(taught: Path) -> None:
    assert op("ask", "what is <bo>'s toy?", folder=taught)
    assert op("ask", "photos/00.png", "is <bo> here?", folder=taught) in ("yes", "no", "not sure")
    assert op("gen", "<bo> in the snow", "--steps", "2", "-o", "snow.png", folder=taught)
    assert op("edit", "snow.png", "remove <bo>", "--steps", "2", "-o", "gone.png", folder=taught)
    op("gen", "a forest", "--seed", "1", "--metadata", "none", "-o", "after.png", folder=taught)
    assert (taught / "before.png").read_bytes() == (taught / "after.png").read_bytes()


def test_learning_that_is_killed_leaves_the_library_whole_and_goes_on(
    taught: Path, home: Path
) -> None:
    pack = home / "data" / "concepts" / "bo.opconcept"
    kept = pack.read_bytes()
    words = ("learn", "photos", "--name", "mam", "--steps", "60", "--samples", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "omnipersona_cli", *words],
        cwd=taught,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    runs = home / "cache" / "runs"
    deadline = time.monotonic() + 240
    while not any(runs.glob("*/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert op("concepts", "verify", "bo", folder=taught) is not None
    assert pack.read_bytes() == kept
    assert "mam" not in op("concepts", folder=taught)
    done = subprocess.run(
        [sys.executable, "-m", "omnipersona_cli", *words, "--resume", "--json"],
        cwd=taught,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert '"resumed_from": 0' not in done.stdout and '"resumed_from"' in done.stdout
    assert "mam" in op("concepts", folder=taught)


def test_two_threads_learn_the_same_pack_twice(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op("toy", "photos", "photos", "--seed", "7", "--count", "4", folder=tmp_path)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # a thread that waits takes no processor
    words = ("learn", "photos", "--name", "bo", "--steps", "4", "--samples", "0")
    for out in ("one.opconcept", "two.opconcept"):
        op(*words, "-o", out, folder=tmp_path)
    assert (tmp_path / "one.opconcept").read_bytes() == (tmp_path / "two.opconcept").read_bytes()
