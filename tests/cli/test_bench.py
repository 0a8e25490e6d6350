"""`op bench`, as a person types it."""

import json

import pytest


def test_a_toy_set_is_drawn_run_and_reported(sketch, op):
    done = op("bench", "export-toy", "toyset", "--concepts", "1")
    assert done.exit_code == 0 and done.stdout.strip() == "toyset", done.stderr
    words = ("bench", "run", "toyset", "--seeds", "1", "--steps", "2", "-o", "results")
    done = op(*words, "--tasks", "recognition,qa,parg", "--method", "full")
    assert done.exit_code == 0, done.stderr
    assert "| Rec |" in done.stdout and "no judge was named" in done.stderr
    told = json.loads(op("bench", "report", "results", "--json").stdout)
    assert told.keys() == {"setting", "measured", "methods", "findings", "learning", "seconds"}
    assert told["methods"]["full"]["qa-exact"]["concepts"] == 1
    done = op("bench", "report", "results", "--html", "page.html", "--data", "toyset")
    assert done.exit_code == 0 and "data:image/png" in (sketch.work / "page.html").read_text()
    lines = (sketch.work / "results/results.jsonl").read_text().splitlines()
    keys = {"prompt", "rewritten", "paint_seed", "answer", "scores", "judges", "picture"}
    assert all(keys <= json.loads(line).keys() for line in lines)

    done = op("bench", "report", "results", "--html", "nowhere/page.html")
    assert done.exit_code == 1 and "there is no folder nowhere" in done.stderr
    done = op(*words, "--tasks", "recognition,qa,parg", "--judge", "vlm")
    assert done.exit_code == 3 and "OMNIPERSONA_VLM_URL is not set" in done.stderr


def test_judges_are_listed_with_what_they_need_and_their_licence(op):
    listed = op("bench", "judges").stdout
    assert "hf download openai/clip-vit-base-patch32" in listed
    assert "non-commercial research only" in listed
    names = {judge["name"] for judge in json.loads(op("bench", "judges", "--json").stdout)}
    assert {"clip", "dino", "face", "toy", "vlm"} <= names


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "nowhere", "-o", "out"], 3, "not a benchmark"),
        (["run", "nowhere"], 2, "--out"),
        (["report", "nowhere"], 3, "no results"),
        (["export-toy", "photos"], 1, "not empty"),
        (["export-toy", "new", "--set", "toi"], 3, "no made-up set"),
        (["run", "nowhere", "--judge", "vlm", "-o", "out"], 3, "not a benchmark"),
    ],
)
def test_wrong_input_is_one_line_a_hint_and_a_code(sketch, op, words, code, said):
    done = op("bench", *words)
    assert done.exit_code == code and said in done.stderr, done.stderr
    assert "Hint:" in done.stderr and done.stdout == ""


def test_the_tokens_are_asked_what_they_know(disc, op):
    done = op("concepts", "show", "bo", "--probe", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert {it["attribute"]: it["value"] for it in told} == {
        "toy": "a red ball",
        "home": "the forest",
    }
    assert {it["knowledge"] for it in told} <= {"known", "wrong", "unknown"}
    assert "tokens say" in op("concepts", "show", "bo", "--probe").stdout
