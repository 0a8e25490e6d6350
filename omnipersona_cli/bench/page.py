"""A report as one HTML page that needs no other file: every picture is in it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from omnipersona_cli.bench.report import as_markdown
from omnipersona_cli.bench.results import Record


def as_html(
    records: Sequence[Record],
    setting: Mapping[str, Any],
    times: Sequence[Record],
    data: Path | None,
) -> str:
    """One page that needs no other file: the table, then for each concept its photos, what was
    painted and edited, with traces, the worst items first."""
    sections = [
        _section(name, [it for it in records if it["concept"] == name], data)
        for name in setting["concepts"]
    ]
    table = _html_tables(as_markdown(records, setting, times))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>op bench</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
        "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
        "td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
        "img{height:96px;image-rendering:pixelated;margin:2px}"
        "figure{display:inline-block;margin:.5rem;max-width:19rem;vertical-align:top}"
        "figcaption{font-size:.8rem;overflow-wrap:anywhere}.bad{color:#b00}"
        f"</style><h1>op bench</h1>{table}{''.join(sections)}</html>\n"
    )


def worst_first(records: Sequence[Record]) -> list[Record]:
    """The records by the mean of their scores, a failure as 0."""

    def value(record: Record) -> float:
        scores = [0.0 if it is None else float(it) for it in record["scores"].values()]
        return float(np.mean(scores)) if scores else math.inf

    return sorted(records, key=lambda it: (value(it), it["method"], it["item"], it["seed"]))


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


def _section(name: str, records: Sequence[Record], data: Path | None) -> str:
    photos = ""
    if data is not None:
        folder = data / "concept" / "train" / name
        photos = "".join(_img(path) for path in sorted(folder.glob("*.png"))[:10])
    pictures = [it for it in worst_first(records) if it["picture"]]
    answers = [it for it in worst_first(records) if not it["picture"]]
    wrong = [it for it in answers if any(value != 1 for value in it["scores"].values())]
    lines = "".join(
        f"<li>{escape(it['method'])}: {escape(it['prompt'])} → {escape(it['answer'])} "
        f"(expected {escape(it['gold'])})</li>"
        for it in wrong[:20]
    )
    shown = "".join(_shown(it, data) for it in pictures)
    return f"<h2>{escape(name)}</h2><p>{photos}</p><h3>Pictures, the worst first</h3>{shown}" + (
        f"<h3>Answers that were not right</h3><ul>{lines}</ul>" if lines else ""
    )


def _shown(record: Record, data: Path | None) -> str:
    """One picture with its story; an edit with its source before it."""
    before = ""
    if record["source"] and data is not None:
        before = _img(data / record["source"])
    scores = ", ".join(
        f"{name} {'failed' if value is None else f'{value:.2f}'}"
        for name, value in record["scores"].items()
    )
    trace = "".join(
        f"<br>{escape(it['stage'])}: {escape(it['answer'])} [{escape(it['source'])}]"
        for it in record.get("trace", [])
    )
    return (
        f"<figure>{before}{_img(Path(record['folder']) / record['picture'])}<figcaption>"
        f"<b>{escape(record['method'])}</b>, seed {record['seed']}: {escape(record['prompt'])}"
        f"<br>→ {escape(record['rewritten'])}{trace}<br>{escape(scores)}</figcaption></figure>"
    )


def _img(path: Path) -> str:
    if not path.is_file():
        return '<span class="bad">no picture</span>'
    return (
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
    )
