"""Two facts that cannot both be true are found, and others left alone."""

import pytest

from omnipersona_cli.language.contradictions import contradiction


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<bo> is 3 years old", "its age is 4"),
        ("its favourite toy is a ball", "<bo>'s favourite toy is a car"),
        ("likes baths", "hates baths"),
        ("is afraid of thunder", "is not afraid of thunder"),
        ("it likes rain", "it doesn't like rain"),
        ("weighs 3 kg", "weighs 4 kg"),
        ("likes rain", "doesn\N{RIGHT SINGLE QUOTATION MARK}t like rain"),
        ("loves tuna and salmon", "hates salmon"),
        ("its favourite food is tuna", "favorite food: salmon"),
    ],
)
def test_two_facts_contradict_each_other(first, second):
    assert contradiction(["lives in Rome", first, "eats fish", second], "bo") == (first, second)


@pytest.mark.parametrize(
    "texts",
    [
        ("its toy is a ball", "its toy is a car"),
        ("loves tuna", "loves cheese"),
        ("lives in Lisbon", "lives by the sea"),
        ("likes baths", "hates rain"),
        ("is 3 years old", "its age is 3 years old"),
        ("is shy", "is not tall"),
        ("is 3 years old", "is three"),
        ("weighs 12 kg", "weighs about 12kg"),
        ("its favourite colour is red", "its colour is brown"),
        (),
    ],
)
def test_facts_that_may_both_be_true_are_left_alone(texts):
    assert contradiction(texts, "bo") is None
