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
