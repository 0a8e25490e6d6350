"""Codes that are drawn ahead have the distribution of codes that are drawn one by one."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from omnipersona_cli.family.speculative import draw_ahead

CODES, LENGTH = 3, 4
TABLE = (
    torch.randn(
        LENGTH, *(CODES + 1,) * (LENGTH - 1), CODES, generator=torch.Generator().manual_seed(4)
    )
    .mul(0.8)
    .softmax(-1)
)
"""Chances of the next code behind every beginning; places that are not reached yet count as code
`CODES`."""


def behind(beginning: Sequence[int]) -> Tensor:
    """Chances [CODES] behind the codes of a beginning."""
    rest = (CODES,) * (LENGTH - 1 - len(beginning))
    chances: Tensor = TABLE[(len(beginning), *beginning, *rest)]
    return chances


class Table:
    """A model whose chances depend on everything that was read."""

    def __init__(self) -> None:
        self.known: list[int] = []

    def read(self, codes: Sequence[int]) -> Tensor:
        found = []
        for code in codes:
            self.known.append(code)
            found.append(behind(self.known))
        return torch.stack(found)

    def forget(self, count: int) -> None:
        del self.known[len(self.known) - count :]


def p_value(found: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of Pearson's chi-square: how probable a worse fit is where the distribution is right. What is
    expected less than ten times is counted together."""
    assert not found.keys() - expected.keys()
    often = [(found[codes], mean) for codes, mean in expected.items() if mean >= 10]
    rest = [(found[codes], mean) for codes, mean in expected.items() if mean < 10]
    if rest:
        often.append((sum(seen for seen, _ in rest), sum(mean for _, mean in rest)))
    distance = sum((seen - mean) ** 2 / mean for seen, mean in often)
    freedom = len(often) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(distance / 2)))


ALL = (None, None, None, 2)
"""What stands at the end is not asked for."""
REGION = (None, 1, None, None)


@pytest.mark.parametrize(("given", "window"), [(ALL, 2), (REGION, 4)])
def test_codes_drawn_ahead_have_the_distribution_of_codes_drawn_one_by_one(
    given: tuple[int | None, ...], window: int
) -> None:
    """The chances of all 27 pictures are known. It fails below p = 0.001, on a seed that is fixed:
    either of its two rules left out gives p below 1e-5 here."""
    draws = 900
    generator = torch.Generator().manual_seed(0)
    found: Counter[tuple[int, ...]] = Counter()
    forwards = 0
    for _ in range(draws):
        drawn = draw_ahead(Table(), behind(()), given, generator=generator, window=window)
        found[tuple(drawn.codes)] += 1
        forwards += drawn.forwards
    expected = {}
    for codes in product(*(range(CODES) if code is None else (code,) for code in given)):
        chance = 1.0
        for place, code in enumerate(codes):
            chance *= float(behind(codes[:place])[code]) if given[place] is None else 1.0
        expected[codes] = draws * chance
    assert p_value(found, expected) > 0.001
    assert forwards < draws * (max(place for place in range(LENGTH) if given[place] is None) + 1)


def test_without_chance_it_takes_the_likeliest_code_each_time() -> None:
    class Certain(Table):
        def read(self, codes: Sequence[int]) -> Tensor:
            return sure(super().read(codes))

    def sure(chances: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(chances.argmax(-1), CODES).float()

    steps: list[tuple[int, int]] = []
    drawn = draw_ahead(
        Certain(),
        sure(behind(())),
        (None,) * LENGTH,
        generator=torch.Generator().manual_seed(0),
        on_step=lambda *step: steps.append(step),
    )
    best: list[int] = []
    while len(best) < LENGTH:
        best.append(int(behind(best).argmax()))
    assert drawn.codes == best and drawn.forwards <= LENGTH
    assert steps[-1] == (LENGTH, LENGTH)


def test_where_nothing_is_asked_nothing_is_read() -> None:
    drawn = draw_ahead(Table(), behind(()), (1, 2), generator=torch.Generator().manual_seed(0))
    assert drawn.codes == [1, 2] and drawn.forwards == 1
