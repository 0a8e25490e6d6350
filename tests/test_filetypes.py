"""Files of other programs are named for what they are, and nothing in them is opened."""

import zipfile

import pytest
import torch
from safetensors.torch import save

from omnipersona_cli.concepts.pack import read_pack
from omnipersona_cli.errors import PackError, PhotoError


def rows(*shape):
    return torch.zeros(*shape)


FILES = {
    "a textual inversion of AUTOMATIC1111": {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows(4, 8)},
        "name": "bo",
    },
    "a textual inversion of diffusers": {"<bo>": rows(8)},
    "a zip of PyTorch": {"state": rows(8)},
}


@pytest.mark.parametrize("what", FILES)
def test_pickles_of_other_programs(tmp_path, what):
    torch.save(FILES[what], tmp_path / "learned_embeds.bin")
    with pytest.raises(PackError, match=f"not a concept but {what}: a Python pickle") as raised:
        read_pack(tmp_path / "learned_embeds.bin")
    assert "op learn PHOTOS" in raised.value.hint


def test_tokens_of_yollava(tmp_path):
    torch.save({1: rows(1, 8), 2: rows(16, 8)}, tmp_path / "15-token.pt")
    with pytest.raises(PackError, match="Yo'LLaVA"):
        read_pack(tmp_path / "15-token.pt")


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"<bo>": rows(4, 8)}, "a textual inversion of diffusers"),
        ({"emb_params": rows(4, 8)}, "a textual inversion of kohya's scripts"),
        ({"clip_l": rows(4, 8), "clip_g": rows(4, 8)}, "a textual inversion for SDXL"),
        ({"lora_unet_0.lora_up.weight": rows(4, 2), "lora_unet_0.alpha": rows(1)}, "a LoRA"),
        ({"base_model.model.q.lora_A.weight": rows(2, 8)}, "a LoRA"),
        ({"model.layers.0.weight": rows(2, 8)}, "a safetensors file of another program"),
    ],
)
def test_safetensors_of_other_programs(tmp_path, tensors, what):
    (tmp_path / "x.safetensors").write_bytes(save(tensors))
    with pytest.raises(PackError, match=f"not a concept but {what}") as raised:
        read_pack(tmp_path / "x.safetensors")
    assert "op learn PHOTOS" in raised.value.hint


@pytest.mark.parametrize(
    ("start", "what", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS", "git lfs"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page", "download"),
        (b"\x1f\x8b" + bytes(20), "an archive", "unpack"),
        (b"GGUF\x03\0\0\0" + bytes(20), "a GGUF file", "safetensors"),
        (b"\x80\x02}q\x00.", "a file of Python or PyTorch: a Python pickle", "op learn"),
    ],
)
def test_what_came_instead_of_a_pack(tmp_path, start, what, hint):
    (tmp_path / "bo.opconcept").write_bytes(start)
    with pytest.raises(PackError, match=what) as raised:
        read_pack(tmp_path / "bo.opconcept")
    assert hint in raised.value.hint


def test_a_zip_of_photos_is_named_with_what_to_do(tmp_path):
    from omnipersona_cli.data.photos import open_album

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("a.jpg", b"x")
    with pytest.raises(PhotoError, match="not a picture but a zip archive") as raised:
        open_album([tmp_path / "photos.zip"], seed=0)
    assert "unpack it" in raised.value.hint
