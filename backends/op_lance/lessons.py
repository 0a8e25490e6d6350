"""Lessons as the release trains on them: inside the template, with what guidance leaves out."""

from __future__ import annotations

import torch

from omnipersona_cli.backend import ConceptTokens
from op_bagel.lineage import PreparedLesson, noised
from op_bagel.segments import Latent, Sample, Segment, SoftRows, Text, Vit
from op_lance.config import LanceConfig
from op_lance.layout import placed, raw
from op_lance.prompts import Template

DROPPED = 0.1
"""Share of painting lessons that are learned from without the request, or without the pictures that
are edited, as in the release's scripts; the template stays."""


def sample_of(
    lesson: PreparedLesson,
    tokens: ConceptTokens,
    template: Template,
    config: LanceConfig,
    *,
    start: int,
    draw: torch.Generator,
) -> Sample:
    """A lesson after its concept's introduction, which takes ``start`` positions."""
    pictures: list[Segment] = []
    if lesson.features is not None:
        pictures.append(Vit(features=lesson.features, grid=lesson.looked))
    if lesson.task == "understand":
        head = raw(template.looking if pictures else template.talking)
        exchange = answered(lesson, tokens, template)
        return placed([head, *pictures, exchange], start=start, anchor=config.asking_anchor)

    def kept() -> bool:
        if not torch.is_grad_enabled():  # held-out lessons are read whole
            return True
        return float(torch.rand((), generator=draw)) >= DROPPED

    assert lesson.target is not None  # for the type checker: painting lessons have one
    head = raw(template.painting)
    if lesson.source is not None:
        head = raw(template.editing)
        pictures = [*pictures, Latent(lesson.source, lesson.grid)] if kept() else []
    soft = [SoftRows((place,), tokens.id) for place in lesson.at]
    after = raw(template.assistant)
    if kept():
        after = raw([*lesson.request, *template.assistant], soft)
    noised_copies = noised(lesson.target, lesson.grid, config.timestep_shift_train, draw)
    return placed([head, *pictures, after, *noised_copies], start=start, anchor=config.anchor)


def answered(lesson: PreparedLesson, tokens: ConceptTokens, template: Template) -> Text:
    """The request, and the answer to be learned."""
    soft = [SoftRows((place,), tokens.id) for place in lesson.at]
    request = [*lesson.request, *template.assistant]
    ids = [*request, *lesson.answer, template.end]
    return Text(ids, raw=True, soft=soft, loss=True, loss_from=len(request))
