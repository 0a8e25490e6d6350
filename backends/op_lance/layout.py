"""Where the rows of a sample stand: the positions that Lance moves, and the contexts of painting.

Text takes one position per row; a picture of h x w tokens stands at rows and columns and takes
max(h, w) + 2 (`op_bagel.packing`). Source: Lance release (arXiv 2605.18678), position and
sampling code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from op_bagel.cache import Cache
from op_bagel.model import Bagel
from op_bagel.segments import Latent, Noise, Sample, Segment, SoftRows, Text, Vit


def placed(sample: Sample, *, start: int = 0, anchor: int | None = None) -> list[Segment]:
    """The segments of a sample that begins at position ``start``, moved as the release moves them.

    All pictures for the tower move on the frame axis by one distance, which brings the first of
    them to ``anchor`` (None: they stay). A picture to be painted stands where the clean latents of
    the same shape stand that it is edited from; several noised copies of one stand at one place.
    """
    position = start
    shift: int | None = None
    clean: dict[tuple[int, int], int] = {}
    before: Segment | None = None
    found: list[Segment] = []
    for segment in sample:
        moved = segment
        if isinstance(segment, Vit) and anchor is not None:
            shift = anchor - position if shift is None else shift
            moved = replace(segment, frame_shift=shift)
        elif isinstance(segment, Latent):
            clean[segment.grid] = position - start
        elif isinstance(segment, Noise):
            if isinstance(before, Noise) and before.grid == segment.grid:
                position -= length(before)
            moved = replace(segment, start=clean.get(segment.grid, position - start))
        found.append(moved)
        position += length(segment)
        before = segment
    return found


def length(segment: Segment) -> int:
    """How many positions a segment takes."""
    if isinstance(segment, Text):
        return len(segment.ids) if segment.raw else len(segment.ids) + 2
    return max(segment.grid) + 2


def raw(ids: Sequence[int], soft: Sequence[SoftRows] = ()) -> Text:
    """Template text: nothing is put around it."""
    return Text(tuple(ids), raw=True, soft=tuple(soft))


def painting_contexts(
    model: Bagel,
    before: Cache,
    prompt: Text,
    after: Text,
    *,
    source: int | None = None,
    recount: bool = False,
) -> tuple[Cache, Cache]:
    """The context of a picture to be painted, and the one without its prompt that guidance leans
    away from. Both start at the position where the picture stands.

    ``before`` ends where the prompt begins, ``after`` is the template between prompt and picture.
    ``source`` is the position of the clean latents that are edited, whose place the picture takes.
    Without its prompt the released sampler keeps the template behind it at the positions that it
    has with the prompt, but counts the picture's anew; ``recount`` counts the template's anew too,
    as the release does where it keeps no cache.
    """
    start = int(before.positions[0])
    full = model.prefill([prompt, after], cache=before)
    kept = before if recount else before.at(start + len(prompt.ids))
    bare = model.prefill([after], cache=kept).at(start + len(after.ids))
    return (full, bare) if source is None else (full.at(source), bare.at(source))


def concept_text(
    head: Sequence[int],
    concepts: Sequence[tuple[Tensor, Tensor, Tensor]],
    *,
    says: Sequence[int],
    ends: Sequence[int],
) -> Text:
    """``head``, then for each concept `<sks> says und_1.. gen_1.. ends`: the start of the system
    turn, the first rows of every context of these concepts.

    Each concept is its learned rows (identifier [1, D], und [Nu, D], gen [Ng, D]); ``head``,
    ``says`` (" is") and ``ends`` are token ids.
    """
    ids = [*head]
    soft: list[SoftRows] = []
    for identifier, und, gen in concepts:
        first = len(ids) + 1 + len(says)
        second = first + len(und)
        soft.append(SoftRows((len(ids),), identifier))
        if len(und):
            soft.append(SoftRows(range(first, second), und))
        if len(gen):
            soft.append(SoftRows(range(second, second + len(gen)), gen, "gen"))
        ids += [0, *says, *[0] * (len(und) + len(gen)), *ends]
    return raw(ids, soft)
