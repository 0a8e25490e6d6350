"""`op chat`, line by line."""

import json


def test_every_line_gets_an_answer_until_one_says_goodbye(disc, op):
    done = op("chat", "red.png", stdin="is <bo> here?\nwhat is its toy?\nexit\nis <bo> here?\n")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == ["yes", "a red ball"]


def test_the_backend_is_opened_once(disc, op):
    done = op("chat", stdin="what is <bo>'s toy?\nwhere does it live?\n")
    assert done.stdout.splitlines() == ["a red ball", "the forest"]
    assert done.stderr.count("loading sketch") == 1


def test_json_is_a_line_for_each_answer(disc, op):
    done = op("chat", "--json", "--concept", "bo", stdin="what is its toy?\n\n")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["answer"] == "a red ball"


def test_a_wrong_line_ends_a_pipe_with_its_code(disc, op):
    assert op("chat", stdin="is <bob> here?\nwhat?\n").exit_code == 3


def test_json_is_json_whatever_is_in_the_question(disc, op):
    asked = "what is <bo>'s to\u00ady \U000e0067?"
    done = op("chat", "--json", stdin=f"{asked}\n")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["question"] == asked


def test_a_line_that_is_no_text_is_told(disc, op):
    done = op("chat", stdin=b"what is \xe9?\n")
    assert done.exit_code == 2 and "a question is not UTF-8 text" in done.stderr
