"""Where concept tokens start, how long they may be, and where they stand in a prompt."""

import pytest
import torch

from omnipersona_cli.backend import ConceptTokens
from omnipersona_cli.errors import SlotError
from omnipersona_cli.family.tokens import (
    TokenSlot,
    check_width,
    embedded,
    introduced,
    kmeans,
    norm_limit,
    spelled,
    start_tokens,
    trainable,
    written,
)
from omnipersona_cli.language.mentions import to_turn


def tokens(name: str = "bo", width: int = 4) -> ConceptTokens:
    return ConceptTokens(
        name=name,
        id=torch.full((1, width), 1.0),
        und=torch.full((2, width), 2.0),
        gen=torch.full((3, width), 3.0),
    )


def test_kmeans_finds_separate_groups_and_follows_its_seed() -> None:
    torch.manual_seed(0)
    groups = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = (groups[:, None] + 0.1 * torch.randn(3, 20, 2)).flatten(0, 1)
    centres = kmeans(rows, 3, 1)
    assert torch.equal(centres, kmeans(rows, 3, 1))
    nearest = torch.cdist(rows, kmeans(rows, 12, 0)).min(1).values
    assert float(nearest.max()) < 1.0


def test_kmeans_of_few_rows_repeats_them_a_little_apart() -> None:
    rows = torch.randn(3, 4)
    centres = kmeans(rows, 8, 0)
    assert centres.shape == (8, 4) and len(centres.unique(dim=0)) == 8
    assert float(torch.cdist(centres, rows).min(1).values.max()) < 0.5


def test_no_centres_are_none() -> None:
    assert kmeans(torch.randn(5, 4), 0, 0).shape == (0, 4)


def test_tokens_start_with_the_length_of_words_and_can_be_learned() -> None:
    made = start_tokens(
        "bo",
        features=torch.randn(20, 4),
        codes=torch.randn(20, 4),
        understand=3,
        generate=2,
        seed=0,
        length=0.5,
        codes_length=2.0,
    )
    assert made.und.norm(dim=1).tolist() == pytest.approx([0.5] * 3)
    assert made.gen.norm(dim=1).tolist() == pytest.approx([2.0] * 2)
    assert all(rows.is_leaf and rows.requires_grad for rows in made.parameters())


def test_rows_that_are_too_long_are_shortened_and_others_left_alone() -> None:
    rows = trainable(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), limit=1.0)
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


def test_a_row_may_be_ten_times_as_long_as_the_longest_of_the_table() -> None:
    assert norm_limit(torch.tensor([[3.0, 4.0], [1.0, 0.0]])) == 50.0


def test_tokens_of_another_width_say_what_to_do() -> None:
    check_width(tokens(), 4)
    with pytest.raises(SlotError, match="its tokens are 4 wide, those of janus 8") as caught:
        check_width(tokens(), 8, backend="janus")
    assert caught.value.hint == "op learn PHOTOS --name bo -b janus"


def test_mentions_become_slots_and_unknown_names_stay_text() -> None:
    turn = to_turn("<bo> and <mam>")
    assert written(turn, ["bo"]) == [TokenSlot(name="bo", part="id"), " and <mam>"]
    assert written(turn, []) == ["<bo> and <mam>"]


def test_each_task_is_shown_the_part_that_serves_it() -> None:
    def parts(task: str) -> list[str]:
        pieces = introduced(["bo"], task)  # type: ignore[arg-type]
        return [piece.part for piece in pieces if isinstance(piece, TokenSlot)]

    assert parts("understand") == ["id", "und"]
    assert parts("generate") == ["id", "gen"]
    assert parts("edit") == ["id", "und", "gen"]


def test_slots_take_their_rows_and_texts_those_of_the_table() -> None:
    table = torch.nn.Embedding(300, 4)
    script = spelled(
        ["a", "b", TokenSlot(name="bo", part="und"), ""], lambda text: [*text.encode()]
    )
    assert script == [[97, 98], TokenSlot(name="bo", part="und")]
    rows = embedded(script, {"bo": tokens()}, table)
    assert torch.equal(rows, torch.cat([table.weight[[97, 98]], tokens().und]))
