"""Names, and where a text mentions them."""

import pytest

from omnipersona_cli.backend import Span
from omnipersona_cli.errors import UsageError
from omnipersona_cli.language.mentions import (
    attach,
    check_name,
    find_mentions,
    names_in,
    rename_mentions,
    to_turn,
)


@pytest.mark.parametrize("given", ["bo", "<bo>", "Bo", "<BO>"])
def test_a_name_may_be_bracketed_or_capital(given):
    assert check_name(given) == "bo"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "<>",
        "1bo",
        "-bo",
        "bo bo",
        "bo\n",
        "b/o",
        "../bo",
        "bö",
        "\u212aate",
        "a" * 33,
        "<bo",
        "bo.",
    ],
)
def test_what_is_not_a_name_is_refused_with_one_that_is(given):
    with pytest.raises(UsageError) as caught:
        check_name(given)
    example = caught.value.hint.rsplit(": ", 1)[1]
    assert check_name(example) == example


def test_a_mention_spans_its_brackets():
    assert find_mentions("see <bo> run") == (Span(start=4, end=8, name="bo"),)


def test_a_capital_mention_is_understood():
    assert [span.name for span in find_mentions("<Bo> and <bo>")] == ["bo", "bo"]


@pytest.mark.parametrize(
    "text", ["bo", "< bo >", "</bo>", "<|bo|>", "<1>", "a < b > c", "<b\no>", ""]
)
def test_what_only_looks_like_a_mention_is_text(text):
    assert find_mentions(text) == ()


def test_names_come_once_in_order():
    assert names_in("<mam>, <bo> and <mam>") == ("mam", "bo")


def test_a_turn_carries_its_spans():
    turn = to_turn("<bo> here")
    assert turn.text[turn.spans[0].start : turn.spans[0].end] == "<bo>"


def test_renaming_touches_only_that_mention():
    assert rename_mentions("<Bo> likes <bob>, bo", "bo", "rex") == "<rex> likes <bob>, bo"


def test_a_name_without_brackets_becomes_a_mention():
    assert attach("Bo in a boat", ["bo"], "generate") == "<bo> in a boat"
    assert attach("remove it", ["bo"], "edit") == "remove <bo>"
    assert attach("add", ["bo"], "edit") == "add <bo>"
    assert attach("is it here?", ["bo"], "understand") == "is <bo> here?"
