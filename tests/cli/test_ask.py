"""`op ask`, as a person types it."""

import json
from pathlib import Path

import pytest


def test_presence_is_yes_or_no(disc, op):
    assert op("ask", "red.png", "is <bo> here?").stdout == "yes\n"
    assert op("ask", "blue.png", "is <bo> here?").stdout == "no\n"


def test_the_exit_code_tells_yes_from_the_rest(disc, op):
    assert op("ask", "red.png", "is <bo> here?", "--exit-code").exit_code == 0
    assert op("ask", "blue.png", "is <bo> here?", "--exit-code").exit_code == 1
    assert op("ask", "blue.png", "is <bo> here?").exit_code == 0


def test_json_has_the_probability_and_stable_keys(disc, op):
    told = json.loads(op("ask", "red.png", "is it here?", "--concept", "bo", "--json").stdout)
    assert set(told) == {
        "question", "answer", "source", "verdict", "probability", "concepts", "facts", "missing",
        "backend",
    }  # fmt: skip
    assert told["verdict"] == "yes" and told["probability"] == told["concepts"]["bo"] > 0.5


def test_memory_needs_no_picture(disc, op):
    assert op("ask", "what is <bo>'s toy?").stdout == "a red ball\n"
    told = json.loads(op("ask", "what is <bo>'s toy?", "--json").stdout)
    assert (told["source"], told["facts"]) == ("facts", ["<bo>'s toy is a red ball"])


def test_memory_says_what_it_does_not_know(disc, op):
    done = op("ask", "what is <bo>'s hobby?")
    assert (done.exit_code, done.stdout) == (0, "I do not know\n")
    assert 'op concepts facts bo add "its hobby is ..."' in done.stderr


def test_the_model_answers_the_rest(disc, op):
    done = op("ask", "red.png", "what colour is <bo>?")
    assert done.exit_code == 0 and done.stdout.strip()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["rod.png", "is <bo> here?"], 3),
        (["is <bob> here?"], 3),
        (["red.png", "is", "<bo>", "here?"], 2),
        (["red.png", "blue.png"], 2),
        (["photos", "is <bo> here?"], 1),
        (["red.png", "photos/0.png", "blue.png"], 2),
        (["-", "-", "what is here?"], 2),
        (["red.png", "blue.png", "what is here?"], 1),
        (["red.png", "blue.png", "is <bo> here?"], 1),
        (["is <bo> here? " * 1000], 2),
        (["very " * 5000, "is <bo> here?"], 2),
        ([""], 2),
        ([], 2),
    ],
)
def test_wrong_input_is_one_line_a_hint_and_a_code(disc, op, words, code):
    done = op("ask", *words)
    assert done.exit_code == code, done.stderr
    assert "Hint:" in done.stderr and done.stdout == ""


def test_an_empty_question_is_answered_with_an_example_of_its_own_verb(disc, op):
    assert "Hint: op ask" in op("ask", "").stderr
    assert "Hint: op gen" in op("gen", " ").stderr
    assert "Hint: op edit" in op("edit", "blue.png", "").stderr


def test_more_pictures_than_the_backend_looks_at_are_refused_before_one_is_opened(disc, op):
    Path("broken.png").write_bytes(b"")
    done = op("ask", "broken.png", "blue.png", "what is <bo>'s toy?")
    assert "sketch looks at 1 picture at a time, and 2 are given" in done.stderr
    hint = done.stderr.strip().splitlines()[-1]
    assert "op ask broken.png" in hint and "these look at so many: bagel, lance" in hint


def test_what_cannot_be_seen_does_not_turn_an_answer(disc, op):
    plain = op("ask", "red.png", "is <bo> here?", "--json").stdout
    hidden = op("ask", "red.png", "\ufeffis <b\u00ado> he\u200bre?", "--json").stdout
    assert json.loads(hidden)["verdict"] == json.loads(plain)["verdict"] == "yes"


def test_a_long_question_in_any_alphabet_is_no_file(disc, op):
    asked = "何色のボールで遊んでいますか、" * 12 + "<bo>?"
    done = op("ask", asked)
    assert "name of a file" not in done.stderr and done.exit_code == 0
