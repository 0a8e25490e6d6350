"""Pretraining of nano's autoencoder: pictures <-> latents.

Its encoder is where small things are lost: the mouth of a spotted robot, the places of its spots.
An autoencoder whose latents a joint model has learned already can be trained on (``near``): latents
stay near those that the model knows, and small things are told in what little they move.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from op_bagel.pictures import patchify
from op_bagel.vae import AutoEncoder, VAEConfig
from op_bagel.vit import VisionModel
from op_nano.shape import CONFIG, VAE
from pretraining.joint import frozen_encoders, read_pool
from pretraining.training import (
    Average,
    PretrainingStage,
    autocast,
    clock_of,
    everything,
    optimisers,
    resume,
    step_all,
    to_pixels,
)
from pretraining.vision import see


def restoration_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """L1 of pixels and of their differences to the right and below."""
    error = restored - pictures
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


@dataclass(frozen=True)
class Known:
    """What stays as it was where a finished autoencoder is trained on: the latents [N, 16,
    d_latent] of the pool, which the joint model learned, their scale, and the ViT."""

    latents: Tensor
    scale: VAEConfig
    vit: VisionModel

    @classmethod
    def of(cls, state: Path, device: str = "cpu") -> Known:
        """From a pool that was encoded by finished stages."""
        autoencoder, vit = frozen_encoders(state)
        latents = read_pool(state, "pool").latents
        return cls(latents=latents, scale=autoencoder.config, vit=vit.to(device))

    def moved(self, mean: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Mean square of how far the latents of these rows are from the known ones, whose variance
        is 1."""
        latents = self.scale.scale_factor * (mean - self.scale.shift_factor)
        known = self.latents[torch.from_numpy(rows)].to(mean)
        return (patchify(latents, CONFIG.latent_patch_size)[0] - known).square().mean()


def unlike(vit: VisionModel, restored: Tensor, pictures: Tensor) -> Tensor:
    """1 - cosine of what the ViT sees of both, mean over patches."""
    return 1 - F.cosine_similarity(see(vit, restored), see(vit, pictures), dim=-1).mean()


def train_autoencoder(
    state: Path,
    minutes: float,
    batch: int,
    *,
    rate: float = 4e-3,
    tail: float = 0.4,
    near: float = 0.0,
    precision: str = "float32",
    device: str = "cpu",
) -> None:
    """L1 + gradient L1 + a light KL, Muon and AdamW, EMA; at the end mean and deviation of the
    latents become shift and scale.

    With ``near``, the weight of `Known.moved`, a finished autoencoder is trained on, restored
    pictures are held to what the ViT sees, shift and scale stay, and the decoder stage, whose
    weights are of the latents of before, starts anew from this decoder.
    """
    pool = np.load(state / "pool.npy", mmap_mode="r")
    test = np.load(state / "test.npy", mmap_mode="r")
    stage = PretrainingStage(state, "autoencoder", minutes, clock=clock_of(device), tail=tail)
    torch.manual_seed(stage.step)
    rng = np.random.default_rng(stage.step)
    known = Known.of(state, device) if near else None
    model = AutoEncoder(known.scale if known else VAE).to(device)
    both = optimisers(dict(model.named_parameters()), matrices=rate, rest=0.75 * rate)
    average = Average(dict(model.named_parameters()))
    resume(stage, model, both, average)
    if known and stage.done < 1.0:
        (state / "decoder.safetensors").unlink(missing_ok=True)
    while stage.done < 1.0:
        rows = np.sort(rng.integers(len(pool), size=batch))
        pictures = to_pixels(pool, rows).to(device)
        with autocast(device, precision):
            mean, logvar = (moment.float() for moment in model.moments(pictures))
            logvar = logvar.clamp(-12, 4)
            sampled = mean + (logvar / 2).exp() * torch.randn_like(mean)
            restored = model.decoder(sampled).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = restoration_loss(restored, pictures)
        mse = (restored.detach().clamp(-1, 1) - pictures).square().mean().item() / 4
        figures = {"loss": loss.item(), "kl": kl.item(), "psnr": -10 * math.log10(mse)}
        loss = loss + 1e-3 * kl
        if known:
            moved, features = known.moved(mean, rows), unlike(known.vit, restored, pictures)
            figures |= {"moved": moved.item(), "features": features.item()}
            loss = loss + near * moved + features
        step_all(stage, model, both, loss)
        average.update(dict(model.named_parameters()), stage.step)
        stage.log(**figures)
        if stage.save_due():
            stage.save(everything(model, both, average))
    stage.save(everything(model, both, average))
    model.load_state_dict(average.values)
    report = _report(model, test, device)
    if known:
        report |= {
            "shift_factor": known.scale.shift_factor,
            "scale_factor": known.scale.scale_factor,
        }
    (state / "autoencoder.report.json").write_text(json.dumps(report))
    print(json.dumps(report))


@torch.no_grad()
def _report(model: AutoEncoder, test: NDArray[np.uint8], device: str) -> dict[str, float]:
    """PSNR (dB) of held-out pictures, and shift and scale of their latents."""
    pictures = to_pixels(test, np.arange(0, len(test), 4)).to(device)
    mean, _ = model.moments(pictures)
    restored = model.decoder(mean).clamp(-1, 1)
    psnr = -10 * torch.log10((restored - pictures).square().mean((1, 2, 3)) / 4)
    return {
        "held_out_psnr": round(psnr.mean().item(), 2),
        "shift_factor": mean.mean().item(),
        "scale_factor": 1 / mean.std().item(),
    }
