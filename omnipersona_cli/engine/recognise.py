"""Whether the model itself recognises the concepts of a request in a picture.

It is what `ask` answers presence with, what `edit` reports of its pictures, and how the best of a
few tries is found: the model is its own critic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL.Image import Image

from omnipersona_cli.backend import ConceptTokens
from omnipersona_cli.engine.calibrate import Verdict, from_dict, recognition_score
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


def odds_of(request: Request, image: Image) -> dict[str, float]:
    """For each concept of the request, the log-odds that it is in ``image``; nothing where the
    backend only paints."""
    if not can_recognise(request):
        return {}
    return {tokens.name: presence(request, tokens, image)[1] for tokens in request.concepts}


def best_of(tried: Sequence[Mapping[str, float]], *, gone: bool = False) -> int:
    """Which of several pictures to keep, by the odds of each: that in which the concepts are
    recognised best. Of several concepts the one that is recognised least counts; ``gone`` turns it
    round, for a removal. The first where there are no odds."""

    def worth(index: int) -> float:
        odds = tried[index].values()
        return -max(odds, default=0.0) if gone else min(odds, default=0.0)

    return max(range(len(tried)), key=worth)
