"""A report as one HTML page that needs no other file: every picture is in it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from omnipersona_cli.bench.dataset import Concept, Dataset
from omnipersona_cli.bench.methods import METHODS
from omnipersona_cli.bench.report import as_markdown
from omnipersona_cli.bench.results import Record
from omnipersona_cli.data.decode import open_photo
from omnipersona_cli.errors import PhotoError

PICTURES = {
    "generation": "Pictures",
    "parg": "Pictures that need a fact",
    "editing": "Edits",
}
"""What is shown, by task."""

MOST, FEW = 8, 2
"""Pictures of each task, of the method and of each other one: a page has to open."""

PHOTOS = 10
SIDE = 192
"""Pixels; larger pictures are shown as thumbnails."""


def as_html(
    records: Sequence[Record],
    setting: Mapping[str, Any],
    times: Sequence[Record],
    dataset: Dataset | None,
) -> str:
    """One page that needs no other file: the tables, then for each concept its photos, what was
    painted and edited, with traces, the worst items first. ``dataset`` is where photos, sources and
    targets are; None leaves them out."""
    concepts = (
        {concept.name: concept for concept in dataset.concepts} if dataset is not None else {}
    )
    sections = [
        _section(
            name, [record for record in records if record["concept"] == name], concepts.get(name)
        )
        for name in setting["concepts"]
    ]
    tables = _html_tables(as_markdown(records, setting, times))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>op bench</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
        "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
        "td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
        "img{height:96px;image-rendering:pixelated;margin:2px}"
        "figure{display:inline-block;margin:.5rem;max-width:21rem;vertical-align:top}"
        "figcaption{font-size:.8rem;overflow-wrap:anywhere}.bad{color:#b00}"
        f"</style><h1>op bench</h1>{tables}{''.join(sections)}</html>\n"
    )


def worst_first(records: Sequence[Record]) -> list[Record]:
    """The records by the mean of their scores, a failure as 0."""

    def value(record: Record) -> float:
        scores = [0.0 if score is None else float(score) for score in record["scores"].values()]
        return float(np.mean(scores)) if scores else math.inf

    return sorted(
        records,
        key=lambda record: (value(record), record["method"], record["item"], record["seed"]),
    )


def _html_tables(markdown: str) -> str:
    """Our own Markdown, which is lines and tables, as HTML."""
    parts, rows = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("| ---"):
            continue
        if line.startswith("|"):
            cells = line.strip("|").split("|")
            rows.append("".join(f"<td>{escape(cell.strip())}</td>" for cell in cells))
            continue
        if rows:
            parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
            rows = []
        if line:
            parts.append(f"<p>{escape(line)}</p>")
    return "".join(parts)


def _section(name: str, records: Sequence[Record], concept: Concept | None) -> str:
    """One concept: reference photos, pictures by method, answers that were not right."""
    photos = "" if concept is None else "".join(_img(path) for path in concept.photos[:PHOTOS])
    methods = [
        method for method in METHODS if any(record["method"] == method for record in records)
    ]
    shown = "".join(
        _of_method(method, [record for record in records if record["method"] == method], concept)
        for method in methods
    )
    return f"<h2>{escape(name)}</h2><p>{photos}</p>{shown}"


def _of_method(method: str, records: Sequence[Record], concept: Concept | None) -> str:
    most = MOST if method == "full" else FEW
    parts = []
    for task, title in PICTURES.items():
        mine = [
            record
            for record in worst_first(records)
            if record["task"] == task and record["picture"]
        ]
        if mine:
            more = f", {most} of {len(mine)}" if len(mine) > most else ""
            figures = "".join(_shown(record, concept) for record in mine[:most])
            parts.append(f"<h4>{title}, the worst first{more}</h4>{figures}")
    answers = [record for record in worst_first(records) if not record["picture"]]
    wrong = [record for record in answers if not _is_right(record["scores"])]
    if wrong:
        lines = "".join(
            f"<li>{escape(record['prompt'])} → {escape(record['answer'])} "
            f"(expected {escape(record['gold'])})"
            for record in wrong[: 2 * most]
        )
        parts.append(f"<h4>Answers that were not right: {len(wrong)}</h4><ul>{lines}</ul>")
    opened = " open" if method == "full" else ""
    return f"<details{opened}><summary><b>{escape(method)}</b></summary>{''.join(parts)}</details>"


def _is_right(scores: Mapping[str, float | None]) -> bool:
    """By the metrics that say right or wrong; by all where none does."""
    deciding = ("rec", "choice")
    said = [it for name, it in scores.items() if name in deciding or name.endswith("-exact")]
    return all(value == 1 for value in said or scores.values())


def _shown(record: Record, concept: Concept | None) -> str:
    """One picture with its story; an edit between its source and what was wanted."""
    item = None
    if concept is not None and record["task"] == "editing":
        item = next((item for item in concept.items if item.id == record["item"]), None)
    before = _img(item.image) + " → " if item is not None and item.image else ""
    wanted = f" wanted: {_img(item.target)}" if item is not None and item.target else ""
    scores = ", ".join(
        f"{name} {'failed' if value is None else f'{value:.2f}'}"
        for name, value in record["scores"].items()
    )
    trace = "".join(
        f"<br>{escape(step['stage'])}: {escape(step['answer'])} [{escape(step['source'])}]"
        for step in record.get("trace", [])
    )
    picture = _img(Path(record["folder"]) / record["picture"])
    return (
        f"<figure>{before}{picture}{wanted}<figcaption>seed {record['seed']}: "
        f"{escape(record['prompt'])}<br>→ {escape(record['rewritten'])}{trace}<br>"
        f"{escape(scores)}</figcaption></figure>"
    )


def _img(path: Path) -> str:
    """The picture in the page, large ones as thumbnails."""
    try:
        small = open_photo(path)
    except PhotoError:
        return f'<span class="bad">no picture: {escape(path.name)}</span>'
    kind = "PNG" if max(small.size) <= SIDE else "JPEG"  # small drawings stay as they are
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/{kind.lower()};base64,{data}">'
