"""`op gen`, as a person types it."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def test_every_picture_is_a_numbered_file_and_a_line(disc, op):
    done = op("gen", "<bo> at the beach", "-n", "2", "--seed", "7")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == ["bo-at-the-beach-001.png", "bo-at-the-beach-002.png"]
    assert op("gen", "<bo> at the beach").stdout.strip() == "bo-at-the-beach-003.png"


def test_the_seed_that_was_chosen_is_told_and_makes_the_picture_again(disc, op):
    done = op("gen", "<bo> with its toy", "-o", "one.png")
    assert "seed " in done.stderr
    again = op("gen", "--like", "one.png", "-o", "two.png")
    assert again.exit_code == 0, again.stderr
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert one.tobytes() == two.tobytes()


def test_a_file_is_never_replaced_unasked(disc, op):
    op("gen", "<bo>", "-o", "bo.png", "--seed", "1")
    before = (disc.work / "bo.png").read_bytes()
    done = op("gen", "<bo>", "-o", "bo.png", "--seed", "2")
    assert done.exit_code == 1 and "--force" in done.stderr
    assert (disc.work / "bo.png").read_bytes() == before
    assert op("gen", "<bo>", "-o", "bo.png", "--seed", "2", "--force").exit_code == 0


def test_explain_shows_the_chain_and_no_replay_turns_it_off(disc, op):
    done = op("gen", "<bo> with its toy", "--explain", "-q")
    assert "retrieval: What is the toy of <bo>? -> The toy of <bo> is a red ball. [facts]" in (
        done.stderr
    )
    told = json.loads(op("gen", "<bo> with its toy", "--explain", "--json").stdout)
    assert told["rewritten"] == "<bo> with a red ball" and told["trace"]["steps"]
    off = op("gen", "<bo> with its toy", "--explain", "--no-replay", "-q").stderr
    assert "replay: off (--no-replay)" in off and "nothing to recall" not in off
    plain = json.loads(op("gen", "<bo> with its toy", "--no-replay", "--json").stdout)
    assert plain["rewritten"] == "<bo> with its toy"


def test_what_nobody_told_is_named_with_the_command_that_tells_it(disc, op):
    done = op("gen", "<bo> with its kite", "-o", "kite.png")
    line = "painting without <bo>'s kite, which nobody told; to tell: "
    command = 'op concepts facts bo add "its kite is ..."'
    assert done.exit_code == 0 and done.stderr.count(line + command) == 1
    assert "which nobody told" not in op("gen", "<bo> with its toy").stderr


def test_a_file_of_prompts_gives_a_picture_a_line(disc, op):
    (disc.work / "prompts.txt").write_text("# mine\n<bo> in the snow\n\n<bo> in a boat\n")
    done = op("gen", "--prompts", "prompts.txt", "-o", "out/", "--seed", "1")
    assert done.stdout.split() == ["out/bo-in-the-snow-001.png", "out/bo-in-a-boat-001.png"]


def test_a_picture_goes_through_a_pipe(disc, op):
    done = op("gen", "<bo>", "-o", "-", "--metadata", "none")
    assert done.stdout_bytes.startswith(b"\x89PNG") and b"omnipersona" not in done.stdout_bytes


def test_a_concept_needs_no_brackets(disc, op):
    told = json.loads(op("gen", "in the snow", "--concept", "bo", "--json").stdout)
    assert told["prompt"] == "<bo> in the snow" and told["packs"].keys() == {"bo"}
    assert "--concept bo" in op("gen", "in the snow").stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["<bob> at the beach"], 3, "<bo>"),
        (["why " * 5000], 2, "characters"),
        ([], 2, "painted"),
        (["<bo>", "-o", "bo.jpg"], 2, "PNG"),
        (["<bo>", "--size", "big"], 2, "size"),
        (["<bo>", "-n", "2", "-o", "-"], 2, "one picture"),
        (["--like", "red.png"], 1, "does not say"),
        (["<bo>", "--fast"], 1, "no faster way"),
        (["at", "the", "beach"], 2, "quote the words"),
        (["<bo>", "-o", "red.png/bo.png"], 1, "not a folder"),
        (["<bo>", "-o", "red.png/"], 1, "not a folder"),
        (["<bo>", "--prompts", "nowhere.txt"], 2, "both"),
    ],
)
def test_wrong_input_is_one_line_a_hint_and_a_code(disc, op, words, code, said):
    done = op("gen", *words)
    assert done.exit_code == code and said in done.stderr, done.stderr
    assert "Hint:" in done.stderr and done.stdout == ""


def test_prompts_are_read_by_their_encoding_and_without_what_cannot_be_seen(disc, op):
    Path("bom.txt").write_bytes("\ufeff<bo> at\u200b the beach\r\n# a comment\r\n".encode())
    Path("utf16.txt").write_bytes("<bo> at the beach\n".encode("utf-16"))
    Path("plain.txt").write_bytes(b"<bo> at the beach\n")
    pictures = []
    for file in ("bom.txt", "utf16.txt", "plain.txt"):
        done = op("gen", "--prompts", file, "--seed", "3", "--metadata", "none")
        pictures.append(Path(done.stdout.strip()).read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    Path("latin.txt").write_bytes("<bo> im Schnee, schön\n".encode("latin-1"))
    done = op("gen", "--prompts", "latin.txt")
    assert done.exit_code == 2 and "latin.txt is not UTF-8 text" in done.stderr


def test_later_pictures_are_looked_for_before_the_first_is_painted(disc, op):
    Path("bo-3.png").write_text("mine")
    done = op("gen", "<bo>", "-n", "3", "-o", "bo.png")
    assert done.exit_code == 1 and "bo-3.png is already there" in done.stderr
    assert not Path("bo.png").exists() and Path("bo-3.png").read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 250 + ".png", "con.png", "a:b.png", "what?.png", " .png"])
def test_a_name_that_a_system_cannot_hold_is_refused_before_painting(disc, op, name):
    done = op("gen", "<bo>", "-o", name)
    assert done.exit_code == 2 and "Hint: -o" in done.stderr and "loading" not in done.stderr


def test_what_a_killed_run_left_half_written_is_swept_and_what_is_being_written_is_not(disc, op):
    Path("pictures").mkdir()
    left = [Path("pictures", f".bo-{number:03d}.png.{number:012x}.tmp") for number in (1, 7)]
    other = Path("pictures/.other-002.png.0123456789ab.tmp")
    mine = [Path("pictures/.notes.txt.0123456789ab.tmp"), Path("pictures/bo-009.png.tmp")]
    for path in (*left, other, *mine):
        path.write_bytes(b"half")
    with other.open("rb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        assert op("gen", "<bo>", "-o", "pictures/").exit_code == 0
    kept = {path.name for path in Path("pictures").iterdir()}
    assert kept == {"bo-001.png", other.name, *(path.name for path in mine)}
    for number in (1, 2, 3):
        Path(f".row{f'-{number}' if number > 1 else ''}.png.0123456789ab.tmp").write_bytes(b"half")
    assert op("gen", "<bo>", "-n", "3", "-o", "row.png").exit_code == 0
    assert not list(Path().glob(".row*"))


def test_two_runs_into_one_folder_never_take_each_others_names(disc, op):
    code = "from omnipersona_cli.cli.main import cli; cli()"
    plugin = (
        "from omnipersona_cli import registry; from omnipersona_cli.testing import SketchPlugin; "
        "registry.plugin_manager().register(SketchPlugin(), name='s'); "
    )
    words = ["gen", "<bo>", "-n", "8", "-o", "pictures/", "--force", "--seed"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", plugin + code, *words, seed], stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "100")
    ]
    said = [run.communicate()[0].split() for run in runs]
    assert len({*said[0], *said[1]}) == 16 == len(list(Path("pictures").iterdir()))


@pytest.mark.parametrize("prompt", ["generate a toy for <bo>", "<bo> with its toy", "<bo> at home"])
def test_a_picture_is_made_again_whatever_the_facts_say_by_now(disc, op, prompt):
    op("gen", prompt, "--seed", "4", "-o", "one.png")
    assert op("concepts", "facts", "bo", "rm", "1").exit_code == 0
    op("concepts", "facts", "bo", "add", "<bo>'s toy is a blue bo and it is big")
    done = op("gen", "--like", "one.png", "-o", "two.png")
    assert done.exit_code == 0, done.stderr
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert one.tobytes() == two.tobytes()
