"""The grammar of references: whose what is meant."""

import pytest

from omnipersona_cli.language.references import find_references, known_facts

KNOWN = known_facts(
    {
        "bo": ["<bo>'s toy is a red ball", "<bo> lives in the forest", "it likes to eat fish"],
        "mam": ["its toy is a blue car"],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<bo> with its toy", [("bo", "toy", "its toy")]),
        ("<bo>'s toy on the grass", [("bo", "toy", "<bo>'s toy")]),
        ("the toy of <bo>", [("bo", "toy", "the toy of <bo>")]),
        ("Generate a toy for <bo>", [("bo", "toy", "a toy for <bo>")]),
        ("<bo> at its home", [("bo", "home", "its home")]),
        ("<bo> at home", [("bo", "home", "home")]),
        ("<bo> with its favourite food", [("bo", "favourite food", "its favourite food")]),
        ("<bo> with his own toys", [("bo", "own toys", "his own toys")]),
        ("<bo> with its umbrella", [("bo", "umbrella", "its umbrella")]),
        (
            "<bo> with its toy and <mam> with her toy",
            [("bo", "toy", "its toy"), ("mam", "toy", "her toy")],
        ),
        ("<bo> next to <mam>'s toy", [("mam", "toy", "<mam>'s toy")]),
        (
            "<bo> and <mam> with their toys",
            [("bo", "toys", "their toys"), ("mam", "toys", "their toys")],
        ),
        (
            "the toys of <bo> and <mam>",
            [
                ("bo", "toys", "the toys of <bo> and <mam>"),
                ("mam", "toys", "the toys of <bo> and <mam>"),
            ],
        ),
        ("the beach with the toy of <bo>", [("bo", "toy", "the toy of <bo>")]),
        ("<bo> beside its toy box", [("bo", "toy box", "its toy box")]),
        ("<bo> in its home town at night", [("bo", "home town", "its home town")]),
        ("<bo>'s food bowl", [("bo", "food bowl", "<bo>'s food bowl")]),
        ("<bo> where it lives", [("bo", "home", "where it lives")]),
        ("<bo> where it likes to live", [("bo", "home", "where it likes to live")]),
        ("the toy that <bo> loves", [("bo", "toy", "the toy that <bo> loves")]),
        (
            "<bo>'s and <mam>'s toys",
            [("bo", "toys", "<bo>'s and <mam>'s toys"), ("mam", "toys", "<bo>'s and <mam>'s toys")],
        ),
        ("<bo> in its living room", [("bo", "living room", "its living room")]),
        ("<bo> with what it eats", [("bo", "food", "what it eats")]),
        ("<mam> and the thing <bo> plays with", [("bo", "toy", "the thing <bo> plays with")]),
    ],
)
def test_a_reference_goes_to_its_concept(text, expected):
    found = find_references(text, ["bo", "mam"], KNOWN)
    assert [(it.concept, it.attribute, text[it.start : it.end]) for it in found] == expected


@pytest.mark.parametrize(
    "text",
    [
        "<bo> at the beach",
        "a photo of <bo>",
        "the picture of <bo>",
        "a party for <bo>",
        "<bo> with a hat on its head",
        "<bo> with what it fears",
        "<bo> brushing its teeth",
        "<bo> with its old toy",
        "<bo> where it eats",
        "put her on the beach next to <bo>",
        "its toy on the floor",
        "the toy of <nobody>",
        "",
    ],
)
def test_what_refers_to_no_fact_is_left_alone(text):
    assert find_references(text, ["bo", "mam"], KNOWN) == ()


def test_a_list_that_is_told_twice_is_known_once():
    both = ["its toys are a red ball and a blue car", "plays with a red ball and a blue car"]
    assert known_facts({"bo": both})["bo"]["toy"].value == "a red ball and a blue car"
