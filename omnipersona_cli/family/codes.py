"""Pictures as grids of codes: those that an edit leaves alone, and how far painting is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image as images
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn import functional

from omnipersona_cli.backend import OnEstimate, OnStep


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


def told_over_all(on_estimate: OnEstimate | None, number: int, count: int) -> OnEstimate | None:
    """As `over_all`, for whoever looks on."""
    if on_estimate is None:
        return None
    return lambda done, steps, look: on_estimate(number * steps + done, count * steps, look)


def seen_through(
    on_estimate: OnEstimate | None, shown: Callable[[Image], Image]
) -> OnEstimate | None:
    """Whoever looks on, shown ``shown(picture)`` instead of the picture."""
    if on_estimate is None:
        return None
    return lambda done, steps, look: on_estimate(done, steps, lambda: shown(look()))


def filled_up(drawn: Sequence[int] | Tensor, known: Tensor) -> Tensor:
    """Codes [N] of a picture of which only the first are drawn: the others are those of ``known``
    [N]."""
    codes = known.clone()
    codes[: len(drawn)] = torch.as_tensor(drawn, dtype=codes.dtype, device=codes.device)
    return codes


def veiled(picture: Image, grid: tuple[int, int], drawn: int) -> Image:
    """``picture``, painted code by code from the top left, with what is not ``drawn`` yet in the
    mean colour of what is: a decoder shows something there too, which means nothing."""
    rows, columns = grid
    pixels = np.asarray(picture).copy()
    down = np.arange(picture.height) * rows // picture.height
    across = np.arange(picture.width) * columns // picture.width
    hidden = down[:, None] * columns + across >= drawn
    if hidden.any():
        seen = pixels[~hidden]
        pixels[hidden] = seen.mean(0).round() if len(seen) else 127
    return images.fromarray(pixels)
