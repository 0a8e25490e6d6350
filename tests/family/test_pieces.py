"""Batches in pieces."""

import torch

from omnipersona_cli.family.pieces import in_pieces, most_positions, settled


def test_pieces_stay_below_the_positions_that_fit() -> None:
    lengths = [1, 1, 9, 2, 2, 2]
    assert list(in_pieces("abcdef", lengths, most=6)) == ["ab", "c", "def"]
    assert list(in_pieces("abcdef", lengths, most=6, at_once=4)) == ["abcd", "ef"]


def test_a_settled_loss_has_its_value_and_its_gradients_and_no_graph() -> None:
    rows = torch.tensor([1.0, 2.0], requires_grad=True)
    doubled = rows * 2  # one group in the place of two is neither a leaf nor there once
    loss = settled((doubled**2).sum(), [doubled, doubled])
    assert float(loss.detach()) == 20.0
    loss.backward()
    assert rows.grad is not None and rows.grad.tolist() == [8.0, 16.0]
    with torch.no_grad():
        assert float(settled((rows**2).sum(), [rows])) == 5.0, "nothing to settle"


class Sizes:
    hidden_size, num_hidden_layers = 2048, 24


def test_a_processor_learns_from_one_lesson_of_a_large_model_at_a_time() -> None:
    assert 600 < most_positions(Sizes, "cpu") < 1200, "of Janus-Pro-1B"
    assert most_positions(Sizes, "cpu", size=4) * 2 in range(600, 1201)
