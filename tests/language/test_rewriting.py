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
    assert comes_from(value, ["lives with two cats"], "who lives with <bo>?") is right
