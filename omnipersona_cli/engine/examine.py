"""Examine a concept that was just learned: what its report card says, measured.

The backbone is its own examiner; no judge has a say. Recognition is measured on photos and
negatives that learning never saw, identity in the backbone's own features, places by what it sees
in its own samples. A stranger's judgement is what `op bench` is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from omnipersona_cli.backend import Backend, ConceptTokens, OnStep, Prompt, Turn, counted
from omnipersona_cli.data.photos import Photo, flaw_of, same_picture, thumbnail_of
from omnipersona_cli.engine.calibrate import (
    Calibration,
    balanced_interval,
    calibrate,
    calibration_error,
    left_out,
    recognition_score,
)
from omnipersona_cli.engine.card import (
    Card,
    Difference,
    Following,
    HardPhoto,
    Identity,
    Memorised,
    Reason,
    Recognition,
)
from omnipersona_cli.engine.material import Material
from omnipersona_cli.engine.progress import OnProgress, counting, painting_steps
from omnipersona_cli.hookspecs import Progress
from omnipersona_cli.language.mentions import to_turn

PLACES = ("at the beach", "in the forest", "in the snow", "in the city")
"""Where samples are painted: sample i at seed i."""

PLACE_QUESTION = "where is it?"

CALIBRATION_NEGATIVES = 24
"""The most held-out negatives that are scored for the threshold."""

INSTANT_NEGATIVES = 8
"""The most of them for an instant concept, which nobody wants to wait for."""

MOST_LEARNED = 32
"""The most photos that are asked about again after they were learned from."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What the examination found: how to read yes/no scores, the card, the samples painted."""

    calibration: Calibration
    card: Card
    samples: tuple[Image, ...]


@torch.no_grad()
def examine(
    backend: Backend,
    tokens: ConceptTokens,
    material: Material,
    *,
    samples: int,
    rising: bool,
    instant: bool = False,
    doubts: Sequence[str] = (),
    on_progress: OnProgress,
) -> Examined:
    """Measure everything on the card. ``samples`` (0 to 4) pictures are painted for it; without
    them, and for tasks that the backend does not do, the figures that need them stay None.
    ``doubts`` are the backend's own remarks on the photos. Of an ``instant`` concept nothing is
    asked about photos that it learned from, because it has learned from none."""
    others = _others(material)[: INSTANT_NEGATIVES if instant else None]
    pictures = [*material.positives, *others]
    asking = counting(on_progress, "asking about photos")
    scores = [_score(backend, tokens, image) for image in counted(pictures, asking)]
    positives, negatives = scores[: len(material.positives)], scores[len(material.positives) :]
    understands = "understand" in backend.info.tasks
    calibration = (
        calibrate(positives, negatives, held_out=material.positives_held_out)
        if understands
        else calibrate((), ())
    )
    painted = tuple(_samples(backend, tokens, samples, on_progress))
    recognition = None
    hard = list(_flawed(material))
    if calibration.positives:
        groups = _by_photo(material, positives)
        recognition = _recognition(calibration, groups, negatives)
        hard += _missed(material, calibration, groups)
        if not instant:
            hard += _not_learned(backend, tokens, material, calibration, groups, on_progress)
    comparing = counting(on_progress, "comparing pictures")
    card = Card(
        recognition=recognition,
        identity=_identity(backend, tokens, material, calibration, painted, comparing),
        following=_following(backend, painted, comparing) if understands else None,
        difference=_difference(backend, tokens, material, painted, on_progress),
        memorised=_memorised(backend, material, painted, comparing),
        hard=tuple(sorted(hard, key=lambda found: (found.reason, found.photo))),
        samples=len(painted),
        held_out=material.positives_held_out,
        rising=rising and not instant,
        instant=instant,
        doubts=tuple(doubts),
    )
    return Examined(calibration=calibration, card=card, samples=painted)


def numbered(photos: Sequence[Photo]) -> list[tuple[int, Photo]]:
    """The photos with their numbers, from 1 in the order of file names; a varied copy has the
    number of its photo."""
    count, found = 0, []
    for photo in photos:
        count += not photo.varied
        found.append((count, photo))
    return found


def _score(backend: Backend, tokens: ConceptTokens, image: Image) -> float:
    if "understand" not in backend.info.tasks:
        return 0.0
    return recognition_score(backend, tokens, image)


def _others(material: Material) -> Sequence[Image]:
    return material.negatives[:CALIBRATION_NEGATIVES]


def _examined_photos(material: Material) -> list[tuple[int, Photo]]:
    """The photos behind ``material.positives``, in their order."""
    return [
        (number, photo)
        for number, photo in numbered(material.album.photos)
        if photo.held_out == material.positives_held_out
    ]


def _by_photo(material: Material, positives: Sequence[float]) -> dict[int, list[float]]:
    """The scores of each photo and its varied copies, by its number."""
    groups: dict[int, list[float]] = {}
    for (number, _), score in zip(_examined_photos(material), positives, strict=True):
        groups.setdefault(number, []).append(score)
    return groups


def _recognition(
    calibration: Calibration, groups: dict[int, list[float]], negatives: Sequence[float]
) -> Recognition:
    answers = left_out(list(groups.values()), negatives)
    if answers:
        yes = iter([probability >= 0.5 for probability, present in answers if present])
        hits = sum(sum(next(yes) for _ in scores) / len(scores) for scores in groups.values())
        mistaken = sum(probability >= 0.5 for probability, present in answers if not present)
    else:
        hits = sum(
            sum(score >= calibration.threshold for score in scores) / len(scores)
            for scores in groups.values()
        )
        mistaken = sum(score >= calibration.threshold for score in negatives)
    rejected = len(negatives) - mistaken
    low, high = balanced_interval((hits, len(groups)), (rejected, len(negatives)))
    return Recognition(
        accuracy=0.5 * (hits / len(groups) + rejected / len(negatives)),
        low=low,
        high=high,
        threshold=calibration.threshold,
        auroc=calibration.auroc,
        calibration_error=calibration_error(answers),
        photos=len(groups),
        others=len(negatives),
        mistaken=mistaken,
        held_out=calibration.held_out,
    )


def _flawed(material: Material) -> Iterator[HardPhoto]:
    for number, photo in numbered(material.album.photos):
        flaw = flaw_of(photo.image, photo.blur)
        if flaw and not photo.varied:
            yield HardPhoto(photo=number, name=photo.name, reason=flaw)


def _missed(
    material: Material, calibration: Calibration, groups: dict[int, list[float]]
) -> Iterator[HardPhoto]:
    """Photos behind the threshold that are a no, or not sure, to it."""
    names = {n: photo.name for n, photo in numbered(material.album.photos) if not photo.varied}
    reason: Reason = "missed" if material.positives_held_out else "not learned"
    for number, scores in groups.items():
        if calibration.verdict(scores[0]) != "yes":
            yield HardPhoto(photo=number, name=names[number], reason=reason)


def _not_learned(
    backend: Backend,
    tokens: ConceptTokens,
    material: Material,
    calibration: Calibration,
    groups: dict[int, list[float]],
    on_progress: OnProgress,
) -> Iterator[HardPhoto]:
    """Photos that were learned from and are a no, or not sure, to the threshold."""
    learned = [
        (number, photo)
        for number, photo in numbered(material.album.photos)
        if number not in groups and not photo.varied
    ]
    asking = counting(on_progress, "asking about learned photos")
    for number, photo in counted(learned[:MOST_LEARNED], asking):
        if calibration.verdict(recognition_score(backend, tokens, photo.image)) != "yes":
            yield HardPhoto(photo=number, name=photo.name, reason="not learned")


def _samples(
    backend: Backend, tokens: ConceptTokens, count: int, on_progress: OnProgress
) -> Iterator[Image]:
    if "generate" not in backend.info.tasks:
        return
    for seed, place in enumerate(PLACES[:count]):
        on_progress(Progress(phase="painting samples", step=seed, total=count))
        told = painting_steps(on_progress, "painting samples", part=seed, parts=count)
        yield _painted(backend, tokens.name, place, (tokens,), seed, told)


def _painted(
    backend: Backend,
    name: str,
    place: str,
    concepts: tuple[ConceptTokens, ...],
    seed: int,
    on_step: OnStep | None,
) -> Image:
    prompt = Prompt(turns=(to_turn(f"<{name}> {place}"),), concepts=concepts)
    painted = backend.gen(
        prompt, size=None, steps=None, guidance=None, seeds=(seed,), on_step=on_step
    )
    return next(iter(painted))


def _identity(
    backend: Backend,
    tokens: ConceptTokens,
    material: Material,
    calibration: Calibration,
    painted: Sequence[Image],
    comparing: OnStep,
) -> Identity | None:
    others = _others(material)
    if not painted or not material.positives_held_out or len(others) < 2:
        return None
    features = _features(backend, others, comparing)
    middle = features.mean(0)
    held_out = _directions(_features(backend, material.positives, comparing) - middle)
    learned = [photo.image for photo in material.album.learning][:MOST_LEARNED]

    def likeness(rows: NDArray[np.float32]) -> float:
        return float((_directions(rows - middle) @ held_out.T).mean())

    recognised = 0
    if calibration.positives:
        scores = [recognition_score(backend, tokens, image) for image in painted]
        recognised = sum(score >= calibration.threshold for score in scores)
    return Identity(
        samples=likeness(_features(backend, painted, comparing)),
        photos=likeness(_features(backend, learned, comparing)),
        others=likeness(features),
        recognised=recognised,
    )


def _features(backend: Backend, images: Sequence[Image], comparing: OnStep) -> NDArray[np.float32]:
    """[n, d]: what the backbone itself sees in each picture."""
    rows = [backend.see([image])[0].numpy() for image in counted(images, comparing)]
    found: NDArray[np.float32] = np.stack(rows)
    return found


def _directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length one; a row of nothing stays nothing."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float32] = rows / np.maximum(lengths, 1e-9)
    return found


def _following(backend: Backend, painted: Sequence[Image], comparing: OnStep) -> Following | None:
    """Which place the backbone sees in each sample, of those that were asked for.

    What it likes to answer whatever it sees is taken out first. None where the answer does not
    depend on the picture at all, and for fewer than two samples.
    """
    if len(painted) < 2:
        return None
    prompt = Prompt(turns=(Turn(text=PLACE_QUESTION),))
    places = PLACES[: len(painted)]
    scores = np.stack(
        [
            backend.score(prompt, places, image=image).float().cpu().numpy()
            for image in counted(painted, comparing)
        ]
    )
    leaning = scores - scores.mean(0)
    if np.abs(leaning).max() < 1e-6:
        return None
    right = int((leaning.argmax(1) == np.arange(len(painted))).sum())
    return Following(right=right, asked=len(painted))


def _difference(
    backend: Backend,
    tokens: ConceptTokens,
    material: Material,
    painted: Sequence[Image],
    on_progress: OnProgress,
) -> Difference:
    answer = picture = None
    if "understand" in backend.info.tasks:
        turns = (to_turn(f"is <{tokens.name}> here?"),)
        odds = []
        for concepts in ((tokens,), ()):
            prompt = Prompt(turns=turns, concepts=concepts)
            yes, no = backend.score(prompt, ("yes", "no"), image=material.positives[0]).tolist()
            odds.append(yes - no)
        answer = abs(odds[0] - odds[1])
    if painted:
        told = painting_steps(on_progress, "painting without it")
        bare = _painted(backend, tokens.name, PLACES[0], (), 0, told)
        gap = np.asarray(painted[0], dtype=np.float32) - np.asarray(bare, dtype=np.float32)
        picture = float(np.abs(gap).mean() / 255)
    return Difference(answer=answer, picture=picture)


def _memorised(
    backend: Backend, material: Material, painted: Sequence[Image], comparing: OnStep
) -> Memorised | None:
    if not painted:
        return None
    photos = [
        (number, photo)
        for number, photo in numbered(material.album.photos)
        if not photo.held_out and not photo.varied
    ]
    thumbnails = [thumbnail_of(photo.image) for _, photo in photos]
    copies = sum(
        any(same_picture(thumbnail_of(image), thumbnail) for thumbnail in thumbnails)
        for image in painted
    )
    others = _others(material)
    middle = _features(backend, others, comparing).mean(0) if len(others) > 1 else 0.0
    features = _directions(_features(backend, painted, comparing) - middle)
    known = _directions(
        _features(backend, [photo.image for _, photo in photos], comparing) - middle
    )
    alike = features @ known.T
    number, photo = photos[int(alike.max(0).argmax())]
    return Memorised(copies=copies, nearest=float(alike.max()), photo=number, name=photo.name)
