"""Generating with a BAGEL model: pictures by rectified flow with two guidances, and text.

Source: BAGEL release, inference code; sampler defaults are those of its examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from op_bagel.cache import Cache
from op_bagel.model import Bagel
from op_bagel.packing import pack
from op_bagel.pictures import Grid
from op_bagel.segments import Text

Renorm = Literal["global", "channel", "text_channel"]

Solver = Literal["euler", "ab2"]
"""Euler's method, as released, or the two-step method of Adams and Bashforth, which is of second
order and asks the model no more often (benchmarks/fast_painting.py compares)."""


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Move times in [0, 1] towards noise: shift * t / (1 + (shift - 1) * t)."""
    return shift * t / (1 + (shift - 1) * t)


def training_time(u: Tensor, shift: float) -> Tensor:
    """Standard normal draws -> training times in (0, 1); -inf gives 0, a clean picture."""
    return shift_time(torch.sigmoid(u), shift)


def time_grid(steps: int, shift: float) -> Tensor:
    """[steps + 1] times from 1 (noise) to 0 (picture) for `steps` updates.

    The release counts the points: its 50 are 49 updates here.
    """
    return shift_time(torch.linspace(1, 0, steps + 1), shift)


def noise_tokens(grid: Grid, width: int, seeds: Sequence[int]) -> Tensor:
    """Starting noise [S, n, width], each picture from its own seed alone (CPU generator)."""
    return torch.stack(
        [
            torch.randn(
                grid[0] * grid[1], width, generator=torch.Generator().manual_seed(int(seed))
            )
            for seed in seeds
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance: how far a picture moves away from what the model would generate
    without the text, and without the pictures of its context.

    Nothing is guided where `text` <= 1, nor outside lo < t <= hi. `image` acts above 1.
    `renorm_min` 1 switches the renorm off; 0 lets it shrink freely.
    """

    text: float = 4.0
    image: float = 1.0
    interval: tuple[float, float] = (0.4, 1.0)
    renorm: Renorm = "global"
    renorm_min: float = 0.0

    def __post_init__(self) -> None:
        if self.renorm not in get_args(Renorm):
            raise ValueError(f"unknown renorm {self.renorm!r}; known: {get_args(Renorm)}")

    def active(self, t: float) -> bool:
        """Whether this time is guided."""
        return self.text > 1.0 and self.interval[0] < t <= self.interval[1]

    def combine(self, full: Tensor, no_text: Tensor, no_image: Tensor | None) -> Tensor:
        """Velocities [S, n, width] of the branches -> the guided one.

        `global` norms run over one picture, so pictures of a batch do not mix.
        """
        guided = no_text + self.text * (full - no_text)
        if self.renorm == "text_channel":
            guided = guided * self._shrink(full, guided, (-1,))
        if no_image is not None and self.image > 1.0:
            guided = no_image + self.image * (guided - no_image)
        if self.renorm == "text_channel":
            return guided
        return guided * self._shrink(full, guided, (-1,) if self.renorm == "channel" else (-2, -1))

    def _shrink(self, full: Tensor, guided: Tensor, dims: tuple[int, ...]) -> Tensor:
        """What brings the guided norm down to that of the full context, `renorm_min` at least."""
        target: Tensor = torch.linalg.vector_norm(full, dim=dims, keepdim=True)
        present: Tensor = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
        return (target / (present + 1e-8)).clamp(min=self.renorm_min, max=1.0)


def extrapolated(velocity: Tensor, t: float, after: float, earlier: tuple[float, Tensor]) -> Tensor:
    """The mean velocity from `t` to `after`, on the line through the velocity at `t` and the one at
    the step before, of which `earlier` has time and velocity (Adams-Bashforth)."""
    before, old = earlier
    return velocity + (t - after) / (2 * (before - t)) * (velocity - old)


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingStep:
    """One finished update, from time `t` to `after`: `state` is [S, n, width] after `index` + 1 of
    `total`."""

    index: int
    total: int
    t: float
    after: float
    state: Tensor
    velocity: Tensor
    branches: dict[str, Tensor]  # "full" and, where they ran, "no_text" and "no_image"

    @property
    def estimate(self) -> Tensor:
        """The picture at which this velocity would arrive at time 0 [S, n, width]."""
        return self.state - self.after * self.velocity


@torch.no_grad()
def sample_latents(
    model: Bagel,
    full: Cache,
    *,
    noise: Tensor,
    grid: Grid,
    no_text: Cache | None = None,
    no_image: Cache | None = None,
    guidance: Guidance | None = None,
    steps: int = 49,
    shift: float = 3.0,
    solver: Solver = "euler",
    together: bool = True,
    on_step: Callable[[SamplingStep], None] | None = None,
) -> Tensor:
    """Generate S pictures from `noise` [S, n, latent width] -> latent tokens of the same shape.

    `full` holds the whole context, `no_text` the one without the last text turn (an empty one
    where absent), `no_image` the one with text turns only (needed where guidance.image > 1);
    each serves all S pictures, or is a batch of S. Guidance branches run as one batch where
    `together`, which copies their caches; else one after another.
    Raises ValueError where image guidance lacks its context, or shapes do not fit.
    """
    guidance = Guidance() if guidance is None else guidance
    wanted = (grid[0] * grid[1], model.config.latent_width)
    if tuple(noise.shape[1:]) != wanted:
        raise ValueError(f"noise of shape [S, {wanted[0]}, {wanted[1]}] wanted")
    guided = guidance.text > 1.0
    branches = {"full": full}
    if guided:
        branches |= _unguided(model, no_text, no_image, guidance)
    count = len(noise)
    alone = model.drawing(count, grid)
    stacked, layout = full, alone
    if guided and together:
        stacked = Cache.stack([cache.expand(count) for cache in branches.values()])
        layout = model.drawing(count * len(branches), grid)

    def velocities(x: Tensor, t: float) -> dict[str, Tensor]:
        if not guidance.active(t):
            return {"full": model.velocity(full, x, t, alone)}
        if together:
            v = model.velocity(stacked, x.repeat(len(branches), 1, 1), t, layout)
            return dict(zip(branches, torch.split(v, count), strict=True))
        return {name: model.velocity(cache, x, t, alone) for name, cache in branches.items()}

    x = noise.to(model.device, torch.float32)
    times = time_grid(steps, shift).tolist()
    earlier: tuple[float, Tensor] | None = None
    for index, (t, after) in enumerate(pairwise(times)):
        predicted = velocities(x, t)
        v = predicted["full"]
        if len(predicted) > 1:
            v = guidance.combine(v, predicted["no_text"], predicted.get("no_image"))
        slope = v
        if earlier is not None and guidance.active(earlier[0]) == guidance.active(t):
            slope = extrapolated(v, t, after, earlier)
        earlier = (t, v) if solver == "ab2" else None
        x = x - (t - after) * slope
        if on_step is not None:
            on_step(
                SamplingStep(
                    index=index,
                    total=steps,
                    t=t,
                    after=after,
                    state=x,
                    velocity=v,
                    branches=predicted,
                )
            )
    return x


def _unguided(
    model: Bagel, no_text: Cache | None, no_image: Cache | None, guidance: Guidance
) -> dict[str, Cache]:
    """The contexts that guidance leans away from."""
    found = {"no_text": model.empty_cache() if no_text is None else no_text}
    if guidance.image > 1.0:
        if no_image is None:
            raise ValueError("image guidance needs the context without pictures")
        found["no_image"] = no_image
    return found


@torch.no_grad()
def decode_text(
    model: Bagel,
    cache: Cache,
    *,
    max_new: int = 999,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    first: int | None = None,
) -> Iterator[int]:
    """Generate text after one context: ids one by one, until eos or `max_new` ids. `first` is what
    the context still lacks, bos where it is left out; it is not among the ids.

    Greedy at temperature 0, else sampled with the (CPU) generator. To go on after the answer,
    prefill it as a text turn.
    """
    special = model.config.special_tokens
    known = model.config.llm.tokenizer_length
    token = special.bos_token_id if first is None else first
    for _ in range(max_new):
        logits, cache = model.next_logits([token], cache)
        token = _choose(logits[0, :known], temperature, generator)
        if token == special.eos_token_id:
            return
        yield token


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> int:
    if temperature <= 0.0:
        return int(logits.argmax())
    chances = torch.softmax(logits.cpu() / temperature, dim=-1)
    return int(torch.multinomial(chances, 1, generator=generator))


def score(
    model: Bagel, cache: Cache, answers: Sequence[Sequence[int]], *, first: int | None = None
) -> Tensor:
    """Log-probability [A] of each answer as a whole turn, eos included. `first` is what the context
    still lacks, bos where it is left out.

    The cache holds one context for all answers, or one for each. Keeps the graph where
    gradients are on.
    """
    special = model.config.special_tokens
    begin = special.bos_token_id if first is None else first
    whole = [[begin, *ids, special.eos_token_id] for ids in answers]
    samples = [[Text(ids, loss=True, raw=True)] for ids in whole]
    packed = pack(samples, model.config, model.device)
    losses = model(packed, cache).ce
    total = torch.zeros(len(answers), device=losses.device)
    return total.index_add(0, packed.label_sample, -losses)
