"""The report card of a learned concept: figures, one grade by rules, and advice.

Values only; `omnipersona_cli.engine.examine` measures them. The rules of the grade are `BARS` and
`grade_of`, those of the advice `advice_on`, and nothing else decides either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Grade = Literal["good", "fair", "weak"]
Reason = Literal["blurred", "tiny", "missed", "not learned"]
"""Why a photo was hard: as it is, or because the answer is not a sure yes, be it held out or even
learned from."""

BARS: Mapping[str, tuple[float, float]] = {
    "recognition": (0.90, 0.75),
    "identity": (0.60, 0.30),
    "recognised": (0.75, 0.25),
    "following": (0.75, 0.50),
}
"""From the first number on a figure is good, from the second fair, below it weak."""

COPY = 0.25
"""The share of samples that may be copies of a photo before the card says weak; one is not good."""

MOST_NAMED = 4
"""The most photos that one piece of advice names."""


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """Yes or no by the threshold, each picture judged by one that was set without it, where there
    are enough. ``accuracy`` is balanced, between ``low`` and ``high`` with 95 % confidence;
    ``calibration_error`` is that of p(yes), None where there are too few pictures; ``mistaken`` of
    the ``others`` are taken for the concept. With ``held_out`` False the photos are those that
    were learned from."""

    accuracy: float
    low: float
    high: float
    threshold: float
    auroc: float
    calibration_error: float | None
    photos: int
    others: int
    mistaken: int
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Likeness to the held-out photos in the backbone's own features, as a mean cosine about the
    mean of the others: of the ``samples``, of the ``photos`` that were learned from, and of the
    ``others``. ``recognised`` of the samples are a yes to the backbone itself."""

    samples: float
    photos: float
    others: float
    recognised: int

    @property
    def share(self) -> float:
        """How far the samples are on the way from the others (0) to the photos (1)."""
        way = self.photos - self.others
        return max(0.0, min(1.0, (self.samples - self.others) / way)) if way > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Following:
    """In how many of the ``asked`` samples the backbone sees the place that was asked for, out of
    as many places."""

    right: int
    asked: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What the concept changes, at equal seeds: the log-odds of an answer (nats), and the mean
    difference of a pixel (0 to 1). None where the backend does not do that task."""

    answer: float | None
    picture: float | None

    @property
    def missing(self) -> bool:
        """True where something that was looked at has not changed at all."""
        return 0.0 in (self.answer, self.picture)


@dataclass(frozen=True, kw_only=True)
class Memorised:
    """``copies`` of the samples are the same picture as a photo that was learned from. The sample
    that is nearest to one has the likeness ``nearest`` (cosine) to the photo ``photo``."""

    copies: int
    nearest: float
    photo: int
    name: str


@dataclass(frozen=True, kw_only=True)
class HardPhoto:
    """A photo that was hard. ``photo`` counts from 1 in the order of file names."""

    photo: int
    name: str
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Card:
    """How well a concept was learned; None is what could not be measured.

    ``samples`` pictures were painted; ``rising`` says that the last step was the best one.
    ``doubts`` is what the backend itself says against the photos: they are not of its kind.
    ``instant`` says that no step was learned.
    """

    recognition: Recognition | None
    identity: Identity | None
    following: Following | None
    difference: Difference
    memorised: Memorised | None
    hard: tuple[HardPhoto, ...]
    samples: int
    held_out: bool
    rising: bool
    doubts: tuple[str, ...] = ()
    instant: bool = False

    @property
    def grade(self) -> Grade:
        """The one word that sums it up."""
        return grade_of(self)

    def to_dict(self, *, named: bool) -> dict[str, Any]:
        """Plain values with stable keys. Without ``named`` photos are numbers only: what a pack
        keeps must not tell what a person's files are called."""
        values = {key: _rounded(value) for key, value in asdict(self).items()}
        if self.identity is not None:
            values["identity"]["share"] = round(self.identity.share, 4)
        for entry in (*values["hard"], *([values["memorised"]] if self.memorised else [])):
            if not named:
                del entry["name"]
        advice = list(advice_on(self, named=named))
        lists = {"hard": list(values["hard"]), "doubts": list(self.doubts), "advice": advice}
        return {"verdict": self.grade, **values, **lists}


def grade_of(card: Card) -> Grade:
    """The worst of what was measured. Nothing held out, or a sample that copies a photo, is never
    good; a concept that changes nothing is weak, and so is one whose photos the backend itself
    doubts: its figures are then a stranger's guesses."""
    levels = [_level(name, value) for name, value in _measured(card).items()]
    if not card.held_out or card.recognition is None:
        levels.append(1)
    if card.memorised is not None and card.memorised.copies:
        levels.append(0 if card.memorised.copies > COPY * card.samples else 1)
    if card.difference.missing or card.doubts:
        levels.append(0)
    words: tuple[Grade, ...] = ("weak", "fair", "good")
    return words[min(levels, default=0)]


def advice_on(card: Card, *, named: bool) -> Iterator[str]:
    """What to do about it, the most helpful first; one sentence each."""
    measured = _measured(card)
    below = {name for name, value in measured.items() if _level(name, value) < 2}
    if card.difference.missing:
        yield "answers or pictures do not change with it: learn it again, with more --steps"
    if not card.held_out:
        yield "no photo was held out, so recognition is flattered: give 5 to 10 photos"
    for reason, advice in _PHOTO_ADVICE.items():
        hard = [photo for photo in card.hard if photo.reason == reason]
        if hard:
            yield f"{_listed(hard, named)}: {advice}"
    recognition = card.recognition
    if recognition is None:
        yield "there was nothing to compare with: give pictures of other things, --negatives DIR"
    elif recognition.mistaken and "recognition" in below:
        yield (
            f"{recognition.mistaken} of {recognition.others} others are taken for it: give more "
            "negatives, best of things that look alike (--negatives DIR)"
        )
    if "recognition" in below and any(photo.reason == "missed" for photo in card.hard):
        yield "more angles: photos like those that were missed"
    if below & {"identity", "recognised"}:
        yield "pictures of it come out unlike: sharper photos that show it large and whole"
    if "following" in below:
        yield "places are not painted as asked: photos in more places, or fewer --steps"
    if card.memorised is not None and card.memorised.copies:
        yield (
            f"{card.memorised.copies} of {card.samples} samples copy a photo: photos in more "
            "places, or fewer --steps"
        )
    if below and card.rising:
        yield "it was still getting better at the last step: more --steps"


_PHOTO_ADVICE: Mapping[Reason, str] = {
    "blurred": "blurred; sharper photos teach more",
    "tiny": "tiny; larger photos teach more",
    "missed": "held out, and no sure yes",
    "not learned": "learned from, and still no sure yes; is it really in there?",
}


def _measured(card: Card) -> dict[str, float]:
    values: dict[str, float] = {}
    if card.recognition is not None:
        values["recognition"] = card.recognition.accuracy
    if card.identity is not None:
        values["identity"] = card.identity.share
        values["recognised"] = card.identity.recognised / card.samples
    if card.following is not None:
        values["following"] = card.following.right / card.following.asked
    return values


def _level(name: str, value: float) -> int:
    """0 weak, 1 fair, 2 good."""
    return sum(value >= bar for bar in BARS[name])


def _listed(hard: Sequence[HardPhoto], named: bool) -> str:
    shown = [photo.name if named else str(photo.photo) for photo in hard[:MOST_NAMED]]
    more = f" and {len(hard) - MOST_NAMED} more" if len(hard) > MOST_NAMED else ""
    listed = ", ".join(shown) + more
    return listed if named else f"photo{'s' if len(hard) > 1 else ''} {listed}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return value
