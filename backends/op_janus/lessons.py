"""What painting lessons cost: the loss of their codes, behind prompts as the authors train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusForConditionalGeneration

from omnipersona_cli.backend import ConceptTokens, Task
from omnipersona_cli.family.deep import joined_rows, level, run_layers
from omnipersona_cli.family.language import CausalLM, PreparedLesson
from omnipersona_cli.family.pieces import in_pieces, settled
from omnipersona_cli.family.text import padded
from op_janus import pictures, prompts
from op_janus.prompts import PROMPT, SourcePicture

DROPPED = 0.1
"""Share of image lessons whose prompt is padded out, where an adapter is learned: it runs in the
unconditional branch too. Tokens alone are absent from that branch, so that such a row would teach
nothing (Janus-4o's trainer)."""
UNDETAILED = 0.5
"""Share of native edit lessons that do not show the source's codes: one of the branches of guidance
does not see them (Janus-4o's trainer)."""


def codes_loss(
    janus: JanusForConditionalGeneration,
    llm: CausalLM,
    lessons: Sequence[PreparedLesson],
    tokens: ConceptTokens,
    task: Task,
    draw: torch.Generator,
    *,
    most: int,
    at_once: int,
) -> Tensor:
    """The mean cross-entropy of all free codes."""
    count = sum(int(cast(Tensor, lesson.free).sum()) for lesson in lessons)
    positions = len(cast(Tensor, lessons[0].codes))
    context = 0 if lessons[0].source is None else 2 * positions
    lengths = [PROMPT + context + positions] * len(lessons)
    parts = []
    for piece in in_pieces(lessons, lengths, most=most, at_once=at_once):
        asked = [_request(janus, llm, lesson, tokens, task, draw) for lesson in piece]
        codes = [cast(Tensor, lesson.codes) for lesson in piece]
        free = [cast(Tensor, lesson.free) for lesson in piece]
        rows = [
            joined_rows([prompt, pictures.code_rows(janus, one[:-1])])
            for prompt, one in zip(asked, codes, strict=True)
        ]
        with llm.using(task, (tokens,)):
            states = run_layers(llm.decoder, padded(level(rows)), use_cache=False)
            wanted = [
                # the row of BOI foretells the first code
                states[number, len(prompt) - 1 :][:positions][places]
                for number, (prompt, places) in enumerate(zip(asked, free, strict=True))
            ]
            logits = janus.model.generation_head(torch.cat(wanted)).float()
            labels = torch.cat([one[places] for one, places in zip(codes, free, strict=True)])
            loss = F.cross_entropy(logits, labels, reduction="sum") / count
            parts.append(settled(loss, tokens.parameters()))
    return torch.stack(parts).sum()


def _request(
    janus: JanusForConditionalGeneration,
    llm: CausalLM,
    lesson: PreparedLesson,
    tokens: ConceptTokens,
    task: Task,
    draw: torch.Generator,
) -> Tensor:
    """The prompt [P, d] of a lesson, a part of it dropped as the authors' trainer does; held-out
    lessons are read whole."""
    chance = float(torch.rand((), generator=draw)) if torch.is_grad_enabled() else 1.0
    source = None
    if lesson.picture is not None and lesson.source is not None:
        codes = pictures.code_rows(janus, lesson.source)
        source = SourcePicture(features=lesson.picture, codes=codes)
    detailed = chance >= UNDETAILED
    prompt = prompts.request(llm, lesson.request, (tokens,), task, source, detailed=detailed)
    bare = tokens.has_experts and source is None and chance < DROPPED
    return prompts.without(llm, prompt) if bare else prompt
