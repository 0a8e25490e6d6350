"""Painting with Janus: image codes one after another, all branches of guidance at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, JanusForConditionalGeneration, StaticCache

from omnipersona_cli.backend import OnStep
from omnipersona_cli.family.codes import OnCodes
from omnipersona_cli.family.deep import joined_rows
from omnipersona_cli.family.speculative import draw_ahead

RunLayers = Callable[..., Tensor]
"""The language model: (rows [B, L, d] or wide ones, cache) -> last hidden states [B, L, d]."""

SOURCE_GUIDANCE = 5.0
"""How much more the branch counts that sees a source picture without its codes (Janus-4o)."""


def guided(guidance: float) -> tuple[float, ...]:
    """Weights of two branches, with the prompt and without: u + guidance * (c - u)."""
    return guidance, 1 - guidance


def guided_by_source(guidance: float) -> tuple[float, ...]:
    """Weights of three branches: source and codes, source alone, nothing; the first two make the
    mean that `guided` calls c, in which the second counts `SOURCE_GUIDANCE` times."""
    both = 1 + SOURCE_GUIDANCE
    return guidance / both, guidance * SOURCE_GUIDANCE / both, 1 - guidance


@torch.no_grad()
def sample(
    model: JanusForConditionalGeneration,
    run: RunLayers,
    prompts: Tensor,
    *,
    weights: Sequence[float],
    generator: torch.Generator,
    temperature: float = 1.0,
    known: Tensor | None = None,
    free: Tensor | None = None,
    static: bool | None = None,
    window: int = 0,
    on_step: OnStep | None = None,
    on_codes: OnCodes | None = None,
) -> Tensor:
    """Codes [N] of one picture, from rows ``prompts`` [branches, P, d], or wide ones.

    Logits are the sum of the branches' by ``weights``, and a branch that counts nothing is not
    computed. At temperature 0 the best code is taken, else one is sampled from the codebook as
    the authors do (Janus, generation_inference). Where ``free`` [N] is false, the code is that of
    ``known`` [N]: masked regeneration. Known codes are read at once with the next free one.

    The random number of a place in the picture does not depend on the places before it, and all of
    them are drawn beforehand: a step waits for nothing that is not on the device. ``static``
    chooses a cache of fixed size; without it, accelerators have one (on a processor the growing one
    is a tenth faster over 576 codes). With a ``window`` so many codes are drawn ahead
    (`omnipersona_cli.family.speculative`): others at the same seed, of the same distribution.
    """
    sight: Any = model.config.vision_config
    count = sight.num_image_tokens
    settings = model.config.get_text_config()
    counts = [number for number, weight in enumerate(weights) if weight]
    rows, device = prompts[counts], prompts.device
    scale = torch.tensor([weights[number] for number in counts], device=device)
    asked = [True] * count if known is None or free is None else free.tolist()
    if window:
        reader = _Reader(model, run, rows, scale, temperature)
        given = [None] * count if known is None else known.tolist()
        places = [None if free else code for code, free in zip(given, asked, strict=True)]
        drawn_codes = draw_ahead(
            reader, reader.first, places, generator=generator, window=window, on_step=on_step
        ).codes
        return torch.tensor(drawn_codes, device=device)
    chance = torch.rand(count, generator=generator).to(device)
    roomy = device.type != "cpu" if static is None else static
    cache: Cache = (
        StaticCache(config=settings, max_cache_len=rows.shape[1] + count)
        if roomy
        else DynamicCache(config=settings)
    )
    codes: list[Tensor] = []
    unread = [rows]
    for index in range(count):
        if asked[index]:
            states = run(joined_rows(unread, dim=1), past_key_values=cache, use_cache=True)[:, -1]
            scores = scale @ model.model.generation_head(states).float()
            code = (
                scores.argmax()
                if temperature <= 0
                else sampled(scores / temperature, chance[index])
            )
            unread = []
        else:
            code = known[index]  # type: ignore[index]  # only then something is not asked
        codes.append(code)
        more = model.prepare_embeddings_for_image_generation(code.view(1, 1)).to(prompts.dtype)
        unread.append(more.expand(len(counts), -1, -1))
        if on_step:
            on_step(index + 1, count)
        if on_codes:
            on_codes(index + 1, count, codes)
    return torch.stack(codes)


class _Reader:
    """Codes behind the prompts of all branches; ``first`` [V] are the chances of the first one."""

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        run: RunLayers,
        rows: Tensor,
        scale: Tensor,
        temperature: float,
    ) -> None:
        self.model, self.run, self.scale, self.temperature = model, run, scale, temperature
        self.cache = DynamicCache(config=model.config.get_text_config())
        self.dtype = rows.dtype
        self.first = self._chances(rows, 1)[0]

    def read(self, codes: Sequence[int]) -> Tensor:
        """Codes -> chances [n, V] behind each."""
        ids = torch.tensor([codes], device=self.scale.device)
        rows = self.model.prepare_embeddings_for_image_generation(ids).to(self.dtype)
        return self._chances(rows.expand(len(self.scale), -1, -1), len(codes))

    def forget(self, count: int) -> None:
        """The ``count`` codes that were read last are forgotten."""
        self.cache.crop(-count)

    def _chances(self, rows: Tensor, count: int) -> Tensor:
        states = self.run(rows, past_key_values=self.cache, use_cache=True)
        logits = self.model.model.generation_head(states[:, -count:]).float()
        scores = torch.einsum("b,bnv->nv", self.scale, logits)
        if self.temperature <= 0:
            return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).float()
        return (scores / self.temperature).softmax(-1)


def sampled(scores: Tensor, chance: Tensor) -> Tensor:
    """The code at which the running sum of scores' [V] softmax passes ``chance``, in [0, 1)."""
    sums = scores.softmax(-1).cumsum(-1)
    return torch.searchsorted(sums, (chance * sums[-1])[None], right=True)[0].clamp(
        max=len(scores) - 1
    )
