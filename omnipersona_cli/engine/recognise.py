"""Whether the model itself recognises the concepts of a request in a picture.

It is what `ask` answers presence with, what `edit` reports of its pictures, and how the best of a
few tries is found: the model is its own critic.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from omnipersona_cli.backend import ConceptTokens
from omnipersona_cli.engine.calibrate import Verdict, from_dict, recognition_score, sigmoid
from omnipersona_cli.engine.request import Request, memory_errors
from omnipersona_cli.engine.tokens import slot_name


def presence(request: Request, tokens: ConceptTokens, image: Image) -> tuple[Verdict, float]:
    """The calibrated verdict on one concept in ``image``, and the log-odds that it is there."""
    figures = request.packs[tokens.name].evals.get(slot_name(request.backend), {})
    calibration = from_dict(figures.get("calibration", {}))
    with memory_errors(request.backend.info.name):
        score = recognition_score(request.backend, tokens, image)
    return calibration.verdict(score), calibration.odds(score)


def can_recognise(request: Request) -> bool:
    """Whether there is a concept to recognise, and a backend that does it."""
    return bool(request.concepts) and "understand" in request.backend.info.tasks


def recognised(request: Request, image: Image) -> dict[str, float]:
    """For each concept of the request, the probability that it is in ``image``; nothing where the
    backend only paints."""
    if not can_recognise(request):
        return {}
    odds = {tokens.name: presence(request, tokens, image)[1] for tokens in request.concepts}
    return {name: round(sigmoid(value), 4) for name, value in odds.items()}


def best_of(request: Request, images: Sequence[Image], *, gone: bool = False) -> int:
    """Which of the pictures to keep: that in which the concepts are recognised best. Of several
    concepts the one that is recognised least counts; ``gone`` turns it round, for a removal."""
    if len(images) == 1 or not can_recognise(request):
        return 0

    def worth(image: Image) -> float:
        found = [presence(request, tokens, image)[1] for tokens in request.concepts]
        return -max(found) if gone else min(found)

    return max(range(len(images)), key=lambda index: worth(images[index]))
