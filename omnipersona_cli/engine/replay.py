"""Explicit knowledge replay: before it paints, the model says what it knows (paper, section 3.3).

Three stages, all of them text: intent parsing (which fact does the request need?), memory retrieval
(what is it?), prompt rewriting (say it in the request). The model does them from in-context
examples; a grammar checks that names survive and nothing is added, and steps in where the model
goes astray. Where the model is too small to lead (`BackendInfo.replay_leads`) the grammar does, and
the model is believed where it agrees. Written facts are asked before the learned tokens, which
count only where they are sure. The trace says for every step who answered.

    "<bo> with its toy"  ->  "What is the toy of <bo>?"  ->  "The toy of <bo> is a red ball."
                         ->  "<bo> with a red ball"

A request that needs no fact passes through unchanged, with an empty trace.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omnipersona_cli.backend import Backend, ConceptTokens, Prompt
from omnipersona_cli.engine.memory import first_line, recall, surety_in
from omnipersona_cli.engine.progress import OnProgress, begin
from omnipersona_cli.engine.request import Request
from omnipersona_cli.engine.tokens import slot_name
from omnipersona_cli.language.attributes import as_thing, attribute_key
from omnipersona_cli.language.facts import quoted
from omnipersona_cli.language.mentions import bare_mentions, names_in, to_turn
from omnipersona_cli.language.questions import (
    asked_about,
    asked_attributes,
    question_of,
    questions_in,
    told,
    value_in,
)
from omnipersona_cli.language.references import (
    Known,
    Reference,
    find_references,
    hints_at_facts,
    known_facts,
)
from omnipersona_cli.language.rewriting import comes_from, keeps_to

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

LED_BY = (
    "Which facts about the named ones must be known to paint each request? Ask for them, or say "
    "none."
)
LED_INTENTS: tuple[tuple[str, str], ...] = (
    ("{name} with its toy", "what is the toy of {name}?"),
    ("{name} under a rainbow", "none"),
    ("{name} having a snack that it really enjoys", "what is the favourite food of {name}?"),
    ("{name} back where it belongs", "what is the home of {name}?"),
    ("{name} y su coche en la nieve", "what is the car of {name}?"),
    ("add what frightens {name}", "what is {name} afraid of?"),
)
LED_MEMORY = (
    "Answer from the quoted facts alone, in a few words; say unknown where they do not tell."
)
LED_REWRITING = (
    "Write each request again with what is remembered in it, in its own language. Keep every name; "
    "add nothing else."
)
"""What a model that leads is told, and its examples of intents: implied facts, another language, no
fact at all."""

_UNSEEN = frozenset({"birthday"})
"""Attributes of which the name paints more than the value: "on its birthday", not "on 3 May"."""
_VALUE_LENGTH = 120
_ASKED_AT_MOST = 4
_PLACE = r"(?:in|on|at|by|near|under|inside|beside)"
_WITHIN = r"(?:in|on|at|inside)"
"""What a place of a fact may stand for: "in its bed" is "on a cushion", "under its bed" is not."""


@dataclass(frozen=True, kw_only=True)
class TraceStep:
    """One step: what was asked in this stage, what came back, and who answered."""

    stage: Stage
    prompt: str
    answer: str
    source: TraceSource


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The whole chain, for a person to read and correct. Without steps nothing was replayed;
    ``instruction`` is what is going to be done to a picture."""

    request: str
    steps: tuple[TraceStep, ...] = ()
    rewritten: str
    instruction: str = ""

    @property
    def changed(self) -> bool:
        """True where the request was rewritten."""
        return self.rewritten != self.request

    @property
    def unknown(self) -> tuple[tuple[str, str], ...]:
        """The (concept, attribute) that was needed and that nobody knows."""
        steps = [step for step in self.steps if step.source == "unknown"]
        return tuple(asked for step in steps for asked in asked_attributes(step.prompt))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, under the keys of `op gen --explain --json` and of the server."""
        return {
            "request": self.request,
            "rewritten": self.rewritten,
            "steps": [vars(step) for step in self.steps],
            "unknown": [list(one) for one in self.unknown],
        } | ({"instruction": self.instruction} if self.instruction else {})


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A question to memory, where in the request its answer belongs, and who asked."""

    reference: Reference
    question: str
    source: TraceSource


@dataclass(frozen=True, kw_only=True)
class _Recalled:
    """A reference and what memory says: ``value`` may be empty, ``place`` is the preposition
    that the fact itself uses ("in", for "lives in the forest")."""

    reference: Reference
    question: str
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
    surety: Mapping[str, float] | None = None,
) -> Trace:
    """Recall what ``request`` needs and say it in the request.

    ``facts`` holds, for each concept, its written sentences: they are asked first, the learned
    tokens second, which count from the sureness on that ``surety`` names for each concept. A
    reference that nothing answers stays as it is, with a step that says so. Deterministic: the
    model answers greedily.
    """
    names = [tokens.name for tokens in concepts]
    known = known_facts({name: facts.get(name, ()) for name in names})
    found = find_references(request, names, known)
    by_grammar = tuple(one for one in found if attribute_key(one.attribute) not in _UNSEEN)
    if backend.info.replay_leads == "model" and any(facts.get(name) for name in names):
        wanted = _model_intents(backend, request, by_grammar, names)
    elif by_grammar or (hints_at_facts(request) and any(known.values())):
        wanted = _grammar_intents(backend, request, by_grammar, known)
    else:
        wanted = []
    if not wanted:
        return unchanged(request)
    recalled = [_recall(backend, one, concepts, known, facts, surety or {}) for one in wanted]
    shown = {one.question: one for one in recalled}
    asked = {one.question: one for one in reversed(wanted)}
    steps = [
        TraceStep(stage="intent", prompt=request, answer=question, source=asked[question].source)
        for question in shown
    ]
    steps += [
        TraceStep(
            stage="retrieval",
            prompt=one.question,
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


def replay_request(request: Request, wanted: bool, on_progress: OnProgress | None = None) -> Trace:
    """The replay of the request, or the request as it is; replay asks, so that a backend which
    only paints has none."""
    able = "understand" in request.backend.info.tasks
    if not wanted or not able or not request.concepts:
        return unchanged(request.text)
    begin(on_progress, "remembering")
    return replay(
        request.backend,
        request.text,
        concepts=request.concepts,
        facts=request.facts,
        surety=surety_of(request),
    )


def surety_of(request: Request) -> dict[str, float]:
    """For each concept of a request how sure its tokens must be."""
    slot = slot_name(request.backend)
    return {name: surety_in(pack.evals.get(slot, {})) for name, pack in request.packs.items()}


def _grammar_intents(
    backend: Backend, request: str, by_grammar: Sequence[Reference], known: Known
) -> list[_Wanted]:
    """Stage 1 where the grammar leads. The model's reading is taken where it agrees, and where the
    grammar finds nothing but the model names an attribute that is really known."""
    reply = _say(backend, _intent_prompt(backend, request, INTENT_EXAMPLES), max_tokens=40)
    asked = list(asked_attributes(reply))
    keys = {(name, attribute_key(attribute)) for name, attribute in asked}
    if by_grammar:
        agreed = keys == {(one.concept, attribute_key(one.attribute)) for one in by_grammar}
        source: TraceSource = "model" if agreed else "grammar"
        return [
            _Wanted(reference=one, question=question_of(one), source=source) for one in by_grammar
        ]
    implied = [
        _implied(request, name, attribute)
        for name, attribute in dict.fromkeys(asked)
        if attribute_key(attribute) in known.get(name, {}) and name in names_in(request)
    ]
    return [_Wanted(reference=one, question=question_of(one), source="model") for one in implied]


def _model_intents(
    backend: Backend, request: str, by_grammar: Sequence[Reference], names: Sequence[str]
) -> list[_Wanted]:
    """Stage 1 where the model leads. Its questions count where they ask of concepts of the request
    alone; where none does, what the grammar reads is asked."""
    prompt = f"{LED_BY} {_intent_prompt(backend, request, LED_INTENTS)}"
    reply = _say(backend, prompt, max_tokens=60)
    wanted: list[_Wanted] = []
    for question in dict.fromkeys(questions_in(reply)):
        about = names_in(question)
        if len(wanted) == _ASKED_AT_MOST or not about or not set(about) <= set(names):
            continue
        name, attribute = asked_about(question) or (about[0], "")
        places = [
            one
            for one in by_grammar
            if one.concept == name and attribute_key(one.attribute) == attribute_key(attribute)
        ]
        wanted += [
            _Wanted(reference=one, question=question, source="model")
            for one in places or [_implied(request, name, attribute)]
        ]
    return wanted or [
        _Wanted(reference=one, question=question_of(one), source="grammar") for one in by_grammar
    ]


def _intent_prompt(backend: Backend, request: str, examples: Sequence[tuple[str, str]]) -> str:
    mention = f"<{next(iter(names_in(request)), 'it')}>"
    shown = examples[: backend.info.replay_examples]
    lines = [f"request: {wanted} question: {question}" for wanted, question in shown]
    prompt = " ".join([*lines, "request: {request} question:"])
    return prompt.replace("{name}", mention).replace("{request}", request)


def _implied(request: str, name: str, attribute: str) -> Reference:
    """A reference that stands nowhere: its answer goes to the end."""
    end = len(request)
    return Reference(start=end, end=end, concept=name, attribute=attribute)


def _recall(
    backend: Backend,
    wanted: _Wanted,
    concepts: Sequence[ConceptTokens],
    known: Known,
    facts: Mapping[str, Sequence[str]],
    surety: Mapping[str, float],
) -> _Recalled:
    """Stage 2: written facts first, as the grammar reads them and then as a model that leads does;
    learned tokens second. Another concept that an answer mentions is a plain word unless the
    request has it too: a fact brings no stranger into a picture."""
    names = {one.name for one in concepts}
    reference = wanted.reference

    def found(value: str, source: TraceSource, place: str = "") -> _Recalled:
        return _Recalled(
            reference=reference,
            question=wanted.question,
            value=bare_mentions(value, names)[:_VALUE_LENGTH],
            source=source,
            place=place,
        )

    fact = known.get(reference.concept, {}).get(attribute_key(reference.attribute))
    if fact is not None:
        if begins := re.match(rf"({_PLACE})\s+(.+)", fact.value, re.I):
            return found(begins[2], "facts", begins[1].lower())
        first = re.escape(fact.value.split(" and ")[0])
        place = re.search(rf"\b({_PLACE})\s+{first}", " ".join(fact.texts), re.I)
        value = as_thing(reference.attribute, fact.value)
        return found(value, "facts", place[1].lower() if place else "")
    texts = facts.get(reference.concept, ())
    if backend.info.replay_leads == "model" and texts:
        quotes = quoted(reference.concept, texts)
        reply = value_in(_say(backend, f"{quotes} {LED_MEMORY} {wanted.question}", max_tokens=40))
        if reply and comes_from(reply, texts, wanted.question, name=reference.concept):
            begins = re.match(rf"({_PLACE})\s+(.+)", reply, re.I)
            return found(begins[2], "model", begins[1].lower()) if begins else found(reply, "model")
    if not reference.attribute or told(reference.attribute, texts, reference.concept) == "some":
        return found("", "unknown")  # the tokens would take a home for the home town
    tokens = next(one for one in concepts if one.name == reference.concept)
    threshold = surety.get(reference.concept, math.inf)
    answer = recall(backend, tokens, reference.attribute, threshold=threshold)
    return found(answer, "tokens" if answer else "unknown")


def _rewrite(
    backend: Backend, request: str, answered: Sequence[_Recalled]
) -> tuple[str, TraceSource]:
    """Stage 3. The text of a model that leads is taken where it keeps to request and memory; that
    of another where it has every word and mention of the spliced request, in whatever order. Else
    the splice itself."""
    spliced = _splice(request, answered)
    memory = " ".join(dict.fromkeys(_sentence(one) for one in answered))
    mention = f"<{answered[0].reference.concept}>"
    shown = REWRITING_EXAMPLES[: backend.info.replay_examples]
    lines = [f"request: {wanted} memory: {known} prompt: {text}" for wanted, known, text in shown]
    filled = " ".join(lines).replace("{name}", mention)
    asked = f"{filled} request: {request} memory: {memory.lower()} prompt:".strip()
    leads = backend.info.replay_leads == "model"
    reply = _say(backend, f"{LED_REWRITING} {asked}" if leads else asked, max_tokens=80).strip('"')
    values = list(dict.fromkeys(one.value for one in answered))
    if leads:
        believed = keeps_to(reply, request, values, plain=spliced)
    else:
        believed = _words(reply) == _words(spliced) and names_in(reply) == names_in(spliced)
    return (reply, "model") if believed else (spliced, "grammar")


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
        replaced = text[start:end].lower()
        if start == end:
            before = before.rstrip(" .,!") + (f" {place} " if place else " with ")
        elif preposition := re.search(rf"\b{_WITHIN}\s+$", before, re.I):
            before = f"{before[: preposition.start()]}{place} " if place else before
        elif re.match(r"where|(?:the|a) place", replaced):
            before = f"{before}{place or 'in'} "
        text = before + value + after
    return text


def _sentence(recalled: _Recalled) -> str:
    reference = recalled.reference
    place = f"{recalled.place} " if recalled.place else ""
    if not reference.attribute:
        return f"{place}{recalled.value}."
    shown = place if attribute_key(reference.attribute) == "home" else ""
    return f"The {reference.attribute} of <{reference.concept}> is {shown}{recalled.value}."


def _say(backend: Backend, text: str, *, max_tokens: int) -> str:
    return first_line(backend.say(Prompt(turns=(to_turn(text),)), max_tokens=max_tokens))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[\w'-]+", text.lower()))
