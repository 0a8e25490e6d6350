"""The paper's findings, and whether they hold in these results.

Each is a difference over the same concepts with its 95 % bootstrap interval. It "holds" where the
interval lies above 0, "does not hold" where it lies below, and is "not shown" where it spans 0. To
reach something is to be less than `MARGIN` below it. With few concepts there is no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnipersona_cli.bench.figures import by_concept
from omnipersona_cli.bench.metrics import interval
from omnipersona_cli.bench.results import Record

FEWEST_CONCEPTS = 5
"""With fewer, a bootstrap over concepts says nothing."""

MARGIN = 0.05
"""What counts as reaching a rival, in points of the score."""

GENERATION = ("identity", "clip-i", "likeness")
EDITING = ("edit-o", "edit-sc")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim: ``metric`` (the first of them that was measured) is higher with the method ``of``
    than with ``over``; with ``than`` it gains more by that than these metrics do; ``reaches`` asks
    only that it is not lower. ``paper`` numbers the paper's own findings, 0 is ours."""

    paper: int
    claim: str
    metric: tuple[str, ...]
    of: str
    over: str
    than: tuple[str, ...] = ()
    reaches: bool = False


FINDINGS: tuple[Finding, ...] = (
    Finding(
        paper=1, claim="Decoupling helps recognition",
        metric=("rec",), of="full", over="without-decoupling",
    ),
    Finding(
        paper=1, claim="Decoupling helps generation",
        metric=GENERATION, of="full", over="without-decoupling",
    ),
    Finding(
        paper=1, claim="Decoupling helps editing",
        metric=EDITING, of="full", over="without-decoupling",
    ),
    Finding(
        paper=2, claim="Replay helps PARG",
        metric=("parg",), of="full", over="without-replay",
    ),
    Finding(
        paper=2, claim="Replay helps PARG more than it helps the likeness of pictures",
        metric=("parg",), of="full", over="without-replay", than=GENERATION,
    ),
    Finding(
        paper=3, claim="Edit lessons help editing",
        metric=EDITING, of="full", over="without-edit-lessons",
    ),
    Finding(
        paper=3, claim="Edit lessons help recognition",
        metric=("rec",), of="full", over="without-edit-lessons",
    ),
    Finding(
        paper=3, claim="Edit lessons help generation",
        metric=GENERATION, of="full", over="without-edit-lessons",
    ),
    Finding(
        paper=4, claim="Text in context wins PARG over replay that has no facts text",
        metric=("parg",), of="text-prompt-only", over="without-facts-text",
    ),
    Finding(
        paper=4, claim="Text in context wins PARG over no replay at all",
        metric=("parg",), of="text-prompt-only", over="without-replay",
    ),
    Finding(
        paper=0, claim="Steps of learning help recognition",
        metric=("rec",), of="full", over="instant",
    ),
    Finding(
        paper=0, claim="Steps of learning help generation",
        metric=GENERATION, of="full", over="instant",
    ),
    Finding(
        paper=0, claim="Steps of learning help editing",
        metric=EDITING, of="full", over="instant",
    ),
    Finding(
        paper=0, claim="With the facts text, full reaches text in context on PARG",
        metric=("parg",), of="full", over="text-prompt-only", reaches=True,
    ),
    Finding(
        paper=0, claim="From the tokens alone, replay reaches text in context on PARG",
        metric=("parg",), of="without-facts-text", over="text-prompt-only", reaches=True,
    ),
    Finding(
        paper=0, claim="Tokens for more layers help generation",
        metric=GENERATION, of="deep", over="full",
    ),
)  # fmt: skip


def findings(records: Sequence[Record], *, profile: str = "strict") -> list[dict[str, Any]]:
    """What of the paper holds here, as far as its methods were run."""
    return [told for finding in FINDINGS if (told := _of(finding, records, profile)) is not None]


def sentences(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """The findings in sentences: those of the paper by its numbers, then ours."""
    if not told:
        return []
    lines = ["", "Do the paper's findings hold here?", ""]
    for row in told:
        number = f"Finding {row['paper']}" if row["paper"] else "Ours"
        gain = f"{row['difference']:+.3f}"
        if row["verdict"] != _FEW:
            gain += f" (95 %: {row['low']:+.3f} to {row['high']:+.3f})"
        if row["than"]:
            how = f"gains {gain} more in {row['metric']} than in {row['than']} over {row['over']}"
        else:
            how = f"has {row['value']:.3f} in {row['metric']}, {row['over']} "
            how += f"{row['other']:.3f}: {gain}"
        lines.append(f"- {number}. {row['claim']}: {row['verdict']}. {row['of']} {how}.")
    return lines


_FEW = "not said of so few concepts"


def _of(finding: Finding, records: Sequence[Record], profile: str) -> dict[str, Any] | None:
    found = _gaps(finding, finding.metric, records, profile)
    if found is None:
        return None
    metric, one, other = found
    gaps = {name: one[name] - other[name] for name in one}
    than = ""
    if finding.than:
        beside = _gaps(finding, finding.than, records, profile)
        if beside is None:
            return None
        than, first, second = beside
        gaps = {n: gap - (first[n] - second[n]) for n, gap in gaps.items() if n in first}
        if not gaps:
            return None
    low, high = interval([gaps[name] for name in sorted(gaps)])
    return {
        "paper": finding.paper,
        "claim": finding.claim,
        "metric": metric,
        "than": than,
        "of": finding.of,
        "over": finding.over,
        "value": round(float(np.mean([one[name] for name in gaps])), 4),
        "other": round(float(np.mean([other[name] for name in gaps])), 4),
        "difference": round(float(np.mean(list(gaps.values()))), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "concepts": len(gaps),
        "verdict": _verdict(low, high, len(gaps), finding.reaches),
    }


def _gaps(
    finding: Finding, metrics: Sequence[str], records: Sequence[Record], profile: str
) -> tuple[str, dict[str, float], dict[str, float]] | None:
    """The first metric that both methods have, and both values of each concept that has both."""
    for metric in metrics:
        one, other = (
            by_concept([record for record in records if record["method"] == name], metric, profile)
            for name in (finding.of, finding.over)
        )
        both = sorted(one.keys() & other.keys())
        if both:
            return metric, {n: one[n] for n in both}, {n: other[n] for n in both}
    return None


def _verdict(low: float, high: float, concepts: int, reaches: bool) -> str:
    if concepts < FEWEST_CONCEPTS:
        return _FEW
    if reaches:
        return "holds" if low > -MARGIN else "does not hold" if high < 0 else "not shown"
    return "holds" if low > 0 else "does not hold" if high < 0 else "not shown"
