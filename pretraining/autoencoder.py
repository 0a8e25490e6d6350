"""Pretraining of nano's autoencoder: pictures <-> latents."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from op_bagel.vae import AutoEncoder
from op_nano.shape import VAE
from pretraining.training import (
    Average,
    PretrainingStage,
    clock_of,
    everything,
    optimisers,
    resume,
    step_all,
    to_pixels,
)


def restoration_loss(restored: Tensor, pictures: Tensor) -> Tensor:
    """L1 of pixels and of their differences to the right and below."""
    error = restored - pictures
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def train_autoencoder(state: Path, minutes: float, batch: int, *, device: str = "cpu") -> None:
    """L1 + gradient L1 + a light KL, AdamW, EMA; at the end mean and deviation of the latents
    become shift and scale."""
    pool = np.load(state / "pool.npy", mmap_mode="r")
    test = np.load(state / "test.npy", mmap_mode="r")
    stage = PretrainingStage(state, "autoencoder", minutes, clock=clock_of(device))
    torch.manual_seed(stage.step)
    rng = np.random.default_rng(stage.step)
    model = AutoEncoder(VAE).to(device)
    both = optimisers(dict(model.named_parameters()), matrices=4e-3, rest=3e-3)
    average = Average(dict(model.named_parameters()))
    resume(stage, model, both, average)
    while stage.done < 1.0:
        pictures = to_pixels(pool, rng.integers(len(pool), size=batch)).to(device)
        mean, logvar = model.moments(pictures)
        logvar = logvar.clamp(-12, 4)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        restored = model.decode(mean + (logvar / 2).exp() * torch.randn_like(mean))
        loss = restoration_loss(restored, pictures)
        step_all(stage, model, both, loss + 1e-3 * kl)
        average.update(dict(model.named_parameters()), stage.step)
        mse = (restored.detach().clamp(-1, 1) - pictures).square().mean().item() / 4
        stage.log(loss=loss.item(), kl=kl.item(), psnr=-10 * math.log10(mse))
        if stage.save_due():
            stage.save(everything(model, both, average))
    stage.save(everything(model, both, average))
    model.load_state_dict(average.values)
    with torch.no_grad():
        pictures = to_pixels(test, np.arange(0, len(test), 4)).to(device)
        mean, _ = model.moments(pictures)
        restored = model.decode(mean).clamp(-1, 1)
        psnr = -10 * torch.log10((restored - pictures).square().mean((1, 2, 3)) / 4)
    report = {
        "held_out_psnr": round(psnr.mean().item(), 2),
        "shift_factor": mean.mean().item(),
        "scale_factor": 1 / mean.std().item(),
    }
    (state / "autoencoder.report.json").write_text(json.dumps(report))
    print(json.dumps(report))
