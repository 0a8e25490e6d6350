"""Joint pretraining of nano on cached latents and ViT features: everything but the eyes."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from op_bagel.model import Bagel, Cache, initialise
from op_bagel.packing import pack
from op_bagel.pictures import patchify
from op_bagel.vae import AutoEncoder
from op_bagel.vit import VisionModel
from op_nano.curriculum import GRID, Group, Pool, Teacher, introduce
from op_nano.families import HELD_OUT_FIRST, PICTURES, draw_family
from op_nano.shape import CONFIG, REFERENCES, VAE, ConceptEncoder
from op_nano.training import Average, Stage, everything, optimisers, resume, step_all, to_pixels
from op_nano.vision import see


def averaged(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The averaged weights of a finished stage."""
    start = f"average.{prefix}"
    return {
        key[len(start) :]: value for key, value in load_file(path).items() if key.startswith(start)
    }


def eyes(state: Path) -> tuple[AutoEncoder, VisionModel]:
    """The frozen autoencoder, its latents of zero mean and unit deviation, and the frozen ViT."""
    report = json.loads((state / "autoencoder.report.json").read_text())
    autoencoder = AutoEncoder(
        replace(VAE, shift_factor=report["shift_factor"], scale_factor=report["scale_factor"])
    )
    autoencoder.load_state_dict(averaged(state / "autoencoder.safetensors"))
    vit = VisionModel(CONFIG.vit)
    vit.load_state_dict(averaged(state / "vision.safetensors", "vit."))
    return autoencoder.requires_grad_(False), vit.requires_grad_(False)


@torch.no_grad()
def encode_pool(state: Path, name: str, *, device: str = "cpu") -> None:
    """Latent tokens and ViT rows of every picture of a pool, once."""
    pixels = np.load(state / f"{name}.npy", mmap_mode="r")
    autoencoder, vit = eyes(state)
    autoencoder.to(device)
    vit.to(device)
    latents, rows = [], []
    for start in range(0, len(pixels), 256):
        pictures = to_pixels(pixels, np.arange(start, min(start + 256, len(pixels)))).to(device)
        mean, _ = autoencoder.moments(pictures)
        scaled = autoencoder.config.scale_factor * (mean - autoencoder.config.shift_factor)
        latents.append(patchify(scaled, CONFIG.latent_patch_size)[0].half().cpu())
        rows.append(see(vit, pictures).half().cpu())
    save_file(
        {"latents": torch.cat(latents), "vit": torch.cat(rows)}, state / f"{name}.safetensors"
    )


def read_pool(state: Path, name: str, first: int, held_out: bool) -> Pool:
    """An encoded pool and the truth of its families."""
    encoded = load_file(state / f"{name}.safetensors")
    count = len(encoded["vit"]) // PICTURES
    return Pool(
        families=[draw_family(first + i, held_out=held_out) for i in range(count)],
        vit=encoded["vit"],
        latents=encoded["latents"],
    )


def run_group(model: Bagel, pool: Pool, group: Group, cache: Cache | None) -> tuple[Tensor, ...]:
    """Cross-entropies [K] and squared errors [M] of a group, and weights [K] of the former under
    which every answer counts alike, however many words it has."""
    packed = pack(group.samples, CONFIG, model.device, multiple=16)
    if group.seen:
        rows = pool.vit[torch.tensor(group.seen)].to(model.device).float()
        place = model.vit_pos_embed(torch.arange(GRID[0] * GRID[1], device=model.device))
        packed = replace(packed, features=(model.connector(rows) + place).flatten(0, 1))
    if cache is not None:
        index = torch.tensor(group.concepts, device=model.device)
        cache = Cache(
            keys=tuple(keys.index_select(0, index) for keys in cache.keys),
            values=tuple(values.index_select(0, index) for values in cache.values),
            positions=cache.positions.index_select(0, index),
        )
    outputs = model(packed, cache)
    return outputs.ce, outputs.mse, packed.label_weights.square()


def losses(
    model: nn.ModuleDict, teacher: Teacher, concepts: int
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Mean cross-entropy, mean squared error of one step, and what to log."""
    bagel: Bagel = model["bagel"]  # type: ignore[assignment]
    pool = teacher.pool
    families = teacher.concepts(concepts)
    references = teacher.references(families, REFERENCES)
    shown = (pool.vit[references], pool.latents[references])
    slots = model["encoder"](*(rows.to(bagel.device).float() for rows in shown))
    alone, behind, pairs = teacher.step(families, slots)
    cache = bagel.prefill(*[[introduce(own)] for own in slots])
    ce, mse, weights = zip(
        run_group(bagel, pool, alone, None),
        run_group(bagel, pool, behind, cache),
        run_group(bagel, pool, pairs, None),
        strict=True,
    )
    seen = {
        "ce": ce[0].mean().item(),
        "ce behind": ce[1].mean().item(),
        "mse": mse[0].mean().item(),
        "mse behind": mse[1].mean().item(),
    }
    weight = torch.cat(weights)
    answered = (torch.cat(ce) * weight).sum() / weight.sum()
    return answered, torch.cat(mse).mean(), seen


def train_joint(
    state: Path, minutes: float, concepts: int, ce_weight: float, processes: int, device: str
) -> None:
    """Both experts, connector, heads and concept encoder; the ViT and the autoencoder stay.

    On a CPU, ``processes`` of one thread each, which average their gradients, are faster than one
    of many threads: the tensors are small.
    """
    store = state / "joint.store"
    store.unlink(missing_ok=True)
    multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
        _train_joint, (state, minutes, concepts, ce_weight, processes, device, store), processes
    )


def _train_joint(
    rank: int,
    state: Path,
    minutes: float,
    concepts: int,
    ce_weight: float,
    processes: int,
    device: str,
    store: Path,
) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        if sys.platform == "linux":
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[rank % len(cores)]})
        distributed.init_process_group(
            "gloo", init_method=f"file://{store.resolve()}", rank=rank, world_size=processes
        )
    pool = read_pool(state, "pool", 0, False)
    stage = Stage(state, "joint", minutes)
    torch.manual_seed(0)
    bagel = Bagel(CONFIG)
    initialise(bagel, 0)
    bagel.vit_model.requires_grad_(False)
    model = nn.ModuleDict({"bagel": bagel, "encoder": ConceptEncoder()}).to(device)
    learned = {key: value for key, value in model.named_parameters() if value.requires_grad}
    both = optimisers(learned, matrices=5e-3, rest=2e-3)
    average = Average(learned, 0.9985)
    resume(stage, model, both, average)
    while stage.done < 1.0:
        teacher = Teacher(pool, stage.step * processes + rank)
        ce, mse, seen = losses(model, teacher, concepts)
        step_all(stage, model, both, ce_weight * ce + mse)
        average.update(learned, stage.step)
        if rank:
            continue
        stage.log(**seen)
        if stage.save_due():
            stage.save(everything(model, both, average))
    if not rank:
        stage.save(everything(model, both, average))


@torch.no_grad()
def export_weights(state: Path, to: Path) -> None:
    """The averaged weights of all stages as `nano.safetensors` in bf16, and `nano.json`; the
    judge's, where it has been trained, as `judge.safetensors`."""
    autoencoder, vit = eyes(state)
    report = json.loads((state / "autoencoder.report.json").read_text())
    bagel = Bagel(CONFIG)
    initialise(bagel, 0)
    encoder = ConceptEncoder()
    path = state / "joint.safetensors"
    bagel.load_state_dict(bagel.state_dict() | averaged(path, "bagel."))
    bagel.vit_model.load_state_dict(vit.state_dict())
    encoder.load_state_dict(averaged(path, "encoder."))
    parts = (("bagel", bagel), ("encoder", encoder), ("vae", autoencoder))
    tensors = {
        f"{name}.{key}": value.to(torch.bfloat16).contiguous()
        for name, module in parts
        for key, value in module.state_dict().items()
    }
    pool = read_pool(state, "test", HELD_OUT_FIRST, True)
    rows = torch.arange(len(pool.families))[:, None] * PICTURES + torch.arange(REFERENCES)
    slots = encoder(pool.vit[rows].float(), pool.latents[rows].float())
    about = {
        "shift_factor": autoencoder.config.shift_factor,
        "scale_factor": autoencoder.config.scale_factor,
        "norm_limit": round(2.0 * slots.norm(dim=-1).max().item(), 3),
        "held_out_psnr": report["held_out_psnr"],
        "minutes": {
            name: round(json.loads((state / f"{name}.json").read_text())["seconds"] / 60, 1)
            for name in ("autoencoder", "vision", "joint")
        },
        "steps": {
            name: json.loads((state / f"{name}.json").read_text())["step"]
            for name in ("autoencoder", "vision", "joint")
        },
        "log": {
            name: _last(state / f"{name}.jsonl") for name in ("autoencoder", "vision", "joint")
        },
    }
    to.mkdir(exist_ok=True)
    save_file(tensors, to / "nano.safetensors")
    (to / "nano.json").write_text(json.dumps(about, indent=1) + "\n")
    if (state / "judge.safetensors").exists():
        judge = averaged(state / "judge.safetensors")
        save_file(
            {key: value.to(torch.bfloat16) for key, value in judge.items()},
            to / "judge.safetensors",
        )


def unpack_weights(folder: Path, state: Path) -> None:
    """The inverse of `export_weights`: finished stages as a state that ``encode`` and ``joint`` go
    on from. Optimisers start anew, because what is shipped holds weights alone.

    Raises FileExistsError where the state already holds a stage; nothing is overwritten.
    """
    stages = ("autoencoder", "vision", "joint")
    for name in stages:
        if (state / f"{name}.safetensors").exists():
            raise FileExistsError(f"{state / name}.safetensors is there already")
    tensors = {k: value.float() for k, value in load_file(folder / "nano.safetensors").items()}
    about = json.loads((folder / "nano.json").read_text())
    seen = "bagel.vit_model."
    kept: dict[str, dict[str, Tensor]] = {name: {} for name in stages}
    for key, value in tensors.items():
        if key.startswith("vae."):
            kept["autoencoder"][f"average.{key.removeprefix('vae.')}"] = value
        else:
            kept["joint"][f"model.{key}"] = value
            if not key.startswith(seen):
                kept["joint"][f"average.{key}"] = value.clone()
            else:
                kept["vision"][f"average.vit.{key.removeprefix(seen)}"] = value.clone()
    for name in stages:
        save_file(kept[name], state / f"{name}.safetensors")
        clock = {"seconds": about["minutes"][name] * 60, "step": about["steps"][name]}
        (state / f"{name}.json").write_text(json.dumps(clock))
        (state / f"{name}.jsonl").write_text(json.dumps(about["log"][name]) + "\n")
    report = {key: about[key] for key in ("held_out_psnr", "shift_factor", "scale_factor")}
    (state / "autoencoder.report.json").write_text(json.dumps(report))


def _last(log: Path) -> dict[str, float]:
    """The figures of the last line of a stage's log; none where it was too short to write any."""
    if not log.exists():
        return {}
    values: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return {name: value for name, value in values.items() if name not in ("step", "minutes")}
