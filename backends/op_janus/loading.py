"""Opening a Janus: the layout of transformers, or that of its authors (Janus-4o)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from omnipersona_cli.backend import Backend, OnStep, Opening
from omnipersona_cli.errors import MissingError
from omnipersona_cli.family import checkpoint, weights
from omnipersona_cli.family.checkpoint import check_shapes, configured, shapes_of, silently
from omnipersona_cli.family.device import (
    SPARE,
    cache_gb,
    choose_device,
    choose_dtype,
    weights_gb,
)
from omnipersona_cli.family.offload import check_offload, keep_home
from omnipersona_cli.family.quantize import refuse_quantize
from omnipersona_cli.family.recompute import recompute
from op_janus import INFO, original
from op_janus.backend import JanusBackend
from op_janus.prompts import BOI, EOI, PROMPT

NEEDED = ("<image_placeholder>", BOI, EOI, "<|User|>", "<|Assistant|>")
NEEDED_TENSORS = {
    "model.generation_head.vision_head.weight": "image head",
    "model.vqmodel.quantize.embedding.weight": "image tokenizer",
    "model.vision_model.embeddings.patch_embedding.weight": "vision tower",
}
EDITORS = ("janus-4o",)
"""Names of models that learned to edit from a source picture. Their files are like those of models
that did not, so that the name is all there is to go by."""


def open_backend(opening: Opening) -> Backend:
    """A checkpoint in either layout, from a folder or the hub's cache.

    Raises MissingError where it is not here or not whole, UsageError where it is not Janus.
    """
    name = opening.model or INFO.default_model
    device = choose_device(opening.device)
    refuse_quantize(opening.quantize, "janus")
    if opening.offload:
        check_offload(device)
    kind = choose_dtype(opening.dtype, device, backend="janus")
    folder = weights.locate(name, INFO, revisions=opening.revisions)
    types = ("janus", original.MODEL_TYPE)
    config = checkpoint.read_config(folder, types=types, backend="janus")
    files = checkpoint.tensor_files(folder, backend="janus")
    authors = config["model_type"] == original.MODEL_TYPE
    for tensor, why in NEEDED_TENSORS.items():
        named = original.old_name(tensor) if authors else tensor
        checkpoint.require(files, named, why=why, backend="janus")
    tokenizer = _tokenizer(folder)
    if authors:
        janus: Any = _converted(folder, config, files, kind, opening.on_step)
    else:
        janus = _native(folder, files, kind, opening.on_step)
    layers = janus.model.language_model.layers
    if opening.offload:
        keep_home(janus, layers, device)
    elif opening.activation_checkpointing:
        recompute(layers)
    sight: Any = janus.config.vision_config
    edit = "native" if edits_natively(name, folder) else INFO.tasks["edit"]
    return JanusBackend(
        info=replace(
            INFO,
            sizes=((sight.image_size, sight.image_size),),
            tasks={**INFO.tasks, "edit": edit},
            memory_gb=painting_gb(janus, native=edit == "native", size=kind.itemsize),
            deep_layers=len(layers) - 1,
        ),
        model=weights.public_name(name, INFO),
        fingerprint=checkpoint.fingerprint(folder, files, name),
        janus=janus if opening.offload else janus.to(device),
        tokenizer=tokenizer,
    )


def edits_natively(name: str, folder: Path) -> bool:
    """Whether the model called ``name``, in ``folder``, is one that learned to edit."""
    cached = folder.parent.parent.name if folder.parent.name == "snapshots" else ""
    named = (Path(name).name, folder.name, cached)
    return any(editor in one.lower() for editor in EDITORS for one in named)


def painting_gb(janus: JanusForConditionalGeneration, *, native: bool, size: int = 2) -> float:
    """GiB for painting one picture, or where the model edits natively, for an edit."""
    sight: Any = janus.config.vision_config
    parts = 3 if native else 1  # a picture's features, its codes, and those that are sampled
    cached = cache_gb(
        janus.config.get_text_config(),
        rows=3 if native else 2,
        positions=parts * sight.num_image_tokens + PROMPT,
        size=size,
    )
    whole = weights_gb(janus, size=size, exact=janus.model.vqmodel)
    return round(whole + cached + SPARE, 1)


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    hint = "op backends fetch janus"
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MissingError(f"{path} is missing", hint=hint)
    tokenizer: PreTrainedTokenizerFast
    try:
        with silently():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its reader raises a bare one
        raise MissingError(f"{path} is broken: {error}", hint=hint) from error
    words = tokenizer.get_vocab()
    unknown = [token for token in NEEDED if token not in words]
    ends = {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
    }
    unknown += [name for name, token in ends.items() if not token]
    if unknown:
        raise MissingError(f"the tokenizer in {folder} has no {unknown[0]}", hint=hint)
    return tokenizer


def _native(
    folder: Path, files: Mapping[str, Path], kind: torch.dtype, on_step: OnStep | None
) -> JanusForConditionalGeneration:
    """The layout of transformers."""

    def configuration() -> JanusConfig:
        # the released configuration lacks the key, whose default is yes
        found: JanusConfig = JanusConfig.from_pretrained(
            folder, local_files_only=True, tie_word_embeddings=False
        )
        return found

    with silently(on_step):
        config = configured(configuration, folder, backend="janus")
        wanted = _wanted(config, folder)
        check_shapes(files, wanted, backend="janus")
        janus: Any = JanusForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=kind, local_files_only=True, use_safetensors=True
        )
    checkpoint.restore_float32(janus.model.vqmodel, files, "vqmodel")  # in bfloat16 codes flip
    return cast("JanusForConditionalGeneration", janus)


def _converted(
    folder: Path,
    config: Mapping[str, Any],
    files: Mapping[str, Path],
    kind: torch.dtype,
    on_step: OnStep | None,
) -> JanusForConditionalGeneration:
    """The authors' layout, its tensors renamed as they are read; nothing is written."""
    theirs = configured(
        lambda: original.configuration(config, files, folder=folder), folder, backend="janus"
    )
    tensors = original.converted(files, _wanted(theirs, folder))
    with silently(on_step):
        janus: Any = JanusForConditionalGeneration.from_pretrained(
            None, config=theirs, state_dict=tensors, dtype=kind
        )
    start = "model.vqmodel."
    painter = {key: value for key, value in tensors.items() if key.startswith(start)}
    janus.model.vqmodel.float().load_state_dict(  # in bfloat16 codes flip
        {key.removeprefix(start): value for key, value in painter.items()}
    )
    return cast("JanusForConditionalGeneration", janus)


def _wanted(config: JanusConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the checkpoint must have."""
    sight: Any = config.vision_config
    painter: Any = config.vq_config
    patches = (sight.image_size // sight.patch_size) ** 2
    codes = (sight.image_size // 2 ** (len(painter.channel_multiplier) - 1)) ** 2
    if not sight.num_image_tokens == patches == codes:
        raise MissingError(
            f"{folder / 'config.json'} contradicts itself: {sight.image_size} pixels are {patches} "
            f"patches and {codes} codes, not {sight.num_image_tokens}",
            hint="op backends fetch janus",
        )

    def shapes() -> dict[str, tuple[int, ...]]:
        return shapes_of(lambda: JanusForConditionalGeneration(config))

    return configured(shapes, folder, backend="janus")
