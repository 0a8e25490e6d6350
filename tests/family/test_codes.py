"""Which codes a mask leaves alone, and how far painting is."""

import torch
from PIL import Image as images

from omnipersona_cli.family.codes import kept_codes, over_all


def test_without_a_mask_nothing_is_kept() -> None:
    assert not kept_codes(None, (2, 3)).any()


def test_a_black_mask_keeps_everything_and_a_white_one_nothing() -> None:
    assert kept_codes(images.new("L", (8, 8), 0), (4, 4)).all()
    assert not kept_codes(images.new("L", (8, 8), 255), (4, 4)).any()


def test_a_pixel_frees_its_code_and_the_neighbours() -> None:
    mask = images.new("L", (50, 50), 0)
    mask.putpixel((25, 25), 255)
    free = ~kept_codes(mask, (5, 5)).view(5, 5)
    assert free.nonzero().tolist() == [[row, column] for row in (1, 2, 3) for column in (1, 2, 3)]
    assert (~kept_codes(mask, (5, 5), spread=0)).nonzero().tolist() == [[12]]


def test_a_grid_finer_than_the_mask_is_covered_whole() -> None:
    mask = images.new("L", (2, 1), 0)
    mask.putpixel((1, 0), 255)
    free = ~kept_codes(mask, (2, 8), spread=0).view(2, 8)
    assert torch.equal(free, torch.tensor([[False] * 4 + [True] * 4] * 2))


def test_steps_count_over_all_pictures() -> None:
    told: list[tuple[int, int]] = []
    on_step = over_all(lambda done, total: told.append((done, total)), 1, 3)
    assert on_step is not None
    on_step(2, 10)
    assert told == [(12, 30)]
    assert over_all(None, 0, 3) is None
