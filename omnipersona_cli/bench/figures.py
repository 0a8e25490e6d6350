"""From the records of items to figures: one for each method and metric.

A figure is the mean over concepts of the mean over a concept's items and seeds, with the 95 %
bootstrap interval over concepts. Rec is balanced for each concept first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omnipersona_cli.bench.methods import METHODS
from omnipersona_cli.bench.metrics import balanced, interval
from omnipersona_cli.bench.results import Record

FIGURES: tuple[tuple[str, str], ...] = (
    ("rec", "Rec"),
    ("rec-positive", "… yes to the concept"),
    ("rec-look-alike", "… no to look-alikes"),
    ("threshold", "Rec by the threshold alone, no “not sure”"),
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
    ("clip-i", "CLIP-I, to test photos"),
    ("clip-i-train", "… to training photos (memorisation)"),
    ("dino", "DINO, to test photos"),
    ("dino-train", "… to training photos (memorisation)"),
    ("likeness", "likeness to test photos, by the judge"),
    ("memorisation", "… to training photos (memorisation)"),
    ("face", "Face"),
    ("face-found", "… pictures with a face"),
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


def _figure(records: Sequence[Record], name: str, profile: str) -> Figure | None:
    values = by_concept(records, name, profile)
    if not values:
        return None
    low, high = interval(list(values.values()))
    base = "rec" if name == "ece" or name.startswith("rec-") else name.removesuffix("-found")
    parts = ("edit-sc", "edit-pq") if name == "edit-o" else (base,)
    noted = [record for record in records if any(part in record["scores"] for part in parts)]
    return Figure(
        mean=round(float(np.mean(list(values.values()))), 4),
        low=round(low, 4),
        high=round(high, 4),
        concepts=len(values),
        items=len(noted),
        failed=0
        if name == "face-found"
        else sum(any(part in record["failed"] for part in parts) for record in noted),
    )


def by_concept(records: Sequence[Record], name: str, profile: str) -> dict[str, float]:
    """The figure of each concept that has one."""
    grouped: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        grouped[str(record["concept"])].append(record)
    found = {concept: _of_concept(mine, name, profile) for concept, mine in grouped.items()}
    return {concept: value for concept, value in found.items() if value is not None}


def _of_concept(records: Sequence[Record], name: str, profile: str) -> float | None:
    if name in ("rec", "raw", "threshold"):
        asked = [
            record
            for record in records
            if record["task"] == "recognition" and name in record["scores"]
        ]
        yes = [record["scores"][name] for record in asked if _positive(record)]
        no = [record["scores"][name] for record in asked if not _positive(record)]
        return balanced(yes, no)
    if name == "ece":
        return _ece(records)
    if name.startswith("rec-"):
        kind = name.removeprefix("rec-")
        picked = [record["scores"].get("rec") for record in records
                  if record["task"] == "recognition" and record["kind"] == kind]  # fmt: skip
        return float(np.mean(picked)) if picked else None
    if name == "face-found":
        faces = ["face" not in record["failed"] for record in records if "face" in record["scores"]]
        return float(np.mean(faces)) if faces else None
    if name == "edit-o":
        pairs = [
            (_value(record, "edit-sc", profile), _value(record, "edit-pq", profile))
            for record in records
            if {"edit-sc", "edit-pq"} <= record["scores"].keys()
        ]
        scores = [math.sqrt(sc * pq) for sc, pq in pairs if sc is not None and pq is not None]
        return float(np.mean(scores)) if scores else None
    values = [_value(record, name, profile) for record in records if name in record["scores"]]
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
        (float(record["probability"]), _positive(record))
        for record in records
        if record["task"] == "recognition" and record["probability"] is not None
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
