"""Batches in pieces."""

from omnipersona_cli.family.pieces import in_pieces


def test_pieces_stay_below_the_positions_that_fit() -> None:
    lengths = [1, 1, 9, 2, 2, 2]
    assert list(in_pieces("abcdef", lengths, most=6)) == ["ab", "c", "def"]
    assert list(in_pieces("abcdef", lengths, most=6, at_once=4)) == ["abcd", "ef"]
