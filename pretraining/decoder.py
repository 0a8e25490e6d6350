"""The decoder once more: what the joint model paints, decoded into outlines.

The autoencoder's decoder has met the latents of drawn pictures alone. Those that the joint model
paints are softer, and come out softer still. Here the encoder and the joint model stay as they are,
and the decoder learns from both kinds: from drawn pictures, and from pictures that were noised and
then painted to their end by nano's own sampler with guidance (as SDEdit does, Meng et al. 2022,
arXiv 2108.01073), so that the picture behind such a latent is known.

Its loss is that of the autoencoder, a feature loss of the frozen ViT, and an adversarial one of
small patches (Isola et al. 2017, arXiv 1611.07004), weighed by its gradient at the last layer
(Esser et al. 2021, arXiv 2012.09841).
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from op_bagel.cache import Cache
from op_bagel.model import Bagel
from op_bagel.pictures import unpatchify
from op_bagel.sampling import Guidance, time_grid
from op_bagel.segments import Text
from op_bagel.vae import Decoder, VAEConfig
from op_bagel.vit import VisionModel
from op_nano import INFO
from op_nano.shape import CONFIG, REFERENCES
from pretraining.autoencoder import restoration_loss, unlike
from pretraining.curriculum import GRID, Group, Pool, Taught, Teacher, introduce
from pretraining.joint import averaged, frozen_encoders, joint_model, read_pool
from pretraining.painting import read
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

FEATURES, ADVERSARY = 1.5, 0.3
"""Weights beside the restoration loss: of the ViT's features; of the adversary, in parts of the
restoration's gradient at the last layer. Patterns and second colours are few pixels: the ViT, which
learned to tell them, holds the decoder to them."""
UNFOOLED = 300
"""Steps in which the adversary learns alone."""
NOISED = (0.15, 0.6)
"""From which times on pictures are painted to their end: from later ones they are no longer those
that were noised."""


# -- pictures that the joint model painted ---------------------------------------------------------


@torch.no_grad()
def repaint_pool(state: Path, name: str, count: int, *, device: str = "cpu") -> None:
    """``<name>.painted.safetensors``: latents [count, 16, d_latent] that the joint model painted
    from noised pictures of a pool, and the row [count] of the picture that each was."""
    pool = read_pool(state, name)
    model = joint_model(CONFIG)
    model.load_state_dict(model.state_dict() | averaged(state / "joint.safetensors"))
    model.to(device)
    latents: list[Tensor] = []
    rows: list[Tensor] = []
    while sum(len(some) for some in rows) < count:
        painted, at = _repainted(model, Teacher(pool, len(rows)))
        latents.append(painted.half().cpu())
        rows.append(at)
    save_file(
        {"latents": torch.cat(latents)[:count], "rows": torch.cat(rows)[:count]},
        state / f"{name}.painted.safetensors",
    )


def _repainted(model: nn.ModuleDict, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """The pictures of one step [M, 16, d_latent] and their rows [M]; a pair of concepts is left
    out, and so are the prompts in what guidance leans away from."""
    bagel: Bagel = model["bagel"]  # type: ignore[assignment]
    pool = teacher.pool
    families = teacher.concepts(min(8, len(pool.families)))
    references = teacher.references(families, REFERENCES)
    shown = (pool.vit[references], pool.latents[references])
    slots = model["encoder"](*(rows.to(bagel.device).float() for rows in shown))
    groups = [group.painted() for group in teacher.step(families, slots)[:2]]
    concepts = bagel.prefill(*[[introduce(own)] for own in slots])
    samples = [sample for group in groups for sample in group.samples]
    which = _concepts_of(groups)
    full = read(bagel, pool, samples, which, concepts)
    no_text = read(bagel, pool, [_wordless(sample) for sample in samples], which, concepts)
    rows = torch.tensor([sample[-1].row for sample in samples])  # type: ignore[union-attr]
    return _paint_on(bagel, pool, rows, full, no_text, teacher), rows


def _concepts_of(groups: list[Group]) -> Tensor:
    return torch.tensor(
        [i for group in groups for i in group.concepts or [-1] * len(group.samples)]
    )


def _wordless(sample: Taught) -> Taught:
    return [part for part in sample if not isinstance(part, Text)]


def _paint_on(
    bagel: Bagel, pool: Pool, rows: Tensor, full: Cache, no_text: Cache, teacher: Teacher
) -> Tensor:
    """Pictures of a pool, noised and painted to their end with nano's steps and guidance."""
    guidance = Guidance(text=INFO.guidance, interval=(0.0, 1.0))
    times = [t for t in time_grid(INFO.steps or 1, 2.0).tolist() if t <= NOISED[1]]
    first = teacher.rng.choice([i for i, t in enumerate(times) if t >= NOISED[0]])
    clean = pool.latents[rows].float().to(bagel.device)
    noise = torch.randn(clean.shape, generator=teacher.noise).to(bagel.device)
    x: Tensor = (1 - times[first]) * clean + times[first] * noise
    layout = bagel.drawing(len(rows), GRID)
    for t, after in pairwise(times[first:]):
        velocity = guidance.combine(
            bagel.velocity(full, x, t, layout), bagel.velocity(no_text, x, t, layout), None
        )
        x = x - (t - after) * velocity
    return x


# -- training --------------------------------------------------------------------------------------


class Adversary(nn.Module):
    """Pictures [B, 3, H, W] -> how drawn each patch of 22 pixels looks, [B, 1, H / 4, W / 4]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.layers(pictures)
        return found


def train_decoder(
    state: Path,
    minutes: float,
    batch: int,
    *,
    rate: float = 2e-3,
    tail: float = 0.4,
    precision: str = "float32",
    device: str = "cpu",
) -> None:
    """The decoder alone, half of each batch drawn and half painted; its report has the PSNR (dB) of
    held-out pictures, drawn and painted, before and after. ``rate`` is the peak of Muon (AdamW's is
    half), and falls to zero over the last ``tail`` of the budget; ``precision`` is that of the
    decoder's activations."""
    pixels = np.load(state / "pool.npy", mmap_mode="r")
    drawn = load_file(state / "pool.safetensors")["latents"]
    painted = load_file(state / "pool.painted.safetensors")
    stage = PretrainingStage(state, "decoder", minutes, clock=clock_of(device), tail=tail)
    torch.manual_seed(stage.step)
    rng = np.random.default_rng(stage.step)
    autoencoder, vit = frozen_encoders(state)
    vit.to(device)
    before = _restored_psnr(state, autoencoder.decoder, autoencoder.config)
    decoder = Decoder(autoencoder.config)
    decoder.load_state_dict(autoencoder.decoder.state_dict())
    model = nn.ModuleDict({"decoder": decoder, "adversary": Adversary()}).to(device)
    own = {k: value for k, value in model.named_parameters() if k.startswith("decoder.")}
    both = optimisers(dict(model.named_parameters()), matrices=rate, rest=rate / 2)
    average = Average(own)
    resume(stage, model, both, average)
    while stage.done < 1.0:
        half = rng.integers(len(drawn), size=batch // 2)
        other = rng.integers(len(painted["rows"]), size=batch - batch // 2)
        latents = torch.cat((drawn[half], painted["latents"][other])).float().to(device)
        rows = np.concatenate((half, painted["rows"][other].numpy()))
        pictures = _pixels(pixels, rows).to(device)
        with autocast(device, precision):
            restored = decoder(_unscaled(latents, autoencoder.config)).float()
        loss, figures = decoder_losses(model, vit, restored, pictures, stage.step)
        step_all(stage, model, both, loss)
        average.update(own, stage.step)
        stage.log(**figures)
        if stage.save_due():
            stage.save(everything(model, both, average))
    stage.save(everything(model, both, average))
    decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in average.values.items()})
    report = {"before": before, "after": _restored_psnr(state, decoder.cpu(), autoencoder.config)}
    (state / "decoder.report.json").write_text(json.dumps(report))
    print(json.dumps(report))


def decoder_losses(
    model: nn.ModuleDict, vit: VisionModel, restored: Tensor, pictures: Tensor, step: int
) -> tuple[Tensor, dict[str, float]]:
    """The losses of decoder and adversary, whose gradients do not mix; and figures to log."""
    adversary: nn.Module = model["adversary"]
    decoder: Decoder = model["decoder"]  # type: ignore[assignment]
    last = decoder.conv_out.weight
    features = unlike(vit, restored, pictures)
    loss = restoration_loss(restored, pictures) + FEATURES * features
    fixed = {name: value.detach() for name, value in adversary.named_parameters()}
    fooled = -functional_call(adversary, fixed, (restored,)).mean()
    (ours,) = torch.autograd.grad(loss, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(fooled, last, retain_graph=True)
    weight = ADVERSARY * (ours.norm() / (theirs.norm() + 1e-6)).clamp(max=1e3)
    told = F.relu(1 - adversary(pictures)).mean() + F.relu(1 + adversary(restored.detach())).mean()
    mse = (restored.detach().clamp(-1, 1) - pictures).square().mean((1, 2, 3)) / 4
    half = len(mse) // 2
    figures = {
        "loss": loss.item(),
        "features": features.item(),
        "adversary": told.item(),
        "psnr": -10 * mse[:half].log10().mean().item(),
        "psnr painted": -10 * mse[half:].log10().mean().item(),
    }
    return loss + (weight * fooled if step >= UNFOOLED else 0.0) + told, figures


def _pixels(pool: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
    """As `to_pixels`, in the order of the rows."""
    return to_pixels(pool, rows)[np.argsort(np.argsort(rows, kind="stable"), kind="stable")]


def _unscaled(latents: Tensor, config: VAEConfig) -> Tensor:
    """Latent tokens [B, 16, d_latent] -> what the decoder takes, [B, z, h, w]."""
    cells = unpatchify(latents, GRID, CONFIG.latent_patch_size)
    return cells / config.scale_factor + config.shift_factor


@torch.no_grad()
def _restored_psnr(state: Path, decoder: Decoder, config: VAEConfig) -> dict[str, float]:
    """Mean PSNR (dB) of held-out pictures, drawn and painted, after the decoder."""
    pixels = np.load(state / "test.npy", mmap_mode="r")
    drawn = load_file(state / "test.safetensors")["latents"]
    painted = load_file(state / "test.painted.safetensors")
    every = torch.arange(0, len(drawn), 4)
    kinds = {"drawn": (drawn[every], every), "painted": (painted["latents"], painted["rows"])}
    found = {}
    for name, (latents, rows) in kinds.items():
        parts = []
        for start in range(0, len(rows), 100):
            some = slice(start, start + 100)
            restored = decoder(_unscaled(latents[some].float(), config)).clamp(-1, 1)
            wanted = _pixels(pixels, rows[some].numpy())
            parts.append((restored - wanted).square().mean((1, 2, 3)) / 4)
        found[name] = round(-10 * torch.cat(parts).log10().mean().item(), 2)
    return found
