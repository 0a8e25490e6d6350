"""The four verbs on a tiny pair of Emu3 checkpoints, as a person runs them, and on half of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from tiny_emu3 import write

from omnipersona_cli.testing import drawing

pytestmark = pytest.mark.slow

FEW = ("--understand-tokens", "4", "--generate-tokens", "4", "--steps", "3")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a pair of checkpoints and five photos in it."""
    write(tmp_path / "pair" / "Emu3-Chat-hf", seed=1)
    write(tmp_path / "pair" / "Emu3-Gen-hf", seed=2)
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        drawing("red", seed).save(tmp_path / "photos" / f"{seed}.png")
    return tmp_path


def test_all_four_verbs_on_a_pair_that_learning_does_not_change(
    place: Path, op: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    files = sorted(Path("pair").rglob("*.safetensors"))
    weights = [path.read_bytes() for path in files]
    here = ("-b", "emu3", "--model", "pair", "--device", "cpu")

    def run(*words: str) -> str:
        done = op(*words, *here)
        assert done.exit_code == 0, done.stderr
        return done.stdout.strip()

    forest = ("gen", "a forest", "--seed", "1", "--metadata", "none")
    run(*forest, "-o", "before.png")
    run("learn", "photos", "--name", "bo", *FEW, "--experts", "lora")
    assert run("ask", "photos/0.png", "is <bo> here?") in ("yes", "no", "not sure")
    run("gen", "<bo> at sea", "--size", "40x24", "--fast", "-o", "sea.png")
    assert Image.open("sea.png").size == (40, 24)
    run("edit", "sea.png", "add <bo>", "--box", "0,0,10,10", "-o", "added.png")
    old, new = (Image.open(name).convert("RGB") for name in ("sea.png", "added.png"))
    outside = [(10, 0, 40, 24), (0, 10, 10, 24)]
    assert all(old.crop(it).tobytes() == new.crop(it).tobytes() for it in outside)
    assert old.tobytes() != new.tobytes()
    run(*forest, "-o", "after.png")
    assert Path("before.png").read_bytes() == Path("after.png").read_bytes()
    assert [path.read_bytes() for path in files] == weights


def test_half_a_pair_learns_and_does_what_it_can(
    place: Path, op: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    gen = ("-b", "emu3", "--model", "pair/Emu3-Gen-hf", "--device", "cpu")
    assert op("learn", "photos", "--name", "bo", *FEW[:-1], "10", *gen).exit_code == 0
    assert op("gen", "<bo> at sea", *gen, "-o", "sea.png").exit_code == 0
    assert Image.open("sea.png").size == (32, 32)
    refused = op("ask", "photos/0.png", "is <bo> here?", *gen)
    assert refused.exit_code == 1
    assert "does not answer questions with these weights" in refused.stderr
    chat = ("-b", "emu3", "--model", "pair/Emu3-Chat-hf", "--device", "cpu")
    other = op("ask", "photos/0.png", "is <bo> here?", *chat)
    assert other.exit_code == 1
    assert "was learned on emu3-gen-hf" in other.stderr and "op learn" in other.stderr


def test_weights_that_are_not_here_exit_3_with_the_command_that_brings_them(
    place: Path, op: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    missing = op("gen", "a cat", "-b", "emu3")
    assert missing.exit_code == 3
    assert missing.stderr.splitlines()[-1] == "Hint: op backends fetch emu3"
    (place / "pair" / "Emu3-Gen-hf" / "model.safetensors").unlink()
    broken = op("learn", "photos", "--name", "bo", "-b", "emu3", "--model", "pair")
    assert broken.exit_code == 3 and "model.safetensors is missing" in broken.stderr
