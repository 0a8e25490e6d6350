"""How Emu3 writes a picture among words, and the sizes in which it does.

A picture of H x W codes is `<|image start|>H*W<|image token|>`, H rows of W codes and an
end of line each, then end of frame and `<|image end|>` (arXiv 2409.18869,
section 2; the released processor).
A code covers 8 x 8 pixels. Grids are (rows, columns), sizes are (width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

BOS, EOS, EOL, EOF = "<|extra_203|>", "<|extra_204|>", "<|extra_200|>", "<|extra_201|>"
BOI, WRAPPER, EOI = "<|image start|>", "<|image token|>", "<|image end|>"
NEEDED = (BOS, EOS, EOL, EOF, BOI, WRAPPER, EOI)
"""Special tokens, found by their strings: their numbers are the tokenizer's business."""

SYSTEM = "You are a helpful assistant. "
QUALITY = " masterpiece, film grained, best quality."
UNWANTED = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, "
    "cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, "
    "username, blurry."
)
"""The authors' own words around a prompt and in the place of one (Emu3's README)."""

SIDE = 8
"""Pixels of a code, each way."""
AREAS = (720 * 720, 512 * 512)
"""Pixels that it was trained to paint; the first is the default."""
RATIOS = ((1, 1), (16, 9), (9, 16), (4, 3), (3, 4))
"""Width to height, as the processor of transformers has them."""
STEEPEST = 3.0
"""A longer picture is squeezed to this ratio: a strip of a few codes shows nothing."""
ROOM = 256
"""Positions that a size must leave for words."""


def visual(code: int) -> str:
    """The token of a code."""
    return f"<|visual token {code:06d}|>"


def opening(grid: tuple[int, int]) -> str:
    """The text after which codes of a picture follow."""
    return f"{BOI}{grid[0]}*{grid[1]}{WRAPPER}"


def length(grid: tuple[int, int]) -> int:
    """Tokens of a picture: codes, ends of lines, end of frame, end of image, end of text."""
    return grid[0] * (grid[1] + 1) + 3


def areas_within(least: int, most: int) -> tuple[int, ...]:
    """The trained areas that an image processor takes; the smallest it takes where it takes none
    of them."""
    return tuple(area for area in AREAS if least <= area <= most) or (least,)


def sizes(areas: Sequence[int], positions: int) -> tuple[tuple[int, int], ...]:
    """The sizes of pictures that fit into ``positions``, with room for words."""
    found: list[tuple[int, int]] = []
    for area in areas:
        for wide, high in RATIOS:
            scale = sqrt(area / (wide * high)) / SIDE
            grid = (round(high * scale), round(wide * scale))
            if min(grid) and length(grid) + ROOM <= positions:
                found.append((grid[1] * SIDE, grid[0] * SIDE))
    return tuple(dict.fromkeys(found))


def grid_for(size: tuple[int, int], area: int) -> tuple[int, int]:
    """The grid of about ``area`` pixels in the shape of a picture of ``size``."""
    ratio = min(max(size[0] / size[1], 1 / STEEPEST), STEEPEST)
    rows, columns = sqrt(area / ratio) / SIDE, sqrt(area * ratio) / SIDE
    return max(1, round(rows)), max(1, round(columns))
