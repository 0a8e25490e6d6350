"""Painting with Emu3: codes row by row, under the prompt and under what is unwanted at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from omnipersona_cli.backend import OnStep
from omnipersona_cli.family.codes import OnCodes
from omnipersona_cli.family.deep import joined_rows, level, run_layers
from omnipersona_cli.family.speculative import draw_ahead
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
    window: int = 0,
    on_step: OnStep | None = None,
    on_codes: OnCodes | None = None,
) -> Tensor:
    """Codes [rows, columns] of one picture, from the input rows of two prompts [P_i, d], or wide
    ones: what is wanted, and what is not.

    Logits are u + guidance * (c - u) over the codes alone, which equals the authors' form on
    log-probabilities, because the normalisers cancel. At temperature 0 the best code is taken.
    Where ``free`` [rows, columns] is false, the code is that of ``known``: masked regeneration.
    Ends of lines are where they belong and never asked for; they and known codes are read at once
    before the next code that is free, so that a step is a free code. ``static`` chooses a cache of
    fixed size; without it, accelerators have one. With a ``window`` so many codes are drawn ahead
    (`omnipersona_cli.family.speculative`): others at the same seed, of the same distribution.
    """
    rows, columns = grid
    count = rows * columns
    decoder, device = model.llm.decoder, model.llm.device
    if guidance == 1.0:
        prompts = prompts[:1]  # u + 1 * (c - u) is c
    if window:
        reader = _Reader(model, prompts, guidance, temperature)
        lines = _lines(grid, len(model.head), known, free)
        drawn = draw_ahead(
            reader, reader.first, lines, generator=generator, window=window, on_step=on_step
        )
        return torch.tensor(drawn.codes, device=device).view(rows, columns + 1)[:, :-1]
    state, mask = side_by_side(prompts)
    settings = decoder.config
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
                more = model.llm.table(torch.tensor(unread, device=device))
                state = joined_rows([state, more.expand(len(prompts), -1, -1)], dim=1)
                fresh = last + torch.arange(1, len(unread) + 1, device=device)
                places, last = torch.cat([places, fresh], dim=1), fresh[:, -1:]
                mask = torch.cat([mask, torch.ones_like(fresh)], dim=1)
                unread = []
            read = run_layers(
                decoder,
                state,
                attention_mask=mask,
                position_ids=places.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
            state, places = state[:, :0, : model.llm.table.embedding_dim], places[:, :0]
            logits = (read[:, -1] @ model.head.T).float()
            codes.append(_drawn(_guided(logits, guidance), temperature, generator))
            if on_step:
                on_step(index + 1, count)
            if on_codes:
                on_codes(index + 1, count, codes)
        else:
            codes.append(int(given[index]))
        unread.append(model.first + codes[-1])
        if (index + 1) % columns == 0:
            unread.append(model.end_of_line)
    if not asked[-1]:
        if on_step:
            on_step(count, count)
        if on_codes:
            on_codes(count, count, codes)
    return torch.tensor(codes, device=device).view(rows, columns)


def _lines(
    grid: tuple[int, int], end: int, known: Tensor | None, free: Tensor | None
) -> list[int | None]:
    """What stands in each place of the lines: known codes, and ``end`` where a line ends."""
    lines: list[list[int | None]] = [[None] * grid[1] + [end] for _ in range(grid[0])]
    if known is not None and free is not None:
        for row, column in (~free).nonzero().tolist():
            lines[row][column] = int(known[row, column])
    return [code for line in lines for code in line]


class _Reader:
    """Lines of codes behind both prompts; ``first`` [codes] are the chances behind the prompts."""

    def __init__(
        self,
        model: LoadedCheckpoint,
        prompts: Sequence[Tensor],
        guidance: float,
        temperature: float,
    ) -> None:
        self.model, self.guidance, self.temperature = model, guidance, temperature
        self.cache = DynamicCache(config=model.llm.decoder.config)
        state, self.mask = side_by_side(prompts)
        places = self.mask.cumsum(1) - 1
        self.last = places[:, -1:]
        self.first = self._chances(state, places.clamp(min=0), 1)[0]

    def read(self, codes: Sequence[int]) -> Tensor:
        """Codes, or the number of codes for the end of a line -> chances [n, codes] behind each."""
        model, count = self.model, len(codes)
        end = len(model.head)
        ids = [model.end_of_line if code == end else model.first + code for code in codes]
        rows = model.llm.table(torch.tensor(ids, device=model.llm.device))
        places = self.last + torch.arange(1, count + 1, device=model.llm.device)
        self.last = places[:, -1:]
        self.mask = torch.cat([self.mask, torch.ones_like(places)], dim=1)
        return self._chances(rows.expand(len(places), -1, -1), places, count)

    def forget(self, count: int) -> None:
        """The ``count`` codes that were read last are forgotten."""
        self.cache.crop(-count)
        self.last = self.last - count
        self.mask = self.mask[:, : self.mask.shape[1] - count]

    def _chances(self, rows: Tensor, places: Tensor, count: int) -> Tensor:
        read = run_layers(
            self.model.llm.decoder,
            rows,
            attention_mask=self.mask,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits = (read[:, -count:] @ self.model.head.T).float()
        scores = _guided(logits, self.guidance)
        if self.temperature <= 0:
            return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).float()
        best, which = scores.topk(min(LIKELIEST, scores.shape[-1]))
        return torch.zeros_like(scores).scatter(-1, which, (best / self.temperature).softmax(-1))


def side_by_side(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [P_i, d] as one batch [n, P, d], padded on the left, and its mask [n, P]; all as wide as
    the widest."""
    prompts = level(prompts)
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
    """[..., codes] of one row or two."""
    if len(logits) == 1:
        return logits[0]
    return logits[1] + guidance * (logits[0] - logits[1])


def _drawn(scores: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(scores.argmax())
    best, which = scores.topk(min(LIKELIEST, len(scores)))
    chances = (best / temperature).softmax(-1).cpu()
    return int(which[torch.multinomial(chances, 1, generator=generator)])
