"""`op` with a tiny Lance in the released layout: the four verbs, and what is refused."""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_lance import write_tiny
from torch import Tensor

from omnipersona_cli.testing import drawing

HERE = ("-b", "lance", "--device", "cpu")
MODEL, TOWER = "Lance_3B/model.safetensors", "Qwen2.5-VL-ViT/vit.safetensors"
AUTOENCODER = "Wan2.2_VAE.pth"
Op = Callable[..., Result]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("lance") / "tiny")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def refused(result: Result, code: int, *words: str) -> None:
    """One line of what happened with these words in it, one hint, and no traceback."""
    lines = result.stderr.strip().splitlines()
    said = [line for line in lines if line.startswith("Error: ")]
    assert result.exit_code == code, result.stderr
    assert len(said) == 1 and lines[-1].startswith("Hint: ") and lines[-2] == said[0]
    assert result.stdout == ""
    for word in words:
        assert word in said[0]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_all_four_verbs_and_a_model_that_learning_does_not_change(
    tiny: Path, work: Path, op: Op
) -> None:
    weights = contents(tiny)
    here = (*HERE, "--model", str(tiny))

    def done(*words: str) -> str:
        result = op(*words, *here)
        assert result.exit_code == 0, result.stderr
        return result.stdout.strip()

    Path("photos").mkdir()
    for seed in range(5):
        drawing("red", seed).save(f"photos/{seed}.png")
    forest = ("gen", "a forest", "--steps", "2", "--seed", "1", "--metadata", "none")
    done(*forest, "-o", "before.png")
    few = ("--understand-tokens", "4", "--generate-tokens", "4", "--steps", "3")
    done("learn", "photos", "--name", "bo", *few)
    assert done("ask", "photos/0.png", "is <bo> here?") in ("yes", "no", "not sure")
    done("gen", "<bo> at sea", "--steps", "2", "--size", "96x64", "-o", "sea.png")
    assert Image.open("sea.png").size == (96, 64)
    done("edit", "sea.png", "add <bo>", "--box", "0,0,32,32", "--steps", "2", "-o", "added.png")
    old, new = (Image.open(name).convert("RGB") for name in ("sea.png", "added.png"))
    right = (32, 0, 96, 64)
    assert old.crop(right).tobytes() == new.crop(right).tobytes()
    assert old.tobytes() != new.tobytes()
    done(*forest, "-o", "after.png")
    assert Path("before.png").read_bytes() == Path("after.png").read_bytes()
    assert contents(tiny) == weights


def test_a_question_about_several_pictures(tiny: Path, work: Path, op: Op) -> None:
    for colour in ("red", "blue"):
        drawing(colour, 1).save(f"{colour}.png")
    here = (*HERE, "--model", str(tiny), "--dtype", "float32", "--max-tokens", "24")

    def said(*words: str, **more: Any) -> str:
        result = op("ask", *words, "what is on them?", *here, **more)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    both = said("red.png", "blue.png")
    assert both == said("-", "blue.png", stdin=Path("red.png").read_bytes())
    assert len({both, said("blue.png", "red.png"), said("red.png")}) == 3
    lost = op("ask", "red.png", "rod.png", "what is on them?", *here)
    refused(lost, 3, "there is no picture rod.png")
    nine = op("ask", *["red.png"] * 9, "what is on them?", *here)
    refused(nine, 1, "lance looks at 8 pictures at a time, and 9 are given")


def test_presence_is_told_of_one_picture_at_a_time(tiny: Path, work: Path, op: Op) -> None:
    here = (*HERE, "--model", str(tiny))
    Path("photos").mkdir()
    for seed in range(5):
        drawing("red", seed).save(f"photos/{seed}.png")
    few = ("--understand-tokens", "4", "--generate-tokens", "4", "--steps", "1")
    assert op("learn", "photos", "--name", "bo", *few, *here).exit_code == 0
    two = ("photos/0.png", "photos/1.png")
    result = op("ask", *two, "is <bo> here?", *here)
    refused(result, 2, "whether <bo> is there is told of one picture at a time, not of 2")
    assert "op ask photos/0.png 'is <bo> here?'" in result.stderr
    told = op("ask", *two, "which of them shows <bo>?", "--json", *here)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["source"] == "tokens"


# -- what is refused -------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edited(path: Path, **changes: Tensor | None) -> None:
    """Tensors of other shapes, or None for those that are lost; "__" stands for a dot."""
    tensors: dict[str, Any] = load_file(path)
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


def as_video(folder: Path) -> None:
    """The latent table counts 31 frames, and the tower is in the file."""
    tower = {f"vit_model.{name}": it for name, it in load_file(folder / TOWER).items()}
    path = folder / MODEL
    table = {"latent_pos_embed.pos_embed": torch.zeros(31 * 64, 32)}
    save_file(load_file(path) | tower | table, path)


def of_another_width(folder: Path) -> None:
    edited(folder / TOWER, merger__mlp__2__weight=torch.zeros(56, 64))


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("this is code",))


def with_code(folder: Path) -> None:
    torch.save({"conv1.weight": Code()}, folder / AUTOENCODER)


def with_code_plainly(folder: Path) -> None:
    """Not in torch's own form: as pickle itself writes."""
    (folder / AUTOENCODER).write_bytes(pickle.dumps({"conv1.weight": Code()}))


def smaller(folder: Path) -> None:
    path = folder / AUTOENCODER
    tensors = torch.load(path, weights_only=True)
    torch.save({name: it for name, it in tensors.items() if "decoder" not in name}, path)


BROKEN: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "no model": (lambda it: shutil.rmtree(it / "Lance_3B"), 3, f"{MODEL} is missing"),
    "the video checkpoint alone": (
        lambda it: (it / "Lance_3B").rename(it / "Lance_3B_Video"), 2, "is the video checkpoint",
    ),
    "the video checkpoint in its place": (as_video, 2, "is the video checkpoint"),
    "the video checkpoint's table": (
        lambda it: edited(it / MODEL, latent_pos_embed__pos_embed=torch.zeros(31 * 64, 32)), 2,
        "is the video checkpoint",
    ),
    "no tower": (lambda it: (it / TOWER).unlink(), 3, f"{TOWER} is missing"),
    "no autoencoder": (lambda it: (it / AUTOENCODER).unlink(), 3, f"{AUTOENCODER} is missing"),
    "half a model": (lambda it: cut(it / MODEL), 3, "model.safetensors is broken or cut off"),
    "half a tower": (lambda it: cut(it / TOWER), 3, "vit.safetensors is broken or cut off"),
    "half an autoencoder": (lambda it: cut(it / AUTOENCODER), 3, "pth is not a checkpoint, or is"),
    "an autoencoder with code": (with_code, 3, "is a pickle with code in it, which is not run"),
    "an autoencoder that pickle wrote, with code": (
        with_code_plainly, 3, "is a pickle with code in it, which is not run",
    ),
    "a pointer where the autoencoder should be": (
        lambda it: (it / AUTOENCODER).write_text("version https://git-lfs.github.com/spec/v1\n"), 3,
        "pth is not a checkpoint, or is",
    ),
    "an autoencoder of half its tensors": (smaller, 3, f"{AUTOENCODER} is not Lance's"),
    "a tower of another width": (
        of_another_width, 3, "a tower of another size: its features are 56 wide",
    ),
    "a shorter tower": (
        lambda it: edited(it / TOWER, blocks__1__norm1__weight=None), 3, "lacks blocks.1.norm1",
    ),
    "a lost tensor": (
        lambda it: edited(it / MODEL, llm2vae__bias=None), 3, "safetensors lacks llm2vae.bias",
    ),
    "a tensor of another shape": (
        lambda it: edited(it / MODEL, llm2vae__bias=torch.zeros(5)), 3, "llm2vae.bias as [5]",
    ),
    "another model": (
        lambda it: save_file({"model.embed_tokens.weight": torch.zeros(4, 4)}, it / MODEL), 3,
        "model.safetensors is not Lance's",
    ),
    "no configuration": (
        lambda it: (it / "Lance_3B/llm_config.json").unlink(), 3, "llm_config.json is missing",
    ),
    "a configuration that is no JSON": (
        lambda it: (it / "Qwen2.5-VL-ViT/config.json").write_text("{"), 3,
        "config.json is not proper JSON",
    ),
    "a configuration without sense": (
        lambda it: (it / "Qwen2.5-VL-ViT/config.json").write_text('{"num_heads": 3}'), 3,
        "does not split in 3 heads",
    ),
    "no tokenizer": (
        lambda it: (it / "Lance_3B/tokenizer.json").unlink(), 3, "tokenizer.json is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_release_with(what: str, tiny: Path, work: Path, tmp_path: Path, op: Op) -> None:
    breaking, code, words = BROKEN[what]
    folder = shutil.copytree(tiny, tmp_path / "copy")
    breaking(folder)
    before = contents(folder)
    with warnings.catch_warnings(record=True) as warned:
        result = op("gen", "a cat", *HERE, "--model", str(folder), "-o", "cat.png")
    refused(result, code, words)
    assert [it for it in warned if "pickle" in str(it.message)] == []
    hint = result.stderr.strip().splitlines()[-1]
    assert hint.startswith(f"Hint: bring its files to {folder} anew, ") == (code == 3)
    assert hint.endswith("op backends fetch lance")
    assert list(work.iterdir()) == [] and contents(folder) == before


def test_the_video_files_named_by_themselves(tiny: Path, tmp_path: Path, op: Op) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    shutil.copytree(folder / "Lance_3B", folder / "Lance_3B_Video")
    as_video(folder)
    (folder / MODEL).rename(folder / "Lance_3B_Video" / "model.safetensors")
    for place in ("Lance_3B_Video", "Lance_3B_Video/model.safetensors"):
        result = op("ask", "is it?", *HERE, "--model", str(folder / place))
        refused(result, 2, "is the video checkpoint, and lance opens Lance_3B")


@pytest.mark.parametrize("size", ["144x64", "100x64"])
def test_sizes_outside_the_table_and_off_the_grid(
    size: str, tiny: Path, work: Path, op: Op
) -> None:
    result = op("gen", "a cat", *HERE, "--model", str(tiny), "--size", size, "-o", "cat.png")
    refused(result, 1, f"cannot paint {size}")
    assert list(work.iterdir()) == []


def test_weights_that_are_not_here(work: Path, op: Op) -> None:
    result = op("gen", "a cat", *HERE, "--offline", "-o", "cat.png")
    refused(result, 3, "bytedance-research/Lance are not on this computer")
    assert result.stderr.strip().splitlines()[-1] == "Hint: op backends fetch lance"
