"""The joint objective: AdamW on the tokens of one concept, all three tasks in every step.

L = L_text + lambda_image L_image + lambda_edit L_edit (paper, section 3.2); the backbone is frozen.
Everything random follows from the seed and the step, so a run that is interrupted and resumed ends
in the same bits as one that is not.
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import Literal

import torch
from torch import Tensor

from omnipersona_cli.backend import TASKS, Backend, ConceptTokens, Lesson, Prepared, Task
from omnipersona_cli.engine.checkpoint import Checkpoint, generator_state
from omnipersona_cli.engine.tokens import copy_of, from_named_tensors, named_tensors
from omnipersona_cli.hookspecs import Progress

Schedule = Literal["cosine", "constant"]
Groups = Mapping[str, Sequence[Prepared]]
"""Prepared lessons by group: "yes", "no", "describe", "fact", "generate", "edit"."""

UNDERSTAND_GROUPS = ("yes", "fact", "no", "describe")
"""Understanding lessons are drawn from these in turn: as many a yes as a no."""

HELD_OUT_LESSONS = 12
"""The most held-out lessons of each task that one check looks at."""

PROBES = 8
"""The most held-out pictures on each side that one check asks about."""

SAVE_SECONDS = 20.0
WARM_UP = 0.05
CLIP = 1.0
BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to optimise. ``batch_size`` lessons a step, about half of them understanding, the rest
    shared by depiction and editing; at least one of each task that has lessons."""

    steps: int
    batch_size: int
    learning_rate: float
    lambda_image: float = 1.0
    lambda_edit: float = 1.0
    schedule: Schedule = "cosine"
    checks: int = 6
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a check looks at, prepared: lessons for the loss, and each probe with both answers."""

    lessons: Sequence[Prepared] = ()
    present_yes: Sequence[Prepared] = ()
    present_no: Sequence[Prepared] = ()
    absent_yes: Sequence[Prepared] = ()
    absent_no: Sequence[Prepared] = ()


@dataclass(frozen=True, kw_only=True)
class Check:
    """The held-out figures after ``step`` steps; ``score`` decides which tokens are kept, higher
    is better. ``margin`` is how much likelier "yes" is where the concept is than where it is not
    (nats); 0 where nothing is held out."""

    step: int
    loss: float
    margin: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Optimised:
    """The best tokens and how they were found."""

    tokens: ConceptTokens
    best_step: int
    checks: tuple[Check, ...]
    losses: Mapping[str, float]


def group_of(lesson: Lesson) -> str:
    """The group from which a lesson is drawn."""
    if lesson.task != "understand":
        return lesson.task
    if lesson.kind == "recognise":
        return "yes" if lesson.answer.strip().lower().startswith("yes") else "no"
    return "fact" if lesson.kind == "fact" else "describe"


def optimise(
    backend: Backend,
    start: ConceptTokens,
    groups: Groups,
    held_out: HeldOut,
    settings: Settings,
    *,
    resumed: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    on_check: Callable[[ConceptTokens, Check], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Optimised:
    """Move the tokens from ``start`` and return the best of them by held-out score.

    ``resumed`` continues a run of the same inputs. ``save`` is called every so often, and before
    KeyboardInterrupt leaves: on Ctrl-C the step at hand is finished first, a second one is heeded
    at once. Without held-out lessons the last tokens are the best.
    """
    tokens = copy_of(start, trainable=True)
    named = named_tensors(tokens)
    moments: dict[str, Tensor] = {}
    best = {key: value.detach().clone() for key, value in named.items()}
    checks: list[Check] = []
    losses: dict[str, float] = {}
    done = 0
    if resumed is not None:
        done, best = resumed.step, dict(resumed.best)
        checks = [Check(**values) for values in resumed.story["checks"]]
        losses = dict(resumed.story["losses"])
        moments = {key: value.clone() for key, value in resumed.moments.items()}
        with torch.no_grad():
            for key, value in named.items():
                value.copy_(resumed.tokens[key])
        torch.set_rng_state(resumed.random)
    else:
        checks.append(check(backend, tokens, held_out, settings, step=0))
        if on_check is not None:
            on_check(tokens, checks[-1])

    def standing() -> Checkpoint:
        return Checkpoint(
            step=done,
            tokens={key: value.detach().clone() for key, value in named.items()},
            best=best,
            moments={key: value.clone() for key, value in moments.items()},
            random=generator_state(),
            story={"checks": [vars(it) for it in checks], "losses": losses},
        )

    every = max(1, settings.steps // max(1, settings.checks))
    saved = time.monotonic()
    with _interruption() as interrupted:
        while done < settings.steps:
            losses = _step(backend, tokens, groups, settings, moments, done)
            done += 1
            if done % every == 0 or done == settings.steps:
                checks.append(check(backend, tokens, held_out, settings, step=done))
                if not held_out.lessons or checks[-1].score > max(it.score for it in checks[:-1]):
                    best = {key: value.detach().clone() for key, value in named.items()}
                if on_check is not None:
                    on_check(tokens, checks[-1])
            if on_progress is not None:
                on_progress(
                    Progress(
                        phase="learning", step=done, total=settings.steps, metrics=dict(losses)
                    )
                )
            due = done % every == 0 or time.monotonic() - saved > SAVE_SECONDS
            due = due or done == settings.steps  # what comes after may fail, or be interrupted
            if save is not None and (due or interrupted()):
                save(standing())
                saved = time.monotonic()
            if interrupted():
                raise KeyboardInterrupt
    winner = max(checks, key=lambda it: it.score) if held_out.lessons else checks[-1]
    return Optimised(
        tokens=copy_of(from_named_tensors(tokens.name, best)),
        best_step=winner.step,
        checks=tuple(checks),
        losses=losses,
    )


def shares(batch_size: int, groups: Groups) -> dict[Task, int]:
    """How many lessons of each task a step draws; at least one of each task that has any."""
    understand = any(groups.get(group) for group in UNDERSTAND_GROUPS)
    painting: list[Task] = [task for task in ("generate", "edit") if groups.get(task)]
    if not painting:
        return {"understand": batch_size} if understand else {}
    half = max(1, math.ceil(batch_size / 2)) if understand else 0
    rest = max(batch_size - half, len(painting))
    share: dict[Task, int] = {"understand": half} if understand else {}
    for index, task in enumerate(painting):
        share[task] = rest // len(painting) + (index < rest % len(painting))
    return share


def draw(groups: Groups, settings: Settings, step: int) -> list[Prepared]:
    """The lessons of one step: each group is gone through in a new order every time round."""
    batch = []
    for task, share in shares(settings.batch_size, groups).items():
        pattern = (
            [group for group in UNDERSTAND_GROUPS if groups.get(group)]
            if task == "understand"
            else [task]
        )
        for count in range(step * share, (step + 1) * share):
            group = pattern[count % len(pattern)]
            lessons = groups[group]
            turn, place = divmod(count // len(pattern), len(lessons))
            batch.append(lessons[_order(len(lessons), settings.seed, group, turn)[place]])
    return batch


def rate_at(step: int, settings: Settings) -> float:
    """The learning rate of the step after ``step`` steps: a short warm-up, then as scheduled."""
    warm = max(1, round(WARM_UP * settings.steps))
    rise = min(1.0, (step + 1) / warm)
    if settings.schedule == "constant":
        return settings.learning_rate * rise
    fall = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return settings.learning_rate * rise * max(fall, 0.02)


def weighted(losses: Mapping[Task, Tensor], settings: Settings) -> Tensor:
    """The joint loss of the tasks that are there, a scalar."""
    weights = {
        "understand": 1.0,
        "generate": settings.lambda_image,
        "edit": settings.lambda_edit,
    }
    return torch.stack([weights[task] * losses[task] for task in TASKS if task in losses]).sum()


@torch.no_grad()
def check(
    backend: Backend, tokens: ConceptTokens, held_out: HeldOut, settings: Settings, *, step: int
) -> Check:
    """Held-out loss and recognition margin, from prepared lessons: no frozen encoder runs."""
    if not held_out.lessons:
        return Check(step=step, loss=0.0, margin=0.0, score=0.0)
    seed = settings.seed
    sums: dict[Task, float] = {}
    counts: dict[Task, int] = {}
    for task in TASKS:
        mine = [it for it in held_out.lessons if it.task == task]
        for batch in _batches(mine, settings.batch_size):
            loss = float(backend.loss(batch, tokens, seed=seed)[task])
            sums[task] = sums.get(task, 0.0) + loss * len(batch)
            counts[task] = counts.get(task, 0) + len(batch)
    means: dict[Task, Tensor] = {task: torch.tensor(sums[task] / counts[task]) for task in sums}
    loss = float(weighted(means, settings))

    def mean(lessons: Sequence[Prepared]) -> float:
        total = 0.0
        for batch in _batches(lessons, settings.batch_size):
            total += float(backend.loss(batch, tokens, seed=seed)["understand"]) * len(batch)
        return total / len(lessons)

    margin = 0.0
    if held_out.present_yes and held_out.absent_yes:
        present = mean(held_out.present_no) - mean(held_out.present_yes)
        margin = present - (mean(held_out.absent_no) - mean(held_out.absent_yes))
    ranking = math.log1p(math.exp(-min(max(margin, -50.0), 50.0)))
    return Check(step=step, loss=loss, margin=margin, score=-loss - ranking)


@torch.no_grad()
def adamw(
    named: Mapping[str, Tensor], moments: dict[str, Tensor], *, rate: float, decay: float = 0.0
) -> None:
    """One step of AdamW (Loshchilov and Hutter 2019) after clipping the joint gradient to `CLIP`;
    uses the gradients up and moves ``named`` and ``moments`` in place.

    Our own because torch.optim imports the compiler, which takes longer than learning on nano, and
    because its state is then plain tensors under plain names.
    """
    gradients = {key: value.grad for key, value in named.items() if value.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    shrink = torch.clamp(CLIP / (norm + 1e-6), max=1.0)
    for key, gradient in gradients.items():
        value = named[key]
        if f"{key}|count" not in moments:
            moments[f"{key}|count"] = torch.zeros(())
            moments[f"{key}|mean"] = torch.zeros_like(value)
            moments[f"{key}|square"] = torch.zeros_like(value)
        moments[f"{key}|count"] += 1
        count = float(moments[f"{key}|count"])
        mean = moments[f"{key}|mean"].lerp_(gradient * shrink, 1 - BETAS[0])
        square = moments[f"{key}|square"].lerp_((gradient * shrink).square(), 1 - BETAS[1])
        scale = (square / (1 - BETAS[1] ** count)).sqrt_().add_(EPSILON)
        value.mul_(1 - rate * decay)
        value.addcdiv_(mean, scale, value=-rate / (1 - BETAS[0] ** count))
        value.grad = None


def _step(
    backend: Backend,
    tokens: ConceptTokens,
    groups: Groups,
    settings: Settings,
    moments: dict[str, Tensor],
    step: int,
) -> dict[str, float]:
    """One optimiser step on all tasks; the losses by task and their weighted sum."""
    seed = random.Random(f"{settings.seed}:loss:{step}").randrange(2**31)
    losses = backend.loss(draw(groups, settings, step), tokens, seed=seed)
    total = weighted(losses, settings)
    torch.autograd.backward(total)
    adamw(named_tensors(tokens), moments, rate=rate_at(step, settings))
    _keep_within(tokens, backend.norm_limit)
    return {"loss": float(total.detach())} | {
        str(task): float(loss.detach()) for task, loss in losses.items()
    }


@torch.no_grad()
def _keep_within(tokens: ConceptTokens, limit: float) -> None:
    """Pull rows back inside the ball of the base's embedding table: packs promise it."""
    for rows in (tokens.id, tokens.und, tokens.gen):
        if rows.numel():
            norms = rows.norm(dim=1, keepdim=True)
            rows.mul_(torch.where(norms > limit, limit / norms, torch.ones_like(norms)))


def _batches(lessons: Sequence[Prepared], size: int) -> Iterator[Sequence[Prepared]]:
    for start in range(0, len(lessons), size):
        yield lessons[start : start + size]


@lru_cache(maxsize=64)
def _order(count: int, seed: int, group: str, turn: int) -> list[int]:
    return random.Random(f"{seed}:{group}:{turn}").sample(range(count), count)


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only sets what the callable returns; the second one interrupts."""
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
