"""The joint objective: AdamW on the tokens of one concept, all three tasks in every step.

L = L_text + lambda_image L_image + lambda_edit L_edit (paper, section 3.2); the backbone is frozen.
Everything random follows from the seed and the step, so a run that is interrupted and resumed ends
in the same bits as one that is not.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.adamw import adamw as torch_adamw

from omnipersona_cli.backend import Backend, ConceptTokens, OnStep
from omnipersona_cli.engine.batches import Groups, draw, draw_facts
from omnipersona_cli.engine.checkpoint import RunState
from omnipersona_cli.engine.heldout import Check, HeldOut, check, weighted
from omnipersona_cli.engine.interruption import interruption
from omnipersona_cli.engine.pace import SHORT, spoken
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import copy_of, from_named_tensors, named_tensors
from omnipersona_cli.errors import PersonaError
from omnipersona_cli.hookspecs import Progress

CHECKS = 6
"""How often the held-out lessons are looked at, besides before the first step."""

SAVE_SECONDS = 20.0
"""A checkpoint is written at every check, and when the last one is this old."""

WARM_UP = 0.05
"""The share of all steps in which the learning rate rises."""

REHEARSALS = 3
"""The most batches of facts that follow a step."""

CLIP = 1.0
"""The largest l2 norm of the joint gradient."""


@dataclass(frozen=True, kw_only=True)
class Optimised:
    """The best tokens and how they were found; ``losses`` are the last step's."""

    tokens: ConceptTokens
    best_step: int
    checks: tuple[Check, ...]
    losses: Mapping[str, float]


@dataclass(kw_only=True)
class _Run:
    """A run under way. Its tensors live where the tokens that it began with do."""

    tokens: ConceptTokens
    best: ConceptTokens
    step: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    losses: Mapping[str, float] = field(default_factory=dict)


def optimise(
    backend: Backend,
    start: ConceptTokens,
    groups: Groups,
    held_out: HeldOut,
    hyper: Hyperparameters,
    *,
    resumed: RunState | None = None,
    save: Callable[[RunState], None] | None = None,
    on_check: Callable[[ConceptTokens, Check, OnStep], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Optimised:
    """Move the tokens from ``start`` and return the best of them by held-out score.

    ``resumed`` continues a run of the same inputs, on the device of ``start``. ``save`` is called
    every so often, and before the run is left early, so that no step is lost: on Ctrl-C, where the
    step at hand is finished first (a second one is heeded at once), and when a callback raises to
    stop it. Without held-out lessons the last tokens are the best.
    """
    with torch.random.fork_rng(devices=[]), interruption() as stop:
        torch.manual_seed(hyper.seed)
        if resumed is None:
            run = _Run(tokens=copy_of(start, trainable=True), best=copy_of(start))
        else:
            run = _taken_up(start, resumed)
        look = partial(_look, backend, held_out, hyper, save, on_check, on_progress, stop)
        checking = look(run) if _due(run, hyper) else 0.0
        first, saved = run.step + 1, time.monotonic()
        while run.step < hyper.steps:
            began = time.monotonic()
            run.losses = _step(backend, groups, hyper, run)
            for turn in range(rehearsals(run.checks)):
                _rehearse(backend, groups, hyper, run, turn)
            run.step += 1
            left = _left(run, hyper, step=time.monotonic() - began, check=checking)
            checked = _due(run, hyper)
            if checked:
                look(run)
            if on_progress is not None:
                with _saved_when_left(run, save):
                    on_progress(_told(run, hyper, left if run.step == first else 0.0))
            old = time.monotonic() - saved > SAVE_SECONDS
            if save is not None and (checked or old or stop()):
                save(_checkpoint(run))
                saved = time.monotonic()
            if stop():
                raise KeyboardInterrupt
    winner = max(run.checks, key=lambda found: found.score) if held_out.lessons else run.checks[-1]
    return Optimised(
        tokens=run.best, best_step=winner.step, checks=tuple(run.checks), losses=run.losses
    )


def rate_at(step: int, hyper: Hyperparameters) -> float:
    """The learning rate of the step after ``step`` steps: a short warm-up, then a cosine."""
    return hyper.learning_rate * _schedule(step, hyper)


def rehearsals(checks: Sequence[Check]) -> int:
    """How many batches of facts, text alone, follow each step: one more for every check that found
    a fact wrong in a wording that is never taught, none while the last check found none."""
    if not checks or not checks[-1].wrong:
        return 0
    return min(sum(found.wrong > 0 for found in checks), REHEARSALS)


def _schedule(step: int, hyper: Hyperparameters) -> float:
    warm = max(1, round(WARM_UP * hyper.steps))
    rise = min(1.0, (step + 1) / warm)
    fall = 0.5 * (1 + math.cos(math.pi * step / hyper.steps))
    return rise * max(fall, 0.02)


def adamw(named: Mapping[str, Tensor], moments: dict[str, Tensor], *, rate: float) -> None:
    """One step of torch's AdamW (Loshchilov and Hutter 2019), without weight decay, after clipping
    the joint gradient to `CLIP`. Uses the gradients up; moves ``named`` and ``moments`` in place.

    Torch's function, not its class: the class imports the compiler when it is made, a second that
    each `op learn` would wait for (800 modules, torch 2.13), and the state of the function is plain
    tensors under plain names, as a checkpoint keeps them.
    """
    gradients = {key: value.grad for key, value in named.items() if value.grad is not None}
    clip_grad_norm_([named[key] for key in gradients], CLIP)
    for key in gradients:
        if f"{key}|count" not in moments:
            moments[f"{key}|count"] = torch.zeros(())  # on the CPU, where torch reads it each step
            moments[f"{key}|mean"] = torch.zeros_like(named[key])
            moments[f"{key}|square"] = torch.zeros_like(named[key])
    with torch.no_grad():
        torch_adamw(
            [named[key] for key in gradients],
            list(gradients.values()),
            [moments[f"{key}|mean"] for key in gradients],
            [moments[f"{key}|square"] for key in gradients],
            [],
            [moments[f"{key}|count"] for key in gradients],
            foreach=False,
            fused=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
    for key in gradients:
        named[key].grad = None


def _step(
    backend: Backend, groups: Groups, hyper: Hyperparameters, run: _Run
) -> Mapping[str, float]:
    """One optimiser step on all tasks; the losses by task and their weighted sum."""
    seed = random.Random(f"{hyper.seed}:loss:{run.step}").randrange(2**31)
    batch = draw(groups, hyper, run.step)
    losses = backend.loss(batch, run.tokens, seed=seed, at_once=hyper.lessons_at_once)
    total = weighted(losses, hyper)
    _check_number(float(total.detach()), "loss", run.step + 1)
    torch.autograd.backward(total)
    adamw(named_tensors(run.tokens), run.moments, rate=rate_at(run.step, hyper))
    _keep_within(run.tokens, backend.norm_limit)
    return {"loss": float(total.detach())} | {
        str(task): float(loss.detach()) for task, loss in losses.items()
    }


def _check_number(value: float, what: str, step: int) -> None:
    """PersonaError where a figure is none, before tokens move by it or a checkpoint keeps it: from
    then on all would be none."""
    if not math.isfinite(value):
        raise PersonaError(
            f"the {what} of step {step} is no number ({value})",
            hint="--dtype float32, or a lower --rate",
        )


def _due(run: _Run, hyper: Hyperparameters) -> bool:
    """Whether a check is due that was not done: one that Ctrl-C cut off is done when the run is
    taken up."""
    every = max(1, hyper.steps // CHECKS)
    done = run.checks[-1].step if run.checks else -1
    return done < run.step and (run.step % every == 0 or run.step == hyper.steps)


def _look(
    backend: Backend,
    held_out: HeldOut,
    hyper: Hyperparameters,
    save: Callable[[RunState], None] | None,
    on_check: Callable[[ConceptTokens, Check, OnStep], None] | None,
    on_progress: Callable[[Progress], None] | None,
    stop: Callable[[], bool],
    run: _Run,
) -> float:
    """Check, and keep the tokens where they are the best so far; the seconds that the check took.
    Ctrl-C is heeded in the middle of it."""
    began = time.monotonic()

    def heeding(phase: str) -> OnStep:
        def step(done: int, total: int) -> None:
            if stop():
                raise KeyboardInterrupt
            if on_progress is not None:
                on_progress(Progress(phase=phase, step=done, total=total))

        return step

    with _saved_when_left(run, save):
        found = check(
            backend, run.tokens, held_out, hyper, step=run.step, on_step=heeding("checking")
        )
    seconds = time.monotonic() - began
    _check_number(found.score, "held-out score", run.step)
    if not held_out.lessons or all(found.score > earlier.score for earlier in run.checks):
        run.best = copy_of(run.tokens)
    if on_check is not None:  # before the check counts: a run that ends in here makes it anew
        with _saved_when_left(run, save):
            on_check(run.tokens, found, heeding("painting a preview"))
    run.checks.append(found)
    return seconds


def _rehearse(
    backend: Backend, groups: Groups, hyper: Hyperparameters, run: _Run, turn: int
) -> None:
    """One batch of facts. It moves understanding tokens alone, those for facts where there are any,
    so that looks and the name are left as they are; at a rate and with moments of its own."""
    batch = draw_facts(groups, hyper, run.step, turn)
    if not batch:
        return
    seed = random.Random(f"{hyper.seed}:rehearsal:{run.step}:{turn}").randrange(2**31)
    losses = backend.loss(batch, run.tokens, seed=seed, at_once=hyper.lessons_at_once)
    _check_number(float(losses["understand"].detach()), "loss", run.step + 1)
    torch.autograd.backward(losses["understand"])
    und = run.tokens.und
    for tensor in run.tokens.parameters():
        if tensor is not und:
            tensor.grad = None
    if und.grad is not None and run.tokens.fact_tokens:
        und.grad[: -run.tokens.fact_tokens] = 0.0
    rate = (hyper.fact_rate or hyper.learning_rate) * _schedule(run.step, hyper)
    adamw({"facts|und": run.tokens.und}, run.moments, rate=rate)
    _keep_within(run.tokens, backend.norm_limit)


@contextmanager
def _saved_when_left(run: _Run, save: Callable[[RunState], None] | None) -> Iterator[None]:
    """Whatever is raised inside leaves a checkpoint of the steps that are done."""
    try:
        yield
    except BaseException:
        if save is not None:
            save(_checkpoint(run))
        raise


def _left(run: _Run, hyper: Hyperparameters, *, step: float, check: float) -> float:
    """Seconds that the rest of the run takes, from those of one step and of one check."""
    steps = hyper.steps - run.step
    return steps * step + steps / max(1, hyper.steps // CHECKS) * check


def _told(run: _Run, hyper: Hyperparameters, left: float) -> Progress:
    note = f"about {spoken(left)} to go" if left >= SHORT else ""
    return Progress(
        phase="learning", step=run.step, total=hyper.steps, metrics=run.losses, note=note
    )


@torch.no_grad()
def _keep_within(tokens: ConceptTokens, limit: float) -> None:
    """Pull rows back inside the ball of the base's embedding table: packs promise it."""
    deep = (*tokens.deep("und").values(), *tokens.deep("gen").values())
    for rows in (tokens.id, tokens.und, tokens.gen, *deep):
        if rows.numel():
            norms = rows.norm(dim=1, keepdim=True)
            rows.mul_(torch.where(norms > limit, limit / norms, torch.ones_like(norms)))


def _checkpoint(run: _Run) -> RunState:
    return RunState(
        step=run.step,
        tokens=named_tensors(copy_of(run.tokens)),
        best=named_tensors(run.best),
        moments={key: value.clone() for key, value in run.moments.items()},
        random=torch.get_rng_state(),
        checks=tuple(run.checks),
        losses=run.losses,
    )


def _taken_up(start: ConceptTokens, checkpoint: RunState) -> _Run:
    """The run that ``checkpoint`` (on the CPU) interrupted, on the device of ``start``."""
    device = start.id.device

    def placed(tensors: Mapping[str, Tensor]) -> ConceptTokens:
        here = {key: value.to(device) for key, value in tensors.items()}
        return from_named_tensors(start.name, here, fact_tokens=start.fact_tokens)

    torch.set_rng_state(checkpoint.random)
    return _Run(
        tokens=copy_of(placed(checkpoint.tokens), trainable=True),
        best=copy_of(placed(checkpoint.best)),
        step=checkpoint.step,
        moments={
            key: value.clone() if key.endswith("|count") else value.to(device, copy=True)
            for key, value in checkpoint.moments.items()
        },
        checks=list(checkpoint.checks),
        losses=checkpoint.losses,
    )
