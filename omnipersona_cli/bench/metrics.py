"""The formulas: from answers and pictures to numbers. No model runs in here.

Names follow UnifyBench's evaluators where those are known (Rec, BLEU with weights 0.7 and 0.3 and
smoothing method 1, plain substring answers in ``compat``). What the paper never defines keeps names
of our own: edit-sc, edit-pq, edit-bg, edit-presence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

Profile = Literal["strict", "compat"]
PROFILES: tuple[Profile, ...] = ("strict", "compat")

BLEU_WEIGHTS = (0.7, 0.3)
EPSILON = 0.1
"""What smoothing method 1 of Chen and Cherry (2014) puts in the place of a zero count."""

RESAMPLES = 10_000
DILATION = 2
"""Pixels by which an edit mask of 64 pixels is grown before the background is compared; larger
pictures grow it in proportion."""


def said_yes(answer: str, profile: Profile) -> bool | None:
    """Yes, no, or None for neither and for both. ``strict`` takes the first whole word that is one
    of the two; ``compat`` looks for "yes", then for "no", anywhere in the answer."""
    text = answer.lower()
    if profile == "compat":
        return True if "yes" in text else False if "no" in text else None
    words = re.findall(r"[a-z']+", text)
    if words[:2] == ["not", "sure"]:
        return None
    first = next((word for word in words if word in ("yes", "no")), None)
    return None if first is None else first == "yes"


def balanced(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Rec: half the recall of each side; None where a side is empty."""
    if not positives or not negatives:
        return None
    return 0.5 * (float(np.mean(positives)) + float(np.mean(negatives)))


def exact(gold: str, answer: str) -> float:
    """1 where the answer is the expected one, but for case, article and full stop."""
    return float(_plain(gold) == _plain(answer))


def contains(gold: str, answer: str) -> float:
    """1 where the expected text stands in the answer: the evaluators' rule for choices."""
    return float(gold.strip().lower() in answer.lower())


def bleu(gold: str, answer: str, *, words: bool) -> float:
    """Sentence BLEU, 0 to 1, of 1-grams (0.7) and 2-grams (0.3), of words or, as the released
    evaluators do because they pass strings, of characters."""
    reference: Sequence[str] = gold.lower().split() if words else gold
    parts: Sequence[str] = answer.lower().split() if words else answer
    if not parts or not reference:
        return 0.0
    total = 0.0
    for n, weight in enumerate(BLEU_WEIGHTS, start=1):
        found, possible = _matches(reference, parts, n)
        if n == 1 and found == 0:
            return 0.0
        total += weight * math.log((found or EPSILON) / possible)
    penalty = 1.0 if len(parts) > len(reference) else math.exp(1 - len(reference) / len(parts))
    return penalty * math.exp(total)


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean; one value for each concept."""
    if not values:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values, dtype=np.float64)[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def outside(mask: Image, size: tuple[int, int]) -> NDArray[np.bool_]:
    """[H, W]: True where an edit must change nothing: not in the mask, nor near it."""
    inside = (np.asarray(mask.convert("L").resize(size)) > 127).astype(np.uint8)
    reach = max(1, round(DILATION * max(size) / 64))
    grown = cv2.dilate(inside, np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8))
    found: NDArray[np.bool_] = np.asarray(grown) == 0
    return found


def ssim(before: Image, after: Image, where: NDArray[np.bool_]) -> float | None:
    """Mean structural similarity (Wang et al. 2004; uniform windows of 7 pixels, per channel) over
    the windows that lie wholly in ``where`` [H, W], so that what may change is not compared;
    ``after`` is brought to the size of ``before``. None where there is no such window."""
    whole = cv2.erode(where.astype(np.uint8), np.ones((7, 7), dtype=np.uint8)) > 0
    if not whole.any():
        return None
    if after.size != before.size:
        after = after.resize(before.size)
    x, y = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (before, after))

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.blur(values, (7, 7), borderType=cv2.BORDER_REFLECT))

    unbiased = 49 / 48
    mx, my = mean(x), mean(y)
    vx, vy = unbiased * (mean(x * x) - mx * mx), unbiased * (mean(y * y) - my * my)
    both = unbiased * (mean(x * y) - mx * my)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(values.mean(axis=2)[whole].mean())


def _matches(reference: Sequence[str], answer: Sequence[str], n: int) -> tuple[int, int]:
    """Clipped n-gram matches, and how many n-grams the answer has (at least 1)."""

    def grams(text: Sequence[str]) -> Counter[tuple[str, ...]]:
        return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))

    mine, theirs = grams(answer), grams(reference)
    return sum((mine & theirs).values()), max(1, sum(mine.values()))


def _plain(text: str) -> str:
    line = " ".join(text.lower().split()).strip(" .!?")
    return re.sub(r"^(?:an?|the)\s+", "", line)
