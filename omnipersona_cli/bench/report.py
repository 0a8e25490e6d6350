"""From results to the paper's table: methods x metrics as Markdown and as JSON.

A figure is the mean over concepts of the mean over a concept's items and seeds, with the 95 %
bootstrap interval over concepts. Rec is balanced for each concept first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnipersona_cli.bench.methods import METHODS
from omnipersona_cli.bench.metrics import balanced, interval
from omnipersona_cli.bench.results import Record, Results
from omnipersona_cli.errors import PersonaError

FIGURES: tuple[tuple[str, str], ...] = (
    ("rec", "Rec"),
    ("rec-positive", "… yes to the concept"),
    ("rec-look-alike", "… no to look-alikes"),
    ("raw", "Rec, first token uncalibrated"),
    ("ece", "ECE of p(yes), lower is better"),
    ("vqa-exact", "VQA exact"),
    ("vqa-bleu", "VQA BLEU (characters)"),
    ("vqa-bleu-words", "VQA BLEU (words)"),
    ("vqa-judge", "VQA judge"),
    ("choice", "Choice"),
    ("qa-exact", "QA exact"),
    ("qa-bleu", "QA BLEU (characters)"),
    ("qa-bleu-words", "QA BLEU (words)"),
    ("qa-judge", "QA judge"),
    ("clip-i", "CLIP-I"),
    ("dino", "DINO"),
    ("likeness", "likeness to test photos, by the judge"),
    ("memorisation", "… to training photos (memorisation)"),
    ("clip-t", "CLIP-T"),
    ("text-likeness", "fit to the text, by the judge"),
    ("identity", "identity attributes of generations"),
    ("following", "scene of generations"),
    ("parg", "PARG"),
    ("edit-sc", "edit-sc"),
    ("edit-pq", "edit-pq"),
    ("edit-o", "edit-o = √(sc·pq)"),
    ("edit-id", "edit-id"),
    ("edit-bg", "edit-bg (SSIM outside the mask)"),
    ("edit-presence", "edit-presence, by the judge"),
    ("self-presence", "edit-presence, by the model itself"),
    ("unchanged", "unchanged without the concept, to the bit"),
)
"""Metric, and what the table calls it."""

FINDINGS: tuple[tuple[str, str, str, str], ...] = (
    ("Decoupling helps recognition", "rec", "full", "without-decoupling"),
    ("Replay helps PARG", "parg", "full", "without-replay"),
    ("Edit lessons help editing", "edit-sc", "full", "without-edit-lessons"),
    ("Edit lessons help recognition", "rec", "full", "without-edit-lessons"),
    ("Edit lessons help generation", "identity", "full", "without-edit-lessons"),
    ("Text in context wins PARG over no replay", "parg", "text-prompt-only", "without-replay"),
    ("Full reaches text in context on PARG", "parg", "full", "text-prompt-only"),
)
"""The paper's findings: what is claimed, the metric, the method that should win, over which."""

FEWEST_CONCEPTS = 5
"""With fewer, a bootstrap over concepts says nothing."""

BINS = 10


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One cell: the mean over ``concepts`` concepts and its interval."""

    mean: float
    low: float
    high: float
    concepts: int
    items: int
    failed: int


Table = dict[str, dict[str, Figure]]
"""Method -> metric -> figure."""


def tabulate(records: Sequence[Record], *, profile: str = "strict") -> Table:
    """Every figure of every method. A judge's failure counts as 0 in ``strict`` and is left out in
    ``compat``."""
    table: Table = {}
    for method in METHODS:
        mine = [record for record in records if record["method"] == method]
        if mine:
            table[method] = {}
            for name, _ in FIGURES:
                figure = _figure(mine, name, profile)
                if figure is not None:
                    table[method][name] = figure
    return table


def findings(records: Sequence[Record], *, profile: str = "strict") -> list[dict[str, Any]]:
    """Whether each of the paper's findings holds here: the difference over the same concepts, with
    its interval. It "holds" where the interval lies above 0, "does not hold" where it lies below,
    and is "not shown" where it spans 0; of few concepts nothing is said."""
    found = []
    for claim, metric, better, worse in FINDINGS:
        one, other = (
            _by_concept([it for it in records if it["method"] == name], metric, profile)
            for name in (better, worse)
        )
        both = sorted(one.keys() & other.keys())
        if not both:
            continue
        gaps = [one[name] - other[name] for name in both]
        low, high = interval(gaps)
        verdict = "holds" if low > 0 else "does not hold" if high < 0 else "not shown"
        if len(both) < FEWEST_CONCEPTS:
            verdict = "too few concepts"
        found.append(
            {
                "claim": claim,
                "metric": metric,
                "of": better,
                "over": worse,
                "difference": round(float(np.mean(gaps)), 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "verdict": verdict,
            }
        )
    return found


def load(folders: Sequence[Path]) -> tuple[list[Record], dict[str, Any], list[Record]]:
    """Records, setting and times of one run or several of the same data and profile."""
    records: list[Record] = []
    times: list[Record] = []
    settings = []
    for folder in folders:
        results = Results(folder)
        settings.append(results.setting())
        records += [record | {"folder": str(folder)} for record in results.records()]
        times += results.times()
    for key in ("data", "profile", "fingerprint", "judges"):
        if any(setting.get(key) != settings[0].get(key) for setting in settings):
            raise PersonaError(
                f"these results cannot be compared: their {key} differ",
                hint="report each of them by itself",
            )
    if not records:
        raise PersonaError(
            f"no item of {folders[0]} is finished", hint="op bench run DATA -o RESULTS goes on"
        )
    return records, settings[0], times


def as_json(
    records: Sequence[Record], setting: Mapping[str, Any], times: Sequence[Record]
) -> dict[str, Any]:
    """The whole report in plain values."""
    profile = str(setting["profile"])
    table = tabulate(records, profile=profile)
    return {
        "setting": {key: setting[key] for key in sorted(setting) if key != "class_words"},
        "methods": {
            method: {name: vars(figure) for name, figure in row.items()}
            for method, row in table.items()
        },
        "findings": findings(records, profile=profile),
        "learning": _learning(times),
    }


def as_markdown(
    records: Sequence[Record], setting: Mapping[str, Any], times: Sequence[Record]
) -> str:
    """The table as Markdown: metrics down, methods across."""
    profile = str(setting["profile"])
    table = tabulate(records, profile=profile)
    methods = list(table)
    judges = ", ".join(str(it) for it in setting.get("judges", {}).values()) or "none"
    lines = [
        f"{len(setting['concepts'])} concepts, {setting['seeds']} seeds, backend "
        f"{setting['backend']}, profile {profile}, judges: {judges}. Means over concepts with 95 % "
        "bootstrap intervals.",
        "",
        "| | " + " | ".join(methods) + " |",
        "| --- |" + " --- |" * len(methods),
    ]
    for name, label in FIGURES:
        cells = [_cell(table[method].get(name)) for method in methods]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    claims = findings(records, profile=profile)
    if claims:
        lines += ["", "| finding | metric | difference | 95 % interval | here |",
                  "| --- | --- | --- | --- | --- |"]  # fmt: skip
        lines += [
            f"| {it['claim']} ({it['of']} over {it['over']}) | {it['metric']} "
            f"| {it['difference']:+.3f} | {it['low']:+.3f} to {it['high']:+.3f} | {it['verdict']} |"
            for it in claims
        ]
    learning = _learning(times)
    if learning:
        lines += ["", f"Learning: {learning['seconds']:.0f} s a concept (mean), "
                  f"{learning['peak_mb']:.0f} MB at most."]  # fmt: skip
    return "\n".join(lines)


# -- figures -----------------------------------------------------------------------------------


def _figure(records: Sequence[Record], name: str, profile: str) -> Figure | None:
    values = _by_concept(records, name, profile)
    if not values:
        return None
    low, high = interval(list(values.values()))
    base = "rec" if name in ("ece",) or name.startswith("rec-") else name
    parts = ("edit-sc", "edit-pq") if name == "edit-o" else (base,)
    noted = [it for it in records if any(part in it["scores"] for part in parts)]
    return Figure(
        mean=round(float(np.mean(list(values.values()))), 4),
        low=round(low, 4),
        high=round(high, 4),
        concepts=len(values),
        items=len(noted),
        failed=sum(any(part in it["failed"] for part in parts) for it in noted),
    )


def _by_concept(records: Sequence[Record], name: str, profile: str) -> dict[str, float]:
    """The figure of each concept that has one."""
    grouped: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        grouped[str(record["concept"])].append(record)
    found = {concept: _of_concept(mine, name, profile) for concept, mine in grouped.items()}
    return {concept: value for concept, value in found.items() if value is not None}


def _of_concept(records: Sequence[Record], name: str, profile: str) -> float | None:
    if name in ("rec", "raw"):
        asked = [it for it in records if it["task"] == "recognition" and name in it["scores"]]
        yes = [it["scores"][name] for it in asked if _positive(it)]
        no = [it["scores"][name] for it in asked if not _positive(it)]
        return balanced(yes, no)
    if name == "ece":
        return _ece(records)
    if name.startswith("rec-"):
        kind = name.removeprefix("rec-")
        picked = [it["scores"].get("rec") for it in records
                  if it["task"] == "recognition" and it["kind"] == kind]  # fmt: skip
        return float(np.mean(picked)) if picked else None
    if name == "edit-o":
        pairs = [
            (_value(it, "edit-sc", profile), _value(it, "edit-pq", profile))
            for it in records
            if {"edit-sc", "edit-pq"} <= it["scores"].keys()
        ]
        scores = [math.sqrt(sc * pq) for sc, pq in pairs if sc is not None and pq is not None]
        return float(np.mean(scores)) if scores else None
    values = [_value(it, name, profile) for it in records if name in it["scores"]]
    taken = [value for value in values if value is not None]
    return float(np.mean(taken)) if taken else None


def _value(record: Record, name: str, profile: str) -> float | None:
    """A score; a judge's failure is 0 in ``strict`` and nothing in ``compat``, and what could not
    be measured (no background outside the mask) is nothing in both."""
    value = record["scores"].get(name)
    if value is not None:
        return float(value)
    return 0.0 if profile == "strict" and name in record["failed"] else None


def _ece(records: Sequence[Record]) -> float | None:
    """Expected calibration error of p(yes), ten bins."""
    pairs = [
        (float(it["probability"]), _positive(it))
        for it in records
        if it["task"] == "recognition" and it["probability"] is not None
    ]
    if not pairs:
        return None
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for probability, there in pairs:
        bins[min(int(probability * BINS), BINS - 1)].append((probability, there))
    gaps = (
        len(mine) * abs(float(np.mean([p for p, _ in mine]) - np.mean([t for _, t in mine])))
        for mine in bins.values()
    )
    return sum(gaps) / len(pairs)


def _positive(record: Record) -> bool:
    return str(record["gold"]).lower().startswith("yes")


def _learning(times: Sequence[Record]) -> dict[str, float]:
    if not times:
        return {}
    return {
        "seconds": round(float(np.mean([it["seconds"] for it in times])), 1),
        "peak_mb": max(it["peak_mb"] for it in times),
    }


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    failed = f", {figure.failed} failed" if figure.failed else ""
    return f"{figure.mean:.3f} ({figure.low:.3f} to {figure.high:.3f}{failed})"
