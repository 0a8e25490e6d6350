"""What painting lessons cost: the loss of their codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from omnipersona_cli.backend import ConceptTokens, Task
from omnipersona_cli.family.deep import joined_rows, run_layers
from omnipersona_cli.family.language import PreparedLesson
from omnipersona_cli.family.pieces import settled
from op_emu3 import prompts
from op_emu3.loading import LoadedCheckpoint

DROPPED = 0.05
"""Share of image lessons without a prompt, where an expert is learned: it runs in the unconditional
branch too. Tokens alone are absent from that branch, so that such a row would teach nothing (the
authors' trainer)."""


def codes_loss(
    model: LoadedCheckpoint,
    lessons: Sequence[PreparedLesson],
    tokens: ConceptTokens,
    task: Task,
    draw: torch.Generator,
) -> Tensor:
    """The mean cross-entropy of all free codes; pictures are of several sizes: one at a time.

    Ends of lines are not asked for, as nobody draws them when painting, and codes compete with
    codes alone, as in painting.
    """
    count = sum(int(cast(Tensor, lesson.free).sum()) for lesson in lessons)
    parts = []
    for lesson in lessons:
        codes, free = cast(Tensor, lesson.codes), cast(Tensor, lesson.free)
        grid = (codes.shape[0], codes.shape[1])
        chance = float(torch.rand((), generator=draw)) if torch.is_grad_enabled() else 1.0
        bare = tokens.has_experts and chance < DROPPED  # held-out lessons are read whole
        prompt = (
            prompts.wordless(model, grid, "")
            if bare
            else prompts.request(model, lesson.request, (tokens,), task, grid)
        )
        ids = prompts.lines_of(model, codes)
        asked = F.pad(free, (0, 1)).flatten().nonzero()[:, 0]  # ends of lines are not free
        rows = joined_rows([prompt, model.llm.table(ids[: int(asked[-1])])])
        with model.llm.using(task, (tokens,)):
            states = run_layers(model.llm.decoder, rows[None], use_cache=False)[0]
            logits = (states[len(prompt) - 1 :][asked] @ model.head.T).float()
            loss = F.cross_entropy(logits, codes[free], reduction="sum") / count
            parts.append(settled(loss, tokens.parameters()))
    return torch.stack(parts).sum()
