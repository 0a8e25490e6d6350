"""Painting with Emu3: codes row by row, under the prompt and under what is unwanted at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from omnipersona_cli.backend import OnStep
from op_emu3.layout import length
from op_emu3.loading import LoadedCheckpoint

LIKELIEST = 2048
"""A code is drawn from this many, as the authors do (Emu3's README)."""


@torch.no_grad()
def sample(
    model: LoadedCheckpoint,
    prompts: Sequence[Tensor],
    grid: tuple[int, int],
    *,
    guidance: float,
    generator: torch.Generator,
    temperature: float = 1.0,
    known: Tensor | None = None,
    free: Tensor | None = None,
    static: bool | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Codes [rows, columns] of one picture, from the input rows of two prompts [P_i, d]: what is
    wanted, and what is not.

    Logits are u + guidance * (c - u) over the codes alone, which equals the authors' form on
    log-probabilities, because the normalisers cancel. At temperature 0 the best code is taken.
    Where ``free`` [rows, columns] is false, the code is that of ``known``: masked regeneration.
    Ends of lines are where they belong and never asked for; they and known codes are read at once
    before the next code that is free, so that a step is a free code. ``static`` chooses a cache of
    fixed size; without it, accelerators have one.
    """
    rows, columns = grid
    count = rows * columns
    language, device = model.language, model.device
    if guidance == 1.0:
        prompts = prompts[:1]  # u + 1 * (c - u) is c
    state, mask = side_by_side(prompts)
    settings = language.config
    roomy = device.type != "cpu" if static is None else static
    cache = (
        StaticCache(config=settings, max_cache_len=state.shape[1] + length(grid))
        if roomy
        else DynamicCache(config=settings)
    )
    places = mask.cumsum(1) - 1
    last = places[:, -1:]
    codes: list[int] = []
    unread: list[int] = []
    given = [] if known is None else known.flatten().tolist()
    asked = [True] * count if free is None else free.flatten().tolist()
    for index in range(count):
        if asked[index]:
            if unread:
                more = model.table(torch.tensor(unread, device=device))
                state = torch.cat([state, more.expand(len(prompts), -1, -1)], dim=1)
                fresh = last + torch.arange(1, len(unread) + 1, device=device)
                places, last = torch.cat([places, fresh], dim=1), fresh[:, -1:]
                mask = torch.cat([mask, torch.ones_like(fresh)], dim=1)
                unread = []
            read = language(
                inputs_embeds=state,
                attention_mask=mask,
                position_ids=places.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
            state, places = state[:, :0], places[:, :0]
            logits = (read.last_hidden_state[:, -1] @ model.head.T).float()
            codes.append(_drawn(_guided(logits, guidance), temperature, generator))
            if on_step:
                on_step(index + 1, count)
        else:
            codes.append(int(given[index]))
        unread.append(model.first + codes[-1])
        if (index + 1) % columns == 0:
            unread.append(model.end_of_line)
    if on_step and not asked[-1]:
        on_step(count, count)
    return torch.tensor(codes, device=device).view(rows, columns)


def side_by_side(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [P_i, d] as one batch [n, P, d], padded on the left, and its mask [n, P]."""
    longest = max(len(prompt) for prompt in prompts)
    rows = [
        torch.cat([prompt.new_zeros(longest - len(prompt), prompt.shape[1]), prompt])
        for prompt in prompts
    ]
    device = prompts[0].device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    places = torch.arange(longest, device=device)
    return torch.stack(rows), (places >= longest - lengths[:, None]).long()


def _guided(logits: Tensor, guidance: float) -> Tensor:
    """[codes] of one row or two."""
    if len(logits) == 1:
        return logits[0]
    return logits[1] + guidance * (logits[0] - logits[1])


def _drawn(scores: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(scores.argmax())
    best, which = scores.topk(min(LIKELIEST, len(scores)))
    chances = (best / temperature).softmax(-1).cpu()
    return int(which[torch.multinomial(chances, 1, generator=generator)])
