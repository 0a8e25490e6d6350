"""Which codes a mask leaves alone, painting them, and how far it is."""

import torch
from PIL import Image as images
from PIL.Image import Image, Resampling

from omnipersona_cli.family.codes import changed_codes, kept_codes, over_all, paint_codes


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


def test_an_edit_that_changed_no_code_frees_all() -> None:
    codes = torch.arange(6).view(2, 3)
    other = codes.clone()
    other[1, 2] = 0
    assert changed_codes(codes, other).nonzero().tolist() == [[1, 2]]
    assert changed_codes(codes, codes).all()


def test_estimates_are_what_is_drawn_over_what_is_known() -> None:
    def sample(*, generator, on_step, on_codes):  # type: ignore[no-untyped-def]
        drawn = torch.randint(1, 200, (4,), generator=generator)
        for done in range(1, 5):
            on_step(done, 4)
            on_codes(done, 4, drawn[:done].tolist())
        return drawn

    def decode(codes: torch.Tensor) -> Image:
        return images.fromarray(codes.view(2, 2).byte().numpy()).convert("RGB")

    def quiet(*_: object) -> None:
        pass

    steps, looks = [], []
    painted = list(
        paint_codes(
            sample,
            decode,
            (2, 2),
            seeds=(5, 6),
            known=torch.zeros(4, dtype=torch.long),
            size=(4, 4),
            on_step=lambda *step: steps.append(step),
            on_estimate=lambda done, total, look: looks.append((done, total, look())),
        )
    )
    assert steps == [(done, 8) for done in range(1, 9)]
    assert [one.size for one in painted] == [(4, 4)] * 2
    assert looks[3][2].tobytes() == painted[0].tobytes() != looks[0][2].tobytes()
    (alone,) = paint_codes(sample, decode, (2, 2), seeds=(6,), on_step=quiet, on_estimate=quiet)
    assert alone.resize((4, 4), Resampling.BICUBIC).tobytes() == painted[1].tobytes()
