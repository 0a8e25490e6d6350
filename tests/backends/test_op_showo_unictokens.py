"""Folders that UniCTokens saved: what is read of good ones, and what is said of bad ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_showo import write_tiny, write_unictokens

from omnipersona_cli.backend import Opening, Prompt
from omnipersona_cli.errors import MissingError, PackError, PersonaError, UsageError
from omnipersona_cli.language.mentions import to_turn
from op_showo import placing
from op_showo.backend import ShowoBackend
from op_showo.loading import open_backend
from op_showo.unictokens import read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_unictokens(tmp_path / "saves" / "bo" / "stage_2", rows=25)


def rows_of(folder: Path, part: str, epoch: int = 15) -> torch.Tensor:
    found: torch.Tensor = torch.load(folder / f"epoch_{epoch}_{part}.pt", weights_only=True)
    return found


@pytest.mark.parametrize(
    ("rows", "stage", "und", "gen"),
    [
        (17, 1, [*range(1, 17)], [*range(1, 17)]),
        (25, 2, [*range(1, 17)], [*range(1, 25)]),
        (33, 3, [*range(1, 17), *range(25, 33)], [*range(1, 25)]),
    ],
)
def test_the_number_of_rows_tells_the_stage_and_what_each_row_is_for(
    tmp_path: Path, rows: int, stage: int, und: list[int], gen: list[int]
) -> None:
    folder = write_unictokens(tmp_path / "bo", rows=rows)
    foreign = read(folder, epoch=None)
    embed, weight, bias = (
        rows_of(folder, part) for part in ("embed", "lm_head_weight", "lm_head_bias")
    )
    tokens = foreign.tokens
    assert torch.equal(tokens.id, embed[:1])
    assert torch.equal(tokens.und, embed[und]) and torch.equal(tokens.gen, embed[gen])
    assert torch.equal(tokens.extra[placing.HEAD], weight[:1])
    assert torch.equal(tokens.extra[placing.BIAS], bias[:1])
    understood = foreign.understood
    assert (understood["stage"], understood["rows"], understood["width"]) == (stage, rows, 32)
    told = "\n".join(foreign.notes)
    assert f"{rows} rows of width 32: stage {stage}" in told and understood["und"] in told


def test_the_rows_stand_where_unictokens_put_them(folder: Path, tmp_path: Path) -> None:
    """ "USER: <bo> is token_0 … token_15." and "A photo of token_0 … token_23 <bo>."."""
    showo = open_backend(Opening(model=str(write_tiny(tmp_path / "tiny")), device="cpu"))
    assert isinstance(showo, ShowoBackend)
    embed = rows_of(folder, "embed")
    tokens = read(folder, epoch=None).tokens
    who = placing.concept_rows((tokens,), showo.net.config.vocab.size)
    size = showo.net.config.vocab.size

    def soft_rows(ids: list[int]) -> torch.Tensor:
        embedded = showo.net.embed(torch.tensor(ids), who.soft)
        return embedded[torch.tensor(ids) >= size]

    asked = placing.question_ids((to_turn("what is it?"),), who, showo.tokenizer)
    assert torch.equal(soft_rows(asked), embed[:17])
    painted = placing.request_ids(to_turn("A photo of <bo>."), who, showo.tokenizer)
    assert torch.equal(soft_rows(painted), torch.cat((embed[1:25], embed[:1])))


def test_the_name_can_be_said(folder: Path, tmp_path: Path) -> None:
    """Its head row counts: with a large bias the model says nothing else."""
    showo = open_backend(Opening(model=str(write_tiny(tmp_path / "tiny")), device="cpu"))
    bias = rows_of(folder, "lm_head_bias")
    bias[0] = 99.0
    torch.save(bias, folder / "epoch_15_lm_head_bias.pt")
    tokens = read(folder, epoch=None).tokens
    prompt = Prompt(turns=(to_turn("who is <bo>?"),), concepts=(tokens,))
    assert "".join(showo.say(prompt, max_tokens=2)) == "<bo><bo>"


def test_the_latest_epoch_is_taken_unless_one_is_named(folder: Path) -> None:
    for epoch in (5, 100):
        write_unictokens(folder, rows=25, epoch=epoch)
    latest, named = read(folder, epoch=None), read(folder, epoch=5)
    assert latest.understood["epoch"] == 100 and "also here: 5, 15" in latest.notes[0]
    assert torch.equal(latest.tokens.id, rows_of(folder, "embed", 100)[:1])
    assert torch.equal(named.tokens.id, rows_of(folder, "embed", 5)[:1])
    with pytest.raises(MissingError, match=r"epoch_7_embed\.pt"):
        read(folder, epoch=7)


def test_half_an_epoch_names_the_file_and_one_that_is_whole(folder: Path) -> None:
    write_unictokens(folder, rows=25, epoch=20)
    (folder / "epoch_20_lm_head_bias.pt").unlink()
    with pytest.raises(MissingError, match=r"epoch_20_lm_head_bias\.pt") as caught:
        read(folder, epoch=None)
    assert caught.value.hint.startswith("--epoch 15")


def test_the_concept_is_called_after_its_folder(folder: Path, tmp_path: Path) -> None:
    assert read(folder, epoch=None).tokens.name == "bo"
    elsewhere = write_unictokens(tmp_path / "rex", rows=25)
    assert read(elsewhere, epoch=None).tokens.name == "rex"


@pytest.mark.parametrize(
    ("place", "error", "says"),
    [
        ("nowhere", MissingError, "no folder"),
        (".", MissingError, "saved nothing"),
        ("stage_2/epoch_15_embed.pt", UsageError, "not a folder"),
    ],
)
def test_another_place_is_told_apart_and_the_right_one_named(
    folder: Path, place: str, error: type[PersonaError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        read(folder.parent / place, epoch=None)
    assert place == "nowhere" or f"op concepts import {folder} --from" in caught.value.hint


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


Change = Callable[[torch.Tensor], Any]


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("embed", lambda rows: rows.index_fill(0, torch.tensor(3), torch.nan), "not finite"),
        ("lm_head_bias", lambda rows: rows.index_fill(0, torch.tensor(3), torch.inf), "not finite"),
        ("lm_head_weight", lambda rows: rows[:, :-1].clone(), "do not belong together"),
        ("lm_head_bias", lambda rows: rows[:-1].clone(), "do not belong together"),
        ("lm_head_bias", lambda rows: rows[:, None], "do not belong together"),
        ("embed", lambda rows: rows[0].clone(), "do not belong together"),
        ("embed", lambda rows: rows[None], "shaped"),
        ("embed", lambda rows: rows.repeat(2, 1), "shaped"),
        ("embed", lambda rows: rows[:, :1].expand(25, 1 << 40), "rows of"),
        ("embed", lambda rows: rows.long(), "not a tensor of numbers"),
        ("embed", lambda rows: rows.to_sparse(), "not a tensor of numbers"),
        ("embed", lambda rows: rows.to("meta"), "not a tensor of numbers"),
        ("embed", lambda rows: {"weight": rows}, "not a tensor of numbers"),
        ("embed", lambda _: Trap(), "something else than a tensor"),
        ("embed", lambda rows: {"weight": rows, "more": Trap()}, "something else than a tensor"),
    ],
)
def test_a_file_that_is_not_its_rows_is_refused(
    folder: Path, part: str, change: Change, says: str
) -> None:
    torch.save(change(rows_of(folder, part)), folder / f"epoch_15_{part}.pt")
    with pytest.raises(PackError, match=says) as caught:
        read(folder, epoch=None)
    assert caught.value.hint


@pytest.mark.parametrize("left", [0, 10, -50])
def test_a_file_that_is_cut_off_is_refused(folder: Path, left: int) -> None:
    path = folder / "epoch_15_embed.pt"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(PackError, match=r"epoch_15_embed\.pt is cut off"):
        read(folder, epoch=None)


def test_rows_of_no_known_stage_are_refused(tmp_path: Path) -> None:
    folder = write_unictokens(tmp_path / "bo", rows=24)
    with pytest.raises(PackError, match=r"24 rows.*25 \(stage 2\), 33 \(stage 3\)"):
        read(folder, epoch=None)
