"""Where the model leads, replay reads what no grammar can, and believes nothing that is made up."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch

from omnipersona_cli.backend import ConceptTokens, Prompt
from omnipersona_cli.engine.replay import LED_MEMORY, replay
from omnipersona_cli.language.references import find_references, known_facts
from omnipersona_cli.testing import SketchBackend

FACTS = {
    "bo": [
        "its toy is a red ball",
        "lives in the forest",
        "loves tuna",
        "is afraid of thunder",
        "plays the violin on Sundays",
        "wears a green scarf at parties",
        "was born in June",
        "on its birthday it gets a lemon cake",
        "is always tired after lunch and lies in a hammock",
        "shares everything with a grey mouse called Ada",
    ],
    "mam": ["its car is a blue van", "its home is on the moon", "her favourite season is winter"],
}

# request, the model's questions, its answers where the grammar cannot look them up, its rewriting
LED = [
    ("<bo> having a snack", "what is the favourite food of <bo>?", "", "<bo> having tuna"),
    ("<bo> at dinner", "what does <bo> love?", "", "<bo> at dinner with tuna"),
    ("<bo> back in the woods it belongs to", "where does <bo> live?", "", "<bo> in the forest"),
    (
        "<bo> in the evening, where else but there",
        "where does <bo> live?",
        "",
        "<bo> in the forest in the evening",
    ),
    ("<bo> playing fetch", "what is the toy of <bo>?", "", "<bo> playing fetch with a red ball"),
    ("<bo> chasing something round", "what does <bo> play with?", "", "<bo> chasing a red ball"),
    (
        "<bo> trembling under a table",
        "what is <bo> afraid of?",
        "",
        "<bo> trembling under a table in thunder",
    ),
    ("<bo> frightened", "what does <bo> fear?", "", "<bo> frightened of thunder"),
    ("<bo> making music", "what does <bo> play?", "", "<bo> with the violin making music"),
    (
        "<bo> in an orchestra",
        "which instrument does <bo> play?",
        "",
        "<bo> with the violin in an orchestra",
    ),
    (
        "<bo> on its birthday",
        "what does <bo> get on its birthday?",
        "a lemon cake",
        "<bo> with a lemon cake on its birthday",
    ),
    (
        "<bo> turning three",
        "what is the birthday present of <bo>?",
        "a lemon cake",
        "<bo> turning three with a lemon cake",
    ),
    (
        "<bo> blowing out candles",
        "what does <bo> get on its birthday?",
        "It is a lemon cake.",
        "<bo> blowing out candles on a lemon cake",
    ),
    (
        "<bo> dressed for a party",
        "what does <bo> wear at parties?",
        "a green scarf",
        "<bo> dressed for a party in a green scarf",
    ),
    (
        "<bo> dancing at a party",
        "what is <bo> wearing at a party?",
        "a green scarf",
        "<bo> in a green scarf dancing at a party",
    ),
    (
        "<bo> after lunch",
        "where is <bo> after lunch?",
        "in a hammock",
        "<bo> in a hammock after lunch",
    ),
    (
        "<bo> taking a nap",
        "where does <bo> lie after lunch?",
        "in a hammock",
        "<bo> taking a nap in a hammock",
    ),
    (
        "<bo> with somebody dear",
        "who does <bo> share everything with?",
        "a grey mouse",
        "<bo> with a grey mouse",
    ),
    (
        "<bo> is not alone",
        "who is with <bo>?",
        "a grey mouse called Ada",
        "<bo> is with a grey mouse called Ada",
    ),
    (
        "<bo> sharing an apple",
        "who shares with <bo>?",
        "a grey mouse called Ada",
        "<bo> sharing an apple with a grey mouse called Ada",
    ),
    ("<bo> in the month it was born", "when was <bo> born?", "", "<bo> in June"),
    ("<bo> one year older", "what is the birthday of <bo>?", "", "<bo> one year older in June"),
    (
        "<mam> going for a drive",
        "what is the car of <mam>?",
        "",
        "<mam> going for a drive in a blue van",
    ),
    ("<mam> stuck in traffic", "what is <mam>'s car?", "", "<mam> in a blue van stuck in traffic"),
    ("<mam> among her own", "where does <mam> live?", "", "<mam> on the moon"),
    (
        "<mam> when the weather suits her",
        "what is <mam>'s favourite season?",
        "",
        "<mam> when the weather is winter",
    ),
    ("<bo> visiting <mam>", "what is the home of <mam>?", "", "<bo> visiting <mam> on the moon"),
    ("<mam> visiting <bo>", "where does <bo> live?", "", "<mam> visiting <bo> in the forest"),
    (
        "<bo> taking a ride with <mam>",
        "what is the car of <mam>?",
        "",
        "<bo> taking a ride with <mam> in a blue van",
    ),
    ("<mam> cooking for <bo>", "what does <bo> love?", "", "<mam> cooking tuna for <bo>"),
    (
        "<bo> and <mam>, each happy in a way",
        "what is the toy of <bo>? what is the car of <mam>?",
        "",
        "<bo> with a red ball and <mam> with a blue van, each happy in a way",
    ),
    (
        "<mam> throws, <bo> catches",
        "what is <bo>'s toy?",
        "",
        "<mam> throws a red ball, <bo> catches",
    ),
    ("<bo> con su juguete", "what is the toy of <bo>?", "", "<bo> con a red ball"),
    ("<bo> en casa", "where does <bo> live?", "", "<bo> in the forest"),
    ("<bo> mange ce qui lui plait", "what does <bo> love?", "", "<bo> mange tuna"),
    ("<bo> met zijn speelgoed", "what is the toy of <bo>?", "", "<bo> met a red ball"),
    ("<mam> em sua casa", "what is the home of <mam>?", "", "<mam> on the moon"),
    (
        "<bo> \u092c\u093e\u091c\u093e \u092c\u091c\u093e\u0924\u093e \u0939\u0948",
        "what does <bo> play?",
        "",
        "<bo> \u092c\u091c\u093e\u0924\u093e \u0939\u0948 the violin",
    ),
    ("\u5728\u5bb6\u7684<bo>", "what is the home of <bo>?", "", "<bo> in the forest"),
    ("<mam> und ihr Wagen", "what is <mam>'s car?", "", "<mam> und a blue van"),
]


class Leading(SketchBackend):
    """Says what a script has for the question, the memory or the rewriting."""

    info = replace(SketchBackend.info, replay_leads="model")

    def __init__(self, script: Mapping[str, str]) -> None:
        super().__init__()
        self.script = script
        self.heard: list[str] = []

    def say(self, prompt: Prompt, **options: object) -> Iterator[str]:
        self.heard.append(prompt.text)
        last = prompt.text.rsplit(" ", 1)[-1]
        if last in ("question:", "prompt:"):
            yield self.script[last]
        elif LED_MEMORY in prompt.text:
            yield self.script["memory"] or "unknown"


def replayed(request: str, questions: str, memory: str, rewriting: str):
    zero = torch.zeros(1, 48)
    both = [ConceptTokens(name=name, id=zero, und=zero, gen=zero) for name in ("bo", "mam")]
    concepts = [one for one in both if f"<{one.name}>" in request]
    script = {"question:": questions, "memory": memory, "prompt:": rewriting}
    backend = Leading(script)
    return replay(backend, request, concepts=concepts, facts=FACTS), backend


def test_there_are_forty():
    assert len(LED) == len({request for request, *_ in LED}) == 40


@pytest.mark.parametrize(("request_", "questions", "memory", "rewriting"), LED)
def test_what_the_grammar_cannot_read_is_replayed(request_, questions, memory, rewriting):
    by_grammar = find_references(request_, ["bo", "mam"], known_facts(FACTS))
    assert not by_grammar or "birthday" in request_, "its birthday is June, and that is not meant"
    trace, _ = replayed(request_, questions, memory, rewriting)
    assert trace.rewritten == rewriting
    assert [trace.steps[0].source, trace.steps[-1].source] == ["model", "model"]
    told = [step.source for step in trace.steps if step.stage == "retrieval"]
    assert told == ["model" if memory else "facts"] * len(told)


@pytest.mark.parametrize(
    "bad",
    [
        "a cat with a red ball at the beach",  # the name lost
        "<bo> and <mam> with a red ball at the beach",  # a stranger added
        "<bo> and a dog with a red ball at the beach",
        "<bo> with a red ball and a kite at the beach",
        "<bo> with 3 red balls at the beach",
        "<bo> at the beach",  # what memory said is lost
        "",
        "<bo> with a red ball at the beach. " + "And then the sea was calm. " * 400,
        "<bo> with a red ball " * 500,
        "I am sorry, I cannot help with that.",
    ],
)
def test_a_bad_rewriting_is_refused_and_the_spliced_request_kept(bad):
    request = "<bo> with its toy at the beach"
    trace, _ = replayed(request, "what is the toy of <bo>?", "", bad)
    assert trace.rewritten == "<bo> with a red ball at the beach"
    assert trace.steps[-1].source == "grammar"


@pytest.mark.parametrize("said", ["none", "", "what is the toy of <mam>?", "what is a toy?"])
def test_a_request_that_needs_no_fact_stays_as_it_is(said):
    trace, backend = replayed("<bo> under a rainbow", said, "", "<bo> with a red ball")
    assert trace.rewritten == "<bo> under a rainbow" and trace.steps == ()
    assert len(backend.heard) == 1


@pytest.mark.parametrize(
    "made_up", ["a wizard", "unknown", "a red ball", "a grey ball", "a grey wizard called Ada", ""]
)
def test_an_answer_that_is_not_in_the_facts_is_not_believed(made_up):
    trace, _ = replayed(
        "<bo> with somebody", "who shares with <bo>?", made_up, "<bo> with a wizard"
    )
    assert trace.rewritten == "<bo> with somebody"
    assert [step.source for step in trace.steps] == ["model", "unknown"]


def test_the_facts_are_quoted_as_data():
    _, backend = replayed("<bo> is not alone", "who is with <bo>?", "Ada", "<bo> is with Ada")
    (asked,) = [text for text in backend.heard if LED_MEMORY in text]
    assert asked.startswith('"<bo>\'s toy is a red ball." "<bo> lives in the forest."')
    assert asked.endswith("who is with <bo>?")


def test_where_the_model_asks_nothing_the_grammar_does():
    trace, _ = replayed("<bo> with its toy", "none", "", "")
    assert trace.rewritten == "<bo> with a red ball"
    assert {step.source for step in trace.steps} == {"grammar", "facts"}
