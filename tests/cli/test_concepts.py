"""`op concepts`, as a person types it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Fact, Pack, Slot


@pytest.fixture
def bo(home):
    """A concept in the user's library."""
    chance = np.random.default_rng(0)
    rows = {"id": 1, "und": 16, "gen": 16}
    pack = Pack(
        name="bo",
        class_word="dog",
        kind="animal",
        facts=(Fact(text="<bo>'s toy is a red ball"), Fact(text="<bo> is brown", source="auto")),
        slots={
            "nano": Slot(
                tensors={k: chance.normal(size=(n, 8)).astype(np.float32) for k, n in rows.items()},
                about={"base": "embedded", "recipe": {"rate": 0.01}, "steps": 300},
            )
        },
        evals={"nano": {"verdict": "good", "threshold": 0.25, "auroc": 0.97}},
        provenance={"photos": 6},
        date="2025-01-02T03:04:05Z",
    )
    Library().save(pack)
    return pack


@pytest.fixture
def op():
    """Run `op concepts …` in this process."""

    def run(*args, code=0, stdin=None):
        done = CliRunner().invoke(cli, ["concepts", *map(str, args)], input=stdin)
        assert done.exit_code == code, done.output + repr(done.exception)
        return done

    return run


def test_bare_lists(op, bo):
    lines = op().stdout.splitlines()
    assert lines[0].split() == ["name", "what", "learned", "on", "facts", "date"]
    assert lines[1].split() == ["<bo>", "dog", "nano", "2", "2025-01-02"]
    assert op("list").stdout == op().stdout


def test_an_empty_library_says_so_on_stderr(op, home):
    done = op()
    assert done.stdout == ""
    assert "no concepts yet" in done.stderr
    assert json.loads(op("--json").stdout) == []


@pytest.mark.parametrize("args", [["--json"], ["list", "--json"], ["--json", "list"]])
def test_the_list_as_json(op, bo, args):
    (one,) = json.loads(op(*args).stdout)
    assert list(one) == ["name", "class_word", "kind", "slots", "facts", "date", "hash"]
    assert (one["name"], one["slots"], one["facts"]) == ("bo", ["nano"], 2)


def test_a_broken_pack_does_not_hide_the_others(op, bo):
    Library().save(replace(bo, name="rex"))
    Library().path("rex").write_bytes(b"broken")
    done = op()
    assert "<bo>" in done.stdout
    assert "rex.opconcept" in done.stderr
    assert "rex" not in done.stdout


def test_show_tells_facts_slots_scores_and_hash(op, bo):
    text = op("show", "<bo>").stdout
    for part in (
        "<bo>, a dog",
        "<bo>'s toy is a red ball",
        "seen in the photos",
        "learned on nano",
        "1 id, 16 und, 16 gen of width 8",
        "rate 0.01",
        Library().header("bo").hash,
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines()]
    assert ["verdict", "good"] in rows
    assert ["threshold", "0.25"] in rows


def test_show_as_json(op, bo):
    data = json.loads(op("show", "bo", "--json").stdout)
    assert list(data) == [
        *("name", "aliases", "class_word", "kind", "facts", "slots", "eval", "provenance"),
        *("licence", "date", "format", "hash", "size", "path"),
    ]
    assert data["facts"][0] == {"text": "<bo>'s toy is a red ball", "source": "user"}
    assert data["slots"]["nano"]["tensors"] == {"gen": [16, 8], "id": [1, 8], "und": [16, 8]}
    assert data["eval"]["nano"]["threshold"] == 0.25


def test_an_unknown_name_is_exit_3_with_a_suggestion(op, bo):
    done = op("show", "bob", code=3)
    assert "did you mean <bo>?" in done.stderr
    assert done.stdout == ""


def test_a_name_that_is_none_is_exit_2(op, bo):
    assert "Hint:" in op("show", "../bo", code=2).stderr


def test_facts_are_listed_added_and_removed(op, bo):
    assert op("facts", "bo").stdout.splitlines()[0] == "1  <bo>'s toy is a red ball"
    done = op("facts", "bo", "add", "<bo> likes  apples")
    assert done.stdout == ""
    assert "added to <bo>: <bo> likes apples" in done.stderr
    assert [f["text"] for f in json.loads(op("facts", "bo", "--json").stdout)] == [
        "<bo>'s toy is a red ball",
        "<bo> is brown",
        "<bo> likes apples",
    ]
    op("facts", "bo", "rm", "2")
    left = json.loads(op("facts", "bo", "rm", "<Bo> LIKES apples", "--json").stdout)
    assert [fact["text"] for fact in left] == ["<bo>'s toy is a red ball"]


def test_two_facts_that_contradict_each_other_are_named(op, bo):
    op("facts", "bo", "add", "is 3 years old")
    done = op("facts", "bo", "add", "its age is 4", code=2)
    assert "'is 3 years old' and 'its age is 4'" in done.stderr
    assert "op concepts facts bo rm 3" in done.stderr
    assert len(Library().header("bo").facts) == 3


def test_a_fact_is_held_against_each_that_is_known_even_where_those_disagree(op, bo):
    ages = (Fact(text="is 3 years old"), Fact(text="its age is 4"))
    Library().change_facts("bo", lambda known: (*known, *ages, Fact(text="likes rain")))
    assert "'likes rain' and 'hates rain'" in op("facts", "bo", "add", "hates rain", code=2).stderr


def test_a_fact_that_tokens_have_learned_is_told_to_stay_in_them(op, bo):
    assert "tokens" not in op("facts", "bo", "rm", "2").stderr
    Library().save(replace(bo, evals={"nano": {"memory": {"threshold": -0.5}}}), force=True)
    done = op("facts", "bo", "rm", "1")
    assert "until it is learned anew" in done.stderr
    assert "op learn PHOTOS --name bo --force" in done.stderr


def test_a_fact_is_added_once(op, bo):
    assert "already" in op("facts", "bo", "add", "<bo> is Brown").stderr
    assert len(Library().header("bo").facts) == 2


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["add"], 2),
        (["rm"], 2),
        (["add", " "], 2),
        (["add", "x" * 301], 2),
        (["add", "word " * 5000], 2),
        (["mend", "x"], 2),
        (["rm", "3"], 3),
        (["rm", "0"], 3),
        (["rm", "<bo> is brow"], 3),
    ],
)
def test_facts_that_do_not_fit_are_told(op, bo, args, code):
    before = Library().path("bo").read_bytes()
    assert "Hint:" in op("facts", "bo", *args, code=code).stderr
    assert Library().path("bo").read_bytes() == before


def test_export_import_and_rename(op, bo, tmp_path):
    out = tmp_path / "bo.opconcept"
    assert op("export", "bo", "-o", out).stdout.strip() == str(out)
    assert "--force" in op("export", "bo", "-o", out, code=1).stderr
    op("export", "bo", "-o", out, "--force")
    kept = op("import", out, "--name", "rex").stdout.strip()
    assert kept == str(Library().path("rex"))
    assert json.loads(op("import", out, "--json").stdout)["name"] == "bo"
    done = op("rename", "rex", "<Max>")
    assert done.stdout == ""
    assert "<rex> is <max> now" in done.stderr
    assert Library().names() == ("bo", "max")


def test_import_of_another_with_that_name_needs_force(op, bo, tmp_path):
    out = tmp_path / "bo.opconcept"
    op("export", "bo", "-o", out)
    op("facts", "bo", "rm", "1")
    assert "another concept <bo>" in op("import", out, code=1).stderr
    op("import", out, "--force")
    assert len(Library().header("bo").facts) == 2


def test_packs_go_through_pipes(op, bo):
    data = op("export", "bo", "-o", "-").stdout_bytes
    assert data == Library().path("bo").read_bytes()
    op("import", "-", "--name", "rex", stdin=data)
    assert op("verify", "-", stdin=data).stdout == "sound\n"
    assert Library().names() == ("bo", "rex")


def test_json_and_a_pack_do_not_share_stdout(op, bo):
    assert op("export", "bo", "-o", "-", "--json", code=2).stdout == ""


def test_deleting_unasked_needs_yes(op, bo):
    assert "--yes" in op("rm", "bo", code=2).stderr
    assert Library().names() == ("bo",)
    assert json.loads(op("rm", "<bo>", "--yes", "--json").stdout) == {"removed": ["bo"]}
    assert Library().names() == ()


def test_a_person_is_asked_before_deleting(bo):
    import pty

    code = "from omnipersona_cli.cli.main import cli; cli(['concepts', 'rm', 'bo'])"
    for said, left in ((b"n\n", ("bo",)), (b"y\n", ())):
        child, terminal = pty.fork()
        if child == 0:
            os.execv(sys.executable, [sys.executable, "-c", code])
        os.write(terminal, said)
        os.waitpid(child, 0)
        os.close(terminal)
        assert Library().names() == left


def test_deleting_is_all_or_nothing_about_names(op, bo):
    op("rm", "bo", "nobody", "--yes", code=3)
    assert Library().names() == ("bo",)
    op("rm", code=2)


def test_deleting_hints_at_what_it_deleted_and_at_nothing_else(op, bo):
    op("import", "-", "--name", "rex", stdin=op("export", "bo", "-o", "-").stdout_bytes)
    assert "op concepts undo rex" in op("rm", "rex", "--yes").stderr
    told = op("rm", "bo", "rex", "--yes").stderr
    assert "op concepts undo bo" in told and "op concepts undo rex" not in told
    assert "Hint" not in op("rm", "bo", "--yes").stderr


def test_a_name_that_ends_in_a_slash_is_a_folder(op, bo, tmp_path):
    folder = tmp_path / "mine"
    assert "mkdir" in op("export", "bo", "-o", f"{folder}/", code=1).stderr
    assert not folder.exists()
    folder.mkdir()
    assert op("export", "bo", "-o", f"{folder}/").stdout.strip() == str(folder / "bo.opconcept")


def test_verify_says_sound_or_what_is_wrong(op, bo, tmp_path):
    assert op("verify", "bo").stdout == "sound\n"
    bad = tmp_path / "bad.opconcept"
    data = Library().path("bo").read_bytes()
    bad.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = op("verify", bad, code=1)
    assert "hash differs" in done.stdout
    answer = json.loads(op("verify", bad, "--json", code=1).stdout)
    assert list(answer) == ["file", "sound", "problems"]
    assert answer["sound"] is False
    op("verify", tmp_path / "none", code=3)


def test_a_library_of_one_is_told_in_the_singular(op, bo):
    assert op("fsck").stdout == "sound: 1 concept\n"
    (Library().folder / "bad.opconcept").write_bytes(b"no pack")
    done = op("fsck", code=1)
    assert "1 thing in the library is not as it should be" in done.stderr


def test_quiet_silences_notes(op, bo):
    assert op("facts", "bo", "add", "<bo> is old", "-q").stderr == ""


@pytest.mark.parametrize(
    "args", ["", "show", "facts", "import", "export", "rename", "rm", "verify"]
)
def test_every_help_has_an_example(op, args):
    text = op(*args.split(), "--help").stdout
    assert "Example" in text
    assert "--json" in text


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["show", "bo"],
        ["facts", "bo", "add", "x"],
        ["rename", "bo", "rex"],
        ["export", "bo"],
        ["rm", "bo", "--yes"],
    ],
)
def test_it_stays_light(args, bo, tmp_path):
    code = (
        "import sys; from omnipersona_cli.cli.main import cli\n"
        f"cli(['concepts', *{args!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors', 'transformers', 'tqdm', 'cv2'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"
