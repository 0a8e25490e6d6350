"""`op learn`, as a person types it."""

import json
from importlib import import_module

import pytest

from omnipersona_cli.concepts.library import Library


def test_the_path_of_the_pack_is_the_answer_and_the_report_is_told(sketch, op):
    done = op("learn", "photos", "--name", "bo", "--fact", "its toy is a kite", "--steps", "20")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(Library().path("bo"))
    assert "learned <bo> from 5 photos" in done.stderr
    assert "AUROC" in done.stderr and 'op gen "<bo> at the beach"' in done.stderr
    assert [fact.text for fact in Library().header("bo").facts] == ["its toy is a kite"]


def test_json_is_one_object_with_stable_keys(sketch, op):
    done = op("learn", "photos", "--name", "<bo>", "--steps", "2", "--json", "-q")
    assert set(json.loads(done.stdout)) == {
        "path", "name", "hash", "backend", "seed", "seconds", "resumed_from", "notes", "report",
    }  # fmt: skip


def test_the_card_is_told_kept_and_shown(sketch, op):
    done = op("learn", "photos", "--name", "bo", "--steps", "20", "--json")
    card = json.loads(done.stdout)["report"]["card"]
    assert f"report card: {card['verdict']}" in done.stderr
    for figure in ("recognition", "identity", "difference", "memorised"):
        assert isinstance(card[figure], dict) and f"  {figure}" in done.stderr
    shown = op("concepts", "show", "bo").stdout
    assert f"report card: {card['verdict']}" in shown and "ECE" in shown
    told = json.loads(op("concepts", "show", "bo", "--json").stdout)["eval"]["sketch"]["card"]
    assert told["identity"] == card["identity"]


def test_a_page_is_written_where_it_is_asked_for(sketch, op):
    done = op("learn", "photos", "--name", "bo", "--steps", "2", "--report", "bo.html")
    assert done.exit_code == 0, done.stderr
    assert "bo.html" in done.stderr and "bo.html" not in done.stdout
    assert (sketch.work / "bo.html").read_text().startswith("<!doctype html>")
    again = op("learn", "photos", "--name", "mam", "--steps", "2", "--report", "bo.html")
    assert again.exit_code == 1 and "--force" in again.stderr and Library().names() == ("bo",)


def test_the_best_step_is_told_where_photos_were_held_out_to_choose_it(sketch, op):
    told = op("learn", "photos", "--name", "bo", "--steps", "4").stderr
    assert "best at step" in told and "of 4" in told
    one = next(path for path in (sketch.work / "photos").iterdir() if path.suffix == ".png")
    done = op("learn", str(one), "--name", "mam", "--steps", "4", "--report", "mam.html")
    assert done.exit_code == 0 and "4 steps, and no photo held out" in done.stderr
    assert "best at" not in done.stderr
    assert "after all 4 steps" in (sketch.work / "mam.html").read_text()


def test_a_folder_is_no_file_to_write(sketch, op):
    for flag in ("-o", "--report"):
        done = op("learn", "photos", "--name", "bo", "--steps", "2", flag, "new/")
        assert done.exit_code == 2 and "new/ is a folder" in done.stderr
    assert not (sketch.work / "new").exists()


def test_what_is_not_there_has_one_exit_code(sketch, op):
    for words in (["nophotos"], ["photos", "--negatives", "no"], ["photos", "--edits", "no"]):
        assert op("learn", *words, "--name", "bo").exit_code == 3, words


def test_a_dry_run_tells_and_learns_nothing(sketch, op):
    done = op("learn", "photos", "--name", "bo", "--kind", "disc", "--dry-run")
    assert done.exit_code == 0 and "5, 2 of them held out" in done.stdout
    assert Library().names() == ()
    told = json.loads(op("learn", "photos", "--name", "bo", "--dry-run", "--json").stdout)
    assert told["photos"] == 5 and told["backend"] == "sketch"
    instant = op("learn", "photos", "--name", "bo", "--steps", "0", "--dry-run").stdout
    assert "none: the start is kept" in instant and "rate" not in instant


def test_a_fact_that_is_told_in_two_cases_is_kept_once(sketch, op):
    twice = ("--fact", "Loves tuna", "--fact", "loves  tuna")
    told = op("learn", "photos", "--name", "bo", *twice, "--dry-run", "--json")
    assert json.loads(told.stdout)["facts"] == ["Loves tuna"]


def test_the_size_of_lessons_is_planned_or_refused(sketch, op):
    done = op("learn", "photos", "--name", "bo", "-b", "bagel", "--size", "256", "--dry-run")
    assert done.exit_code == 0 and "from pictures of 256 pixels" in done.stdout
    told = op("learn", "photos", "--name", "bo", "-b", "bagel", "--dry-run", "--json").stdout
    assert json.loads(told)["lesson_size"] == 512
    for more in (("--dry-run",), ()):
        done = op("learn", "photos", "--name", "bo", "-b", "janus", "--size", "256", *more)
        assert done.exit_code == 2 and "one size, 384x384" in done.stderr
        assert "Hint: leave out --size" in done.stderr and "reading photos" not in done.stderr


def test_a_pack_can_go_elsewhere(sketch, op):
    done = op("learn", "photos", "--name", "bo", "--steps", "2", "-o", "mine.opconcept")
    assert done.stdout.strip() == "mine.opconcept" and (sketch.work / "mine.opconcept").is_file()
    assert Library().names() == () and "op concepts import" in done.stderr


def test_an_instant_concept_says_so_and_is_gone_on_from(sketch, op):
    done = op("learn", "photos", "--name", "bo", "--steps", "0")
    assert done.exit_code == 0 and "started <bo> from 5 photos" in done.stderr
    assert "instant: the start, read off the photos" in done.stderr
    shown = op("concepts", "show", "bo").stdout
    assert "learned on sketch (instant)" in shown and "instant: the start" in shown
    assert "sketch (instant)" in op("concepts").stdout
    done = op("learn", "photos", "--name", "bo", "--more", "--steps", "5", "--json")
    card = json.loads(done.stdout)["report"]["card"]
    assert "learned <bo> from 5 photos" in done.stderr and card["instant"] is False
    assert "(instant)" not in op("concepts", "show", "bo").stdout


def test_a_folder_where_the_pack_would_lie_is_told_before_learning(sketch, op):
    folder = Library().folder / "bo.opconcept"
    folder.mkdir(parents=True)
    for more in (("--dry-run",), ("--force",)):
        done = op("learn", "photos", "--name", "bo", "--steps", "2", *more)
        assert done.exit_code == 1 and f"{folder} is a folder" in done.stderr, done.stderr
    assert folder.is_dir()


def test_a_taken_name_needs_force(disc, op):
    done = op("learn", "photos", "--name", "bo", "--steps", "2")
    assert done.exit_code == 1 and "--force" in done.stderr
    dry = op("learn", "photos", "--name", "bo", "--steps", "2", "--dry-run")
    assert dry.exit_code == 1 and "--force" in dry.stderr and not dry.stdout
    assert op("learn", "photos", "--name", "bo", "--force", "--dry-run").exit_code == 0
    assert op("learn", "photos", "--name", "bo", "--steps", "2", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["photos", "--name", "not a name"], 2),
        (["photos", "--name", "bo", "--steps", "-1"], 2),
        (["photos", "--name", "bo", "--steps", "0", "--experts", "lora"], 2),
        (["photos", "--name", "bo", "--steps", "0", "--previews", "previews"], 2),
        (["photos", "--name", "bo", "--more"], 3),
        (["photos", "--name", "bo", "--more", "--steps", "0"], 2),
        (["photos", "--name", "bo", "--samples", "9"], 2),
        (["photos", "--name", "bo", "--depth", "0"], 2),
        (["photos", "--name", "bo", "--depth", "-1"], 2),
        (["photos", "--name", "bo", "--depth", "1"], 1),
        (["photos", "--name", "bo", "-b", "nano", "--depth", "6"], 2),
        (["photos", "--name", "bo", "-b", "nano", "--depth", "6", "--dry-run"], 2),
        (["photos", "--name", "bo", "-b", "bagel", "--experts", "lora", "--dry-run"], 1),
        (["photos", "--name", "bo", "-b", "bagel", "--experts", "lora"], 1),
        (["photos", "--name", "bo", "--fact", " "], 2),
        (["photos", "--name", "bo", "-b", "skatch"], 3),
        (["nowhere", "--name", "bo"], 3),
        (["photos", "--name", "bo", "--facts", "nowhere.txt"], 3),
        (["photos", "--name", "bo", "--facts", "photos"], 1),
        (["photos"], 2),
    ],
)
def test_wrong_input_is_one_line_a_hint_and_a_code(sketch, op, words, code):
    done = op("learn", *words)
    assert done.exit_code == code, done.stderr
    assert "Error:" in done.stderr and "Hint:" in done.stderr
    assert done.stdout == "" and Library().names() == ()


def test_a_probe_marks_every_fact_and_says_where_there_are_none(disc, op):
    done = op("concepts", "show", "bo", "--probe", "--json")
    told = {it["attribute"]: it for it in json.loads(done.stdout)}
    assert set(told) == {"toy", "home"} and told["toy"]["value"] == "a red ball"
    assert {it["knowledge"] for it in told.values()} <= {"known", "wrong", "unknown"}
    assert op("concepts", "show", "bo", "--probe").stdout.count("\n") == 3
    for _ in range(2):
        op("concepts", "facts", "bo", "rm", "1")
    bare = op("concepts", "show", "bo", "--probe")
    assert bare.stdout == "" and "no facts" in bare.stderr and "Hint:" in bare.stderr


def test_an_interrupted_run_says_how_to_go_on(sketch, op, monkeypatch):
    def stop(*anything, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("omnipersona_cli.engine.run"), "optimise", stop)
    done = op("learn", "photos", "--name", "bo")
    assert done.exit_code == 130 and Library().names() == ()
    assert done.stderr.splitlines()[-2:] == [
        "Interrupted.",
        "Hint: the same command with --resume goes on from the last checkpoint",
    ]
