"""What opening Show-o reads, and what it refuses: tiny checkpoints in the released layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import tiny_showo
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnipersona_cli.backend import Lesson, Opening, Prompt
from omnipersona_cli.errors import MissingError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing
from op_showo import INFO
from op_showo.backend import ShowoBackend
from op_showo.loading import open_backend
from op_showo.magvit import Magvit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_showo.write_tiny(tmp_path_factory.mktemp("showo") / "model")


@pytest.fixture(scope="module")
def showo(folder: Path) -> ShowoBackend:
    return cast(ShowoBackend, open_backend(Opening(model=str(folder), device="cpu")))


@pytest.mark.parametrize("kind", ["bin", "sharded"])
def test_every_layout_opens_to_the_same_model(
    tmp_path: Path, showo: ShowoBackend, kind: str
) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "other", kind=kind)
    other = cast(
        ShowoBackend, open_backend(Opening(model=str(folder), device="cpu", dtype="float32"))
    )
    assert other.fingerprint == showo.fingerprint
    for name, value in showo.net.state_dict().items():
        assert torch.equal(other.net.state_dict()[name], value)


def test_weights_are_cast_on_load(folder: Path, showo: ShowoBackend) -> None:
    half = cast(
        ShowoBackend, open_backend(Opening(model=str(folder), device="cpu", dtype="bfloat16"))
    )
    assert half.net.table.dtype == torch.bfloat16 and half.fingerprint == showo.fingerprint
    assert isinstance(half.magvit, Magvit)
    prompt = Prompt(turns=(to_turn("who?"),))
    for one in (half, showo):
        assert next(iter(one.gen(prompt, size=None, steps=1, guidance=None, seeds=(1,)))).size
    scores = [float(one.score(prompt, ("me",))[0]) for one in (half, showo)]
    assert scores[0] == pytest.approx(scores[1], rel=0.1)


def test_the_clip_variant_understands_through_clip(tmp_path: Path) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "clip", clip=True)
    showo = cast(ShowoBackend, open_backend(Opening(model=str(folder), device="cpu")))
    photos = [drawing(colour, 1) for colour in ("red", "blue")]
    tokens = showo.new_tokens("bo", understand=2, generate=2, photos=photos, seed=0)
    prompt = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(tokens,))
    one, other = (showo.score(prompt, ("yes", "no"), image=photo) for photo in photos)
    assert not torch.equal(one, other)
    lesson = Lesson(
        task="understand",
        kind="recognise",
        request=to_turn("is <bo> here?"),
        image=photos[0],
        answer="yes",
    )
    losses = showo.loss(showo.prepare([lesson]), tokens, seed=0)
    said = -float(showo.score(prompt, ("yes",), image=photos[0])[0])
    assert float(losses["understand"].detach()) == pytest.approx(said / len(" yes."), rel=1e-4)


def test_absent_weights_say_how_to_fetch_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model, hint in (
        (None, "op backends fetch showo"),
        ("showlab/show-o", "op backends fetch showo --model showlab/show-o"),
    ):
        with pytest.raises(MissingError) as caught:
            open_backend(Opening(model=model, device="cpu"))
        assert caught.value.hint == hint and caught.value.exit_code == 3
        assert (model or INFO.default_model) in str(caught.value)


def test_an_absent_part_says_how_to_fetch_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    shutil.rmtree(copied / "magvitv2")
    with pytest.raises(MissingError, match="showlab/magvitv2") as caught:
        open_backend(Opening(model=str(copied), device="cpu"))
    assert caught.value.hint == "op backends fetch showo --model showlab/magvitv2"


def test_a_repository_without_weights_says_what_brings_them(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`op backends fetch` leaves pickled weights behind; a person may want to fetch them so."""
    (copied / "magvitv2" / "pytorch_model.bin").unlink()
    with pytest.raises(MissingError, match="no weights in") as caught:
        open_backend(Opening(model=str(copied), device="cpu"))
    assert caught.value.hint == "hf download showlab/magvitv2"


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copied")


NAME = "showo.model.final_layernorm.weight"


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop(NAME), "lacks the tensor"),
        (lambda tensors: tensors.update({NAME: torch.zeros(3)}), "shaped (3,)"),
        (
            lambda tensors: tensors.update({NAME: torch.zeros(32, dtype=torch.int64)}),
            "the type int64",
        ),
        (lambda tensors: tensors.update({"stranger": torch.zeros(3)}), "stranger"),
        (lambda tensors: tensors.clear(), "no tensors"),
    ],
)
def test_a_wrong_checkpoint_names_file_and_tensor(
    copied: Path, change: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    path = copied / "pytorch_model.safetensors"
    rewritten(path, change)
    with pytest.raises(MissingError) as caught:
        open_backend(Opening(model=str(copied), device="cpu"))
    assert says in str(caught.value) and path.name in str(caught.value) and caught.value.hint
    assert says in ("stranger", "no tensors") or NAME in str(caught.value)


def test_a_cut_off_checkpoint_names_file_and_tensor(copied: Path) -> None:
    path = copied / "pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MissingError, match=r"pytorch_model\.safetensors.*cut off at the tensor"):
        open_backend(Opening(model=str(copied), device="cpu"))
    path.unlink()
    with pytest.raises(MissingError, match="no weights"):
        open_backend(Opening(model=str(copied), device="cpu"))


def test_a_cut_off_tokenizer_names_its_file(copied: Path) -> None:
    path = copied / "magvitv2" / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MissingError, match=r"magvitv2/pytorch_model\.bin"):
        open_backend(Opening(model=str(copied), device="cpu"))


def test_a_pickle_is_not_run(copied: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return exec, ("raise RuntimeError('it ran')",)

    torch.save({"encoder.conv_in.weight": Trap()}, copied / "magvitv2" / "pytorch_model.bin")
    with pytest.raises(MissingError, match=r"pytorch_model\.bin"):
        open_backend(Opening(model=str(copied), device="cpu"))


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("config.json", {"num_vq_tokens": 15}, "not a square number"),
        ("config.json", {"num_vq_tokens": None}, "NoneType"),
        ("config.json", {"codebook_size": "64"}, "codebook_size is '64'"),
        ("config.json", {"mask_token_id": 3}, "mask_token_id is 3"),
        ("config.json", {"max_seq_length": 3}, "no room for words"),
        ("config.json", {"max_seq_length": 5000}, "positions do not fit"),
        ("phi-1_5/config.json", {"hidden_size": 0}, "hidden_size is 0"),
        ("phi-1_5/config.json", {"num_attention_heads": 3}, "multiple of num_attention_heads"),
        ("phi-1_5/config.json", {"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ("magvitv2/config.json", {"encoder": [8]}, "list"),
        ("magvitv2/config.json", {"group_norm_groups": 5}, "do not divide into 5 groups"),
        ("magvitv2/config.json", {"encoder": {"ch_mult": "ab"}}, "ch_mult is ('a', 'b')"),
    ],
)
def test_a_config_that_makes_no_sense_is_named_with_the_reason(
    copied: Path, file: str, values: dict[str, Any], says: str
) -> None:
    path = copied / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(MissingError) as caught:
        open_backend(Opening(model=str(copied), device="cpu"))
    assert f"{path} is not that of" in str(caught.value) and says in str(caught.value)


def test_another_kind_of_config_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text('{"codebook_size": 3}')
    with pytest.raises(MissingError, match=r"config\.json is not that of a Show-o: it has no"):
        open_backend(Opening(model=str(copied), device="cpu"))


@pytest.mark.parametrize("listed", [{}, ["x"], {"a": 3}, {"a": "../../etc/passwd"}, {"a": ".."}])
def test_an_index_that_lists_no_files_of_its_folder_is_refused(
    copied: Path, listed: object
) -> None:
    (copied / "pytorch_model.safetensors").unlink()
    index = copied / "pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(MissingError, match=r"index\.json does not list files by tensor"):
        open_backend(Opening(model=str(copied), device="cpu"))


def test_a_bin_file_of_before_torch_1_6_is_read(copied: Path) -> None:
    path = copied / "magvitv2" / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert isinstance(open_backend(Opening(model=str(copied), device="cpu")), ShowoBackend)


@pytest.mark.parametrize(
    "odd",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: {"weight": tensor},
    ],
)
def test_a_bin_file_holds_nothing_but_numbers(
    copied: Path, odd: Callable[[Tensor], object]
) -> None:
    path, name = copied / "magvitv2" / "pytorch_model.bin", "encoder.conv_in.weight"
    tensors = torch.load(path, weights_only=True)
    torch.save({**tensors, name: odd(tensors[name])}, path)
    with pytest.raises(MissingError, match=rf"{name} in .* is not a tensor of numbers"):
        open_backend(Opening(model=str(copied), device="cpu"))


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("config.json", {"vision_config": {"hidden_size": 7}}, "not that of CLIP"),
        ("config.json", {"vision_config": [3]}, "not that of CLIP"),
        ("preprocessor_config.json", {"image_mean": "x"}, "does not prepare pictures"),
    ],
)
def test_a_clip_that_makes_no_sense_is_named(
    tmp_path: Path, file: str, values: dict[str, Any], says: str
) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "clip", clip=True)
    (folder / "clip-vit-large-patch14-336" / file).write_text(json.dumps(values))
    with pytest.raises(MissingError, match=says) as caught:
        open_backend(Opening(model=str(folder), device="cpu"))
    assert file in str(caught.value)


def test_a_missing_shard_is_named_with_a_tensor_of_it(tmp_path: Path) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "sharded", kind="sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingError, match=r"model-00002-of-00002.*which holds showo\."):
        open_backend(Opening(model=str(folder), device="cpu"))


def test_another_tokenizer_is_refused(copied: Path) -> None:
    path = copied / "phi-1_5" / "tokenizer.json"
    other = tiny_showo.tokenizer()
    other.add_tokens(["stranger"])
    other.save(str(path))
    with pytest.raises(MissingError, match="258 tokens"):
        open_backend(Opening(model=str(copied), device="cpu"))
