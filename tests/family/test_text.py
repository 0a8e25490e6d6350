"""Answers: which token comes next, what is shown of them, what they cost."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omnipersona_cli.family.text import (
    answered,
    choose,
    cross_entropies,
    log_probabilities,
    padded,
    replaced,
    stream,
    with_answer,
)


def speaker(*ids: int, size: int = 9) -> Callable[[int | None], Tensor]:
    """Says these ids, one after the other, whatever it reads."""
    rest = iter(ids)
    return lambda token: F.one_hot(torch.tensor(next(rest)), size).float()


def test_an_answer_ends_before_its_end_or_at_the_most() -> None:
    assert list(answered(speaker(3, 1, 8, 5), end=8, most=10)) == [3, 1]
    assert list(answered(speaker(3, 1, 8, 5), end=8, most=1)) == [3]
    assert list(answered(speaker(3), end=8, most=0)) == []


def test_each_token_is_read_before_the_next_is_asked_for() -> None:
    read: list[int | None] = []
    say = speaker(3, 1, 8)
    list(answered(lambda token: [read.append(token), say(token)][1], end=8, most=10))  # type: ignore[func-returns-value, return-value]
    assert read == [None, 3, 1]


def test_temperature_draws_and_the_seed_decides() -> None:
    scores = torch.zeros(100)
    draws = [choose(scores, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]
    assert choose(torch.tensor([0.0, 2.0, 1.0]), 0.0, torch.Generator()) == 1


def test_a_letter_of_several_tokens_is_shown_when_it_is_whole() -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    assert list(stream([*"aé".encode(), 98], decode)) == ["a", "é", "b"]
    assert list(stream([97, 0xC3], decode)) == ["a"]


@pytest.mark.parametrize("size", [1, 2, 3, 99])
def test_what_is_replaced_may_come_in_pieces(size: int) -> None:
    said = "<<sks>'s toy, of <sks> and <sk"
    pieces = [said[start : start + size] for start in range(0, len(said), size)]
    shown = list(replaced(pieces, "<sks>", "<bo>"))
    assert "".join(shown) == "<<bo>'s toy, of <bo> and <sk"
    assert size > 3 or len(shown) > 5


def test_given_answers_cost_what_their_tokens_cost_whatever_the_padding() -> None:
    torch.manual_seed(0)
    table, head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)
    answers = [torch.tensor([1, 2, 8]), torch.tensor([3, 8])]
    asked = torch.randn(2, 4)
    with torch.no_grad():
        pairs = [with_answer(asked, ids, table) for ids in answers]
        states = padded([rows for rows, _ in pairs])
        together = log_probabilities(
            cross_entropies(states, [labels for _, labels in pairs], head), answers
        )
        for (rows, _), ids, found in zip(pairs, answers, together, strict=True):
            logs = head(rows[len(asked) - 1 :]).log_softmax(-1)
            assert torch.isclose(found, logs.gather(1, ids[:, None]).sum())
    assert together.dtype == torch.float32
