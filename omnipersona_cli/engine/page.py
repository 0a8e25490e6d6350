"""The report card as one HTML page that needs no other file, for `op learn --report`.

Every picture is in it, and nothing is fetched: a content security policy forbids it. It is the only
thing made by learning that shows the photos, because a person asked for it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from html import escape
from io import BytesIO
from pathlib import Path

from PIL.Image import Image

from omnipersona_cli.concepts.card import figures_in
from omnipersona_cli.concepts.container import write_file
from omnipersona_cli.concepts.facts import Fact
from omnipersona_cli.data.photos import Photo
from omnipersona_cli.engine.card import Card, advice_on
from omnipersona_cli.engine.examine import PLACES, numbered
from omnipersona_cli.engine.material import Material
from omnipersona_cli.engine.report import Learned, Report
from omnipersona_cli.errors import PersonaError, ResourceError, shell_word

SHOWN_SIDE = 192
"""Photos are shown at most this large, in pixels."""

_DIGEST = "page.sha256"
_CURVE = (640, 200)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
    "img{height:96px;image-rendering:pixelated;margin:2px;border:3px solid transparent}"
    "figure{display:inline-block;margin:.4rem;max-width:9rem;vertical-align:top}"
    "figcaption{font-size:.8rem;overflow-wrap:anywhere}svg{max-width:100%;height:auto}"
    ".good{color:#070}.fair{color:#860}.weak{color:#b00}"
)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Pictures painted at fixed seeds after ``step`` steps of learning."""

    step: int
    images: tuple[Image, ...]


@dataclass(frozen=True, kw_only=True)
class Story:
    """All that the page tells. ``losses`` are (step, joint loss) of every step that was taken."""

    learned: Learned
    material: Material
    samples: tuple[Image, ...]
    previews: tuple[Preview, ...]
    losses: tuple[tuple[int, float], ...]


def check_page(path: Path, *, force: bool) -> None:
    """PersonaError for a page that would overwrite a file, before anything is learned."""
    if path.is_dir():
        raise PersonaError(
            f"{path} is a folder", hint=f"--report {shell_word(path / 'report.html')}"
        )
    if os.path.lexists(path) and not force:
        raise PersonaError(f"{path} is already there", hint="name another page, or add --force")


def write_page(story: Story, path: Path, run: Path) -> None:
    """Write the page, whole or not at all; its digest is put into the folder of the ``run`` first.
    Raises ResourceError where it cannot be written."""
    name = story.learned.pack.name
    page = as_page(story).encode("utf-8", "backslashreplace")
    try:
        with suppress(ResourceError):  # which may be on another disk
            write_file(run / _DIGEST, sha256(page).hexdigest().encode(), overwrite=True)
        write_file(path, page, overwrite=True)
    except ResourceError as error:
        raise ResourceError(
            f"{error}; <{name}> itself is kept",
            hint="the same command with --resume writes the page",
        ) from error


def wrote_page(run: Path, path: Path) -> bool:
    """True where the run in this folder, which was cut before it was done, wrote that page."""
    try:
        with path.open("rb") as file:
            return (run / _DIGEST).read_bytes() == file_digest(file, "sha256").hexdigest().encode()
    except OSError:
        return False


def as_page(story: Story) -> str:
    """The page as text. Equal stories give equal pages."""
    learned, report = story.learned, story.learned.report
    name, class_word = escape(story.material.name), escape(story.material.class_word)
    what = f", {class_word}" if class_word else ""
    begun = (
        f"<p>Learning was interrupted and taken up after step {learned.resumed_from}; "
        "what was drawn before that is not here.</p>"
        if learned.resumed_from
        else ""
    )
    how, kept = "Started from", "no step was learned"
    if report.steps:
        how = "Learned from"
        kept = f"of {report.steps} steps the tokens of step {report.best_step} are kept"
        if not report.held_out:
            kept = f"the tokens after all {report.steps} steps are kept"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>&lt;{name}&gt;</title><style>{_STYLE}</style>"
        f"<h1>&lt;{name}&gt;{what}: "
        f'<span class="{report.card.grade}">{report.card.grade}</span></h1>'
        f"<p>{how} {report.photos} photos, {report.held_out} of them held out, "
        f"on {escape(learned.backend)}, seed {learned.seed}; {kept}.</p>{begun}"
        f"{_advice(report.card, learned.notes)}"
        f"<h2>Figures</h2>{_figures(report.card)}"
        f"<h2>Samples</h2><p>One a place, at seeds 0, 1, …</p>{_samples(story)}"
        f"<h2>While it learned</h2>{_curve(report, story.losses)}{_previews(story.previews)}"
        f"{_facts(story.material.facts)}"
        "<h2>Photos</h2><p>They are on this page because it was asked for; the pack holds none."
        f"</p>{_photos(story.material.album.photos, report.card)}</html>\n"
    )


def _figures(card: Card) -> str:
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>"
        for key, value in figures_in(card.to_dict(named=True))
    )
    return f"<table>{rows}</table>"


def _advice(card: Card, notes: Sequence[str]) -> str:
    lines = dict.fromkeys([*card.doubts, *advice_on(card, named=True), *notes])
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{listed}</ul>" if lines else ""


def _samples(story: Story) -> str:
    return "".join(
        _figure(_png(image), f"<{story.material.name}> {place}")
        for image, place in zip(story.samples, PLACES, strict=False)
    )


def _previews(previews: Iterable[Preview]) -> str:
    return "".join(
        _figure("".join(map(_png, preview.images)), f"after step {preview.step}")
        for preview in previews
    )


def _facts(facts: Sequence[Fact]) -> str:
    listed = "".join(f"<li>{escape(fact.text)}</li>" for fact in facts)
    return f"<h2>Facts</h2><ul>{listed}</ul>" if facts else ""


def _photos(photos: Sequence[Photo], card: Card) -> str:
    reasons: dict[int, list[str]] = {}
    for hard in card.hard:
        reasons.setdefault(hard.photo, []).append(hard.reason)
    shown = []
    for number, photo in numbered(photos):
        if photo.varied:
            continue
        caption = [f"{number}. {photo.name}", *(["held out"] if photo.held_out else [])]
        shown.append(_figure(_jpeg(photo.image), ", ".join([*caption, *reasons.get(number, [])])))
    return "".join(shown)


def _curve(report: Report, losses: Sequence[tuple[int, float]]) -> str:
    """The joint loss of every step, and on top of it that of the held-out lessons."""
    checks = [(check.step, check.loss) for check in report.checks if report.held_out]
    points = [*losses, *checks]
    if len(points) < 2:
        return ""
    width, height = _CURVE
    last = max(step for step, _ in points) or 1
    top = max(loss for _, loss in points) or 1.0

    def line(series: Sequence[tuple[int, float]], colour: str) -> str:
        places = " ".join(
            f"{40 + (width - 50) * step / last:.1f},{height - 25 - (height - 40) * loss / top:.1f}"
            for step, loss in series
        )
        return f'<polyline points="{places}" fill="none" stroke="{colour}"/>'

    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="loss">'
        f'<path d="M40 10V{height - 25}H{width - 10}" fill="none" stroke="#999"/>'
        f'<text x="2" y="20" font-size="11">{top:.2f}</text>'
        f'<text x="28" y="{height - 25}" font-size="11">0</text>'
        f'<text x="{width - 60}" y="{height - 8}" font-size="11">step {last}</text>'
        f"{line(losses, '#88f')}{line(checks, '#c00')}</svg>"
        "<p>The joint loss: blue of the lessons of each step, red of the held-out ones.</p>"
    )


def _figure(pictures: str, caption: str) -> str:
    return f"<figure>{pictures}<figcaption>{escape(caption)}</figcaption></figure>"


def _png(image: Image) -> str:
    return _img(image, "PNG", {})


def _jpeg(image: Image) -> str:
    """A photo, small; nothing but its pixels."""
    small = image.convert("RGB")
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return _img(small, "JPEG", {"quality": 88})


def _img(image: Image, kind: str, options: Mapping[str, int]) -> str:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/{kind.lower()};base64,{data}">'
