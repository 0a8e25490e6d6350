"""From yes/no scores on held-out pictures to a threshold, a probability and an honest "not sure".

A score is the log-odds d = log p("yes") - log p("no") of the recognition questions, averaged. Raw
odds of a language model lean to one side, so the threshold is learned: that of least logistic loss
on held-out pictures, pulled to odds of two to one, because few pictures are held out and the two
nearest ones should not decide alone. Even odds are a little generous: photos of one concept score
much alike, while what resembles it comes close. Around the threshold p(yes) is
sigmoid((d - threshold) / temperature), the temperature fitted as in Platt (1999), whose softened
targets keep few pictures from sounding sure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL.Image import Image

from omnipersona_cli.backend import Backend, ConceptTokens, Prompt, Span, Turn

Verdict = Literal["yes", "no", "not sure"]

QUESTIONS = ("is <{name}> here?", "do you see <{name}>?", "is <{name}> in this picture?")
"""What recognition asks, however a person phrases it: calibration and answers must agree."""

UNSURE = 0.47
"""Between this probability and one minus it, the answer is "not sure"."""

SHARPNESS = 0.25
"""How near (nats) to the threshold a score has to be to have a say in where it lies. This, `HOME`,
`PULL` and `SOFTENED` were chosen on characters drawn for tuning (benchmarks/thresholds.py)."""

HOME = math.log(2)
"""Where a threshold lies when no held-out picture comes near: odds of two to one."""

PULL = 0.5
"""What a threshold far from where it is pulled costs for every nat, beside the loss. A picture of
a few on the wrong side costs more, so a model that leans is followed as far as it leans."""

SOFTENED = 0.25
"""How many pictures of the other kind are imagined on each side when the temperature is fitted.
Platt takes 1, which makes three photos sound much too modest."""

BINS = 5
"""Bins of the calibration error: few, because few pictures are held out."""

WEAK_ACCURACY = 0.75
"""A held-out balanced accuracy below this is called weak in the report."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How to read a recognition score d, and how well it separates.

    ``threshold``, ``low``, ``high`` and ``temperature`` are in units of d (nats); between ``low``
    and ``high`` the answer is "not sure". ``held_out`` is False where the positives were photos
    that were learned from, which flatters every figure.
    """

    threshold: float
    low: float
    high: float
    temperature: float
    balanced_accuracy: float
    auroc: float
    positives: int
    negatives: int
    held_out: bool = True

    @property
    def weak(self) -> bool:
        """True where the figures promise little."""
        return self.balanced_accuracy < WEAK_ACCURACY

    def odds(self, score: float) -> float:
        """The log-odds of p(yes) for the score ``score``."""
        return (score - self.threshold) / self.temperature

    def probability(self, score: float) -> float:
        """p(yes) for the score ``score``."""
        return sigmoid(self.odds(score))

    def verdict(self, score: float) -> Verdict:
        """What to say to the score ``score``."""
        if score >= self.high:
            return "yes"
        return "no" if score <= self.low else "not sure"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a pack's header."""
        return asdict(self)


UNCALIBRATED = Calibration(
    threshold=0.0,
    low=-math.log((1 - UNSURE) / UNSURE),
    high=math.log((1 - UNSURE) / UNSURE),
    temperature=1.0,
    balanced_accuracy=0.5,
    auroc=0.5,
    positives=0,
    negatives=0,
    held_out=False,
)
"""For a pack that brings no figures: the raw odds are taken at their word."""


def from_dict(values: Mapping[str, Any]) -> Calibration:
    """The calibration in a pack's header; `UNCALIBRATED` where it has none or it is not usable."""
    names = Calibration.__dataclass_fields__
    known = {key: value for key, value in values.items() if key in names}
    numbers = [value for key, value in known.items() if key != "held_out"]
    readable = all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
    if len(known) < len(names) or not readable or not known["temperature"] > 0:
        return UNCALIBRATED
    return Calibration(**known)


def recognition_score(backend: Backend, tokens: ConceptTokens, image: Image) -> float:
    """The score d (nats) of "is it here?" for one picture, averaged over `QUESTIONS`. Rows
    for facts are left out: with them, what looks alike is taken for it more often."""
    tokens, total = tokens.of_looks(), 0.0
    for question in QUESTIONS:
        text = question.format(name=tokens.name)
        start = text.index("<")
        span = Span(start=start, end=start + len(tokens.name) + 2, name=tokens.name)
        prompt = Prompt(turns=(Turn(text=text, spans=(span,)),), concepts=(tokens,))
        yes, no = backend.score(prompt, ("yes", "no"), image=image).tolist()
        total += yes - no
    return total / len(QUESTIONS)


def calibrate(
    positives: Sequence[float], negatives: Sequence[float], *, held_out: bool = True
) -> Calibration:
    """Set the threshold from the scores of pictures that are, and that are not, the concept.

    Without scores on one side there is nothing to separate: `UNCALIBRATED` comes back.
    """
    if not positives or not negatives:
        return UNCALIBRATED
    threshold = settled_threshold(positives, negatives)
    temperature = _fit_temperature(positives, negatives, threshold)
    margin = temperature * math.log((1 - UNSURE) / UNSURE)
    return Calibration(
        threshold=threshold,
        low=threshold - margin,
        high=threshold + margin,
        temperature=temperature,
        balanced_accuracy=balanced_accuracy(positives, negatives, threshold),
        auroc=auroc(positives, negatives),
        positives=len(positives),
        negatives=len(negatives),
        held_out=held_out,
    )


def settled_threshold(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The threshold of least logistic loss, both sides weighing the same, with `PULL` toward
    `HOME`. The loss is convex, so a search by thirds finds it.
    """

    def cost(threshold: float) -> float:
        missed = sum(_softplus((threshold - score) / SHARPNESS) for score in positives)
        taken = sum(_softplus((score - threshold) / SHARPNESS) for score in negatives)
        loss = missed / len(positives) + taken / len(negatives)
        return loss + PULL * (math.hypot(1.0, threshold - HOME) - 1.0)

    low, high = min(HOME, *positives, *negatives), max(HOME, *positives, *negatives)
    for _ in range(60):
        third = (high - low) / 3
        if cost(low + third) <= cost(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


def balanced_accuracy(
    positives: Sequence[float], negatives: Sequence[float], threshold: float
) -> float:
    """Half the shares of both sides that lie on the right side of ``threshold``."""
    hits = sum(score >= threshold for score in positives) / len(positives)
    return 0.5 * (hits + sum(score < threshold for score in negatives) / len(negatives))


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The chance that a positive scores above a negative; ties count half."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def left_out(
    positives: Sequence[Sequence[float]], negatives: Sequence[float]
) -> list[tuple[float, bool]]:
    """(p(yes), is it the concept?) of every score, by a calibration that never saw its picture.

    ``positives`` are grouped by photo (a photo and its varied copies leave together). Empty where a
    side has fewer than two pictures: without one of them there is nothing to calibrate on.
    """
    if len(positives) < 2 or len(negatives) < 2:
        return []
    found = []
    for index, group in enumerate(positives):
        rest = [score for other in (*positives[:index], *positives[index + 1 :]) for score in other]
        calibration = calibrate(rest, negatives)
        found += [(calibration.probability(score), True) for score in group]
    whole = [score for group in positives for score in group]
    for index, score in enumerate(negatives):
        calibration = calibrate(whole, [*negatives[:index], *negatives[index + 1 :]])
        found.append((calibration.probability(score), False))
    return found


def calibration_error(answers: Sequence[tuple[float, bool]]) -> float | None:
    """Expected calibration error of (p(yes), truth) pairs, in `BINS` bins; None without pairs of
    both sides. Both sides weigh the same, as they do where the temperature is fitted."""
    count = sum(there for _, there in answers)
    if not 0 < count < len(answers):
        return None
    bins: dict[int, list[tuple[float, float, bool]]] = {}
    for probability, there in answers:
        weight = 0.5 / (count if there else len(answers) - count)
        place = min(int(probability * BINS), BINS - 1)
        bins.setdefault(place, []).append((weight, probability, there))
    return sum(
        abs(sum(weight * (there - probability) for weight, probability, there in mine))
        for mine in bins.values()
    )


def recall_interval(hits: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of the share ``hits / count``, honest where all are hit too."""
    share, z = hits / count, 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) * z
    half /= 1 + z * z / count
    return max(0.0, middle - half), min(1.0, middle + half)


def balanced_interval(yes: tuple[float, int], no: tuple[float, int]) -> tuple[float, float]:
    """The 95 % interval of balanced accuracy from (hits, pictures) of each side: the intervals of
    both recalls put together as in Zou and Donner (2008)."""
    below = above = middle = 0.0
    for hits, count in (yes, no):
        low, high = recall_interval(hits, count)
        middle += 0.5 * hits / count
        below += (hits / count - low) ** 2
        above += (high - hits / count) ** 2
    return max(0.0, middle - 0.5 * math.sqrt(below)), min(1.0, middle + 0.5 * math.sqrt(above))


def _fit_temperature(
    positives: Sequence[float], negatives: Sequence[float], threshold: float
) -> float:
    """The temperature of least cross-entropy against softened targets, by a fine search.

    The search spans the scores' own scale, so that the result is finite even where the two sides
    are separated perfectly or not at all.
    """
    high = (len(positives) + SOFTENED) / (len(positives) + 2 * SOFTENED)
    low = SOFTENED / (len(negatives) + 2 * SOFTENED)
    spread = max(abs(score - threshold) for score in (*positives, *negatives)) or 1.0

    def cost(temperature: float) -> float:
        def entropy(score: float, target: float) -> float:
            z = (score - threshold) / temperature
            return _softplus(z) - target * z

        yes = sum(entropy(score, high) for score in positives) / len(positives)
        return yes + sum(entropy(score, low) for score in negatives) / len(negatives)

    return min((spread * 2 ** (step / 8) for step in range(-48, 17)), key=cost)


def sigmoid(value: float) -> float:
    """Log-odds -> probability, without overflow."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
