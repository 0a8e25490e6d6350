"""From results to the paper's table: methods x metrics as Markdown and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnipersona_cli.bench.dataset import BENCH_TASKS
from omnipersona_cli.bench.figures import FIGURES, Figure, Table, tabulate
from omnipersona_cli.bench.findings import findings, sentences
from omnipersona_cli.bench.methods import METHODS
from omnipersona_cli.bench.results import Record, Results, key_of
from omnipersona_cli.errors import PersonaError

Column = tuple[str, tuple[str, ...]]
"""A heading, and the metrics that may stand under it: the first that was measured does."""

PAPER: tuple[Column, ...] = (
    ("Rec", ("rec",)),
    ("VQA", ("vqa-judge", "vqa-exact")),
    ("QA", ("qa-judge", "qa-exact")),
    ("CLIP-I", ("clip-i",)),
    ("DINO", ("dino",)),
    ("CLIP-T", ("clip-t",)),
    ("Face", ("face",)),
    ("likeness", ("likeness",)),
    ("identity", ("identity",)),
    ("PARG", ("parg",)),
    ("edit-sc", ("edit-sc",)),
    ("edit-o", ("edit-o",)),
    ("edit-presence", ("edit-presence",)),
    ("edit-bg", ("edit-bg",)),
)
RIVALS = ("full", "without-facts-text", "text-prompt-only", "pictures-in-context")

ABLATION: tuple[Column, ...] = (
    ("Rec", ("rec",)),
    ("PARG", ("parg",)),
    ("likeness", ("clip-i", "likeness")),
    ("identity", ("identity",)),
    ("editing", ("edit-o", "edit-sc")),
)
ABLATIONS = (
    "full", "without-decoupling", "without-replay", "without-facts-text", "without-edit-lessons",
    "instant", "deep",
)  # fmt: skip


def load(folders: Sequence[Path]) -> tuple[list[Record], dict[str, Any], list[Record]]:
    """Records, setting and times of one run or several of the same data, judges and profile.

    Raises PersonaError for runs that cannot stand in one table and for one item in two of them.
    """
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
    twice = [key for key, count in Counter(map(key_of, records)).items() if count > 1]
    if twice:
        raise PersonaError(
            f"these results hold the same item more than once: {', '.join(map(str, twice[0]))}",
            hint="report each of them by itself",
        )
    if not records:
        raise PersonaError(
            f"no item of {folders[0]} is finished", hint="op bench run DATA -o RESULTS goes on"
        )
    concepts = dict.fromkeys(name for setting in settings for name in setting["concepts"])
    merged = settings[0] | {
        "concepts": list(concepts),
        "seeds": max(setting["seeds"] for setting in settings),
        "items": sum(setting["items"] for setting in settings),
    }
    return records, merged, times


def as_json(
    records: Sequence[Record], setting: Mapping[str, Any], times: Sequence[Record]
) -> dict[str, Any]:
    """The whole report in plain values."""
    profile = str(setting["profile"])
    table = tabulate(records, profile=profile)
    return {
        "setting": {key: setting[key] for key in sorted(setting) if key != "class_words"},
        "measured": len(records),
        "methods": {
            method: {name: vars(figure) for name, figure in row.items()}
            for method, row in table.items()
        },
        "findings": findings(records, profile=profile),
        "learning": learning(times),
        "seconds": seconds(times),
    }


def _unfinished(measured: int, items: int) -> list[str]:
    if measured >= items:
        return []
    told = f"Not finished: {measured} of {items} items are measured"
    return ["", f"{told}; `op bench run DATA -o RESULTS` goes on."]


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def as_markdown(
    records: Sequence[Record], setting: Mapping[str, Any], times: Sequence[Record]
) -> str:
    """The paper's table, the ablations, the findings, and every figure: as Markdown."""
    profile = str(setting["profile"])
    table = tabulate(records, profile=profile)
    judges = ", ".join(str(judge) for judge in setting.get("judges", {}).values()) or "none"
    lines = [
        f"{_number(len(setting['concepts']), 'concept')}, {_number(setting['seeds'], 'seed')}, "
        f"backend {setting['backend']}, profile {profile}, judges: {judges}, begun "
        f"{setting.get('begun', 'on a day unknown')}. Means over concepts with 95 % bootstrap "
        "intervals.",
        *_unfinished(len(records), setting["items"]),
        *_by_method(table, RIVALS, PAPER, "The method and its rivals"),
        *_by_method(table, ABLATIONS, ABLATION, "Ablations"),
        *sentences(findings(records, profile=profile)),
        *_by_metric(table),
    ]
    learned, spent = learning(times), seconds(times)
    if learned:
        lines += ["", f"Learning: {learned['seconds']:.0f} s a concept (mean), "
                  f"{learned['peak_mb']:.0f} MB at most."]  # fmt: skip
    if spent:
        told = ", ".join(f"{task} {value:.2f}" for task, value in spent.items())
        lines += ["", f"Seconds an item, judging included: {told}."]
    return "\n".join(lines)


def learning(times: Sequence[Record]) -> dict[str, float]:
    """Seconds of learning (mean) and peak memory (most); empty where nothing was learned."""
    learned = [unit_time for unit_time in times if "peak_mb" in unit_time]
    if not learned:
        return {}
    told = {
        "seconds": round(float(np.mean([learning["seconds"] for learning in learned])), 1),
        "peak_mb": max(learning["peak_mb"] for learning in learned),
    }
    gpu = [learning["peak_gpu_mb"] for learning in learned if "peak_gpu_mb" in learning]
    return told | ({"peak_gpu_mb": max(gpu)} if gpu else {})


def seconds(times: Sequence[Record]) -> dict[str, float]:
    """Mean seconds an item by task."""
    found: dict[str, float] = {}
    for task in BENCH_TASKS:
        mine = [unit_time for unit_time in times if unit_time.get("task") == task]
        if mine:
            spent = sum(float(record["item_seconds"]) for record in mine)
            found[task] = round(spent / sum(int(record["items"]) for record in mine), 3)
    return found


def _by_method(
    table: Table, methods: Sequence[str], columns: Sequence[Column], title: str
) -> list[str]:
    """Methods down, a few metrics across; nothing where none of the methods was run."""
    rows = [method for method in methods if method in table]
    measured = [
        (heading, name)
        for heading, names in columns
        if (
            name := next(
                (figure for figure in names if any(figure in table[row] for row in rows)), ""
            )
        )
    ]
    if len(rows) < 2 or not measured:
        return []
    lines = ["", f"{title}:", "", "| | " + " | ".join(heading for heading, _ in measured) + " |",
             "| --- |" + " --- |" * len(measured)]  # fmt: skip
    for row in rows:
        cells = " | ".join(_cell(table[row].get(name)) for _, name in measured)
        lines.append(f"| {row}: {METHODS[row].summary} | {cells} |")
    return lines


def _by_metric(table: Table) -> list[str]:
    """Every figure: metrics down, methods across."""
    methods = list(table)
    lines = ["", "Every figure:", "", "| | " + " | ".join(methods) + " |",
             "| --- |" + " --- |" * len(methods)]  # fmt: skip
    for name, label in FIGURES:
        cells = [_cell(table[method].get(name)) for method in methods]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    notes = []
    if figure.concepts > 1:  # an interval over one concept would only look like one
        notes.append(f"{figure.low:.3f} to {figure.high:.3f}")
    if figure.failed:
        notes.append(f"{figure.failed} of {figure.items} failed")
    return f"{figure.mean:.3f}" + (f" ({'; '.join(notes)})" if notes else "")
