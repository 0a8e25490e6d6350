"""A learning step that prepares once, against a plain one that runs everything every time.

    python benchmarks/learn_step.py --rounds 20
    python benchmarks/learn_step.py --rounds 6 --shape mid --batch-size 8

*Ours*: `Backend.prepare` runs the ViT and the autoencoder once, before learning; a step is
`Backend.loss` and its backward pass, with the concept's turn computed once for the whole batch, and
with heads only where something is taught. *Plain*: in every step the pictures of the batch are
encoded, the concept's turn is read again in every sample, and the heads run on every row. Both take
the same lessons, times and noise and reach the same losses and gradients, which is checked in every
round. Rounds are interleaved and the order alternates, so that a busy machine slows both alike.

``--shape mid`` is a random BAGEL of 512 x 8 layers with pictures of 128 pixels, ``nano`` the
embedded one. The table is Markdown, on stdout.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import click
import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn import functional

from omnipersona_cli import registry
from omnipersona_cli.backend import ConceptTokens, Lesson, Opening, Task
from omnipersona_cli.engine.batches import draw, group_of
from omnipersona_cli.engine.heldout import weighted
from omnipersona_cli.engine.material import Subject, gather
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import copy_of, named_tensors
from op_bagel.backend import BagelBackend, Fit
from op_bagel.config import BagelConfig, DecoderConfig, SpecialTokens, ViTConfig
from op_bagel.lineage import PreparedLesson
from op_bagel.model import Bagel, initialise
from op_bagel.packing import Packed, pack
from op_bagel.sampling import Guidance
from op_bagel.segments import Sample
from op_bagel.vae import AutoEncoder, VAEConfig
from op_nano import INFO
from op_nano.backend import NanoTokenizer
from op_toy.photos import command as draw_photos

SIDE = 128
MID = BagelConfig(
    llm=DecoderConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    vit=ViTConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=16,
    ),
    vae=VAEConfig(
        ch=64,
        ch_mult=(1, 2, 4, 4),
        num_res_blocks=1,
        z_channels=16,
        groupnorm_groups=32,
        scale_factor=1.0,
        shift_factor=0.0,
    ),
    special_tokens=SpecialTokens(bos_token_id=0, eos_token_id=1, start_of_image=2, end_of_image=3),
    max_latent_size=SIDE // 16,
)


LossAndGradients = tuple[float, dict[str, Tensor]]
"""The joint loss, and the gradient of each part of the tokens."""


@dataclass(kw_only=True)
class Timings:
    """Seconds by round, by the clock and (``work``) of the processor. ``encoding`` is what the
    plain step spends in ViT and autoencoder, ``preparing`` what ours spends once; ``encoded``
    counts pictures inside the steps."""

    preparing: float
    steps: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "plain": []})
    work: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "plain": []})
    encoding: list[float] = field(default_factory=list)
    encoded: dict[str, int] = field(default_factory=lambda: {"ours": 0, "plain": 0})
    difference: float = 0.0


def mid_backend() -> BagelBackend:
    """A random BAGEL between nano and the released one."""
    torch.manual_seed(0)
    bagel = Bagel(MID)
    initialise(bagel, 0)
    torch.nn.init.normal_(bagel.llm2vae.weight, std=0.02)  # at zero it would teach gen nothing
    return BagelBackend(
        info=INFO,
        model="random",
        fingerprint="mid@random",
        bagel=bagel.eval(),
        vae=AutoEncoder(MID.vae).eval(),
        tokenizer=NanoTokenizer(),
        fit=Fit(vae=_fitted, vit=_fitted),
        guidance=Guidance(text=INFO.guidance),
        edit_guidance=Guidance(text=INFO.guidance),
        shift=1.0,
    )


def _fitted(image: Image) -> Image:
    return image.resize((SIDE, SIDE), Resampling.BICUBIC)


def opened(shape: str) -> BagelBackend:
    """The backend of a shape; both ways of stepping need one that is a BAGEL."""
    backend = mid_backend() if shape == "mid" else registry.open_backend(Opening(backend="nano"))
    if not isinstance(backend, BagelBackend):
        raise click.ClickException(f"{backend.info.name} is not BAGEL")
    return backend


def lessons_of(character: int) -> tuple[list[Lesson], list[Image]]:
    """What `op learn` would teach of a toy character, and its photos."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            draw_photos(["photos", str(photos), "--seed", str(character)], standalone_mode=False)
        material = gather(Subject(photos=[photos], name="bo"), seed=0, backend=INFO.name)
    return list(material.lessons), [photo.image for photo in material.album.learning]


def plain_losses(
    backend: BagelBackend, batch: Sequence[PreparedLesson], tokens: ConceptTokens, *, seed: int
) -> dict[Task, Tensor]:
    """`Backend.loss` without its savings: concept turn in every sample, a head on every row.

    Answers and pictures go through the text head and the velocity head respectively, as there.
    """
    noise = torch.Generator().manual_seed(seed)
    bagel, decoder = backend.bagel, backend.bagel.language_model.model
    found: dict[Task, Tensor] = {}
    answered = [lesson for lesson in batch if lesson.task == "understand"]
    if answered:
        frozen = replace(tokens, gen=tokens.gen.detach())
        packed = _packed(backend, [backend._answered(one, frozen) for one in answered], frozen)
        _, rows, _ = bagel._run(packed, None, None, None)
        scores = bagel.language_model.logits(decoder.norm(rows.und))
        taught = scores.index_select(0, packed.label_at).float()
        found["understand"] = functional.cross_entropy(taught, packed.labels)
    painted = [lesson for lesson in batch if lesson.task != "understand"]
    if painted:
        frozen = replace(tokens, und=tokens.und.detach())
        packed = _packed(backend, [backend._painted(one, frozen, noise) for one in painted], frozen)
        _, rows, _ = bagel._run(packed, None, None, None)
        if rows.gen is None or packed.target is None:
            raise click.ClickException("the pictures to be drawn are missing from the batch")
        velocity = bagel.llm2vae(decoder.norm_moe_gen(rows.gen))
        taught = velocity.index_select(0, packed.noised_at).float()
        mse = (taught - packed.target.float()).square().mean(-1)
        tasks: tuple[Task, ...] = ("generate", "edit")
        for task in tasks:
            mine = torch.tensor([one.task == task for one in painted])[packed.noised_sample]
            if mine.any():
                found[task] = mse[mine].mean()
    return found


def _packed(backend: BagelBackend, samples: Sequence[Sample], tokens: ConceptTokens) -> Packed:
    """Every sample behind its own copy of the concept's turn."""
    intro = backend._introduce(tokens)
    return pack([[intro, *sample] for sample in samples], backend.bagel.config, multiple=16)


def stepped(
    losses: Mapping[Task, Tensor], tokens: ConceptTokens, hyper: Hyperparameters
) -> LossAndGradients:
    """The joint loss and its gradients, after the backward pass."""
    total = weighted(losses, hyper)
    torch.autograd.backward(total)
    named = named_tensors(tokens)
    gradients = {key: value.grad for key, value in named.items() if value.grad is not None}
    for value in named.values():
        value.grad = None
    return float(total.detach()), gradients


def difference(one: LossAndGradients, other: LossAndGradients) -> float:
    """The largest difference of two steps, relative to their loss and to each gradient."""
    found = [abs(one[0] - other[0]) / max(abs(one[0]), 1e-12)]
    for key, gradient in one[1].items():
        found.append(float((gradient - other[1][key]).norm() / gradient.norm().clamp(min=1e-12)))
    return max(found)


def measure(
    backend: BagelBackend,
    lessons: Sequence[Lesson],
    start: ConceptTokens,
    *,
    rounds: int,
    batch_size: int,
) -> Timings:
    """Interleaved steps on the same batches, after one round that does not count."""
    hyper = Hyperparameters(steps=rounds + 1, batch_size=batch_size, learning_rate=1e-3)
    began = time.perf_counter()
    prepared = backend.prepare(lessons)
    timings = Timings(preparing=time.perf_counter() - began)
    groups: dict[str, list[Lesson]] = {}
    for lesson in lessons:
        groups.setdefault(group_of(lesson), []).append(lesson)
    ready = {id(lesson): made for lesson, made in zip(lessons, prepared, strict=True)}
    tokens = copy_of(start, trainable=True)

    def ours(batch: Sequence[Lesson], seed: int) -> LossAndGradients:
        chosen = [ready[id(lesson)] for lesson in batch]
        return stepped(backend.loss(chosen, tokens, seed=seed), tokens, hyper)

    def plain(batch: Sequence[Lesson], seed: int) -> LossAndGradients:
        since = time.perf_counter()
        for remembered in (backend._look, backend._reduce):
            remembered.clear()
        encoded = backend.prepare(batch)
        timings.encoding.append(time.perf_counter() - since)
        return stepped(plain_losses(backend, encoded, tokens, seed=seed), tokens, hyper)

    for number in range(rounds + 1):
        # `draw` picks lessons as readily as prepared ones: it looks only at how many there are.
        batch = cast("list[Lesson]", draw(groups, hyper, number))
        results: dict[str, LossAndGradients] = {}
        for name, step in (("ours", ours), ("plain", plain))[:: 1 if number % 2 else -1]:
            before, began, worked = backend.encoded, time.perf_counter(), time.process_time()
            results[name] = step(batch, number)
            timings.steps[name].append(time.perf_counter() - began)
            timings.work[name].append(time.process_time() - worked)
            timings.encoded[name] += backend.encoded - before if number else 0
        timings.difference = max(timings.difference, difference(results["ours"], results["plain"]))
    for series in (timings.encoding, *timings.steps.values(), *timings.work.values()):
        del series[0]  # the first round warms up
    return timings


def ratios(series: Mapping[str, Sequence[float]]) -> list[float]:
    """Plain over ours in each round, sorted."""
    pairs = zip(series["plain"], series["ours"], strict=True)
    return sorted(plain / ours for plain, ours in pairs)


def table(timings: Timings, *, shape: str, threads: int, batch_size: int, lessons: int) -> str:
    """The figures as Markdown."""
    rounds = len(timings.encoding)
    middle = {name: statistics.median(series) for name, series in timings.steps.items()}
    encoding = statistics.median(timings.encoding)
    work = {name: statistics.median(series) for name, series in timings.work.items()}
    by_clock, by_work = ratios(timings.steps), ratios(timings.work)
    rows = [
        f"{shape}, {batch_size} lessons a step, {rounds} rounds, {threads} threads",
        "",
        "| a step | median | processor time | encoders in it | pictures encoded, all rounds |",
        "| --- | --- | --- | --- | --- |",
        f"| ours | {middle['ours'] * 1e3:.0f} ms | {work['ours'] * 1e3:.0f} ms | 0 ms "
        f"| {timings.encoded['ours']} |",
        f"| plain | {middle['plain'] * 1e3:.0f} ms | {work['plain'] * 1e3:.0f} ms "
        f"| {encoding * 1e3:.0f} ms | {timings.encoded['plain']} |",
        "",
        f"plain / ours: {statistics.median(by_clock):.2f} by the clock (rounds from "
        f"{by_clock[0]:.2f} to {by_clock[-1]:.2f}), {statistics.median(by_work):.2f} in processor "
        f"time ({by_work[0]:.2f} to {by_work[-1]:.2f})",
        "",
        f"`prepare`, once for {lessons} lessons: {timings.preparing:.2f} s. "
        f"Largest relative difference of a loss or gradient: {timings.difference:.1e}.",
    ]
    return "\n".join(rows)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", type=click.Choice(("nano", "mid")), default="nano", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--batch-size", type=click.IntRange(3), default=INFO.batch, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--character", default=30_000_000, show_default=True, help="Seed of the toy photos.")
def main(shape: str, rounds: int, batch_size: int, threads: int, character: int) -> None:
    """Time a learning step both ways and print the ratio."""
    torch.set_num_threads(threads)
    backend = opened(shape)
    lessons, photos = lessons_of(character)
    tokens = backend.new_tokens("bo", understand=16, generate=16, photos=photos, seed=0)
    timings = measure(backend, lessons, tokens, rounds=rounds, batch_size=batch_size)
    if timings.difference > 1e-3:
        raise click.ClickException(
            f"the two ways do not teach the same: they differ by {timings.difference:.1e}"
        )
    click.echo(
        table(timings, shape=shape, threads=threads, batch_size=batch_size, lessons=len(lessons))
    )


if __name__ == "__main__":
    main()
