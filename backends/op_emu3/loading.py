"""Which checkpoint does which task, and opening one.

Emu3 was trained further twice: Chat answers, Gen paints, and neither can do the other's work.
``--model`` says what there is:

=====================  ===========================================================================
``CHAT+GEN``           the first answers, the second paints and edits; the default is such a pair
a folder of folders    the same: the one called chat answers, the one called gen paints
one checkpoint         does what its name says; without "chat" and "gen" in it, as Emu3-Stage1 and
                       your own training, everything
=====================  ===========================================================================

The files of Chat and Gen are alike in every respect but their values, so that the name is all
there is to go by. Nothing is read into memory here but headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    PreTrainedTokenizerFast,
)

from omnipersona_cli.backend import TASKS, OnStep, Task
from omnipersona_cli.errors import MissingError, UsageError, shell_word
from omnipersona_cli.family import checkpoint, weights
from omnipersona_cli.family.checkpoint import check_shapes, configured, shapes_of, silently
from omnipersona_cli.family.language import CausalLM
from omnipersona_cli.family.offload import keep_home
from omnipersona_cli.family.recompute import recompute
from omnipersona_cli.family.tokens import NORMS
from op_emu3 import INFO, layout

LONG = 1024
"""From this many positions on, learning keeps no activations but those between layers."""
PAINTING: tuple[Task, ...] = ("generate", "edit")
TABLE = "model.text_model.embed_tokens.weight"
NEEDED_TENSORS = {
    "lm_head.weight": "language head",
    "model.vqmodel.quantize.embedding.weight": "image tokenizer",
}
RENAMED = (
    ("model.text_model.", "text_model.model."),
    ("model.vqmodel.", "vqmodel."),
    ("lm_head.", "text_model.lm_head."),
)
"""Beginnings of names: of today's modules, and of the tensors in the released files."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """A checkpoint that lies on disk, looked at from outside.

    ``width`` is d, ``layers`` how many there are, ``codes`` the size of the codebook,
    ``positions`` the longest sequence, ``areas`` the pixels of the pictures it takes, in the order
    of preference.
    """

    name: str
    folder: Path
    files: Mapping[str, Path]
    fingerprint: str
    width: int
    layers: int
    codes: int
    positions: int
    areas: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedCheckpoint:
    """A checkpoint in memory. Code c is the token ``first`` + c; ``head`` [codes, d] are the rows
    of the language head that speak of codes."""

    source: CheckpointFiles
    emu3: Emu3ForConditionalGeneration
    llm: CausalLM
    processor: Emu3ImageProcessor
    first: int
    end_of_line: int

    @property
    def head(self) -> Tensor:
        """A view, not a copy: there are 32,768 rows of 4,096."""
        weight: Tensor = self.emu3.lm_head.weight
        return weight[self.first : self.first + self.source.codes]


def sources(
    model: str | None, revisions: Mapping[str, str] = MappingProxyType({})
) -> dict[Task, CheckpointFiles]:
    """The checkpoint of each task that ``model`` can do, checked and unread.

    Raises MissingError for what is not here or not whole, UsageError for what is not Emu3.
    """
    name = model or INFO.default_model
    if model is None:
        _check_here(name.split("+"), revisions)
    folder = weights.place_of(name, INFO)
    if folder is not None and folder.is_dir():
        named = {path.name: path for path in _checkpoints_in(folder)}
        return _of_folders(folder, named) if named else _of_one(name, revisions)
    if "+" in name:
        reader, _, painter = name.partition("+")
        if not reader or not painter or "+" in painter:
            raise UsageError(
                f"{name} does not name two checkpoints", hint=f"--model {INFO.default_model}"
            )
        return _pair(_source(reader, revisions), _source(painter, revisions))
    return _of_one(name, revisions)


def tasks_of(name: str) -> tuple[Task, ...]:
    """What a checkpoint of this name can do."""
    words = re.split(r"[^a-z0-9]+", re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower())
    if ("chat" in words) == ("gen" in words):
        return TASKS
    return ("understand",) if "chat" in words else PAINTING


def fingerprint_of(found: Mapping[Task, CheckpointFiles]) -> str:
    """One checkpoint's own; that of a pair is of both, wherever they lie."""
    prints = list(dict.fromkeys(source.fingerprint for source in found.values()))
    if len(prints) == 1:
        return prints[0]
    values = "+".join(fingerprint.partition("@")[2] for fingerprint in prints)
    return f"emu3-chat-gen@{sha256(values.encode()).hexdigest()[:16]}"


def norm_limit(found: Mapping[Task, CheckpointFiles]) -> float:
    """As `Backend.norm_limit` has it, over the tables of all checkpoints, read or not."""
    tables = {
        (source.files[name], name)
        for source in found.values()
        for name in (old_name(TABLE, source.files),)
    }
    return NORMS * max(checkpoint.largest_norm(path, name) for path, name in tables)


def old_name(name: str, files: Mapping[str, Path]) -> str:
    """What a module's tensor is called in these files: as today, or as it was released."""
    if name in files:
        return name
    start, old = next((pair for pair in RENAMED if name.startswith(pair[0])), ("", ""))
    return old + name.removeprefix(start)


def read(
    source: CheckpointFiles,
    device: str,
    dtype: torch.dtype,
    on_step: OnStep | None = None,
    *,
    offloaded: bool = False,
) -> LoadedCheckpoint:
    """Weights into memory, those of layers into the computer's where they are ``offloaded``; the
    image tokenizer stays in float32, where its codes are right."""
    tokenizer = _tokenizer(source)
    with silently(on_step):
        emu3: Any = Emu3ForConditionalGeneration.from_pretrained(
            source.folder,
            config=_configuration(source.folder),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
        )
    if dtype != torch.float32:
        checkpoint.restore_float32(emu3.model.vqmodel, source.files, "vqmodel")
    emu3 = emu3.requires_grad_(False).train(False)
    decoder = emu3.model.text_model
    if offloaded:
        keep_home(emu3, decoder.layers, device)
    else:
        emu3 = emu3.to(device)
        recompute(decoder.layers, least=LONG)
    number = partial(_number, tokenizer)
    table, end = emu3.get_input_embeddings(), number(layout.EOS)
    return LoadedCheckpoint(
        source=source,
        emu3=emu3,
        llm=CausalLM(decoder, table, emu3.lm_head, tokenizer, end=end),
        processor=_processor(source.folder, source.name),
        first=number(layout.visual(0)),
        end_of_line=number(layout.EOL),
    )


def _check_here(names: list[str], revisions: Mapping[str, str]) -> None:
    """MissingError that names all weights of the default that are not here, and one command that
    brings them."""
    lost = []
    for name in names:
        try:
            weights.locate(name, INFO, revisions=revisions)
        except MissingError:
            lost.append(name)
    if lost:
        raise MissingError(
            f"the weights {' and '.join(lost)} are not on this computer",
            hint="op backends fetch emu3",
        )


def _checkpoints_in(folder: Path) -> list[Path]:
    """Folders of checkpoints in ``folder``, which is not a checkpoint itself."""
    if (folder / "config.json").exists():
        return []
    return sorted(path.parent for path in folder.glob("*/config.json"))


def _of_folders(folder: Path, named: Mapping[str, Path]) -> dict[Task, CheckpointFiles]:
    found: dict[Task, Path] = {}
    for name, path in named.items():
        for task in tasks_of(name):
            if task in found:
                raise UsageError(
                    f"{found[task].name} and {name} in {folder} both claim to {task}",
                    hint="say which answers and which paints: --model "
                    + shell_word(f"{folder}/CHAT+{folder}/GEN"),
                )
            found[task] = path
    opened = {path: _source(str(path)) for path in dict.fromkeys(found.values())}
    return _fitting({task: opened[found[task]] for task in TASKS if task in found})


def _of_one(name: str, revisions: Mapping[str, str]) -> dict[Task, CheckpointFiles]:
    source = _source(name, revisions)
    known = name if weights.place_of(name, INFO) is None else _known_as(source.folder)
    return {task: source for task in tasks_of(known)}


def _known_as(folder: Path) -> str:
    """A folder's name; for one in the hub's cache, which is named by its revision, the
    repository's."""
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def _pair(reader: CheckpointFiles, painter: CheckpointFiles) -> dict[Task, CheckpointFiles]:
    return _fitting({"understand": reader, **{task: painter for task in PAINTING}})


def _fitting(found: dict[Task, CheckpointFiles]) -> dict[Task, CheckpointFiles]:
    """The same; UsageError where one concept could not live in all of them."""
    widths = {source.width: source.name for source in found.values()}
    if len(widths) > 1:
        told = " and ".join(f"{name} is {width} wide" for width, name in widths.items())
        raise UsageError(f"the checkpoints do not fit together: {told}", hint=_SHOW)
    return found


def _source(name: str, revisions: Mapping[str, str] = MappingProxyType({})) -> CheckpointFiles:
    folder = weights.locate(name, INFO, revisions=revisions)
    kind = checkpoint.read_config(folder, types=("emu3", "Emu3"), backend="emu3")["model_type"]
    if kind == "Emu3":
        raise UsageError(
            f"{name} is in the authors' own format, which needs code that it brings along",
            hint=f"take the copy for transformers: --model {INFO.default_model}",
        )
    files = checkpoint.tensor_files(folder, backend="emu3")
    config = _configuration(folder)
    _check_vocabulary(config.vocabulary_map, config.vq_config.codebook_size, name)
    names = {tensor: old_name(tensor, files) for tensor in (TABLE, *NEEDED_TENSORS)}
    for tensor, why in NEEDED_TENSORS.items():
        checkpoint.require(files, names[tensor], why=why, backend="emu3")
    with silently():
        shapes = configured(
            lambda: shapes_of(lambda: Emu3ForConditionalGeneration(config)), folder, backend="emu3"
        )
    wanted = {old_name(tensor, files): shape for tensor, shape in shapes.items()}
    check_shapes(files, wanted, backend="emu3")
    if not (folder / "tokenizer.json").is_file():
        raise MissingError(f"{folder / 'tokenizer.json'} is missing", hint=_fetch(name))
    processor = _processor(folder, name)
    return CheckpointFiles(
        name=weights.public_name(name, INFO),
        folder=folder,
        files=files,
        fingerprint=checkpoint.fingerprint(folder, files, name),
        width=config.text_config.hidden_size,
        layers=config.text_config.num_hidden_layers,
        codes=config.vq_config.codebook_size,
        positions=config.text_config.max_position_embeddings,
        areas=layout.areas_within(int(processor.min_pixels), int(processor.max_pixels)),
    )


def _configuration(folder: Path) -> Any:
    made = partial(Emu3Config.from_pretrained, folder, local_files_only=True)
    with silently():
        return configured(made, folder, backend="emu3")


def _check_vocabulary(words: Any, codes: int, name: str) -> None:
    """MissingError unless every code has a token, and all of them stand in a row."""
    needed = ("<image>", layout.EOL, layout.visual(0))
    known = words if isinstance(words, dict) else {}
    lost = [token for token in needed if token not in known]
    if not lost:
        first = known[layout.visual(0)]
        every = (layout.visual(code) for code in range(codes))
        lost = [token for code, token in enumerate(every) if known.get(token) != first + code][:1]
    if lost:
        what = f"has no {lost[0]} in its place" if known else "is missing"
        raise MissingError(f"the vocabulary_map of {name} {what}", hint=_fetch(name))


def _tokenizer(source: CheckpointFiles) -> PreTrainedTokenizerFast:
    path = source.folder / "tokenizer.json"
    tokenizer: PreTrainedTokenizerFast
    try:
        with silently():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, local_files_only=True)
    except Exception as error:  # its reader raises a bare one
        raise MissingError(f"{path} is broken: {error}", hint=_fetch(source.name)) from error
    words = tokenizer.get_vocab()
    needed = (*layout.NEEDED, layout.visual(0), layout.visual(source.codes - 1))
    unknown = [token for token in needed if token not in words]
    if unknown:
        raise MissingError(
            f"the tokenizer in {source.folder} has no {unknown[0]}",
            hint=_fetch(source.name),
        )
    return tokenizer


def _processor(folder: Path, name: str) -> Emu3ImageProcessor:
    """The released one: the class's own mean and deviation are another model's."""
    if not any((folder / name).is_file() for name in ("processor_config.json", _PREPROCESSOR)):
        raise MissingError(f"{folder / _PREPROCESSOR} is missing", hint=_fetch(name))
    try:
        with silently():
            return Emu3ImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what it raises depends on what is wrong with the file
        raise MissingError(
            f"the image processor in {folder} is broken: {error}",
            hint=_fetch(name),
        ) from error


def _number(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(cast(int, tokenizer.convert_tokens_to_ids(token)))


def _fetch(name: str) -> str:
    return weights.fetch_command(INFO, name)


_PREPROCESSOR = "preprocessor_config.json"
_SHOW = "op backends show emu3"
