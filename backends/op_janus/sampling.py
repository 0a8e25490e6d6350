"""Painting with Janus: image codes one after another, with and without the prompt at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, JanusForConditionalGeneration

from omnipersona_cli.backend import OnStep

Run = Callable[..., Tensor]
"""The language model: (inputs_embeds [B, L, d], cache) -> last hidden states [B, L, d]."""


@torch.no_grad()
def sample(
    model: JanusForConditionalGeneration,
    run: Run,
    prompts: Tensor,
    *,
    guidance: float,
    generator: torch.Generator,
    temperature: float = 1.0,
    known: Tensor | None = None,
    free: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Codes [N] of one picture, from rows ``prompts`` [2, P, d]: with the prompt and without.

    Logits are u + guidance * (c - u), at temperature 0 the best code, else a draw over the whole
    codebook as the authors do (Janus, generation_inference). Where ``free`` [N] is false, the code
    is that of ``known`` [N]: masked regeneration. What is known before the first free code is read
    at once.
    """
    sight: Any = model.config.vision_config
    count = sight.num_image_tokens
    cache = DynamicCache(config=model.config.get_text_config())
    start = 0
    rows = prompts
    codes: list[Tensor] = []
    if known is not None and free is not None:
        start = int(free.nonzero()[0])
        if start:
            before = model.prepare_embeddings_for_image_generation(known[None, :start])
            rows = torch.cat([rows, before.expand(2, -1, -1).to(rows.dtype)], dim=1)
            codes = list(known[:start])
    for index in range(start, count):
        states = run(inputs_embeds=rows, past_key_values=cache, use_cache=True)[:, -1]
        with_prompt, without = model.model.generation_head(states).float()
        scores = without + guidance * (with_prompt - without)
        if free is not None and known is not None and not free[index]:
            code = known[index]
        elif temperature <= 0:
            code = scores.argmax()
        else:
            chances = (scores / temperature).softmax(-1).cpu()
            code = torch.multinomial(chances, 1, generator=generator)[0].to(rows.device)
        codes.append(code)
        rows = model.prepare_embeddings_for_image_generation(code.view(1, 1)).expand(2, -1, -1)
        if on_step:
            on_step(index + 1, count)
    return torch.stack(codes)
