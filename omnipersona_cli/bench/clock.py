"""How far a run is and how long it still takes, from what learning and answers took so far."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omnipersona_cli.bench.methods import Recipe
from omnipersona_cli.hookspecs import Progress


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One concept and one seed: what one process does in one go."""

    concept: str
    seed: int


@dataclass(kw_only=True)
class Clock:
    """``items`` are those to do now, ``before`` those that an earlier run has done; ``learnings``
    are what has still to be learned. A learning takes as long as a hundred answers, so both are
    counted by themselves; nothing is foretold before one of each is measured."""

    items: int
    before: int
    learnings: set[tuple[Unit, Recipe]]
    workers: int
    done: int = 0
    _began: float = field(default_factory=time.monotonic)
    _item_seconds: float = 0.0
    _learn_seconds: list[float] = field(default_factory=list)
    _spent: dict[Unit, dict[tuple[str, str], list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def scored(self, record: dict[str, Any], seconds: float | None) -> None:
        """One more item is done; None seconds where it was copied."""
        self.done += 1
        if seconds is None:
            return
        self._item_seconds += seconds
        unit = Unit(concept=str(record["concept"]), seed=int(record["seed"]))
        self._spent[unit][str(record["method"]), str(record["task"])].append(seconds)

    def learned(self, unit: Unit, recipe: Recipe, about: dict[str, Any]) -> None:
        """One recipe less to learn; ``about`` is empty where it was there already."""
        self.learnings.discard((unit, recipe))
        if about:
            self._learn_seconds.append(float(about["seconds"]))

    def finished(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """What the unit's answers took, by method and task."""
        for (method, task), seconds in sorted(self._spent.pop(unit, {}).items()):
            yield {
                "concept": unit.concept,
                "seed": unit.seed,
                "method": method,
                "task": task,
                "items": len(seconds),
                "item_seconds": round(sum(seconds), 3),
            }

    def seconds_left(self) -> float | None:
        """None where that cannot be known yet."""
        waiting = len(self.learnings)
        if not self.done or (waiting and not self._learn_seconds):
            return None
        learning = sum(self._learn_seconds) / len(self._learn_seconds) if waiting else 0.0
        answering = self._item_seconds / self.done
        return (waiting * learning + (self.items - self.done) * answering) / self.workers

    def progress(self, note: str = "") -> Progress:
        """Where the run is, for whoever watches."""
        left = self.seconds_left()
        return Progress(
            phase="running",
            step=self.before + self.done,
            total=self.before + self.items,
            metrics={} if left is None else {"minutes left": left / 60},
            note=note,
        )

    def __str__(self) -> str:
        text = f"{self.before + self.done:,} of {self.before + self.items:,} items"
        if self.done:
            text += f" in {_spoken(time.monotonic() - self._began)}"
        left = self.seconds_left()
        return text if left is None else f"{text}, about {_spoken(left)} left"


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
