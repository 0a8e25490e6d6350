"""What a person may ask for in numbers: seeds, pictures, tries, steps, guidance, pixels."""

from __future__ import annotations

import math
import secrets

from omnipersona_cli.data.about import SEEDS as SEEDS
from omnipersona_cli.errors import UsageError

LARGEST_SIDE = 8192
MOST_TRIES = 64
MOST_STEPS = 1000
MOST_GUIDANCE = 100
SMALLEST_SIDE = 8
"""The fewest pixels on each side of a picture, painted or looked at."""

MOST_PICTURES = 1000
"""The most pictures that one call makes."""


def checked_count(count: int) -> int:
    """``count``; UsageError where it is out of range."""
    if not 1 <= count <= MOST_PICTURES:
        raise _out_of_range("-n", count, "pictures", 1, MOST_PICTURES)
    return count


def checked_seeds(seed: int | None, count: int) -> tuple[int, ...]:
    """``count`` seeds in a row; a random start where none is given."""
    if seed is not None and not 0 <= seed < SEEDS:
        raise _out_of_range("--seed", seed, "as a seed", 0, SEEDS - 1)
    start = secrets.randbelow(2**31) if seed is None else seed
    return tuple((start + index) % SEEDS for index in range(count))


def check_sampling(
    *,
    steps: int | None,
    guidance: float | None,
    size: tuple[int, int] | None = None,
    tries: int | None = None,
) -> None:
    """UsageError for numbers that no backend could take; None is the backend's own."""
    if tries is not None and not 1 <= tries <= MOST_TRIES:
        raise _out_of_range("--tries", tries, "tries", 1, MOST_TRIES)
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise _out_of_range("--steps", steps, "steps", 1, MOST_STEPS)
    if guidance is not None and not (math.isfinite(guidance) and 0 <= guidance <= MOST_GUIDANCE):
        raise _out_of_range("--guidance", guidance, "as guidance", 0, MOST_GUIDANCE)
    if size is not None and not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in size):
        raise UsageError(
            f"{size[0]}x{size[1]} pixels cannot be painted: "
            f"each side has {SMALLEST_SIDE} to {LARGEST_SIDE}",
            hint="leave out --size; `op backends show NAME` names the sizes of a backend",
        )


def _out_of_range(flag: str, value: float, what: str, least: int, most: int) -> UsageError:
    return UsageError(
        f"{value} {what} is outside the range {least} to {most}", hint=f"{flag} {max(least, 1)}"
    )
