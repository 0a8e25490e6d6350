"""How a concept is learned: what a person may choose, and the numbers that every step goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omnipersona_cli.backend import BackendInfo
from omnipersona_cli.errors import TaskError, UsageError

Experts = Literal["none", "lora"]

MOST_TOKENS = 256
"""The most tokens of each part."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to learn. None means the backend's own number, 0 ``steps`` an instant concept: the start
    as it is, read off the photos.

    ``batch_size`` lessons are drawn in each step, all tasks together. ``understand_tokens`` and
    ``generate_tokens`` are N_u and N_g (paper, section 3.1); ``lambda_image`` and ``lambda_edit``
    weigh the losses (section 3.2). ``experts`` "lora" learns a low-rank adapter for each task,
    where the backend takes them, ``depth`` tokens for so many layers after the first.
    ``lessons_at_once`` cuts a batch into pieces that need less
    memory and change the result by rounding alone. Raises UsageError for numbers with which nothing
    can be learned.
    """

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    understand_tokens: int = 16
    generate_tokens: int = 16
    lambda_image: float = 1.0
    lambda_edit: float = 1.0
    experts: Experts = "none"
    depth: int | None = None
    lessons_at_once: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise UsageError(
                f"learning takes 1 step or more, and 0 keep the start, not {self.steps}",
                hint="--steps 100",
            )
        if self.instant and (self.experts != "none" or self.depth):
            what = "tokens of more layers" if self.depth else "experts"
            raise UsageError(
                f"{what} have to be learned, and without steps nothing is", hint="--steps 100"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(
                f"a batch has at least 1 lesson, not {self.batch_size}", hint="--batch-size 8"
            )
        if self.lessons_at_once is not None and self.lessons_at_once < 1:
            raise UsageError(
                f"at least 1 lesson is learned from at once, not {self.lessons_at_once}",
                hint="--lessons-at-once 1",
            )
        if self.learning_rate is not None and not 0 < self.learning_rate <= 10:
            raise UsageError(
                f"a learning rate lies above 0 and up to 10, not at {self.learning_rate}",
                hint="--rate 1e-3",
            )
        if self.depth is not None and self.depth < 1:
            raise UsageError(
                f"--depth is the number of layers after the first, at least 1, not {self.depth}",
                hint="--depth 1",
            )
        counts = (self.understand_tokens, self.generate_tokens)
        if not all(1 <= count <= MOST_TOKENS for count in counts):
            raise UsageError(
                "a concept needs tokens of both parts",
                hint=f"--understand-tokens and --generate-tokens take 1 to {MOST_TOKENS}",
            )
        if not all(0 <= weight <= 100 for weight in (self.lambda_image, self.lambda_edit)):
            raise UsageError("the weight of a loss is from 0 to 100", hint="1.0 is the default")

    @property
    def instant(self) -> bool:
        """Whether nothing is learned and the start is kept."""
        return self.steps == 0

    def hyperparameters(self, info: BackendInfo) -> Hyperparameters:
        """These settings on one backend: its own numbers stand where none was chosen. TaskError
        where it takes no tokens of further layers or no experts, UsageError where it has not so
        many layers."""
        rate = self.learning_rate
        depth = (0 if self.instant else info.depth) if self.depth is None else self.depth
        if depth and not info.deep_layers:
            raise TaskError(
                f"{info.name} takes no tokens for layers after the first",
                hint="leave out --depth",
            )
        if depth > info.deep_layers:
            raise UsageError(
                f"{info.name} has {info.deep_layers} layers after the first, and not {depth}",
                hint=f"--depth {info.deep_layers}",
            )
        if self.experts != "none" and not info.experts:
            raise TaskError(
                f"{info.name} learns no low-rank experts", hint="leave out --experts lora"
            )
        return Hyperparameters(
            steps=info.learn_steps if self.steps is None else self.steps,
            batch_size=info.batch if self.batch_size is None else self.batch_size,
            learning_rate=info.learn_rate if rate is None else rate,
            fact_tokens=info.fact_tokens,
            fact_rate=info.fact_rate * (1.0 if rate is None else rate / info.learn_rate),
            lambda_image=self.lambda_image,
            lambda_edit=self.lambda_edit,
            depth=depth,
            lessons_at_once=self.lessons_at_once or 0,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What every optimiser step goes by; with 0 ``steps`` there is none. ``learning_rate`` is the
    peak of the schedule, and ``fact_rate`` that of rehearsing facts (0: the same), which moves the
    last ``fact_tokens`` understanding tokens (0: all);
    ``batch_size`` lessons a step, about half of them understanding, the rest shared by depiction
    and editing, at least one of each task that has lessons. ``depth`` layers after the first have
    tokens of their own. ``lessons_at_once`` 0 leaves that to
    the backend."""

    steps: int
    batch_size: int
    learning_rate: float
    fact_tokens: int = 0
    fact_rate: float = 0.0
    lambda_image: float = 1.0
    lambda_edit: float = 1.0
    depth: int = 0
    lessons_at_once: int = 0
    seed: int = 0
