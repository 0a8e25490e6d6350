"""Opening a Janus: the layout of transformers, or that of its authors (Janus-4o)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from omnipersona_cli.backend import Backend
from omnipersona_cli.errors import MissingError
from op_autoregressive import loading
from op_janus import INFO, original
from op_janus.backend import BOI, EOI, JanusBackend

NEEDED = ("<image_placeholder>", BOI, EOI, "<|User|>", "<|Assistant|>")
NEEDED_TENSORS = {
    "model.generation_head.vision_head.weight": "image head",
    "model.vqmodel.quantize.embedding.weight": "image tokenizer",
    "model.vision_model.embeddings.patch_embedding.weight": "vision tower",
}
EDITORS = ("janus-4o",)
"""Names of models that learned to edit from a source picture. Their files are like those of models
that did not, so that the name is all there is to go by."""


def open_backend(model: str | None, device: str, dtype: str | None) -> Backend:
    """A checkpoint in either layout, from a folder or the hub's cache.

    Raises MissingError where it is not here or not whole, UsageError where it is no Janus.
    """
    name = model or INFO.default_model
    device = loading.choose_device(device)
    kind = loading.choose_dtype(dtype, device)
    folder = loading.locate(name, backend="janus")
    types = ("janus", original.MODEL_TYPE)
    config = loading.read_config(folder, types=types, backend="janus")
    files = loading.tensor_files(folder, backend="janus")
    authors = config["model_type"] == original.MODEL_TYPE
    for tensor, why in NEEDED_TENSORS.items():
        named = original.old_name(tensor) if authors else tensor
        loading.require(files, named, why=why, backend="janus")
    tokenizer = _tokenizer(folder)
    janus: Any = _converted(folder, config, files, kind) if authors else _native(folder, kind)
    janus.model.vqmodel.float()  # in bfloat16 some codes flip
    sight: Any = janus.config.vision_config
    edit = "native" if edits_natively(name, folder) else INFO.tasks["edit"]
    return JanusBackend(
        info=replace(
            INFO, sizes=((sight.image_size, sight.image_size),), tasks={**INFO.tasks, "edit": edit}
        ),
        model=folder.name if Path(name).is_dir() else name,  # a path would tell of this machine
        fingerprint=loading.fingerprint(folder, files, name),
        janus=janus.to(device),
        tokenizer=tokenizer,
    )


def edits_natively(name: str, folder: Path) -> bool:
    """Whether the model called ``name``, in ``folder``, is one that learned to edit."""
    cached = folder.parent.parent.name if folder.parent.name == "snapshots" else ""
    named = (name.rpartition("/")[2] if not Path(name).is_dir() else folder.name, cached)
    return any(editor in it.lower() for editor in EDITORS for it in named)


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file():
        raise MissingError(
            f"{folder / 'tokenizer.json'} is missing", hint="op backends fetch janus"
        )
    tokenizer: PreTrainedTokenizerFast
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    words = tokenizer.get_vocab()
    unknown = [it for it in NEEDED if it not in words]
    if unknown or tokenizer.pad_token_id is None:
        raise MissingError(
            f"the tokenizer in {folder} has no {unknown[0] if unknown else 'padding token'}",
            hint="op backends fetch janus",
        )
    return tokenizer


def _native(folder: Path, kind: torch.dtype) -> JanusForConditionalGeneration:
    loaded: Any = JanusForConditionalGeneration.from_pretrained(
        folder,
        dtype=kind,
        local_files_only=True,
        use_safetensors=True,
        tie_word_embeddings=False,  # the released configuration lacks the key, whose default is yes
        output_loading_info=True,
    )
    janus: JanusForConditionalGeneration
    janus, report = loaded
    lost = sorted(str(it) for what in ("missing_keys", "mismatched_keys") for it in report[what])
    if lost:
        raise MissingError(
            f"the weights in {folder} do not fit their configuration: {lost[0]}",
            hint="op backends fetch janus",
        )
    return janus


def _converted(
    folder: Path, config: Mapping[str, Any], files: Mapping[str, Path], kind: torch.dtype
) -> JanusForConditionalGeneration:
    """The authors' layout, its tensors renamed as they are read; nothing is written."""
    theirs = original.configuration(config, files, folder=folder)
    tensors = original.converted(files, _shapes(theirs))
    janus: JanusForConditionalGeneration = JanusForConditionalGeneration.from_pretrained(
        None, config=theirs, state_dict=tensors, dtype=kind
    )
    return janus


def _shapes(config: JanusConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model of this configuration has."""
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
