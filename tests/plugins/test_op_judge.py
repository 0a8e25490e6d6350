"""Likeness by CLIP and DINO on tiny random checkpoints in the released layout; faces."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from omnipersona_cli import registry
from omnipersona_cli.errors import MissingError, PersonaError
from omnipersona_cli.hookspecs import JudgeItem
from omnipersona_cli.testing import drawing
from op_judge.face import FaceJudge, compared, detection_size
from op_judge.likeness import SIDE, ClipJudge, DinoJudge, middle

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=TINY | {"vocab_size": len(words), "max_position_embeddings": 12,
                            "bos_token_id": 0, "eos_token_id": 1},
        vision_config=TINY | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[]).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = ViTConfig(**TINY, image_size=32, patch_size=16)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(clip_folder, monkeypatch):
    monkeypatch.setenv("OMNIPERSONA_CLIP", str(clip_folder))
    return ClipJudge()


@pytest.fixture
def dino(dino_folder, monkeypatch):
    monkeypatch.setenv("OMNIPERSONA_DINO", str(dino_folder))
    return DinoJudge()


def alike(judge, image, *references):
    return judge.score(JudgeItem(kind="image-image", images=(image,), references=references)).score


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_a_picture_is_most_like_itself_and_the_mean_is_over_references(name, request):
    judge = request.getfixturevalue(name)
    red, blue = drawing("red", 1), drawing("blue", 2)
    assert alike(judge, red, red) == pytest.approx(1, abs=1e-5)
    apart = alike(judge, red, blue)
    assert apart < 0.9999
    assert alike(judge, red, red, blue) == pytest.approx((1 + apart) / 2, abs=1e-5)
    assert judge.score(JudgeItem(kind="image-image", images=(red,))).failed


def test_clip_is_transformers_own_features(clip, clip_folder):
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(clip_folder)
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)
    words = CLIPTokenizer.from_pretrained(clip_folder)
    image = drawing("red", 1)
    with torch.no_grad():
        told = model(
            **pixels(images=[middle(image)], return_tensors="pt"),
            **words(["a red cat"], return_tensors="pt"),
        )
        wanted = float(told.logits_per_image / model.logit_scale.exp())
    item = JudgeItem(kind="image-text", images=(image,), prompt="a red cat")
    assert clip.score(item).score == pytest.approx(wanted, abs=1e-5)
    assert clip.score(JudgeItem(kind="image-text", images=(image,), prompt="cat " * 99)).score
    assert clip.score(JudgeItem(kind="image-text", images=(image,))).failed


def test_references_are_encoded_once(clip, monkeypatch):
    calls = []
    real = clip._model.get_image_features

    def counted(**arguments):
        calls.append(1)
        return real(**arguments)

    monkeypatch.setattr(clip._model, "get_image_features", counted)
    photos = [drawing("red", seed) for seed in range(3)]
    alike(clip, drawing("blue", 9), *photos)
    alike(clip, drawing("green", 9), *photos)
    assert len(calls) == 5


def test_the_middle_of_a_picture_at_512_pixels():
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste((255, 0, 0), (100, 0, 200, 100))
    cut = middle(wide)
    assert cut.size == (SIDE, SIDE)
    assert np.asarray(cut)[:, 4:-4].mean((0, 1)) == pytest.approx((255, 0, 0), abs=2)


def test_without_weights_the_hint_fetches_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for judge, repo in ((ClipJudge, "openai/clip-vit-base-patch32"), (DinoJudge, "dino-vits16")):
        with pytest.raises(MissingError, match=f"{repo} are not here") as caught:
            judge()
        assert caught.value.hint.startswith("hf download ")


def test_weights_that_are_not_all_there_are_refused(
    clip_folder, dino_folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("OMNIPERSONA_CLIP", str(tmp_path / "nowhere"))
    with pytest.raises(MissingError, match="not a folder"):
        ClipJudge()
    monkeypatch.setenv("OMNIPERSONA_CLIP", str(tmp_path))
    with pytest.raises(MissingError, match="holds no model"):
        ClipJudge()
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PersonaError, match=r"lack 1 tensors, visual_projection\.weight"):
        ClipJudge()
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(PersonaError, match="cannot be used"):
        ClipJudge()
    monkeypatch.setenv("OMNIPERSONA_DINO", str(clip_folder))
    with pytest.raises(PersonaError):
        DinoJudge()


def test_scores_are_comparable_by_the_weights(clip, dino):
    assert clip.id.startswith("clip@") and dino.id.startswith("dino@") and clip.id != dino.id


@dataclass
class Seen:
    """A face as InsightFace describes one."""

    bbox: np.ndarray
    normed_embedding: np.ndarray


def face(side, *vector):
    return Seen(bbox=np.array([0, 0, side, side]), normed_embedding=np.array(vector))


def test_the_largest_face_counts_and_no_face_is_a_failure():
    me, other = face(90, 1.0, 0.0), face(20, 0.0, 1.0)
    assert compared([[other, me]], [[me]]).score == pytest.approx(1)
    assert compared([[me]], [[me], [other], []]).score == pytest.approx(0.5)
    assert compared([[]], [[me]]).failed and compared([[me]], [[], []]).failed


def test_faces_are_looked_for_in_large_pictures():
    assert detection_size((512, 512)) == (1024, 1024)
    assert detection_size((600, 900)) == (853, 1280)
    assert detection_size((3000, 2000)) == (1280, 853)


def test_the_face_judge_is_an_extra_whose_licence_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "insightface", None)
    with pytest.raises(MissingError, match="non-commercial") as caught:
        FaceJudge()
    assert "omnipersona[face]" in caught.value.hint


def test_all_of_them_are_listed_with_what_they_need():
    known = registry.judges()
    assert {"clip", "dino", "face", "vlm"} <= known.keys()
    assert all(known[name].licence and known[name].needs for name in ("clip", "dino", "face"))
    assert all(registry.load(info.judge).kinds for info in known.values())
