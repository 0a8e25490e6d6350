"""What happens to a concept while it is learned, and to the learner: nothing is lost.

Learning runs in a process of its own, which waits in its first step until the test lets it go on.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import read_pack
from omnipersona_cli.concepts.upkeep import forget, runs
from omnipersona_cli.engine import Keeping, Settings, Subject, learn
from omnipersona_cli.testing import drawing

LEARNER = Path(__file__).with_name("slow_learner.py")


def started(photos, *words, mode=""):
    command = ["learn", str(photos), "--name", "bo", "-b", "sketch", "--steps", "3"]
    return subprocess.Popen(
        [sys.executable, str(LEARNER), *command, "--samples", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SLOW_LEARNER": mode},
    )


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out.strip(), err


def finished(home, photos, *words, mode=""):
    (home / "go").touch()
    return ended(started(photos, *words, mode=mode))


@contextmanager
def learning(home, photos, *words, mode=""):
    """A learner in its first step, or where ``mode`` says, which goes on when the block ends."""
    (home / "go").unlink(missing_ok=True)
    (home / "learning").unlink(missing_ok=True)
    process = started(photos, *words, mode=mode)
    deadline = time.monotonic() + 120
    while not (home / "learning").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    yield process
    (home / "go").touch()


def op(*words):
    """`op` in another process."""
    command = [sys.executable, "-m", "omnipersona_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def taught(home, photos, sketch):
    """A library with <bo>, of other photos."""
    home.mkdir(exist_ok=True)
    others = home / "others"
    others.mkdir()
    for seed in range(4):
        drawing("red", 40 + seed).save(others / f"{seed}.png")
    subject = Subject(photos=[others], name="bo", facts=["<bo> is old"])
    learn(subject, Settings(steps=2), Keeping(samples=0), backend=sketch)
    return Library()


def facts_of(library, name):
    return {fact.text for fact in library.header(name).facts}


@pytest.mark.parametrize("mode", ["", "starting"])
def test_facts_that_are_stated_while_it_is_learned_again_are_kept(taught, home, photos, mode):
    before = taught.header("bo").slots["sketch"].hash
    with learning(home, photos, "--force", mode=mode) as process:
        assert op("concepts", "facts", "bo", "add", "<bo> sleeps").returncode == 0
    code, out, err = ended(process)
    assert code == 0 and out == str(taught.path("bo")), err
    assert "<bo> was changed while it was learned" in err
    assert {"<bo> sleeps", "<bo>'s toy is a red ball"} <= facts_of(taught, "bo")
    assert taught.header("bo").slots["sketch"].hash != before
    assert runs() == ()


@pytest.mark.parametrize("mode", ["", "starting"])
def test_a_concept_that_is_renamed_while_it_is_learned_stays_one(taught, home, photos, mode):
    before = taught.header("bo").slots["sketch"].hash
    with learning(home, photos, "--force", mode=mode) as process:
        assert op("concepts", "rename", "bo", "rex").returncode == 0
    code, out, err = ended(process)
    assert code == 0 and out == str(taught.path("rex")), err
    assert "<bo> has become <rex>" in err and taught.names() == ("rex",)
    assert taught.header("rex").slots["sketch"].hash != before
    assert "<rex>'s toy is a red ball" in facts_of(taught, "rex")


@pytest.mark.parametrize("what", ["removed", "taken", "no library"])
def test_what_cannot_be_kept_where_it_was_wanted_is_named_and_importable(
    taught, home, photos, tmp_path, what
):
    kept = taught.path("bo").read_bytes()
    if what == "taken":
        taught.export("bo", tmp_path / "bo.opconcept")
        taught.remove("bo")
    force = () if what == "taken" else ("--force",)
    with learning(home, photos, *force) as process:
        if what == "removed":
            assert op("concepts", "rm", "bo", "--yes").returncode == 0
        elif what == "taken":
            assert op("concepts", "import", str(tmp_path / "bo.opconcept")).returncode == 0
        else:
            taught.folder.rename(taught.folder.with_name("moved"))
            taught.folder.write_text("a file now")
    code, out, err = ended(process)
    assert code == 1 and out == "" and "Traceback" not in err, err
    if what == "no library":
        taught.folder.unlink()
        taught.folder.with_name("moved").rename(taught.folder)
    assert (what == "removed") == (taught.names() == ())
    if what != "removed":
        assert taught.path("bo").read_bytes() == kept
    (hint,) = [line for line in err.splitlines() if line.startswith("Hint: ")]
    words = shlex.split(hint.removeprefix("Hint: op "))
    if what == "no library":
        words += ["--name", "other"]
    done = op(*words)
    assert done.returncode == 0, done.stderr
    name = {"removed": "bo", "taken": "bo-2", "no library": "other"}[what]
    assert name in taught.names() and read_pack(taught.path(name)).provenance["photos"] == 10


def test_a_run_that_was_cut_when_its_pack_was_kept_is_finished_by_resume(home, photos):
    home.mkdir(exist_ok=True)
    code, _, _ = finished(home, photos, mode="cut")
    library = Library()
    kept = library.path("bo").read_bytes()
    assert code == 137 and [run.concept for run in runs()] == ["bo"]
    refused = finished(home, photos)
    assert refused[0] == 1 and "there is a concept <bo> already" in refused[2]
    other = finished(home, photos, "--resume", "--seed", "9")
    assert other[0] == 1 and "there is a concept <bo> already" in other[2]
    code, out, err = finished(home, photos, "--resume")
    assert code == 0 and out == str(library.path("bo")), err
    assert library.path("bo").read_bytes() == kept and runs() == ()


def test_a_fact_stated_between_the_cut_and_resume_stays(home, photos):
    home.mkdir(exist_ok=True)
    assert finished(home, photos, mode="cut")[0] == 137
    assert op("concepts", "facts", "bo", "add", "<bo> sleeps").returncode == 0
    code, _, err = finished(home, photos, "--resume")
    assert code == 0 and runs() == (), err
    assert "<bo> sleeps" in facts_of(Library(), "bo")


@pytest.mark.parametrize("change", ["fact", "name", "removed"])
def test_what_changes_while_a_run_lies_interrupted_is_merged_by_resume(
    taught, home, photos, change
):
    with learning(home, photos, "--force") as process:
        assert op("concepts", "facts", "bo", "add", "<bo> sleeps").returncode == 0
        process.kill()
        process.communicate(timeout=120)
    word = {
        "fact": ("facts", "bo", "add", "<bo> dreams"),
        "name": ("rename", "bo", "rex"),
        "removed": ("rm", "bo", "--yes"),
    }[change]
    assert op("concepts", *word).returncode == 0
    code, out, err = finished(home, photos, "--force", "--resume")
    name = "rex" if change == "name" else "bo"
    assert code == 0 and out == str(taught.path(name)), err
    assert taught.names() == (name,) and runs() == ()
    facts = facts_of(taught, name)
    assert f"<{name}>'s toy is a red ball" in facts
    assert (f"<{name}> sleeps" in facts) == (change != "removed")
    assert ("<bo> dreams" in facts) == (change == "fact")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without hangups")
@pytest.mark.parametrize("sign", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_that_end_a_program_leave_a_checkpoint_and_say_so(home, photos, sign):
    home.mkdir(exist_ok=True)
    with learning(home, photos) as process:
        process.send_signal(getattr(signal, sign))
        if sign != "SIGINT":
            process.send_signal(getattr(signal, sign))  # a terminal that closes sends it twice
        time.sleep(0.2)
    code, out, err = ended(process)
    assert code == 130 and out == "" and "Traceback" not in err, err
    assert "Interrupted." in err and "--resume" in err
    assert [run.concept for run in runs()] == ["bo"] and Library().names() == ()
    code, _, err = finished(home, photos, "--resume", "--json")
    assert code == 0 and Library().names() == ("bo",), err


@pytest.mark.parametrize("mode", ["encoding", "checking"])
def test_ctrl_c_is_heeded_while_pictures_are_encoded_and_in_a_check(home, photos, mode):
    home.mkdir(exist_ok=True)
    with learning(home, photos, mode=mode) as process:
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)  # before it may go on
    assert code == 130 and out == "" and "Traceback" not in err, err
    assert "Interrupted." in err and Library().names() == ()
    assert len(runs()) == (mode == "checking")


def test_forgetting_a_concept_takes_its_unfinished_runs(home, photos):
    home.mkdir(exist_ok=True)
    with learning(home, photos) as process:
        process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 130 and len(runs()) == 1
    assert forget(Library(), "bo") and runs() == ()
