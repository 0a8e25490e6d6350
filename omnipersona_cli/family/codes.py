"""Pictures as grids of codes: those that an edit leaves alone, and how far painting is."""

from __future__ import annotations

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn import functional

from omnipersona_cli.backend import OnStep


def kept_codes(mask: Image | None, grid: tuple[int, int], *, spread: int = 1) -> Tensor:
    """Which codes [rows * columns] of a grid (rows, columns) stay as they are.

    ``mask`` is white where a pixel may change. A code that one such pixel touches may change, and
    so may its neighbours up to ``spread`` codes away, because a decoder lets each code colour its
    surroundings. Without a mask nothing is kept.
    """
    rows, columns = grid
    if mask is None:
        return torch.zeros(rows * columns, dtype=torch.bool)
    reach = (max(columns, -(-mask.width // columns) * columns), -(-mask.height // rows) * rows)
    even = mask.convert("L").resize((reach[0], max(rows, reach[1])), Resampling.NEAREST)
    white = torch.from_numpy(np.array(even) > 127).float()
    cells = functional.adaptive_max_pool2d(white[None, None], (rows, columns))
    if spread:
        cells = functional.max_pool2d(cells, 2 * spread + 1, stride=1, padding=spread)
    return cells.flatten() == 0


def over_all(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    """The steps of picture ``number`` (from 0), reported as steps over all ``count`` pictures."""
    if on_step is None:
        return None
    return lambda done, steps: on_step(number * steps + done, count * steps)
