"""What `op` says to a Janus that is not whole, and to pictures that are not what they seem: one
line, one hint, an exit code of the table, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_janus import write, write_original
from torch import Tensor

from omnipersona_cli.backend import Opening
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Pack, write_pack
from omnipersona_cli.engine.tokens import slot_name, to_slot
from omnipersona_cli.testing import drawing
from op_janus.loading import open_backend

HERE = ("-b", "janus", "--device", "cpu")
Op = Callable[..., Result]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the released layout."""
    return write(tmp_path_factory.mktemp("janus") / "tiny")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be broken."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def refused(result: Result, code: int, *words: str) -> None:
    """One line of what happened with these words in it, one hint, and no traceback."""
    lines = result.stderr.strip().splitlines()
    said = [line for line in lines if line.startswith("Error: ")]
    assert result.exit_code == code, result.stderr
    assert len(said) == 1 and lines[-1].startswith("Hint: ") and lines[-2] == said[0]
    assert "Traceback" not in result.stderr and result.stdout == ""
    for word in words:
        assert word in said[0]


def edit_config(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def edit_part(folder: Path, part: str, **changed: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, **{part: config[part] | changed})


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path) -> None:
    """Two files and an index; the second file is lost."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    first = sorted(tensors)[: len(tensors) // 2]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    save_file({key: tensors[key] for key in first}, folder / names[0], metadata={"format": "pt"})
    placed = {key: names[0] if key in first else names[1] for key in tensors}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": placed}))


def no_head(tensors: dict[str, Tensor]) -> None:
    for key in [it for it in tensors if "generation_head" in it]:
        tensors.pop(key)


BROKEN: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "another family": (lambda path: edit_config(path, model_type="llama"), 2, "'llama'"),
    "no configuration": (lambda path: (path / "config.json").unlink(), 3, "config.json is missing"),
    "no JSON": (lambda path: (path / "config.json").write_text("{"), 3, "is not proper JSON"),
    "no number": (lambda path: edit_part(path, "text_config", hidden_size="big"), 3, "hidden_size"),
    "odd heads": (lambda path: edit_part(path, "text_config", num_attention_heads=3), 3, "heads"),
    "a size that the codes do not fill": (
        lambda path: edit_part(path, "vision_config", image_size=128), 3, "128 pixels",
    ),
    "a missing shard": (shard, 3, "model-00002-of-00002.safetensors is missing"),
    "a file cut short": (
        lambda path: (path / "model.safetensors").write_bytes(
            (path / "model.safetensors").read_bytes()[:-100]
        ), 3, "model.safetensors is broken",
    ),
    "no image head": (lambda path: edit_tensors(path, no_head), 3, "no image head"),
    "a missing tensor": (
        lambda path: edit_tensors(path, lambda these: these.pop("model.aligner.fc1.bias")), 3,
        "model.safetensors lacks the tensor model.aligner.fc1.bias",
    ),
    "a tensor of another shape": (
        lambda path: edit_tensors(
            path, lambda these: these.update({"model.aligner.fc1.bias": torch.zeros(3)})
        ), 3, "model.aligner.fc1.bias",
    ),
    "pickled weights alone": (
        lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"), 3, "not safe",
    ),
    "no tokenizer": (
        lambda path: (path / "tokenizer.json").unlink(), 3, "tokenizer.json is missing",
    ),
    "a broken tokenizer": (
        lambda path: (path / "tokenizer.json").write_text("{}"), 3, "tokenizer.json is broken",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_checkpoint_with(what: str, copy: Path, work: Path, op: Op) -> None:
    breaking, code, words = BROKEN[what]
    breaking(copy)
    result = op("gen", "a cat", *HERE, "--model", str(copy), "-o", "cat.png")
    refused(result, code, words)
    assert list(work.iterdir()) == []


def test_weights_that_are_not_here(work: Path, op: Op) -> None:
    result = op("gen", "a cat", *HERE, "--offline", "-o", "cat.png")
    refused(result, 3, "deepseek-community/Janus-Pro-1B are not on this computer")
    assert result.stderr.strip().splitlines()[-1] == "Hint: op backends fetch janus"
    assert list(work.iterdir()) == []


def test_opening_says_nothing_of_its_own(tiny: Path, work: Path, op: Op) -> None:
    result = op("gen", "a cat", *HERE, "--model", str(tiny), "--seed", "1", "-o", "cat.png")
    assert result.exit_code == 0
    assert result.stderr.strip().splitlines() == ["loading janus ...", "painting ..."]


@pytest.mark.parametrize("size", ["512x512", "64x32"])
def test_a_size_that_it_cannot_paint(size: str, tiny: Path, work: Path, op: Op) -> None:
    result = op("gen", "a cat", *HERE, "--model", str(tiny), "--size", size, "-o", "cat.png")
    refused(result, 1, f"cannot paint {size}")
    assert list(work.iterdir()) == []


def test_a_pack_of_another_fingerprint(tiny: Path, work: Path, tmp_path: Path, op: Op) -> None:
    backend = open_backend(Opening(model=str(tiny), device="cpu"))
    photos = [drawing("red", seed) for seed in range(2)]
    tokens = backend.new_tokens("bo", understand=2, generate=2, photos=photos, seed=0)
    pack = Pack(name="bo", slots={slot_name(backend): to_slot(tokens, backend, {"seed": 0})})
    write_pack(pack, tmp_path / "bo.opconcept")
    Library().add_file(tmp_path / "bo.opconcept")
    relearned = write(tmp_path / "again" / "tiny", seed=1)  # the same name, other numbers
    other = write_original(tmp_path / "janus-4o-tiny")
    drawing("blue", 1).save(tmp_path / "blue.png")
    blue = str(tmp_path / "blue.png")
    for model in (relearned, other):
        where = (*HERE, "--model", str(model))
        refused(op("gen", "<bo>", *where, "-o", "bo.png"), 1, "<bo> was learned on")
        refused(op("edit", blue, "add <bo>", *where, "--box", "0,0,9,9"), 1, "<bo> was learned on")
        refused(op("ask", blue, "is <bo> here?", *where), 1, "<bo> was learned on")
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "words"),
    [((1, 1), "only 1 x 1 pixels"), ((20_000, 20_000), "larger than 64 million pixels")],
)
def test_a_picture_that_is_too_small_or_too_large(
    size: tuple[int, int], words: str, tiny: Path, work: Path, tmp_path: Path, op: Op
) -> None:
    path = tmp_path / "photo.png"
    Image.new("1", size).save(path)
    where = (*HERE, "--model", str(tiny))
    refused(op("ask", str(path), "is it a cat?", *where), 1, "photo.png", words)
    edit = op("edit", str(path), "add a cat", *where, "--box", "0,0,1,1", "-o", "cat.png")
    refused(edit, 1, "photo.png", words)
    refused(op("learn", str(path), "--name", "bo", *where), 1, "photo.png", words)
    assert list(work.iterdir()) == []


def test_print_colours_deep_pixels_and_frames_are_read(
    tiny: Path, work: Path, tmp_path: Path, op: Op
) -> None:
    red, blue = drawing("red", 1), drawing("blue", 1)
    red.convert("CMYK").save(tmp_path / "print.jpg")
    deep = np.asarray(red.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    red.save(tmp_path / "frames.gif", save_all=True, append_images=[blue], duration=100)
    for name in ("print.jpg", "deep.png", "frames.gif"):
        where = (*HERE, "--model", str(tiny))
        assert op("ask", str(tmp_path / name), "is it a cat?", *where).exit_code == 0
        edit = ("edit", str(tmp_path / name), "add a cat", "--box", "0,0,9,9", *where)
        assert op(*edit, "-o", f"{name}.png").exit_code == 0
        with Image.open(f"{name}.png") as edited:
            assert edited.size == red.size and edited.mode == "RGB"


def test_masked_editing_needs_a_region_and_janus_4o_none(
    tiny: Path, work: Path, tmp_path: Path, op: Op
) -> None:
    drawing("blue", 1).save(tmp_path / "blue.png")
    snow = ("edit", str(tmp_path / "blue.png"), "make it snow", *HERE, "-o", "snow.png")
    refused(op(*snow, "--model", str(tiny)), 1, "not clear which one")
    assert list(work.iterdir()) == []
    model = write_original(tmp_path / "janus-4o-tiny")
    done = op(*snow, "--model", str(model), "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["how"] == "native"
