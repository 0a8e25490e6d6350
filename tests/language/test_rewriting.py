"""A rewriting is believed where names survive and nothing is added."""

import pytest

from omnipersona_cli.language.rewriting import comes_from, keeps_to

REQUEST = "<bo> playing with its toy at the beach"


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        ("<bo> plays at the beach with a red ball", True),
        ("<bo> playing with its toy, a red ball, at the beach", True),
        ("<bo> at the beach with a red ball and a red kite", False),
        ("<bo> and <mam> playing with a red ball at the beach", False),
        ("a dog playing with a red ball at the beach", False),
        ("<bo> playing at the beach", False),
        ("<bo> with a red ball, a red ball and a red ball", False),
        ("", False),
    ],
)
def test_a_rewriting_keeps_to_request_and_memory(said, believed):
    plain = "<bo> playing with a red ball at the beach"
    assert keeps_to(said, REQUEST, ["a red ball"], plain=plain) is believed


@pytest.mark.parametrize(
    ("value", "right"),
    [("two cats", True), ("cats", True), ("two dogs", False), ("lives", False), ("", False)],
)
def test_an_answer_comes_from_the_facts(value, right):
    facts = ["lives with two cats"]
    assert comes_from(value, facts, "who lives with <bo>?", name="bo") is right


@pytest.mark.parametrize(
    ("question", "value", "right"),
    [
        ("what does <bo> chase in the garden?", "a red ball", False),  # that is its toy
        ("what is the car of <bo>?", "a red ball", False),
        ("what is the car of <bo>?", "a green scarf", False),
        ("what does <bo> wear?", "a red scarf", False),  # of two facts
        ("what does <bo> wear?", "a green scarf", True),
        ("what is <bo> wearing at parties?", "a green scarf", True),
        ("what does <bo> get on its birthday?", "a lemon cake", True),
        ("what does <bo> get on its birthday?", "a lemon ball", False),
        ("who is with <bo>?", "a grey mouse", True),
    ],
)
def test_an_answer_comes_from_one_fact_and_from_the_one_that_is_asked_for(question, value, right):
    facts = [
        "its toy is a red ball",
        "wears a green scarf at parties",
        "on its birthday it gets a lemon cake",
        "shares everything with a grey mouse. loves tuna",
    ]
    assert comes_from(value, facts, question, name="bo") is right


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        ("<bo> with a red ball and <mam> with a blue van", True),
        ("<bo> with a blue ball and <mam> with a red van", False),
        ("<bo> with a ball that is red and <mam> with a blue van", False),
    ],
)
def test_what_memory_says_is_not_taken_apart(said, believed):
    request = "<bo> with its toy and <mam> with her car"
    plain = "<bo> with a red ball and <mam> with a blue van"
    assert keeps_to(said, request, ["a red ball", "a blue van"], plain=plain) is believed
