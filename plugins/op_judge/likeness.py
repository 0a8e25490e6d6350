"""How alike pictures are, by the cosine of their embeddings: CLIP ViT-B/32 and DINO ViT-S/16.

The encoders are those of the published figures: CLIP-I, CLIP-T and DINO as DreamBooth takes them
(Ruiz et al. 2023, section 4.1). As in UnifyBench's evaluator a picture is first brought to 512
pixels on its shorter side and cropped in its middle. Weights are read from this machine alone, and
only as safetensors; a checkpoint that lacks a tensor is refused rather than filled up at random.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from omnipersona_cli.errors import MissingError, PersonaError
from omnipersona_cli.hookspecs import JudgeItem, JudgeKind, Judgement

CLIP, CLIP_REVISION = "openai/clip-vit-base-patch32", "refs/pr/15"
"""The branch that has the weights as safetensors."""

DINO, DINO_REVISION = "facebook/dino-vits16", "main"

SIDE = 512
"""Pixels to which pictures are brought before an encoder's own preparation."""

REMEMBERED = 4096
"""Embeddings that are kept: the same reference photos are asked about again and again."""


class Embeddings:
    """Pictures as unit vectors, each encoded once while it is remembered."""

    def __init__(self, encode: Callable[[Image], Tensor]) -> None:
        self._encode = encode
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def of(self, image: Image) -> Tensor:
        """The unit vector [d] of a picture."""
        image = image.convert("RGB")
        key = sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        if key not in self._known:
            vector = self._encode(middle(image))
            self._known[key] = vector / vector.norm()
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def alike(self, images: Sequence[Image], references: Sequence[Image]) -> Judgement:
        """The mean cosine of every picture with every reference."""
        if not images or not references:
            return Judgement(score=None, detail="nothing to compare with", failed=True)
        one = torch.stack([self.of(image) for image in images])
        other = torch.stack([self.of(image) for image in references])
        return _finite(float((one @ other.T).mean()))


class ClipJudge:
    """CLIP-I (image-image) and CLIP-T (image-text), cosines from -1 to 1."""

    kinds: frozenset[JudgeKind] = frozenset({"image-image", "image-text"})
    remarks: tuple[str, ...] = ()

    def __init__(self) -> None:
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        folder = weights_folder("OMNIPERSONA_CLIP", CLIP, CLIP_REVISION)
        self._model = opened(CLIPModel, folder)
        # PIL's resampling, not torchvision's where that is installed: equal numbers everywhere
        self._pixels = _from(CLIPImageProcessorPil, folder)
        self._tokens = _from(CLIPTokenizer, folder)
        self._pictures = Embeddings(self._encoded)
        self.id = f"clip@{fingerprint(folder)}"

    def score(self, item: JudgeItem) -> Judgement:
        """The mean cosine with the references, or with the text."""
        if item.kind == "image-image":
            return self._pictures.alike(item.images, item.references)
        if not item.images or not item.prompt.strip():
            return Judgement(score=None, detail="no text to compare with", failed=True)
        text = self._text(item.prompt)
        cosines = [float(self._pictures.of(image) @ text) for image in item.images]
        return _finite(sum(cosines) / len(cosines))

    @torch.no_grad()
    def _encoded(self, image: Image) -> Tensor:
        pixels = self._pixels(images=[image], return_tensors="pt")["pixel_values"]
        found: Tensor = self._model.get_image_features(pixel_values=pixels).pooler_output[0]
        return found

    @torch.no_grad()
    def _text(self, text: str) -> Tensor:
        longest = self._model.config.text_config.max_position_embeddings
        read = self._tokens(text, truncation=True, max_length=longest, return_tensors="pt")
        found: Tensor = self._model.get_text_features(**read).pooler_output[0]
        unit: Tensor = found / found.norm()
        return unit


class DinoJudge:
    """DINO: the cosine of class tokens, from -1 to 1."""

    kinds: frozenset[JudgeKind] = frozenset({"image-image"})
    remarks: tuple[str, ...] = ()

    def __init__(self) -> None:
        from transformers import ViTModel
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        folder = weights_folder("OMNIPERSONA_DINO", DINO, DINO_REVISION)
        self._model = opened(ViTModel, folder, add_pooling_layer=False)
        self._pixels = _from(ViTImageProcessorPil, folder)
        self._pictures = Embeddings(self._encoded)
        self.id = f"dino@{fingerprint(folder)}"

    def score(self, item: JudgeItem) -> Judgement:
        """The mean cosine with the references."""
        return self._pictures.alike(item.images, item.references)

    @torch.no_grad()
    def _encoded(self, image: Image) -> Tensor:
        pixels = self._pixels(images=[image], return_tensors="pt")["pixel_values"]
        found: Tensor = self._model(pixel_values=pixels).last_hidden_state[0, 0]
        return found


def middle(image: Image) -> Image:
    """The picture with its shorter side at `SIDE`, and of that the square in the middle."""
    scale = SIDE / min(image.size)
    width, height = (max(SIDE, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Resampling.BICUBIC)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def weights_folder(variable: str, repo: str, revision: str) -> Path:
    """Where the weights are: the folder that the environment names, or the hub's cache.

    Raises MissingError where they are not on this machine, or not as safetensors.
    """
    named = os.environ.get(variable, "")
    if named and not os.path.isdir(os.path.expanduser(named)):
        raise MissingError(
            f"{variable} names {named}, which is not a folder", hint=f"unset {variable}"
        )
    fetch = f"hf download {repo}" + (f" --revision {revision}" if revision != "main" else "")
    folder = Path(os.path.expanduser(named)) if named else _cached(repo, revision, fetch)
    if not (folder / "model.safetensors").is_file():
        raise MissingError(
            f"{folder} holds no model.safetensors, and nothing else is read",
            hint=f"name a folder that has one: {variable}=DIR",
        )
    return folder


def opened(kind: Any, folder: Path, **settings: Any) -> Any:
    """The transformers model of class ``kind`` in ``folder``, for use; PersonaError where the
    checkpoint is not one of that kind."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    quiet: Any = logging
    quiet.disable_progress_bar()
    before = quiet.get_verbosity()
    quiet.set_verbosity_error()  # what it would warn of is looked at below
    try:
        model, told = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **settings,
        )
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise _not_usable(folder, error) from error
    finally:
        quiet.set_verbosity(before)
    lacking = sorted(map(str, (*told["missing_keys"], *told["mismatched_keys"])))
    if lacking:
        raise PersonaError(
            f"the weights in {folder} lack {len(lacking)} tensors, {lacking[0]} among them",
            hint="fetch them again; `op bench judges` says what to fetch",
        )
    return model.eval()


def fingerprint(folder: Path) -> str:
    """16 digits of the sha256 of the weights: what cosines are comparable by."""
    with (folder / "model.safetensors").open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:16]


def _from(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_usable(folder, error) from error


def _cached(repo: str, revision: str, fetch: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise MissingError(f"the weights of {repo} are not here", hint=fetch) from error


def _not_usable(folder: Path, error: Exception) -> PersonaError:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return PersonaError(
        f"the judge's weights in {folder} cannot be used: {line}",
        hint="fetch them again; `op bench judges` says what to fetch",
    )


def _finite(value: float) -> Judgement:
    """A cosine, or a failure where the weights gave no number."""
    if value != value:
        return Judgement(score=None, detail="the encoder gave no number", failed=True)
    return Judgement(score=max(-1.0, min(1.0, value)))
