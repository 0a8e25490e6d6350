"""The four verbs on a tiny checkpoint of each large family, and what is said without weights.

Each command opens the checkpoint anew, in this process; `test_nano_whole` starts one for each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_bagel
import tiny_janus
import tiny_showo
from click.testing import Result
from PIL import Image

from omnipersona_cli.testing import drawing

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Family:
    """How its checkpoint is written, the file of weights, words of its own, and what an edit of
    the left upper ``box`` must leave as it was."""

    write: Callable[[Path], Any]
    weights: str
    paint: tuple[str, ...] = ("--steps", "2")
    learn: tuple[str, ...] = ()
    edit: tuple[str, ...] = ("--fast",)
    box: str = "0,0,32,32"
    outside: tuple[int, int, int, int] = (32, 0, 64, 64)


FAMILIES = {
    "bagel": Family(write=tiny_bagel.write_tiny, weights="ema.safetensors"),
    "janus": Family(
        write=tiny_janus.write,
        weights="model.safetensors",
        paint=(),
        learn=("--experts", "lora"),
        box="0,0,16,16",
        outside=(40, 40, 64, 64),
    ),
    "showo": Family(write=tiny_showo.write_tiny, weights="pytorch_model.safetensors", edit=()),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_all_four_verbs_and_a_model_that_learning_does_not_change(
    name: str, tmp_path: Path, op: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    monkeypatch.chdir(tmp_path)
    family.write(Path("tiny"))
    weights = Path("tiny", family.weights).read_bytes()
    Path("photos").mkdir()
    for seed in range(5):
        drawing("red", seed).save(f"photos/{seed}.png")

    def run(*words: str) -> str:
        done = op(*words, "-b", name, "--model", "tiny", "--device", "cpu")
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    forest = ("gen", "a forest", *family.paint, "--seed", "1", "--metadata", "none")
    run(*forest, "-o", "before.png")
    few = ("--understand-tokens", "4", "--generate-tokens", "4", "--steps", "3")
    run("learn", "photos", "--name", "bo", *few, *family.learn)
    (pack,) = tmp_path.rglob("bo.opconcept")
    assert str(tmp_path).encode() not in pack.read_bytes()
    ask = ("ask", "photos/0.png", "is <bo> here?", "--device", "cpu")
    assert op(*ask).stdout.strip() in ("yes", "no", "not sure"), "the folder is remembered"
    Path("tiny").rename("moved")
    gone = op(*ask)
    assert gone.exit_code == 1 and "'tiny'" in gone.stderr and "--model FOLDER/tiny" in gone.stderr
    Path("moved").rename("tiny")
    run("gen", "<bo> at sea", *family.paint, "-o", "sea.png")
    assert Image.open("sea.png").size == (64, 64)
    add = ("edit", "sea.png", "add <bo>", "--box", family.box, *family.paint, *family.edit)
    run(*add, "-o", "added.png")
    old, new = (Image.open(file).convert("RGB") for file in ("sea.png", "added.png"))
    assert old.crop(family.outside).tobytes() == new.crop(family.outside).tobytes()
    assert old.tobytes() != new.tobytes()
    run(*forest, "-o", "after.png")
    assert Path("before.png").read_bytes() == Path("after.png").read_bytes()
    assert Path("tiny", family.weights).read_bytes() == weights


@pytest.mark.parametrize(
    ("name", "repository"),
    [("bagel", "ByteDance-Seed/BAGEL-7B-MoT"), ("showo", "showlab/show-o-512x512")],
)
def test_without_weights_it_says_how_to_get_them(
    name: str,
    repository: str,
    tmp_path: Path,
    op: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    done = op("gen", "a forest", "-b", name, "-o", str(tmp_path / "forest.png"))
    assert done.exit_code == 3
    assert repository in done.stderr and f"op backends fetch {name}" in done.stderr
