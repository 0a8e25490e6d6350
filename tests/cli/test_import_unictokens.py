"""`op concepts import FOLDER --from unictokens`, and what the concept is good for afterwards."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from tiny_showo import write_tiny, write_unictokens

from omnipersona_cli import registry
from omnipersona_cli.backend import Opening
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.testing import drawing

Op = Callable[..., Result]
HERE = ("--model", "tiny", "--device", "cpu")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny Show-o, a saved concept and a picture, in the current folder."""
    folder = tmp_path / "work"
    write_tiny(folder / "tiny")
    write_unictokens(folder / "saves" / "bo" / "stage_3", rows=33)
    drawing("red", 1).save(folder / "red.png")
    monkeypatch.chdir(folder)
    return folder


def take_in(op: Op, *words: str) -> Result:
    return op("concepts", "import", "saves/bo/stage_3", "--from", "unictokens", *HERE, *words)


def test_the_concept_is_kept_and_what_was_understood_is_said(work: Path, op: Op) -> None:
    done = take_in(op)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(Library().path("bo"))
    for said in (
        "epoch 15",
        "33 rows of width 32: stage 3",
        "token_0 to 15 and token_24 to 31 become its understanding part",
        "token_0 to 23 become its painting part",
        "called <bo> after its folder",
        "<bo> is bound to tiny",
        "not calibrated",
    ):
        assert said in done.stderr
    shown = op("concepts", "show", "bo").stdout
    assert "1 id, 24 und, 24 gen of width 32" in shown
    assert "unictokens" in shown and "stage 3" in shown
    assert op("concepts", "verify", "bo").stdout == "sound\n"


def test_no_weights_are_opened_for_it(work: Path, op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("op_showo.loading.open_backend", lambda opening: pytest.fail("opened"))
        assert take_in(op).exit_code == 0
    (slot,) = Library().header("bo").slots.values()
    opened = registry.open_backend(Opening(backend="showo", model="tiny", device="cpu"))
    assert slot.about["fingerprint"] == opened.fingerprint
    assert op("ask", "red.png", "is <bo> here?").exit_code == 0, "the folder is known"


def test_the_imported_concept_is_asked_painted_and_edited(work: Path, op: Op) -> None:
    take_in(op)
    here = ("-b", "showo", *HERE)
    asked = op("ask", "red.png", "is <bo> here?", *here)
    assert asked.stdout.strip() in ("yes", "no", "not sure"), asked.stderr
    few = ("--steps", "1", "--seed", "1", "--metadata", "none", *here)
    assert op("gen", "<bo> at sea", *few, "-o", "sea.png").exit_code == 0
    box = ("--box", "0,0,32,32")
    assert op("edit", "sea.png", "add <bo>", *box, *few, "-o", "added.png").exit_code == 0
    write_unictokens(work / "saves" / "bo" / "stage_3", rows=33, epoch=20)
    take_in(op, "--force")
    op("gen", "<bo> at sea", *few, "-o", "other.png")
    assert (work / "sea.png").read_bytes() != (work / "other.png").read_bytes()


def test_json_says_what_was_understood(work: Path, op: Op) -> None:
    answer = json.loads(take_in(op, "--name", "rex", "--json", "-q").stdout)
    assert answer == {
        "name": "rex",
        "path": str(Library().path("rex")),
        "understood": {
            "epoch": 15,
            "stage": 3,
            "rows": 33,
            "width": 32,
            "id": "<concept>",
            "und": "token_0 to 15 and token_24 to 31",
            "gen": "token_0 to 23",
        },
    }


def test_a_name_that_is_taken_is_kept_unless_forced(work: Path, op: Op) -> None:
    take_in(op)
    before = Library().read_bytes("bo")
    write_unictokens(work / "saves" / "bo" / "stage_3", rows=25, epoch=20)
    done = take_in(op)
    assert done.exit_code == 1 and "--force" in done.stderr and "loading" not in done.stderr
    assert Library().read_bytes("bo") == before
    assert take_in(op, "--force").exit_code == 0
    assert "stage 2" in op("concepts", "show", "bo").stdout


def test_rows_of_another_width_are_for_another_base(work: Path, op: Op) -> None:
    for file in (work / "saves/bo/stage_3").glob("*[dt].pt"):
        torch.save(torch.randn(33, 48), file)
    done = take_in(op)
    assert done.exit_code == 1 and done.stdout == ""
    assert "48 wide" in done.stderr and "rows of 32" in done.stderr and "--model" in done.stderr
    assert Library().names() == ()


def test_rows_that_would_drown_all_others_are_refused(work: Path, op: Op) -> None:
    path = work / "saves/bo/stage_3/epoch_15_embed.pt"
    torch.save(torch.load(path, weights_only=True) * 1e4, path)
    done = take_in(op)
    assert done.exit_code == 1 and "larger than showo allows" in done.stderr
    assert Library().names() == ()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("saves/bo/stage_3", "--from", "unictoken"), 3, "did you mean unictokens?"),
        (("saves/bo/stage_3", "--from", "zzz"), 3, "--from takes unictokens"),
        (("saves/bo", "--from", "unictokens"), 3, "op concepts import saves/bo/stage_3 --from"),
        (("nowhere", "--from", "unictokens"), 3, "no folder nowhere"),
        (("-", "--from", "unictokens"), 3, "no folder -"),
        (("red.png", "--from", "unictokens"), 2, "not a folder"),
        (("saves/bo/stage_3", "--from", "unictokens", "--epoch", "3"), 3, "--epoch 15 is whole"),
        (("saves/bo/stage_3", "--from", "unictokens", "--name", "../bo"), 2, "not a name"),
        (
            ("saves/bo/stage_3", "--from", "unictokens", "--model", "none"),
            3,
            "none are not on this computer",
        ),
        (("saves/bo/stage_3",), 1, "--from unictokens"),
        (("red.png", "--epoch", "3"), 2, "--epoch goes with --from"),
    ],
)
def test_what_cannot_be_imported_is_said(
    work: Path, op: Op, words: tuple[str, ...], code: int, says: str
) -> None:
    done = op("concepts", "import", *words)
    assert done.exit_code == code, done.output
    assert says in done.stderr and "Hint:" in done.stderr and done.stdout == ""
    assert Library().names() == ()


def test_a_folder_that_gives_no_name_asks_for_one(work: Path, op: Op) -> None:
    write_unictokens(work / "1 2", rows=25)
    done = op("concepts", "import", "1 2", "--from", "unictokens", *HERE)
    assert done.exit_code == 2 and "--name bo" in done.stderr
    assert Library().names() == ()


def test_programs_are_completed_and_shown_with_their_backend(work: Path, op: Op) -> None:
    from omnipersona_cli.cli.options import complete_importers

    found = complete_importers(None, None, "uni")  # type: ignore[arg-type]
    assert [it.value for it in found] == ["unictokens"]
    shown = op("backends", "show", "showo").stdout.splitlines()
    assert ["imports", "unictokens"] in [line.split() for line in shown]
