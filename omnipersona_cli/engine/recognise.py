"""Whether the model itself recognises the concepts of a request in a picture.

It is what `ask` answers presence with, what `edit` reports of its pictures, and how the best of a
few tries is found: the model is its own critic.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from PIL.Image import Image

from omnipersona_cli.backend import Backend, ConceptTokens, Prompt, Turn
from omnipersona_cli.engine.calibrate import Verdict, from_dict, recognition_score
from omnipersona_cli.engine.request import Request, memory_errors
from omnipersona_cli.engine.tokens import slot_name
from omnipersona_cli.language.instructions import Instruction


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


def odds_of_answer(backend: Backend, instruction: Instruction, image: Image) -> float:
    """The log-odds (nats) of the answer that shows that an edit was done, to the question that
    `Instruction.question` puts to the picture alone."""
    prompt = Prompt(turns=(Turn(text=instruction.question),))
    with memory_errors(backend.info.name):
        likely = backend.score(prompt, (instruction.answer,), image=image).item()
    return likely - math.log(-math.expm1(min(likely, -1e-6)))


def best_of(tried: Sequence[Mapping[str, float]], *, absent: Collection[str] = ()) -> int:
    """Which of several pictures to keep, by the log-odds of what ought to be so in each: that in
    which the concepts are recognised best, and those in ``absent`` least. The one that is worst off
    counts. The first where there are no odds."""

    def worth(index: int) -> float:
        odds = tried[index].items()
        return min((-value if name in absent else value for name, value in odds), default=0.0)

    return max(range(len(tried)), key=worth)
