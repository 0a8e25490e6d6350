"""What a sample is made of: turns of text with learned rows in them, pictures to look at, latents.

A sample is a sequence of segments; `op_bagel.packing` lays their rows out.

Source: BAGEL release, packed data set; the routing of learned rows follows OmniPersona
(arXiv 2601.06965), section on decoupled concept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from op_bagel.pictures import Grid

Expert = Literal["und", "gen"]


@dataclass(frozen=True, eq=False)
class SoftRows:
    """Learned rows [n, D] in the place of the token ids at positions `at` of a text turn.

    Positions count the turn's `ids` (bos is not counted). The rows keep their graph and run
    through `expert`; they get no label, and gen rows predict none. They may be wide rows
    [n, D (1 + K)]: see `omnipersona_cli.family.deep`.
    """

    at: Sequence[int]
    rows: Tensor
    expert: Expert = "und"


@dataclass(frozen=True, eq=False)
class Text:
    """One text turn, causal: `bos ids eos`, or `ids` alone where `raw`.

    With `loss`, each row predicts the next id up to eos, from the id numbered `loss_from` in `ids`
    on. `after` is the label of the last row (a follow-up special token), if any. An id under a soft
    row is a placeholder.
    """

    ids: Sequence[int]
    loss: bool = False
    soft: Sequence[SoftRows] = ()
    raw: bool = False
    after: int | None = None
    loss_from: int = 0


@dataclass(frozen=True, eq=False)
class Vit:
    """A picture for understanding: `patches` [n, patch width] with their grid, or ready `features`.

    Features [n, D] are the connector's output with its position table added, as `model.see`
    gives them; with them no vision tower runs. `frame_shift` moves all its rows on the frame axis.
    """

    patches: Tensor | None = None
    grid: Grid = (0, 0)
    features: Tensor | None = None
    frame_shift: int = 0


@dataclass(frozen=True, eq=False)
class Latent:
    """A clean picture as latent tokens [n, latent width]; its time is 0."""

    tokens: Tensor
    grid: Grid


@dataclass(frozen=True, eq=False)
class Noise:
    """A picture to be generated: clean `tokens` [n, latent width], a time `t` in [0, 1], `noise`.

    The model reads (1 - t) * tokens + t * noise and is taught noise - tokens. Without `noise`
    the tokens are read as they are and nothing is taught. No row of another segment attends to
    these rows. `start` is the position of its first row, counted from the start of the sample,
    where that is not the next one.
    """

    tokens: Tensor
    grid: Grid
    t: float | Tensor
    noise: Tensor | None = None
    start: int | None = None


Segment = Text | Vit | Latent | Noise
Sample = Sequence[Segment]


def concept_turn(
    identifier: Tensor,
    understand: Tensor,
    generate: Tensor,
    *,
    says: Sequence[int],
    between: Sequence[int] = (),
    ends: Sequence[int],
) -> Text:
    """The turn that introduces a concept: `<sks> says und_1.. between gen_1.. ends`.

    `identifier` [1, D], `understand` [Nu, D] and `generate` [Ng, D] are learned rows; `says`
    (" is "), `between` (" ") and `ends` (".") are token ids. It is the first turn of its sample.
    """
    first = 1 + len(says)
    second = first + len(understand) + len(between)
    ids = [0, *says, *[0] * len(understand), *between, *[0] * len(generate), *ends]
    slots = [SoftRows((0,), identifier)]
    if len(understand):
        slots.append(SoftRows(range(first, first + len(understand)), understand))
    if len(generate):
        slots.append(SoftRows(range(second, second + len(generate)), generate, "gen"))
    return Text(ids, soft=tuple(slots))
