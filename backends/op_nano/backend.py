"""nano as a backend: BAGEL's, with nano's weights, words and concept encoder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image, Resampling
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, OnStep, Opening, counted
from omnipersona_cli.errors import MissingError
from omnipersona_cli.family.checkpoint import read_json
from omnipersona_cli.family.device import choose_device, choose_dtype
from omnipersona_cli.family.offload import check_offload
from omnipersona_cli.family.quantize import refuse_quantize
from omnipersona_cli.family.recompute import recompute
from op_bagel.backend import BagelBackend, Fit
from op_bagel.lineage import fresh_tokens
from op_bagel.model import Bagel
from op_bagel.pictures import patchify, position_ids, rgb, to_tensor
from op_bagel.sampling import Guidance
from op_bagel.vae import AutoEncoder
from op_nano import INFO, tokenizer
from op_nano.shape import CONFIG, SIZE, SLOTS, VAE, ConceptEncoder

WEIGHTS = Path(__file__).parent / "weights"

EDIT_GUIDANCE = 3.0
"""Less than painting takes: the source says most of the picture already."""

FOREIGN_PSNR = 21.0
"""Pictures that the autoencoder restores worse than this (dB) are not of nano's world."""


class NanoTokenizer:
    """nano's tokenizer as BAGEL's backend wants it."""

    unnamed = "<sks>"

    def encode(self, text: str) -> list[int]:
        """Ids of a text; "<sks>" is one word."""
        ids: list[int] = []
        for number, part in enumerate(text.split(self.unnamed)):
            ids += [tokenizer.NAME] if number else []
            ids += tokenizer.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return tokenizer.decode(ids)


class NanoBackend(BagelBackend):
    """The embedded backbone; ``encoder`` gives tokens their start, ``held_out_psnr`` (dB) is how
    well the autoencoder restores pictures of its world that it never met."""

    encoder: ConceptEncoder
    held_out_psnr: float

    def new_tokens(
        self,
        name: str,
        *,
        understand: int,
        generate: int,
        photos: Sequence[Image],
        seed: int,
        on_step: OnStep | None = None,
    ) -> ConceptTokens:
        """What the concept encoder reads off the photos. More slots than it has are noise as long
        as a word: painting hardly minds them, and facts are learned into them in a fraction of the
        steps that the encoder's own rows take, twenty times as long. Fewer are cut off."""
        chosen = list(photos)[:16]
        with torch.inference_mode():
            encoded = [
                (self._rows(photo), self._encode(photo)[0]) for photo in counted(chosen, on_step)
            ]
            vit, latents = (torch.stack(rows)[None] for rows in zip(*encoded, strict=True))
            slots = self.encoder(vit, latents)[0].clone()
        generator = torch.Generator().manual_seed(seed)
        words = self.bagel.language_model.model.embed_tokens.weight.norm(dim=1).mean()

        def sized(rows: Tensor, count: int) -> Tensor:
            more = (max(0, count - len(rows)), self.width)
            noise = torch.randn(more, generator=generator).to(rows.device)
            return torch.cat((rows, noise * words / self.width**0.5))[:count]

        und, gen = slots[1 : 1 + SLOTS], slots[1 + SLOTS :]
        return fresh_tokens(
            name,
            slots[:1],
            sized(und, understand),
            sized(gen, generate),
            norm_limit=self.norm_limit,
        )

    def _rows(self, image: Image) -> Tensor:
        """ViT rows [n, d_vit] before the connector."""
        self.encoded += 1
        config = self.bagel.config.vit
        rows, grid = patchify(to_tensor(self.fit.vit(rgb(image))), config.patch_size)
        ids = position_ids(grid, config.side)
        device = self.bagel.device
        found: Tensor = self.bagel.vit_model.vision_model(
            rows.to(device), ids.to(device), [len(rows)]
        )
        return found

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Words that are not in the dictionary; pictures that are no cartoons of its world."""
        notes = []
        plain = (re.sub(r"<[\w-]+>", " ", text) for text in texts)
        words = list(dict.fromkeys(word for text in plain for word in tokenizer.unknown(text)))
        if words:
            some = ", ".join(words[:8]) + (" …" if len(words) > 8 else "")
            notes.append(f"nano does not know: {some}; it spells such words but was taught none")
        if photos:
            psnr = np.median([self._psnr(photo) for photo in list(photos)[:4]])
            if psnr < FOREIGN_PSNR:
                notes.append(
                    f"these do not look like nano's cartoons (it restores them at "
                    f"{psnr:.0f} dB, its own world at {self.held_out_psnr:.0f} dB); "
                    "photographs want another backend: op backends"
                )
        return notes

    @torch.no_grad()
    def restored(self, image: Image) -> Image:
        """A picture after the autoencoder alone."""
        return self._decode(*self._encode(image))

    def _psnr(self, image: Image) -> float:
        """Peak signal-to-noise ratio (dB) of a picture after the autoencoder."""
        before = np.asarray(self.fit.vae(rgb(image)), dtype=np.float32)
        after = np.asarray(self.restored(image), dtype=np.float32)
        return float(10 * np.log10(255.0**2 / max(np.square(before - after).mean(), 1e-6)))


def square(image: Image) -> Image:
    """Any picture at nano's size; other shapes are squeezed, so that nothing is cut off."""
    if image.size == (SIZE, SIZE):
        return image
    return image.resize(
        (SIZE, SIZE), Resampling.BOX if min(image.size) > SIZE else Resampling.BICUBIC
    )


def open_backend(opening: Opening) -> Backend:
    """nano from the package, or from a folder that `python -m pretraining export` wrote.

    It runs in float32 on any device; "auto" is the CPU, where it is fastest at this size.
    """
    model = opening.model or "embedded"
    folder = WEIGHTS if model == "embedded" else Path(os.path.expanduser(model))
    device = choose_device(opening.device, best="cpu")
    choose_dtype(opening.dtype, device, backend="nano", known=("float32",))
    refuse_quantize(opening.quantize, "nano")
    if opening.offload:
        check_offload(device)  # and there is nothing to spare: it is smaller than a layer of others
    shown = model if model == "embedded" else folder.resolve().name
    return _opened(folder.resolve(), device, shown, opening.activation_checkpointing)


@lru_cache(maxsize=2)
def _opened(folder: Path, device: str, model: str, checkpointing: bool) -> NanoBackend:
    path = folder / "nano.safetensors"
    again = "leave out --model, or write some: python -m pretraining export"
    if not (path.is_file() and (folder / "nano.json").is_file()):
        raise MissingError(f"there are no nano weights in {folder}", hint=again)
    try:
        about = read_json(folder / "nano.json", hint=again)
        tensors = {key: value.float() for key, value in load_file(path).items()}
        vae_config = replace(
            VAE, shift_factor=about["shift_factor"], scale_factor=about["scale_factor"]
        )
        # Not on the meta device: drawing there imports the compiler, longer than all else here.
        with torch.random.fork_rng(devices=[]):
            bagel, encoder, vae = Bagel(CONFIG), ConceptEncoder(), AutoEncoder(vae_config)
        for module, name in ((bagel, "bagel"), (encoder, "encoder"), (vae, "vae")):
            module.load_state_dict(_part(tensors, name), assign=True)
        longest, psnr = float(about["norm_limit"]), float(about["held_out_psnr"])
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise MissingError(
            f"the files in {folder} are not weights of this version of nano",
            hint=again,
        ) from error
    for module in (bagel, encoder, vae):
        module.requires_grad_(False).to(device).eval()
    if checkpointing:
        recompute(bagel.language_model.model.layers)
    digest = sha256(path.read_bytes()).hexdigest()[:16]
    backend = NanoBackend(
        info=replace(INFO, deep_layers=CONFIG.llm.num_hidden_layers - 1),
        model=model,
        fingerprint=f"nano@{digest}",
        bagel=bagel,
        vae=vae,
        tokenizer=NanoTokenizer(),
        fit=Fit(vae=square, vit=square),
        guidance=Guidance(text=INFO.guidance, interval=(0.0, 1.0)),
        edit_guidance=Guidance(text=EDIT_GUIDANCE, image=1.0, interval=(0.0, 1.0), renorm_min=0.6),
        shift=2.0,
        longest=longest,
    )
    backend.encoder, backend.held_out_psnr = encoder, psnr
    return backend


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one module, under the names that it knows them by."""
    start = f"{name}."
    return {
        key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)
    }
