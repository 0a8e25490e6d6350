"""The four verbs on a tiny BAGEL checkpoint, as a person runs them: each its own process."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_bagel import write_tiny

from omnipersona_cli.testing import drawing

pytestmark = pytest.mark.slow


def op(*words: str, folder: Path, code: int = 0) -> str:
    """Run `op` in ``folder``; ``code`` is the exit code that is expected. What it says comes back:
    its answer, or its complaint."""
    done = subprocess.run(
        [sys.executable, "-m", "omnipersona_cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return (done.stderr if code else done.stdout).strip()


def test_all_four_verbs_and_a_model_that_learning_does_not_change(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    weights = (tmp_path / "tiny" / "ema.safetensors").read_bytes()
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        drawing("red", seed).save(tmp_path / "photos" / f"{seed}.png")
    here = ("-b", "bagel", "--model", "tiny", "--device", "cpu")
    forest = ("gen", "a forest", *here, "--steps", "2", "--seed", "1", "--metadata", "none")
    op(*forest, "-o", "before.png", folder=tmp_path)
    few = ("--understand-tokens", "4", "--generate-tokens", "4", "--steps", "3")
    op("learn", "photos", "--name", "bo", *few, *here, folder=tmp_path)
    answer = op("ask", "photos/0.png", "is <bo> here?", *here, folder=tmp_path)
    assert answer in ("yes", "no", "not sure")
    op("gen", "<bo> at sea", *here, "--steps", "2", "-o", "sea.png", folder=tmp_path)
    assert Image.open(tmp_path / "sea.png").size == (64, 64)
    add = ("edit", "sea.png", "add <bo>", "--box", "0,0,32,32", "--steps", "2", *here)
    op(*add, "-o", "added.png", folder=tmp_path)
    old, new = (Image.open(tmp_path / name).convert("RGB") for name in ("sea.png", "added.png"))
    right = (32, 0, 64, 64)
    assert old.crop(right).tobytes() == new.crop(right).tobytes()
    assert old.tobytes() != new.tobytes()
    op(*forest, "-o", "after.png", folder=tmp_path)
    assert (tmp_path / "before.png").read_bytes() == (tmp_path / "after.png").read_bytes()
    assert (tmp_path / "tiny" / "ema.safetensors").read_bytes() == weights


def test_without_weights_it_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    said = op("gen", "a forest", "-b", "bagel", folder=tmp_path, code=3)
    assert "ByteDance-Seed/BAGEL-7B-MoT" in said and "op backends fetch bagel" in said
