"""Joint pretraining of nano on cached latents and ViT features, which stay as they are."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from op_bagel.cache import Cache
from op_bagel.config import BagelConfig
from op_bagel.model import Bagel, initialise
from op_bagel.packing import pack
from op_bagel.pictures import patchify
from op_bagel.vae import AutoEncoder
from op_bagel.vit import VisionModel
from op_nano.shape import CONFIG, REFERENCES, VAE, ConceptEncoder, decoder
from pretraining.curriculum import Group, Pool, Teacher, introduce
from pretraining.families import PICTURES, pool_families, pool_note
from pretraining.painting import (
    Aligner,
    Forward,
    fill,
    forward_of,
    paint,
    pick,
)
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

NOISES = 4
"""Noised copies of each picture to be painted in a step."""
ALIGN = 0.5
"""Weight of misalignment beside the squared error, as its authors found best."""


def averaged(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The averaged weights of a finished stage."""
    start = f"average.{prefix}"
    return {
        key[len(start) :]: value for key, value in load_file(path).items() if key.startswith(start)
    }


def frozen_encoders(state: Path) -> tuple[AutoEncoder, VisionModel]:
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
    autoencoder, vit = frozen_encoders(state)
    nested = torch.channels_last  # twice as fast on a CPU, 32 at a time
    autoencoder.to(device).to(memory_format=nested)  # type: ignore[call-overload]
    vit.to(device)
    latents, rows = [], []
    for start in range(0, len(pixels), 32):
        pictures = to_pixels(pixels, np.arange(start, min(start + 32, len(pixels)))).to(device)
        mean, _ = autoencoder.moments(pictures.contiguous(memory_format=nested))
        scaled = autoencoder.config.scale_factor * (mean - autoencoder.config.shift_factor)
        latents.append(patchify(scaled, CONFIG.latent_patch_size)[0].half().cpu())
        rows.append(see(vit, pictures).half().cpu())
    save_file(
        {"latents": torch.cat(latents), "vit": torch.cat(rows)},
        state / f"{name}.safetensors",
        metadata={"families": pool_note(state / f"{name}.npy").read_text()},
    )


def read_pool(state: Path, name: str) -> Pool:
    """An encoded pool and the truth of its families.

    Raises ValueError where other families were drawn since: pictures would have the wrong words.
    """
    drawn = state / f"{name}.npy"
    with safe_open(state / f"{name}.safetensors", "pt") as encoded:
        if (encoded.metadata() or {}).get("families") != pool_note(drawn).read_text():
            raise ValueError(f"{drawn} is not what was encoded: encode it")
        vit, latents = encoded.get_tensor("vit"), encoded.get_tensor("latents")
    return Pool(families=pool_families(drawn), vit=vit, latents=latents)


def answer(model: Bagel, pool: Pool, group: Group, cache: Cache | None) -> tuple[Tensor, Tensor]:
    """Cross-entropies [K] of a group's answers, and weights [K] under which every answer counts
    alike, however many words it has."""
    if not group.samples:
        return torch.zeros(0, device=model.device), torch.zeros(0, device=model.device)
    packed = pack(fill(model, pool, group.samples), model.config, model.device, multiple=16)
    if cache is not None:
        cache = pick(cache, torch.tensor(group.concepts, device=model.device))
    return model(packed, cache).ce, packed.label_weights.square()


def losses(
    model: nn.ModuleDict, teacher: Teacher, concepts: int, forward: Forward, *, noises: int = NOISES
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Mean cross-entropy of one step, mean squared error with misalignment, and what to log."""
    bagel: Bagel = model["bagel"]  # type: ignore[assignment]
    aligner: Aligner = model["aligner"]  # type: ignore[assignment]
    pool = teacher.pool
    families = teacher.concepts(concepts)
    references = teacher.references(families, REFERENCES)
    shown = (pool.vit[references], pool.latents[references])
    slots = model["encoder"](*(rows.to(bagel.device).float() for rows in shown))
    groups = teacher.step(families, slots)
    cache = bagel.prefill(*[[introduce(own)] for own in slots])
    ce, weights = zip(
        *(
            answer(bagel, pool, group.answered(), behind)
            for group, behind in zip(groups, (None, cache, None), strict=True)
        ),
        strict=True,
    )
    painted = paint(
        bagel,
        aligner,
        forward,
        pool,
        [group.painted() for group in groups],
        cache,
        noises=noises,
        generator=teacher.noise,
    )
    weight = torch.cat(weights)
    answered = (torch.cat(ce) * weight).sum() / weight.sum()
    figures = {
        "ce": answered.item(),
        "mse": painted.mse[~painted.behind].mean().item(),
        "mse behind": painted.mse[painted.behind].mean().item(),
        "misaligned": painted.misaligned.mean().item(),
    }
    return answered, painted.mse.mean() + ALIGN * painted.misaligned.mean(), figures


@dataclass(frozen=True, kw_only=True)
class JointRun:
    """One joint run: its state is ``<state>/<name>.*``. Minutes are of processor time, summed over
    all processes, on a CPU, and of wall-clock on a GPU.

    minutes     the whole budget; the rate falls to zero over the last ``tail`` of it
    sitting     stop after so many minutes of this call, to be resumed
    held_out    steps of held-out families whose loss ends a sitting (`measure`)
    noises      noised copies of each picture to be painted in a step
    rate        peak rate of Muon; that of AdamW is 0.4 of it. Going on from finished weights wants
                less than starting from nothing
    """

    state: Path
    minutes: float
    name: str = "joint"
    width: int = CONFIG.llm.hidden_size
    layers: int = CONFIG.llm.num_hidden_layers
    concepts: int = 8
    ce_weight: float = 1.0
    processes: int = 1
    device: str = "cpu"
    precision: str = "float32"
    tail: float = 0.4
    sitting: float = math.inf
    held_out: int = 0
    noises: int = NOISES
    rate: float = 5e-3

    @property
    def config(self) -> BagelConfig:
        """nano's, with this decoder."""
        return replace(CONFIG, llm=decoder(self.width, self.layers))

    def clock(self) -> float:
        """Seconds that count, since some moment; those of all processes on a CPU."""
        return clock_of(self.device)() * (self.processes if self.device.startswith("cpu") else 1)


def train_joint(run: JointRun) -> None:
    """Both experts, connector, heads and concept encoder; the ViT and the autoencoder stay.

    On a CPU, ``processes`` of one thread each, which average their gradients, are faster than one
    of many threads: the tensors are small.
    """
    if run.processes == 1:
        _train_joint(0, run, None)
        return
    store = run.state / f"{run.name}.store"
    store.unlink(missing_ok=True)
    multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
        _train_joint, (run, store), run.processes
    )


def joint_model(config: BagelConfig) -> nn.ModuleDict:
    """What joint training trains, from the same seed at every size; the ViT is frozen."""
    torch.manual_seed(0)
    bagel = Bagel(config)
    initialise(bagel, 0)
    bagel.vit_model.requires_grad_(False)
    return nn.ModuleDict(
        {"bagel": bagel, "encoder": ConceptEncoder(config), "aligner": Aligner(config)}
    )


def _train_joint(rank: int, run: JointRun, store: Path | None) -> None:
    torch.set_num_threads(1)
    if store is not None:
        if sys.platform == "linux":
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[rank % len(cores)]})
        distributed.init_process_group(
            "gloo", init_method=f"file://{store.resolve()}", rank=rank, world_size=run.processes
        )
    pool = read_pool(run.state, "pool")
    stage = PretrainingStage(run.state, run.name, run.minutes, clock=run.clock, tail=run.tail)
    model = joint_model(run.config).to(run.device)
    learned = {key: value for key, value in model.named_parameters() if value.requires_grad}
    both = optimisers(learned, matrices=run.rate, rest=0.4 * run.rate)
    average = Average(learned, 0.9985)
    resume(stage, model, both, average)
    forward = forward_of(model["bagel"])  # type: ignore[arg-type]
    end = stage.seconds + run.sitting * 60
    parent = parent_process()  # none trains on behind the back of one that was killed
    while stage.done < 1.0 and stage.seconds < end and (parent is None or parent.is_alive()):
        teacher = Teacher(pool, stage.step * run.processes + rank, width=run.width)
        with autocast(run.device, run.precision):
            ce, mse, figures = losses(model, teacher, run.concepts, forward, noises=run.noises)
        step_all(stage, model, both, run.ce_weight * ce + mse)
        average.update(learned, stage.step)
        if rank:
            continue
        stage.log(**figures)
        if stage.save_due():
            stage.save(everything(model, both, average))
    if not rank:
        stage.save(everything(model, both, average))
        if run.held_out:
            with torch.no_grad():
                for key, value in average.values.items():
                    learned[key].copy_(value)
            figures = measure(model, run)
            line = {"step": stage.step, "minutes": round(stage.spent / 60, 2), **figures}
            print(json.dumps(line), flush=True)
            with (run.state / f"{run.name}.curve.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")


@torch.no_grad()
def measure(model: nn.ModuleDict, run: JointRun) -> dict[str, float]:
    """Mean losses of ``run.held_out`` steps of families that no training meets, the same steps for
    every run and size."""
    pool = read_pool(run.state, "test")
    forward = forward_of(model["bagel"])  # type: ignore[arg-type]
    sums: dict[str, float] = {}
    for number in range(run.held_out):
        teacher = Teacher(pool, (1 << 40) + number, width=run.width)
        _, _, figures = losses(model, teacher, run.concepts, forward, noises=run.noises)
        for key, value in figures.items():
            sums[key] = sums.get(key, 0.0) + value / run.held_out
    return {key: round(value, 4) for key, value in sums.items()}


@torch.no_grad()
def export_weights(state: Path, to: Path) -> None:
    """The averaged weights of all stages as `nano.safetensors` in bf16, and `nano.json`; those of
    the stage "decoder" where it was trained."""
    autoencoder, vit = frozen_encoders(state)
    stages = ["autoencoder", "vision", "joint"]
    psnr = json.loads((state / "autoencoder.report.json").read_text())["held_out_psnr"]
    if (state / "decoder.safetensors").exists():
        stages.append("decoder")
        autoencoder.decoder.load_state_dict(averaged(state / "decoder.safetensors", "decoder."))
        psnr = json.loads((state / "decoder.report.json").read_text())["after"]["drawn"]
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
    pool = read_pool(state, "test")
    rows = torch.arange(len(pool.families))[:, None] * PICTURES + torch.arange(REFERENCES)
    slots = encoder(pool.vit[rows].float(), pool.latents[rows].float())
    about = {
        "shift_factor": autoencoder.config.shift_factor,
        "scale_factor": autoencoder.config.scale_factor,
        "norm_limit": round(2.0 * slots.norm(dim=-1).max().item(), 3),
        "held_out_psnr": psnr,
        "minutes": {
            name: round(json.loads((state / f"{name}.json").read_text())["seconds"] / 60, 1)
            for name in stages
        },
        "steps": {
            name: json.loads((state / f"{name}.json").read_text())["step"] for name in stages
        },
        "log": {name: _last(state / f"{name}.jsonl") for name in stages},
    }
    to.mkdir(exist_ok=True)
    save_file(tensors, to / "nano.safetensors")
    (to / "nano.json").write_text(json.dumps(about, indent=1) + "\n")


def export_judge(state: Path, to: Path) -> None:
    """The averaged weights of the judge as `judge.safetensors` in bf16."""
    judge = averaged(state / "judge.safetensors")
    to.mkdir(exist_ok=True)
    save_file(
        {key: value.to(torch.bfloat16) for key, value in judge.items()}, to / "judge.safetensors"
    )


def unpack_weights(folder: Path, state: Path) -> None:
    """The inverse of `export_weights`: finished stages as a state that all stages but ``vision`` go
    on from. Optimisers start anew, because what is shipped holds weights alone.

    Raises FileExistsError where the state already holds a stage; nothing is overwritten.
    """
    about = json.loads((folder / "nano.json").read_text())
    stages = tuple(about["minutes"])
    for name in stages:
        if (state / f"{name}.safetensors").exists():
            raise FileExistsError(f"{state / name}.safetensors is there already")
    tensors = {k: value.float() for k, value in load_file(folder / "nano.safetensors").items()}
    vit = "bagel.vit_model."
    kept: dict[str, dict[str, Tensor]] = {name: {} for name in stages}
    for key, value in tensors.items():
        if key.startswith("vae."):
            name = key.removeprefix("vae.")
            both = ["decoder"] if "decoder" in kept and name.startswith("decoder.") else []
            for stage in ["autoencoder", *both]:
                kept[stage] |= {f"model.{name}": value.clone(), f"average.{name}": value.clone()}
        else:
            kept["joint"][f"model.{key}"] = value
            if not key.startswith(vit):
                kept["joint"][f"average.{key}"] = value.clone()
            else:
                kept["vision"][f"average.vit.{key.removeprefix(vit)}"] = value.clone()
    for name in stages:
        save_file(kept[name], state / f"{name}.safetensors")
        clock = {"seconds": about["minutes"][name] * 60, "step": about["steps"][name]}
        (state / f"{name}.json").write_text(json.dumps(clock))
        (state / f"{name}.jsonl").write_text(json.dumps(about["log"][name]) + "\n")
    report = {key: about[key] for key in ("held_out_psnr", "shift_factor", "scale_factor")}
    (state / "autoencoder.report.json").write_text(json.dumps(report))
    if "decoder" in kept:
        (state / "decoder.report.json").write_text(
            json.dumps({"after": {"drawn": about["held_out_psnr"]}})
        )


def _last(log: Path) -> dict[str, float]:
    """The figures of the last line of a stage's log; none where it was too short to write any."""
    if not log.exists():
        return {}
    values: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return {name: value for name, value in values.items() if name not in ("step", "minutes")}
