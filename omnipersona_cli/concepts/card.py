"""The report card in a pack's header, in words.

`omnipersona_cli.engine.card` writes it into ``op.eval`` under "card". It may be a stranger's: a
figure that is not there, or not of the expected type, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GRADES = ("good", "fair", "weak")
INSTANT = "instant: the start, read off the photos; no step was learned (--more goes on from it)"
"""What is said of a concept that was not learned."""
ADVICE_COUNT = 12
ADVICE_LENGTH = 300
"""The most that is shown of advice, which is a stranger's text in a stranger's pack."""


def figures_in(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures: (what, how much)."""
    rows = []
    for key, describe in _FIGURES.items():
        values = card.get(key)
        if isinstance(values, Mapping):
            try:
                words = describe(values, card)
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            if words:
                rows.append((key, words[:ADVICE_LENGTH]))
    return rows


def advice_in(card: Mapping[str, Any]) -> list[str]:
    """The advice, one sentence each."""
    return _sentences(card.get("advice"))


def doubts_in(card: Mapping[str, Any]) -> list[str]:
    """What the backend itself said against the photos, one sentence each."""
    return _sentences(card.get("doubts"))


def grade_in(card: Mapping[str, Any]) -> str:
    """ "good", "fair" or "weak"; empty where the card does not say."""
    grade = card.get("verdict")  # the header's own word for it
    return grade if isinstance(grade, str) and grade in GRADES else ""


def _sentences(value: object) -> list[str]:
    lines = value if isinstance(value, list) else []
    return [line[:ADVICE_LENGTH] for line in lines if isinstance(line, str)][:ADVICE_COUNT]


def _recognition(row: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    error = row["calibration_error"]
    calibrated = "" if error is None else f", ECE {error:.2f}"
    photos = "photo" if row["photos"] == 1 else "photos"
    whose = f"held-out {photos}" if row["held_out"] else f"{photos} that it learned from"
    return (
        f"{row['accuracy']:.2f} ({row['low']:.2f} to {row['high']:.2f}) "
        f"on {row['photos']:d} {whose} and {row['others']:d} others; "
        f"AUROC {row['auroc']:.2f}, threshold {row['threshold']:.2f}{calibrated}"
    )


def _identity(row: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    return (
        f"samples are {row['share']:.2f} of the way from others to photos "
        f"({row['others']:.2f}, {row['samples']:.2f}, {row['photos']:.2f}); "
        f"{row['recognised']:d} of {card['samples']:d} are recognised"
    )


def _following(row: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    return f"{row['right']:d} of {row['asked']:d} samples are in the place that was asked for"


def _difference(row: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    changes = [] if row["answer"] is None else [f"answers by {row['answer']:.2f} nats"]
    changes += [] if row["picture"] is None else [f"pictures by {100 * row['picture']:.1f} %"]
    return f"it changes {' and '.join(changes)}" if changes else ""


def _memorised(row: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    photo = row.get("name") or f"photo {row['photo']:d}"
    return (
        f"{row['copies']:d} of {card['samples']:d} samples copy a photo; "
        f"the nearest is {row['nearest']:.2f} like {photo}"
    )


def card_lines(card: Mapping[str, Any]) -> Iterator[str]:
    """The card as lines for a terminal: the grade, whatever takes the worth from the figures, and
    the figures."""
    if grade := grade_in(card):
        yield f"report card: {grade}"
    if card.get("instant") is True:
        yield f"  ! {INSTANT}"
    for line in doubts_in(card):
        yield f"  ! {line}"
    rows = figures_in(card)
    width = max((len(key) for key, _ in rows), default=0)
    for key, words in rows:
        yield f"  {key:<{width}}  {words}"
    for line in advice_in(card):
        yield f"  - {line}"


_FIGURES = {
    "recognition": _recognition,
    "identity": _identity,
    "following": _following,
    "difference": _difference,
    "memorised": _memorised,
}
