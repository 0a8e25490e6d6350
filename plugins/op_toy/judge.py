"""The judge of the cartoon world, for `op bench`: rules over the attributes that a network reads.

It looks at attributes and nothing else, so it is asked nothing about naturalness. Its own accuracy
on held-out identities stands in nano's model card. Neither nano nor any concept was trained with it
or chosen by it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256

from PIL import Image as images
from PIL.Image import Image

from omnipersona_cli.hookspecs import JudgeItem, JudgeKind, Judgement
from op_toy.attributes import AROUND, ATTRIBUTES
from op_toy.network import WEIGHTS, read

WEIGHTS_FILE = WEIGHTS / "judge.safetensors"
REMEMBERED = 4096
"""Pictures of which the answer is kept: reference photos are asked about again and again."""

_VALUES = {**ATTRIBUTES, **AROUND}


class ToyJudge:
    """Reads attributes off cartoons and compares them with the truth.

    attributes    the share of ``truth`` that is in the picture
    parg          1 where all of ``truth`` is in the picture
    presence      the share of the identity (``truth``) that is there; 0 where nobody is
    edit-sc       the lesser of: the share of ``truth`` that the result has; the share of scene and
                  thing, where ``truth`` does not speak of them, that is as it was
    image-image   the mean share of the looks of a reference that the picture has
    answer        1 for the expected words, 0.5 where one answer holds the other, else 0
    """

    kinds: frozenset[JudgeKind] = frozenset(
        {"attributes", "parg", "presence", "edit-sc", "image-image", "answer"}
    )
    remarks: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.id = f"toy@{sha256(WEIGHTS_FILE.read_bytes()).hexdigest()[:16]}"
        self._readings: OrderedDict[str, dict[str, str]] = OrderedDict()
        self._read(images.new("RGB", (64, 64)))  # reads the weights now: the id speaks of these

    def score(self, item: JudgeItem) -> Judgement:
        """The judgement; failed where the truth that it needs is not known."""
        if item.kind == "answer":
            return Judgement(score=same_words(item.gold, item.answer))
        if not item.images or (item.kind != "image-image" and not item.truth):
            return Judgement(
                score=None, detail="the data set does not say what is true", failed=True
            )
        reading = self._read(item.images[-1])
        if item.kind == "image-image":
            shares = [
                _share(_looks(self._read(reference)), reading) for reference in item.references
            ]
            if not shares:
                return Judgement(score=None, detail="nothing to compare with", failed=True)
            return Judgement(score=sum(shares) / len(shares))
        detail = ", ".join(f"{name}: {reading.get(name, '')}" for name in item.truth)
        share = _share(item.truth, reading)
        if item.kind == "parg":
            return Judgement(score=float(share == 1), detail=detail)
        if item.kind == "presence":
            return Judgement(score=share if reading["characters"] != "0" else 0.0, detail=detail)
        if item.kind == "edit-sc":
            before = self._read(item.images[0])
            kept = {name: before[name] for name in ("scene", "thing") if name not in item.truth}
            return Judgement(
                score=min(share, _share(kept, reading) if kept else 1.0), detail=detail
            )
        return Judgement(score=share, detail=detail)

    def _read(self, image: Image) -> dict[str, str]:
        """Attribute -> value in words. A picture is read once while it is remembered. Colours of
        what is not there mean nothing."""
        image = image.convert("RGB")
        key = sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        if key not in self._readings:
            (read_off,) = read([image], WEIGHTS_FILE)
            self._readings[key] = {
                name: words[read_off.found[name]] for name, words in _VALUES.items()
            }
            if len(self._readings) > REMEMBERED:
                self._readings.popitem(last=False)
        return self._readings[key]


def same_words(gold: str, answer: str) -> float:
    """1, 0.5 or 0, by words alone."""
    wanted, answered = (
        [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]
        for text in (gold, answer)
    )
    if wanted == answered:
        return 1.0
    both = set(wanted) & set(answered)
    return 0.5 if both and (both == set(wanted) or both == set(answered)) else 0.0


def _looks(reading: dict[str, str]) -> dict[str, str]:
    """The attributes of a character, without those that do not apply."""
    looks = {name: reading[name] for name in ATTRIBUTES}
    if looks["pattern"] == "plain":
        del looks["second"]
    if looks["accessory"] == "nothing":
        del looks["accessory colour"]
    return looks


def _share(wanted: Mapping[str, str], reading: Mapping[str, str]) -> float:
    right = [reading.get(name) == value for name, value in wanted.items()]
    return sum(right) / len(right)
