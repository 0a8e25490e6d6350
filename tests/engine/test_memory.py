"""What tokens remember is told from what they guess."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from omnipersona_cli.backend import ConceptTokens
from omnipersona_cli.engine.memory import calibrate_memory, recall
from omnipersona_cli.testing import SketchBackend

ZERO = torch.zeros(1, 48)
BO = ConceptTokens(name="bo", id=ZERO, und=ZERO, gen=ZERO)

FACTS = ("its toy is a red ball", "its home is the forest")


class Guessing(SketchBackend):
    """Answers every question, as surely as ``sure`` says of what is asked for; without a concept
    nothing is likely."""

    def __init__(self, sure: dict[str, float], guess: float) -> None:
        super().__init__()
        self.sure, self.guess = sure, guess

    def say(self, prompt, **options):
        told = {"toy": "a red ball", "home": "the forest"}
        yield told.get(self._asked(prompt), "a brown cake")

    def score(self, prompt, answers, *, image=None):
        if not prompt.concepts:
            return torch.full((len(answers),), -30.0)
        return torch.full((len(answers),), self.sure.get(self._asked(prompt), self.guess))

    def _asked(self, prompt) -> str:
        words = re.findall(r"[a-z]+", prompt.turns[-1].text)
        return next((word for word in words if word in self.sure), "")


@pytest.mark.parametrize("guess", [-9.0, -2.0, -math.inf])
def test_a_guess_of_a_kind_that_is_often_told_is_no_memory(guess):
    """Calibration asks for a colleague and an uncle. A guess at the food is surer than those, and
    less sure than what was taught."""
    backend = Guessing({"toy": -0.1, "home": -0.4, "food": -1.4}, guess)
    material = SimpleNamespace(facts=[SimpleNamespace(text=f"<bo>'s {fact[4:]}") for fact in FACTS])
    surety = calibrate_memory(backend, BO, material)
    known = {it: recall(backend, BO, it, threshold=surety.threshold) for it in backend.sure}
    assert known == {"toy": "a red ball", "home": "the forest", "food": ""}
