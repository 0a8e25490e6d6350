"""Explicit knowledge replay: before it paints, the model says what it knows (paper, section 3.3).

Three stages, all of them text: intent parsing (which fact does the request need?), memory retrieval
(what is it?), prompt rewriting (say it in the request). The model does them from in-context
examples; a grammar of references checks what it says and steps in where it goes astray, and written
facts are asked before the learned tokens. The trace says for every step who answered.

    "<bo> with its toy"  ->  "What is the toy of <bo>?"  ->  "The toy of <bo> is a red ball."
                         ->  "<bo> with a red ball"

A request that needs no fact passes through unchanged, with an empty trace.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from omnipersona_cli.backend import Backend, ConceptTokens, Prompt
from omnipersona_cli.engine.request import Request
from omnipersona_cli.language.mentions import bare_mentions, names_in, to_turn
from omnipersona_cli.language.questions import asked_attributes, question_of, value_in
from omnipersona_cli.language.references import (
    Known,
    Reference,
    attribute_key,
    find_references,
    hints_at_facts,
    known_facts,
)

Stage = Literal["intent", "retrieval", "rewriting"]
TraceSource = Literal["facts", "tokens", "model", "grammar", "unknown"]

INTENT_EXAMPLES: tuple[tuple[str, str], ...] = (
    ("{name} with its toy", "what is the toy of {name}?"),
    ("a picture of {name} at its home", "what is the home of {name}?"),
    ("generate a toy for {name}", "what is the toy of {name}?"),
    ("{name} and its favourite food", "what is the favourite food of {name}?"),
    ("{name} next to {name}'s car in the snow", "what is the car of {name}?"),
    ("add the hat of {name}", "what is the hat of {name}?"),
)
"""Requests and what they ask of memory. Six, as many as helped in the paper (section 4)."""

REWRITING_EXAMPLES: tuple[tuple[str, str, str], ...] = (
    ("{name} with its toy", "the toy of {name} is a kite.", "{name} with a kite"),
    (
        "a picture of {name} at its home",
        "the home of {name} is in the desert.",
        "a picture of {name} in the desert",
    ),
    (
        "generate a toy for {name}",
        "the toy of {name} is a black excavator.",
        "generate a black excavator",
    ),
    (
        "{name} next to {name}'s car in the snow",
        "the car of {name} is a blue van.",
        "{name} next to a blue van in the snow",
    ),
)
"""Requests, what memory answered, and the requests with the answer in them."""

_VALUE_LENGTH = 120
_ANSWER_LENGTH = 400
_PLACE = r"(?:in|on|at|by|near|under|inside|beside)"


@dataclass(frozen=True, kw_only=True)
class TraceStep:
    """One step: what was asked in this stage, what came back, and who answered."""

    stage: Stage
    prompt: str
    answer: str
    source: TraceSource


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The whole chain, for a person to read and correct. Without steps nothing was replayed."""

    request: str
    steps: tuple[TraceStep, ...] = ()
    rewritten: str

    @property
    def changed(self) -> bool:
        """True where the request was rewritten."""
        return self.rewritten != self.request


@dataclass(frozen=True, kw_only=True)
class _Recalled:
    """A reference and what memory says: ``value`` may be empty, ``place`` is the preposition
    that the fact itself uses ("in", for "lives in the forest")."""

    reference: Reference
    value: str
    source: TraceSource
    place: str = ""


def unchanged(request: str) -> Trace:
    """The trace of a request that is used as it is."""
    return Trace(request=request, rewritten=request)


def replay(
    backend: Backend,
    request: str,
    *,
    concepts: Sequence[ConceptTokens],
    facts: Mapping[str, Sequence[str]],
) -> Trace:
    """Recall what ``request`` needs and say it in the request.

    ``facts`` holds, for each concept, its written sentences: they are asked first, the learned
    tokens second. A reference that nothing answers stays as it is, with a step that says so.
    Deterministic: the model answers greedily.
    """
    names = [tokens.name for tokens in concepts]
    known = known_facts({name: facts.get(name, ()) for name in names})
    by_grammar = find_references(request, names, known)
    if not by_grammar and not (hints_at_facts(request) and any(known.values())):
        return unchanged(request)
    references, source = _intents(backend, request, by_grammar, known)
    if not references:
        return unchanged(request)
    steps = [
        TraceStep(stage="intent", prompt=request, answer=question_of(reference), source=source)
        for reference in _each_once(references)
    ]
    recalled = [_recall(backend, reference, concepts, known) for reference in references]
    shown = {(one.reference.concept, one.reference.attribute): one for one in recalled}
    steps += [
        TraceStep(
            stage="retrieval",
            prompt=question_of(one.reference),
            answer=_sentence(one) if one.value else "",
            source=one.source,
        )
        for one in shown.values()
    ]
    answered = [one for one in recalled if one.value]
    if not answered:
        return Trace(request=request, steps=tuple(steps), rewritten=request)
    rewritten, writer = _rewrite(backend, request, answered)
    memory = " ".join(_sentence(one) for one in shown.values() if one.value)
    steps.append(
        TraceStep(stage="rewriting", prompt=f"{memory} {request}", answer=rewritten, source=writer)
    )
    return Trace(request=request, steps=tuple(steps), rewritten=rewritten)


def replay_request(request: Request, wanted: bool) -> Trace:
    """The replay of the request, or the request as it is; replay asks, so that a backend which
    only paints has none."""
    able = "understand" in request.backend.info.tasks
    if not wanted or not able or not request.concepts:
        return unchanged(request.text)
    return replay(request.backend, request.text, concepts=request.concepts, facts=request.facts)


def ask_tokens(backend: Backend, concept: ConceptTokens, attribute: str) -> str:
    """What the learned tokens say about an attribute that no fact names; "" for no answer."""
    question = f"what is <{concept.name}>'s {attribute}?"
    prompt = Prompt(turns=(to_turn(question),), concepts=(concept,))
    return value_in(_first_line(backend.say(prompt, max_tokens=30)))


def _intents(
    backend: Backend, request: str, by_grammar: Sequence[Reference], known: Known
) -> tuple[Sequence[Reference], TraceSource]:
    """Stage 1. The model's reading is taken where it agrees with the grammar, and where the
    grammar finds nothing but the model names an attribute that is really known."""
    mention = f"<{next(iter(names_in(request)), 'it')}>"
    shown = INTENT_EXAMPLES[: backend.info.replay_examples]
    lines = [f"request: {wanted} question: {question}" for wanted, question in shown]
    prompt = " ".join([*lines, "request: {request} question:"])
    filled = prompt.replace("{name}", mention).replace("{request}", request)
    text = _say(backend, filled, max_tokens=40)
    asked = list(asked_attributes(text))
    keys = {(name, attribute_key(attribute)) for name, attribute in asked}
    if by_grammar:
        agreed = keys == {(one.concept, attribute_key(one.attribute)) for one in by_grammar}
        return by_grammar, "model" if agreed else "grammar"
    end = len(request)
    implied = [
        Reference(start=end, end=end, concept=name, attribute=attribute)
        for name, attribute in dict.fromkeys(asked)
        if attribute_key(attribute) in known.get(name, {}) and name in names_in(request)
    ]
    return implied, "model"


def _recall(
    backend: Backend, reference: Reference, concepts: Sequence[ConceptTokens], known: Known
) -> _Recalled:
    """Stage 2: written facts first, learned tokens second. Another concept that an answer mentions
    is a plain word unless the request has it too: a fact brings no stranger into a picture."""
    names = {one.name for one in concepts}
    fact = known.get(reference.concept, {}).get(attribute_key(reference.attribute))
    if fact is not None:
        value = bare_mentions(fact.value, names)[:_VALUE_LENGTH]
        place = re.search(rf"\b({_PLACE})\s+{re.escape(value)}", " ".join(fact.texts), re.I)
        if begins := re.match(rf"({_PLACE})\s+(.+)", value, re.I):
            return _Recalled(
                reference=reference, value=begins[2], source="facts", place=begins[1].lower()
            )
        where = place[1].lower() if place else ""
        return _Recalled(reference=reference, value=value, source="facts", place=where)
    tokens = next(one for one in concepts if one.name == reference.concept)
    value = bare_mentions(ask_tokens(backend, tokens, reference.attribute), names)
    return _Recalled(reference=reference, value=value, source="tokens" if value else "unknown")


def _rewrite(
    backend: Backend, request: str, answered: Sequence[_Recalled]
) -> tuple[str, TraceSource]:
    """Stage 3. The model's text is taken where it keeps every word and mention that the spliced
    request has, in whatever order; else the splice itself."""
    spliced = _splice(request, answered)
    memory = " ".join(dict.fromkeys(_sentence(one) for one in answered))
    mention = f"<{answered[0].reference.concept}>"
    shown = REWRITING_EXAMPLES[: backend.info.replay_examples]
    lines = [f"request: {wanted} memory: {known} prompt: {text}" for wanted, known, text in shown]
    filled = " ".join(lines).replace("{name}", mention)
    asked = f"{filled} request: {request} memory: {memory.lower()} prompt:"
    written = _say(backend, asked.strip(), max_tokens=80).strip('"')
    if written and _words(written) == _words(spliced) and names_in(written) == names_in(spliced):
        return written, "model"
    return spliced, "grammar"


def _splice(request: str, answered: Sequence[_Recalled]) -> str:
    """The request with each reference replaced by its value; implied ones go to the end."""
    places: dict[tuple[int, int], list[_Recalled]] = {}
    for one in answered:
        places.setdefault((one.reference.start, one.reference.end), []).append(one)
    text = request
    for (start, end), meant in sorted(places.items(), reverse=True):
        value = " and ".join(dict.fromkeys(one.value for one in meant))
        before, after = text[:start], text[end:]
        place = meant[0].place
        if start == end:
            before = before.rstrip(" .,!") + (f" {place} " if place else " with ")
        elif place and (preposition := re.search(rf"\b{_PLACE}\s+$", before, re.I)):
            before = f"{before[: preposition.start()]}{place} "
        text = before + value + after
    return text


def _sentence(recalled: _Recalled) -> str:
    reference = recalled.reference
    place = f"{recalled.place} " if recalled.place and reference.attribute == "home" else ""
    return f"The {reference.attribute} of <{reference.concept}> is {place}{recalled.value}."


def _each_once(references: Sequence[Reference]) -> list[Reference]:
    return list({(one.concept, one.attribute): one for one in references}.values())


def _say(backend: Backend, text: str, *, max_tokens: int) -> str:
    return _first_line(backend.say(Prompt(turns=(to_turn(text),)), max_tokens=max_tokens))


def _first_line(pieces: Iterable[str]) -> str:
    """The first line of a generated text; the stream is left as soon as the line is full."""
    text = ""
    for piece in pieces:
        text += piece
        if "\n" in text.strip() or len(text) > _ANSWER_LENGTH:
            break
    line = text.strip().split("\n")[0][:_ANSWER_LENGTH]
    return " ".join(line.split())


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[\w'-]+", text.lower()))
