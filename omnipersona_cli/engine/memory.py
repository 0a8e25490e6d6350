"""What the learned tokens say by themselves, and whether they are sure of it.

A language model answers whatever it is asked. So what the tokens say counts only where they are
sure: the answer must be likely in each of a few wordings (a guess changes with the words, what was
learned does not), more so than what is said of attributes that were never told; and it must be
likelier with the concept than without, or the backbone alone has said it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from omnipersona_cli.backend import Backend, ConceptTokens, Prompt
from omnipersona_cli.engine.material import Material
from omnipersona_cli.language.attributes import usual_name
from omnipersona_cli.language.facts import questions_about
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.language.questions import value_in
from omnipersona_cli.language.references import known_facts

NEVER_TOLD = tuple(
    "hobby mother street dream doctor number colleague medicine village secret ticket uncle".split()
)
"""Attributes that calibration asks for where no fact tells them; in no lesson."""

ASKED = 3
"""In how many wordings an answer is weighed."""

CONTRAST = 1.0
"""How much likelier an answer has to be with the concept than without (nats)."""

MARGIN = 0.5
"""How much less sure than the least sure of what was taught an answer may be (nats)."""

ANSWER_LENGTH = 30
"""The most tokens of an answer from memory."""

_ANSWER_LENGTH = 400


@dataclass(frozen=True, kw_only=True)
class Surety:
    """From which log-probability on (nats) an answer counts, found on ``told`` right answers and
    ``untold`` others. Without right answers nothing counts."""

    threshold: float
    told: int
    untold: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a pack's header."""
        usable = math.isfinite(self.threshold)
        return asdict(self) | {"threshold": round(self.threshold, 6) if usable else None}


UNTAUGHT = Surety(threshold=math.inf, told=0, untold=0)
"""Of tokens that were taught nothing."""


def surety_in(figures: Mapping[str, Any]) -> float:
    """The threshold in a pack's figures of one slot; infinite where there is none, as in a pack of
    an earlier version: its tokens were never taught to tell what they know."""
    memory = figures.get("memory")
    threshold = memory.get("threshold") if isinstance(memory, Mapping) else None
    if not isinstance(threshold, (int, float)) or isinstance(threshold, bool):
        return math.inf
    return float(threshold) if math.isfinite(threshold) else math.inf


def say(backend: Backend, concept: ConceptTokens, question: str) -> str:
    """What the tokens answer to ``question``, as the value of a fact; "" for no answer."""
    prompt = Prompt(turns=(to_turn(question),), concepts=(concept,))
    return value_in(first_line(backend.say(prompt, max_tokens=ANSWER_LENGTH)))


def sureness(backend: Backend, concept: ConceptTokens, attribute: str, answer: str) -> float:
    """The log-probability of an answer about an attribute (nats), mean of a few wordings; minus
    infinity where it is hardly likelier than without the concept."""
    likely = contrast = 0.0
    asked = questions_about(usual_name(attribute), concept.name)[:ASKED]
    for question in asked:
        turns = (to_turn(question),)
        alone = backend.score(Prompt(turns=turns), (answer,)).item()
        with_it = backend.score(Prompt(turns=turns, concepts=(concept,)), (answer,)).item()
        likely += with_it / len(asked)
        contrast += (with_it - alone) / len(asked)
    return likely if contrast >= CONTRAST else -math.inf


def recall(backend: Backend, concept: ConceptTokens, attribute: str, *, threshold: float) -> str:
    """What the tokens say about an attribute where they are sure; "" where they are not."""
    if threshold == math.inf:
        return ""
    answer = say(backend, concept, questions_about(usual_name(attribute), concept.name)[0])
    return answer if answer and sureness(backend, concept, attribute, answer) >= threshold else ""


def calibrate_memory(backend: Backend, tokens: ConceptTokens, material: Material) -> Surety:
    """Set the threshold from the facts that were taught and from attributes that were never told.
    A wrong answer about a fact is as bad as one about nothing."""
    right: list[float] = []
    wrong: list[float] = []
    told = known_facts({tokens.name: [fact.text for fact in material.facts]})[tokens.name]
    if "understand" not in backend.info.tasks or not told:
        return UNTAUGHT
    asked = [(fact.attribute, fact.value) for fact in told.values()]
    for attribute, value in [*asked, *((never, "") for never in _never_told(told))]:
        answer = say(backend, tokens, questions_about(usual_name(attribute), tokens.name)[0])
        if answer:
            side = right if value and same_value(answer, value) else wrong
            side.append(sureness(backend, tokens, attribute, answer))
    return Surety(threshold=_between(right, wrong), told=len(right), untold=len(wrong))


def same_value(answer: str, value: str) -> bool:
    """Whether two values are the same but for articles and for "in" before a place."""
    return _plain(answer) == _plain(value)


def first_line(pieces: Iterable[str]) -> str:
    """The first line of an answer; the stream is left as soon as the line is full."""
    answer = ""
    for piece in pieces:
        answer += piece
        if "\n" in answer.strip() or len(answer) > _ANSWER_LENGTH:
            break
    line = answer.strip().split("\n")[0][:_ANSWER_LENGTH]
    return " ".join(line.split())


def _never_told(told: Collection[str]) -> list[str]:
    words = {word for key in told for word in key.split()}
    return [attribute for attribute in NEVER_TOLD if attribute not in words]


def _between(right: list[float], wrong: list[float]) -> float:
    """The threshold with the fewest mistakes, a false memory counting as two silences; infinite
    without a right answer. It lies in the middle of its neighbours, and no further than `MARGIN`
    below the answer that is hardly sure enough: what was taught is surer than any guess, and a
    guess at a toy is surer than one at a colleague, who was asked for here."""
    if not right:
        return math.inf

    def cost(threshold: float) -> int:
        return 2 * sum(score >= threshold for score in wrong) + sum(
            score < threshold for score in right
        )

    scores = sorted({score for score in (*right, *wrong) if score > -math.inf} or {0.0})
    ends = [scores[0] - 1, *scores, scores[-1] + 1]
    middles = [max((low + high) / 2, high - MARGIN) for low, high in pairwise(ends)]
    best = min(map(cost, middles))
    return max(middle for middle in middles if cost(middle) == best)


def _plain(value: str) -> list[str]:
    words = value.lower().strip(" .").split()
    while words and words[0] in ("in", "at", "on"):
        words = words[1:]
    return [word for word in words if word not in ("a", "an", "the")]
