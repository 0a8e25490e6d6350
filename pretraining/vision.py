"""Pretraining of nano's ViT, and of the judge's network: both learn what is in a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from op_bagel.pictures import patchify, position_ids
from op_bagel.vit import VisionModel
from op_nano.shape import CONFIG, SIZE
from op_toy.attributes import NAMES, AttributeHeads, truth
from op_toy.network import JudgeNetwork
from pretraining.families import pool_families
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


def truths(pool: Path) -> Tensor:
    """`truth` of every picture of a pool [families * 11, questions]."""
    return torch.tensor([truth(p) for family in pool_families(pool) for p in family.pictures])


def blurred(pictures: Tensor) -> Tensor:
    """Half of the pictures a little soft and noisy, as painted ones are."""
    small = F.interpolate(pictures, scale_factor=0.6, mode="bilinear", antialias=True)
    soft = F.interpolate(small, size=pictures.shape[-2:], mode="bicubic")
    soft = soft + 0.04 * torch.randn_like(soft)
    return torch.where(
        torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < 0.5, soft, pictures
    )


def see(model: VisionModel, pictures: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> ViT rows [B, n, d], before the connector."""
    rows = patchify(pictures, CONFIG.vit.patch_size)[0]
    side = SIZE // CONFIG.vit.patch_size
    ids = position_ids((side, side), CONFIG.vit.side).repeat(len(rows)).to(rows.device)
    features: Tensor = model.vision_model(rows.flatten(0, 1), ids, [side * side] * len(rows))
    return features.view(len(rows), side * side, -1)


class Eye(nn.Module):
    """nano's ViT, and the heads that teach it what there is to see."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionModel(CONFIG.vit)
        self.heads = AttributeHeads(CONFIG.vit.hidden_size)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        logits: list[Tensor] = self.heads(see(self.vit, pictures))
        return logits


def train_vision(
    state: Path, minutes: float, batch: int, *, name: str = "vision", device: str = "cpu"
) -> None:
    """A network alone, on what is in a picture. "vision" is a ViT that becomes nano's eye, and the
    heads are thrown away; "judge", another network on other pictures, measures and is used for
    nothing else."""
    judge = name == "judge"
    drawn, held_out = state / ("judge.npy" if judge else "pool.npy"), state / "test.npy"
    pool, labels = np.load(drawn, mmap_mode="r"), truths(drawn)
    test, test_labels = np.load(held_out, mmap_mode="r"), truths(held_out)
    stage = PretrainingStage(state, name, minutes, clock=clock_of(device))
    torch.manual_seed(stage.step + (1 << 20 if judge else 0))
    rng = np.random.default_rng(stage.step)
    model = (JudgeNetwork() if judge else Eye()).to(device)
    both = optimisers(dict(model.named_parameters()), matrices=5e-3, rest=2e-3)
    average = Average(dict(model.named_parameters()), 0.998)
    resume(stage, model, both, average)
    while stage.done < 1.0:
        rows = np.sort(rng.integers(len(pool), size=batch))
        pictures = to_pixels(pool, rows).to(device)
        if judge:
            pictures = blurred(pictures)
        with autocast(device, "bfloat16" if judge else "float32"):
            answers = model(pictures)
        wanted = labels[rows].to(device)
        losses = [
            F.cross_entropy(logits.float(), wanted[:, i], ignore_index=-1)
            for i, logits in enumerate(answers)
        ]
        loss = torch.stack(losses).nanmean()
        step_all(stage, model, both, loss)
        average.update(dict(model.named_parameters()), stage.step)
        stage.log(loss=loss.item())
        if stage.save_due():
            stage.save(everything(model, both, average))
    stage.save(everything(model, both, average))
    model.load_state_dict(average.values)
    with torch.no_grad():
        parts = np.array_split(np.arange(len(test)), len(test) // 100 + 1)
        found = [model(to_pixels(test, rows).to(device)) for rows in parts]
    answers = [torch.cat(logits) for logits in zip(*found, strict=True)]
    report = {}
    for i, asked_for in enumerate(NAMES):
        asked = test_labels[:, i] >= 0
        right = answers[i].argmax(1).cpu()[asked] == test_labels[asked, i]
        report[asked_for] = round(right.float().mean().item(), 3)
    (state / f"{name}.report.json").write_text(json.dumps(report))
    print(json.dumps(report))
