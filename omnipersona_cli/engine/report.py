"""How well a concept was learned: the figures that `learn` returns and a pack carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnipersona_cli.concepts.pack import Pack
from omnipersona_cli.engine.batches import group_sizes
from omnipersona_cli.engine.calibrate import Calibration
from omnipersona_cli.engine.card import Card
from omnipersona_cli.engine.examine import Examined
from omnipersona_cli.engine.heldout import Check
from omnipersona_cli.engine.material import Material
from omnipersona_cli.engine.memory import Surety
from omnipersona_cli.engine.optimise import Optimised
from omnipersona_cli.engine.settings import Hyperparameters


@dataclass(frozen=True, kw_only=True)
class Report:
    """How well it was learned. ``calibration`` is on held-out pictures where it says so; ``memory``
    is how sure the tokens must be of a fact; ``card`` has the figures, the grade and advice;
    ``checks`` is the held-out curve, ``losses`` are the last step's."""

    calibration: Calibration
    memory: Surety
    card: Card
    checks: tuple[Check, ...]
    losses: Mapping[str, float]
    best_step: int
    steps: int
    photos: int
    held_out: int
    negatives: int
    lessons: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "card": self.card.to_dict(named=True),
            "calibration": self.calibration.to_dict(),
            "memory": self.memory.to_dict(),
            "weak": self.calibration.weak,
            "checks": [vars(check) for check in self.checks],
            "losses": dict(self.losses),
            "best_step": self.best_step,
            "steps": self.steps,
            "photos": self.photos,
            "held_out": self.held_out,
            "negatives": self.negatives,
            "lessons": dict(self.lessons),
        }


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A learned concept. ``seconds`` is the whole call; ``resumed_from`` the step at which an
    interrupted run was taken up, 0 for a new one."""

    pack: Pack
    path: Path
    report: Report
    seconds: float
    seed: int
    backend: str
    resumed_from: int = 0
    notes: tuple[str, ...] = ()


def report_of(
    optimised: Optimised,
    examined: Examined,
    memory: Surety,
    material: Material,
    hyper: Hyperparameters,
) -> Report:
    """The report on tokens that were optimised and examined."""
    return Report(
        calibration=examined.calibration,
        memory=memory,
        card=examined.card,
        checks=optimised.checks,
        losses=optimised.losses,
        best_step=optimised.best_step,
        steps=hyper.steps,
        photos=material.album.count,
        held_out=len(material.album.held_out),
        negatives=material.learned_negatives + len(material.negatives),
        lessons=group_sizes(material.lessons),
    )
