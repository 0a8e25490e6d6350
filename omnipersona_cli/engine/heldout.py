"""What a check looks at while learning: lessons and pictures that are never learned from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnipersona_cli.backend import (
    TASKS,
    Backend,
    ConceptTokens,
    OnStep,
    Prepared,
    Prompt,
    Task,
    Turn,
)
from omnipersona_cli.engine.settings import Hyperparameters


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A held-out picture that is asked about, prepared with both answers. The difference of their
    losses is a recognition score for which no image encoder has to run."""

    yes: Prepared
    no: Prepared
    present: bool


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """``lessons`` for the held-out loss, ``probes`` for the recognition margin, ``facts`` (request
    and answer) in wordings that are never taught."""

    lessons: Sequence[Prepared] = ()
    probes: Sequence[Probe] = ()
    facts: Sequence[tuple[Turn, str]] = ()

    @property
    def size(self) -> int:
        """How much a check looks at: lessons, and pictures that are asked about."""
        sides = {probe.present for probe in self.probes}
        return len(self.lessons) + (len(self.probes) if len(sides) == 2 else 0)


@dataclass(frozen=True, kw_only=True)
class Check:
    """The held-out figures after ``step`` steps; ``score`` decides which tokens are kept, higher
    is better. ``margin`` is how much likelier "yes" is where the concept is than where it is not
    (nats); 0 where nothing is held out. ``wrong`` facts in held-out wordings are not surely known:
    their answer is less likely than all others together."""

    step: int
    loss: float
    margin: float
    score: float
    wrong: int = 0


def weighted(losses: Mapping[Task, Tensor], hyper: Hyperparameters) -> Tensor:
    """The joint loss L_text + lambda_image L_image + lambda_edit L_edit (paper, section 3.2) of the
    tasks that are there, a scalar."""
    weights = {
        "understand": 1.0,
        "generate": hyper.lambda_image,
        "edit": hyper.lambda_edit,
    }
    return torch.stack([weights[task] * losses[task] for task in TASKS if task in losses]).sum()


@torch.no_grad()
def check(
    backend: Backend,
    tokens: ConceptTokens,
    held_out: HeldOut,
    hyper: Hyperparameters,
    *,
    step: int,
    on_step: OnStep | None = None,
) -> Check:
    """Held-out loss and recognition margin, from prepared lessons: no frozen encoder runs.
    ``on_step`` counts lessons and probes."""
    wrong = sum(
        backend.score(Prompt(turns=(asked,), concepts=(tokens,)), (answer,)).item() < math.log(0.5)
        for asked, answer in held_out.facts
    )
    if not held_out.lessons:
        return Check(step=step, loss=0.0, margin=0.0, score=0.0, wrong=wrong)
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if on_step is not None:
            on_step(done, held_out.size)

    def mean(lessons: Sequence[Prepared], task: Task) -> float:
        total = 0.0
        for batch in _batches(lessons, hyper.batch_size):
            losses = backend.loss(batch, tokens, seed=hyper.seed, at_once=hyper.lessons_at_once)
            total += float(losses[task]) * len(batch)
            tick(len(batch))
        return total / len(lessons)

    means: dict[Task, Tensor] = {}
    for task in TASKS:
        lessons = [lesson for lesson in held_out.lessons if lesson.task == task]
        if lessons:
            means[task] = torch.tensor(mean(lessons, task))
    loss = float(weighted(means, hyper))

    def advantage(probes: Sequence[Probe]) -> float:
        """How much likelier "yes" is than "no" (nats), on average."""
        total = 0.0
        for probe in probes:
            yes, no = backend.answer_losses([probe.yes, probe.no], tokens).tolist()
            total += no - yes
            tick(1)
        return total / len(probes)

    present = [probe for probe in held_out.probes if probe.present]
    absent = [probe for probe in held_out.probes if not probe.present]
    margin = advantage(present) - advantage(absent) if present and absent else 0.0
    ranking = math.log1p(math.exp(-min(max(margin, -50.0), 50.0)))
    unknown = wrong / max(len(held_out.facts), 1)
    score = -loss - ranking - unknown
    return Check(step=step, loss=loss, margin=margin, score=score, wrong=wrong)


def _batches(lessons: Sequence[Prepared], size: int) -> Iterator[Sequence[Prepared]]:
    for start in range(0, len(lessons), size):
        yield lessons[start : start + size]
