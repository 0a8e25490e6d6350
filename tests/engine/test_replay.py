"""What is known is said in the request, step by step, and nothing else changes."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from omnipersona_cli.backend import ConceptTokens, Prompt
from omnipersona_cli.engine.replay import replay
from omnipersona_cli.testing import SketchBackend

FACTS = {
    "bo": ["<bo>'s toy is a red ball", "<bo> lives in the forest"],
    "mam": ["its toy is a blue car"],
}


class Scripted(SketchBackend):
    """Says what it is told to say, by the last words of the prompt. With
    ``sure`` its answers from memory are likely with the concept, and hardly without."""

    def __init__(self, *, sure: float = -0.1, **said: str) -> None:
        super().__init__()
        self.sure = sure
        self.said = said
        self.heard: list[str] = []

    def say(self, prompt: Prompt, **options: object) -> Iterator[str]:
        self.heard.append(prompt.text)
        last = prompt.text.rsplit(" ", 1)[-1]
        key = {"question:": "intent", "prompt:": "rewriting"}.get(last, "memory")
        yield from self.said.get(key, "")

    def score(self, prompt: Prompt, answers: Sequence[str], **options: object) -> torch.Tensor:
        return torch.full((len(answers),), self.sure if prompt.concepts else -5.0)


def concepts(*names: str) -> list[ConceptTokens]:
    zero = torch.zeros(1, 48)
    return [ConceptTokens(name=name, id=zero, und=zero, gen=zero) for name in names]


@pytest.mark.parametrize(
    ("fact", "request_", "rewritten"),
    [
        ("its collar is red with a bell", "<bo> with its collar", "a red collar with a bell"),
        ("its ears are long and brown", "<bo> with its ears", "long and brown ears"),
        ("its fur is white", "<bo> with its fur", "white fur"),
        ("its car is old", "<bo> with its car", "an old car"),
        ("its favourite colour is red", "<bo> with its favourite colour", "red"),
        ("its toy is red and a ball", "<bo> with its toy", "red and a ball"),
    ],
)
def test_what_something_is_like_is_said_with_the_thing(fact, request_, rewritten):
    trace = replay(Scripted(), request_, concepts=concepts("bo"), facts={"bo": [fact]})
    assert trace.rewritten == f"<bo> with {rewritten}"


@pytest.mark.parametrize(
    ("request_", "rewritten"),
    [
        ("<bo> with its toy", "<bo> with a red ball"),
        ("<bo> with its toy, at the beach", "<bo> with a red ball, at the beach"),
        ("<bo> at its home", "<bo> in the forest"),
        ("<bo> at home", "<bo> in the forest"),
        ("<bo> near its home", "<bo> near the forest"),
        ("Generate a toy for <bo>", "Generate a red ball"),
        ("<bo> next to <mam>'s toy", "<bo> next to a blue car"),
        ("<bo> and <mam> with their toys", "<bo> and <mam> with a red ball and a blue car"),
        (
            "<bo> with its toy and <mam> with its toy",
            "<bo> with a red ball and <mam> with a blue car",
        ),
    ],
)
def test_facts_are_said_in_the_request(request_, rewritten):
    trace = replay(Scripted(), request_, concepts=concepts("bo", "mam"), facts=FACTS)
    assert trace.rewritten == rewritten
    assert {step.stage for step in trace.steps} == {"intent", "retrieval", "rewriting"}
    assert all(step.source == "facts" for step in trace.steps if step.stage == "retrieval")


@pytest.mark.parametrize(
    "request_", ["<bo> at the beach", "a photo of <bo>", "<bo> on its birthday", "a cat"]
)
def test_a_request_that_needs_no_fact_passes_unchanged_and_asks_nobody(request_):
    backend = Scripted(intent="what is the toy of <bo>?")
    trace = replay(backend, request_, concepts=concepts("bo"), facts=FACTS)
    assert trace.rewritten == request_ and trace.steps == () and not backend.heard


def test_the_model_is_believed_where_it_agrees_with_the_grammar():
    backend = Scripted(intent="What is the toy of <bo>?", rewriting="<bo> with a red ball")
    trace = replay(backend, "<bo> with its toy", concepts=concepts("bo"), facts=FACTS)
    assert [step.source for step in trace.steps] == ["model", "facts", "model"]
    assert trace.steps[0].answer == "What is the toy of <bo>?"
    assert trace.steps[1].answer == "The toy of <bo> is a red ball."


def test_the_model_is_not_believed_where_it_makes_things_up():
    backend = Scripted(intent="What is the hat of <mam>?", rewriting="a cat")
    trace = replay(backend, "<bo> with its toy", concepts=concepts("bo"), facts=FACTS)
    assert [step.source for step in trace.steps] == ["grammar", "facts", "grammar"]
    assert trace.rewritten == "<bo> with a red ball"


def test_sure_tokens_are_asked_for_what_no_fact_says():
    backend = Scripted(memory="a green hat.")
    more = {"concepts": concepts("bo"), "facts": FACTS, "surety": {"bo": -0.5}}
    trace = replay(backend, "<bo> with its hat", **more)
    assert trace.rewritten == "<bo> with a green hat"
    assert trace.steps[1].source == "tokens" and not trace.unknown
    assert "what is <bo>'s hat?" in backend.heard


@pytest.mark.parametrize(
    ("sure", "surety"),
    [(-0.6, {"bo": -0.5}), (-4.5, {"bo": -9.0}), (-0.1, {}), (-0.1, {"mam": -1.0})],
)
def test_unsure_tokens_do_not_count(sure, surety):
    trace = replay(
        Scripted(memory="a cake", sure=sure),
        "<bo> eating its favourite food",
        concepts=concepts("bo"),
        facts=FACTS,
        surety=surety,
    )
    assert trace.rewritten == "<bo> eating its favourite food"
    assert trace.unknown == (("bo", "favourite food"),)


def test_tokens_do_not_take_a_toy_for_a_toy_box():
    backend = Scripted(memory="a red ball", intent="What is the toy box of <bo>?")
    more = {"concepts": concepts("bo"), "facts": FACTS, "surety": {"bo": -0.5}}
    trace = replay(backend, "<bo> with its toy box", **more)
    assert (trace.rewritten, trace.unknown) == ("<bo> with its toy box", (("bo", "toy box"),))


@pytest.mark.parametrize("answer", ["", "yes", "I don't know.", "what is it?"])
def test_where_nobody_knows_the_request_stays_as_it_is(answer):
    backend = Scripted(memory=answer)
    more = {"concepts": concepts("bo"), "facts": {}, "surety": {"bo": -0.5}}
    trace = replay(backend, "<bo> with its hat", **more)
    assert trace.rewritten == "<bo> with its hat"
    assert trace.steps[-1].source == "unknown" and trace.steps[-1].answer == ""


def test_the_model_finds_a_reference_that_the_grammar_does_not():
    backend = Scripted(intent="what is <bo>'s toy?")
    trace = replay(backend, "<bo> and a favourite of <bo>", concepts=concepts("bo"), facts=FACTS)
    assert trace.rewritten.endswith("with a red ball")


def test_as_many_examples_are_shown_as_the_backend_likes():
    backend = Scripted()
    replay(backend, "<bo> with its toy", concepts=concepts("bo"), facts=FACTS)
    assert backend.heard[0].count("request:") == backend.info.replay_examples + 1


def test_a_fact_brings_no_other_concept_into_a_request_that_does_not_name_it():
    facts = {"bo": ["<bo>'s friend is <mam>", "<bo>'s toy is <Mam>'s ball"], "mam": []}
    backend = Scripted(rewriting="<bo> with <mam>")
    trace = replay(backend, "<bo> with its friend", concepts=concepts("bo"), facts=facts)
    assert trace.rewritten == "<bo> with mam"
    trace = replay(Scripted(), "<bo> with its toy", concepts=concepts("bo"), facts=facts)
    assert trace.rewritten == "<bo> with mam's ball"
    named = replay(
        Scripted(), "<bo> with its friend, not <mam>", concepts=concepts("bo", "mam"), facts=facts
    )
    assert named.rewritten == "<bo> with <mam>, not <mam>"
