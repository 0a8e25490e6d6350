"""Which of Emu3's checkpoints does what, and folders that are no checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_emu3 import lesson, opened, photos, taught, with_experts, write

from omnipersona_cli.backend import TASKS, Opening, Prompt, Task
from omnipersona_cli.errors import MissingError, TaskError, UsageError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing
from op_emu3.backend import Emu3Backend, open_backend
from op_emu3.loading import LoadedCheckpoint, tasks_of

SCENE = Prompt(turns=(to_turn("a red ball at the beach"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("emu3") / "tiny")


@pytest.fixture(scope="module")
def emu3(folder: Path) -> Emu3Backend:
    return opened(folder)


@pytest.fixture(scope="module")
def model(emu3: Emu3Backend) -> LoadedCheckpoint:
    return emu3.opened("generate")


# -- which checkpoint does what --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("BAAI/Emu3-Chat-hf", ("understand",)),
        ("BAAI/Emu3-Gen-hf", ("generate", "edit")),
        ("/models/emu3-gen/", ("generate", "edit")),
        ("BAAI/Emu3-Stage1", TASKS),
        ("generic-chatter", TASKS),
        ("/chat/Emu3-mine", TASKS),
    ],
)
def test_a_name_tells_what_a_checkpoint_can_do(name: str, tasks: tuple[Task, ...]) -> None:
    assert tasks_of(name) == tasks


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    write(folder / "Emu3-Chat-hf", seed=1)
    write(folder / "Emu3-Gen-hf", seed=2)
    return folder


def test_a_pair_is_one_backend_and_each_of_it_is_read_when_needed(pair: Path) -> None:
    emu3 = opened(pair)
    assert set(emu3.info.tasks) == set(TASKS) and emu3._read == {}
    assert (
        emu3.fingerprint.startswith("emu3-chat-gen@") and emu3.norm_limit > 0 and emu3._read == {}
    )
    emu3.score(SCENE, ["yes"])
    assert [path.name for path in emu3._read] == ["Emu3-Chat-hf"]
    list(emu3.gen(SCENE, size=None, steps=None, guidance=None, seeds=[0]))
    assert [path.name for path in emu3._read] == ["Emu3-Chat-hf", "Emu3-Gen-hf"]


def test_a_pair_answers_as_the_one_and_paints_as_the_other(pair: Path) -> None:
    whole = opened(pair)
    spelled = opened(f"{pair}/Emu3-Chat-hf+{pair}/Emu3-Gen-hf")
    chat, gen = opened(pair / "Emu3-Chat-hf"), opened(pair / "Emu3-Gen-hf")
    assert whole.fingerprint == spelled.fingerprint, "the same files, wherever they are named"
    assert spelled.model == "Emu3-Chat-hf+Emu3-Gen-hf"
    assert tuple(chat.info.tasks) == ("understand",)
    assert tuple(gen.info.tasks) == ("generate", "edit")
    for emu3 in (whole, spelled):
        assert torch.equal(emu3.score(SCENE, ["yes"]), chat.score(SCENE, ["yes"]))
        ours, theirs = (
            next(it.gen(SCENE, size=None, steps=None, guidance=None, seeds=[4])).tobytes()
            for it in (emu3, gen)
        )
        assert ours == theirs


def test_a_folder_in_the_cache_of_the_hub_is_known_by_its_repository(
    pair: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--BAAI--Emu3-Gen-hf" / "snapshots" / "0123abcd"
    shutil.copytree(pair / "Emu3-Gen-hf", snapshot)
    assert tuple(opened(snapshot).info.tasks) == ("generate", "edit")


def test_a_pair_learns_each_task_on_its_own_checkpoint(pair: Path) -> None:
    emu3 = opened(pair)
    tokens = with_experts(emu3)
    batch = emu3.prepare(
        [
            lesson("understand", photos()[0]),
            lesson("generate", target=photos()[0]),
            lesson("edit", drawing("blue", 1), photos()[0]),
        ]
    )
    torch.stack(list(emu3.loss(batch, tokens, seed=3).values())).sum().backward()
    assert all(value.grad is not None for value in (tokens.id, tokens.und, tokens.gen))


def test_half_a_pair_refuses_what_the_other_half_does(pair: Path) -> None:
    chat, gen = opened(pair / "Emu3-Chat-hf"), opened(pair / "Emu3-Gen-hf")
    with pytest.raises(TaskError, match="does not generate"):
        list(chat.gen(SCENE, size=None, steps=None, guidance=None, seeds=[0]))
    with pytest.raises(TaskError, match="does not understand"):
        gen.score(SCENE, ["yes"])
    tokens = taught(gen)
    assert "generate" in gen.loss(
        gen.prepare([lesson("generate", target=photos()[0])]), tokens, seed=0
    )


def test_pairs_that_do_not_fit_are_refused(pair: Path, folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "Emu3-Gen-wide", hidden=64)
    with pytest.raises(UsageError, match="32 wide and Emu3-Gen-wide is 64 wide"):
        opened(f"{pair}/Emu3-Chat-hf+{tmp_path}/Emu3-Gen-wide")
    shutil.copytree(pair / "Emu3-Gen-hf", tmp_path / "another-gen")
    with pytest.raises(UsageError, match="both claim"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="two checkpoints"):
        opened("a+b+c")


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BAAI/Emu3-Chat-hf", "BAAI/Emu3-Gen-hf", None])
def test_weights_that_are_not_here_name_the_command_that_fetches_them(model: str | None) -> None:
    with pytest.raises(MissingError) as caught:
        open_backend(Opening(model=model, device="cpu"))
    which = f" --model {model}" if model else ""
    assert caught.value.hint == f"op backends fetch emu3{which}"
    assert caught.value.exit_code == 3
    if model is None:
        assert "BAAI/Emu3-Chat-hf and BAAI/Emu3-Gen-hf are not" in str(caught.value)


BREAKAGES = {
    "family": (UsageError, "llama"),
    "authors": (UsageError, "authors' own format"),
    "words": (MissingError, "vocabulary_map of .* is missing"),
    "code": (MissingError, "visual token 000005"),
    "text": (MissingError, "lacks the tensor text_model.model.layers.10.input_layernorm.weight"),
    "width": (MissingError, "describes no model"),
    "weights": (MissingError, "model.safetensors is missing"),
    "shard": (MissingError, "model-00002-of-00002.safetensors is missing"),
    "cut": (MissingError, "broken"),
    "codebook": (MissingError, "image tokenizer"),
    "processor": (MissingError, "preprocessor_config.json is missing"),
    "pixels": (MissingError, "image processor in .* is broken"),
    "tokenizer": (MissingError, "tokenizer.json is missing"),
    "config": (MissingError, "config.json is missing"),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_broken_checkpoints_are_named(what: str, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    break_it(copy, what)
    error, words = BREAKAGES[what]
    with pytest.raises(error, match=words) as caught:
        opened(copy)
    assert "op backends" in caught.value.hint or "--model" in caught.value.hint


def break_it(copy: Path, what: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = copy / "model.safetensors"
    config = json.loads((copy / "config.json").read_text())
    if what in ("weights", "processor", "tokenizer", "config"):
        name = {"weights": "model.safetensors"}.get(what)
        (copy / (name or {"processor": "processor_config.json"}.get(what, f"{what}.json"))).unlink()
        return
    if what == "pixels":
        (copy / "processor_config.json").write_text("{")
        return
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
        return
    if what == "shard":
        index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        tensors = load_file(weights)
        whole = dict.fromkeys(tensors, "model.safetensors")
        index["weight_map"] = whole | index["weight_map"]
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        return
    if what == "codebook":
        save_file({k: v for k, v in load_file(weights).items() if "quantize" not in k}, weights)
        return
    changes = {
        "family": lambda: config.update(model_type="llama"),
        "authors": lambda: config.update(model_type="Emu3"),
        "words": lambda: config.pop("vocabulary_map"),
        "code": lambda: config["vocabulary_map"].pop("<|visual token 000005|>"),
        "text": lambda: config.pop("text_config"),
        "width": lambda: config["text_config"].update(hidden_size="wide"),
    }
    changes[what]()
    (copy / "config.json").write_text(json.dumps(config))
