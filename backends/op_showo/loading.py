"""Open a released Show-o: find its files, check every tensor by name and shape, cast on load.

A model is a folder with Show-o's config.json and weights; beside them, or in the Hugging Face
cache, are the image tokenizer (``magvitv2``), phi's tokenizer and sizes (``phi-1_5``) and, for the
variants that understand through CLIP, its vision tower (``clip-vit-large-patch14-336``). Nothing is
downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from omnipersona_cli.backend import Backend, OnStep, Opening, counted, is_hub_id
from omnipersona_cli.errors import MissingError
from omnipersona_cli.family.checkpoint import check_plain, read_json
from omnipersona_cli.family.device import choose_device, choose_dtype
from omnipersona_cli.family.offload import check_offload, keep_home
from omnipersona_cli.family.quantize import refuse_quantize
from omnipersona_cli.family.recompute import recompute
from omnipersona_cli.family.tokens import norm_limit
from omnipersona_cli.family.weights import fetch_command, locate, public_name
from omnipersona_cli.hookspecs import Base
from op_showo import INFO
from op_showo.backend import ShowoBackend
from op_showo.checkpoint import identity, read_tensors, weight_files
from op_showo.config import (
    SYSTEM,
    ShowoConfig,
    Vocabulary,
    decoder_config,
    tokenizer_config,
)
from op_showo.magvit import Magvit, fit
from op_showo.model import Showo

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

COMPONENTS = {one.repo.partition("/")[2]: one.repo for one in INFO.components}
"""Folders of what the released Show-o takes from elsewhere, and where on the hub they are."""

T = TypeVar("T")


def open_backend(opening: Opening) -> Backend:
    """Show-o from a folder or from the Hugging Face cache.

    Raises MissingError where files are absent, cut off or of another model, UsageError for a
    number format that does not exist.
    """
    name = opening.model or INFO.default_model
    device = choose_device(opening.device)
    kind = choose_dtype(opening.dtype, device, backend="showo")
    folder = locate(name, INFO, revisions=opening.revisions)
    shown = public_name(name, INFO)
    refuse_quantize(opening.quantize, "showo")
    if opening.offload:
        check_offload(device)
    files = _Files(folder=folder, name=shown, revisions=opening.revisions)
    found = _read(files, kind, opening.on_step)
    clip = None
    if found.tower is not None:
        place, sizes = found.tower
        clip = ClipTower(place, sizes, files.hint, device, kind)
    net, config = found.net, found.net.config
    rotary = net.showo.model.rotary_emb  # its tables are not in checkpoints
    net.showo.model.rotary_emb = type(rotary)(config=net.showo.config)
    if opening.offload:
        keep_home(net, net.showo.model.layers, device)
    elif opening.activation_checkpointing:
        recompute(net.showo.model.layers)
    small = config.resolution < INFO.sizes[0][0]
    return ShowoBackend(
        info=replace(
            INFO,
            sizes=((config.resolution, config.resolution),),
            steps=18 if small else INFO.steps,
            guidance=1.75 if small else INFO.guidance,
            deep_layers=config.llm.num_hidden_layers - 1,
        ),
        model=shown,
        fingerprint=found.fingerprint,
        net=net if opening.offload else net.to(device),
        magvit=found.magvit.to(device),
        tokenizer=found.tokenizer,
        clip=clip,
        system=SYSTEM,
    )


def base_of(opening: Opening) -> Base:
    """What a pack is bound to, from the same files: of each tensor a few numbers are read, and the
    embedding table. Raises what `open_backend` raises for files."""
    name = opening.model or INFO.default_model
    folder = locate(name, INFO, revisions=opening.revisions)
    shown = public_name(name, INFO)
    files = _Files(folder=folder, name=shown, revisions=opening.revisions)
    found = _read(files, None, opening.on_step)
    return Base(
        backend=INFO.name,
        model=shown,
        fingerprint=found.fingerprint,
        width=found.net.config.llm.hidden_size,
        norm_limit=norm_limit(found.net.table),
        deep_layers=found.net.config.llm.num_hidden_layers - 1,
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A checkpoint's parts; ``tower`` is CLIP's folder and sizes, for the variants that have it."""

    net: Showo
    magvit: Magvit
    tokenizer: PhiTokenizer
    tower: tuple[Path, CLIPVisionConfig] | None
    fingerprint: str


def _read(files: _Files, dtype: torch.dtype | None, on_step: OnStep | None) -> _Found:
    """The parts, with numbers in ``dtype``, or mapped as they are stored."""
    files.check_own()  # before what it takes from elsewhere is looked for
    phi, vq_folder = files.component("phi-1_5"), files.component("magvitv2")
    llm = files.settings(phi, "phi", decoder_config)
    vq = files.settings(vq_folder, "an image tokenizer", tokenizer_config, optional=True)
    config = files.settings(
        files.folder, "a Show-o", partial(ShowoConfig.from_released, llm=llm, vq=vq)
    )
    tower = None
    if config.clip_width:
        place = files.component("clip-vit-large-patch14-336")
        tower = place, files.settings(place, "CLIP", clip_config)
        config = replace(config, clip_width=int(tower[1].hidden_size))
    with torch.device("meta"):
        net, magvit = Showo(config), Magvit(vq)
    seals = [identity(files.folder / "config.json")]
    seals.append(fill(net, files.folder, dtype, files.again(files.name), on_step))
    exact = None if dtype is None else torch.float32
    seals.append(fill(magvit, vq_folder, exact, files.again(COMPONENTS["magvitv2"])))
    tokenizer = PhiTokenizer(phi / "tokenizer.json", config.vocab, files.hint)
    seals.append(identity(phi / "tokenizer.json"))
    return _Found(
        net=net,
        magvit=magvit,
        tokenizer=tokenizer,
        tower=tower,
        fingerprint=f"{short_name(config)}@{sha256(''.join(seals).encode()).hexdigest()[:16]}",
    )


def short_name(config: ShowoConfig) -> str:
    """ "show-o-512x512" and its like, after the names of the released repositories."""
    name = "show-o-w-clip-vit" if config.clip_width else "show-o"
    size = config.resolution
    return name if size == 256 else f"{name}-{size}x{size}"


class PhiTokenizer:
    """phi's tokenizer for text alone: markers in a text are text, and only Show-o's own code puts
    a marker's id into a row."""

    def __init__(self, path: Path, vocab: Vocabulary, hint: str) -> None:
        if not path.is_file():
            raise MissingError(f"there is no {path}", hint=hint)
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise MissingError(f"{path} is not a tokenizer: {error}", hint=hint) from error
        size = self.tokenizer.get_vocab_size()
        if size != vocab.llm_vocab_size:
            raise MissingError(
                f"{path} has {size} tokens and the model's text vocabulary {vocab.llm_vocab_size}",
                hint=hint,
            )
        self.tokenizer.encode_special_tokens = True
        self._encode = lru_cache(maxsize=4096)(self._ids)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        return list(self._encode(text))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Any) -> str:
        """The text of ids."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Where one model's files are."""

    folder: Path
    name: str
    revisions: Mapping[str, str]

    @property
    def hint(self) -> str:
        """The command that brings what is missing."""
        return fetch_command(INFO, self.name if is_hub_id(self.name) else "")

    def again(self, repo: str) -> str:
        """The command that brings all files of a repository, pickled weights included, which
        `op backends fetch` leaves behind and which are read here without running them."""
        return f"hf download {repo}" if repo in (*INFO.models, *COMPONENTS.values()) else self.hint

    def check_own(self) -> None:
        """MissingError for a folder that is no Show-o's, UsageError for quantised weights."""
        self.settings(self.folder, "a Show-o", lambda values: values["llm_vocab_size"])
        check_plain(
            read_json(self.folder / "config.json", hint=self.hint), self.folder, backend=INFO.name
        )

    def settings(
        self,
        folder: Path,
        what: str,
        read: Callable[[Mapping[str, Any]], T],
        *,
        optional: bool = False,
    ) -> T:
        """What ``read`` makes of a folder's config.json, which should be that of ``what``."""
        path = folder / "config.json"
        values = read_json(path, hint=self.hint, optional=optional)
        try:
            return read(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise MissingError(f"{path} is not that of {what}: {why}", hint=self.hint) from error

    def component(self, name: str) -> Path:
        """A component's folder: inside the model's, beside it, or in the cache."""
        for place in (self.folder / name, self.folder.parent / name):
            if place.is_dir():
                return place
        return locate(COMPONENTS[name], INFO, revisions=self.revisions)


def fill(
    module: nn.Module,
    folder: Path,
    dtype: torch.dtype | None,
    hint: str,
    on_step: OnStep | None = None,
) -> str:
    """Give a module on the meta device its tensors; floating ones are cast to ``dtype``, where
    there is one, others stay mapped.

    Returns what identifies the weights. MissingError names the file and the tensor where one is
    missing, not expected or of another shape.
    """
    wanted = module.state_dict()
    found = read_tensors(folder, hint)
    if not found:
        raise MissingError(f"there are no tensors in {weight_files(folder, hint)[0]}", hint=hint)
    seal = sha256()
    ready: dict[str, Tensor] = {}
    for name, (path, tensor) in counted(sorted(found.items()), on_step):
        if name not in wanted:
            raise MissingError(f"{path} has a tensor {name} that the model lacks", hint=hint)
        if tensor.shape != wanted[name].shape:
            raise MissingError(
                f"{name} in {path} is shaped {tuple(tensor.shape)} and should be "
                f"{tuple(wanted[name].shape)}",
                hint=hint,
            )
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise MissingError(f"{name} in {path} has the type {kind}", hint=hint)
        flat = tensor.flatten()
        ends = torch.cat((flat[:32], flat[-32:])).double()
        seal.update(f"{name}{tuple(tensor.shape)}".encode() + ends.numpy().tobytes())
        ready[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    missing = [name for name in wanted if name not in ready]
    if missing:
        path = next(iter(found.values()))[0]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingError(f"{path} lacks the tensor {missing[0]}{more}", hint=hint)
    module.load_state_dict(ready, assign=True)
    return seal.hexdigest()


def clip_config(values: Mapping[str, Any]) -> CLIPVisionConfig:
    """The tower's sizes, from a whole CLIP's config.json or from the tower's own."""
    from transformers import CLIPVisionConfig

    try:
        return CLIPVisionConfig(**values.get("vision_config", values))
    except Exception as error:  # the library's own kinds of error vary with its version
        raise ValueError(" ".join(str(error).split())) from error


class ClipTower:
    """CLIP's vision tower as a function: a picture -> features [1, n, width] of the second to last
    layer, class token dropped (Show-o, section 4.3)."""

    def __init__(
        self,
        folder: Path,
        config: CLIPVisionConfig,
        hint: str,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        from transformers import CLIPVisionModel

        self.config = config
        self.width = int(self.config.hidden_size)
        self.side = int(cast(int, self.config.image_size))
        with torch.device("meta"):
            tower = CLIPVisionModel(self.config)
        wanted = tower.state_dict()
        tensors = {}
        for name, (path, tensor) in read_tensors(folder, hint).items():
            for known in (name, name.removeprefix("vision_model.")):
                if known in wanted:
                    if tensor.shape != wanted[known].shape:
                        raise MissingError(f"{name} in {path} has another shape", hint=hint)
                    tensors[known] = tensor.to(dtype)
        for known in wanted:
            if known not in tensors:
                raise MissingError(f"{folder} lacks the tensor {known}", hint=hint)
        tower.load_state_dict(tensors, assign=True)
        for module in tower.modules():  # the numbers of the patches are not in checkpoints
            for name, buffer in module.named_buffers(recurse=False):
                if name == "position_ids":
                    module.register_buffer(
                        name, torch.arange(buffer.shape[-1])[None], persistent=False
                    )
        moved: nn.Module = tower
        self.tower = moved.to(device).eval().requires_grad_(False)
        path = folder / "preprocessor_config.json"
        preparing = read_json(path, hint=hint, optional=True)
        self.mean, self.std = (
            torch.tensor(_channels(preparing.get(key, usual), path, hint))
            for key, usual in (
                ("image_mean", (0.48145466, 0.4578275, 0.40821073)),
                ("image_std", (0.26862954, 0.26130258, 0.27577711)),
            )
        )

    @torch.no_grad()
    def __call__(self, image: Image) -> Tensor:
        """Features of the middle square."""
        square = fit(image.convert("RGB"), self.side)
        pixels = torch.from_numpy(np.array(square)).float() / 255
        pixels = ((pixels - self.mean) / self.std).permute(2, 0, 1)[None]
        weight = next(self.tower.parameters())
        out = self.tower(pixels.to(weight.device, weight.dtype), output_hidden_states=True)
        features: Tensor = out.hidden_states[-2][:, 1:]
        return features


def _channels(values: Any, path: Path, hint: str) -> tuple[float, ...]:
    """Three numbers, one a channel."""
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError) as error:
        raise MissingError(f"{path} does not prepare pictures for CLIP", hint=hint) from error
    return red, green, blue
