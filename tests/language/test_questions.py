"""Questions of presence and of facts are known by their form."""

import pytest

from omnipersona_cli.language.questions import (
    asked_attributes,
    asks_for_either,
    asks_for_kind,
    asks_presence,
    is_open,
    told,
    value_in,
)


@pytest.mark.parametrize(
    "question",
    [
        "is <bo> here?",
        "Is <bo> in this picture?",
        "do you see <bo>?",
        "Can you see <bo> in the photo?",
        "is there <bo>?",
        "is this <bo>?",
        "is this a photo of <bo>?",
        "are <bo> and <mam> here?",
        "does this picture show <bo>?",
    ],
)
def test_presence_is_asked_in_many_ways(question):
    assert asks_presence(question)


@pytest.mark.parametrize(
    "question", ["is <bo> a cat?", "is <bo> wearing a hat?", "what is <bo>?", "is it red?"]
)
def test_other_questions_are_not_presence(question):
    assert not asks_presence(question)


def test_a_kind_is_asked_for_by_a_word_for_all_kinds():
    assert asks_for_kind("Which kind of animal is <bo>?")
    assert asks_for_kind("what animal is <bo>?")
    assert not asks_for_kind("what kind of dog is <bo>?")
    assert not asks_for_kind("what kind of animal is near <bo>?")


def test_one_of_two_is_enough_after_or():
    assert asks_for_either("is <bo> or <mam> here?")
    assert not asks_for_either("are <bo> and <mam> here?")


def test_every_question_for_an_attribute_is_found():
    text = "What is the toy of <Bo>? And what's <mam>'s favourite food?"
    assert list(asked_attributes(text)) == [("bo", "toy"), ("mam", "favourite food")]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("It is a red ball.", "a red ball"),
        ("the toy of bo is a red ball", "a red ball"),
        ("a ball that is red", "a ball that is red"),
        ("its toys are two balls which are red", "two balls which are red"),
        ("I don't know", ""),
        ("yes", ""),
        ("in the", ""),
        ("It is a ball of", ""),
        ("An", "An"),
        ("vitamin A", "vitamin A"),
        ("what is <bo>", ""),
        ("word " * 20, ""),
    ],
)
def test_an_answer_gives_its_value_or_nothing(answer, value):
    assert value_in(answer) == value


@pytest.mark.parametrize(
    ("question", "open_"),
    [
        ("how old is <bo>?", True),
        ("is it a cat or a dog?", True),
        ("Is it day or night?", True),
        ("is <bo> in the city or in the forest?", True),
        ("is <bo> here or not?", False),
        ("is <bo> or <mam> here?", False),
        ("is <bo> a cat?", False),
    ],
)
def test_yes_is_no_answer_to_an_open_question(question, open_):
    assert is_open(question) == open_


@pytest.mark.parametrize(
    ("attribute", "share"),
    [
        ("home", "all"),
        ("favourite home", "all"),
        ("red ball", "all"),
        ("home town", "some"),
        ("toy box", "some"),
        ("age", "none"),
        ("favourite", "none"),
    ],
)
def test_facts_speak_of_an_attribute_in_whole_in_part_or_not(attribute, share):
    assert told(attribute, ["<bo> lives in the forest", "<bo>'s toy is a red ball"], "bo") == share
