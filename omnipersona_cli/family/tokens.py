"""Concept tokens: their start, their norms, and where they stand in a prompt.

A backbone with one language model has no expert to route a slot to. The two groups stay separate
parameters instead, and each task's prompt shows those that serve it: the understanding group for
understanding, the generation group for painting, both for editing (paper, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from omnipersona_cli.backend import ConceptTokens, Task, Turn
from omnipersona_cli.errors import SlotError
from omnipersona_cli.family.deep import joined_rows, wide_rows

TokenPart = Literal["id", "und", "gen"]
"""Identifier, understanding tokens, generation tokens (paper, section 3.1)."""

NORMS = 10.0
"""`Backend.norm_limit` in multiples of the largest row norm of the text embedding table."""

SHOWN: Mapping[Task, tuple[TokenPart, ...]] = {
    "understand": ("und",),
    "generate": ("gen",),
    "edit": ("und", "gen"),
}
"""The groups that a task's prompt shows, in their order."""


@dataclass(frozen=True, kw_only=True)
class TokenSlot:
    """All learned rows of one part of one concept."""

    name: str
    part: TokenPart


Piece = str | TokenSlot
Script = Sequence[list[int] | TokenSlot]
"""A prompt whose text is token ids already, and whose slots are still open."""


def written(turn: Turn, names: Sequence[str]) -> list[Piece]:
    """A turn with its mentions of ``names`` as identifier slots; other mentions stay text."""
    pieces: list[Piece] = []
    done = 0
    for span in sorted(turn.spans, key=lambda one: one.start):
        if span.name in names:
            pieces += [turn.text[done : span.start], TokenSlot(name=span.name, part="id")]
            done = span.end
    return joined([*pieces, turn.text[done:]])


def conversation(turns: Sequence[Turn], names: Sequence[str]) -> list[Piece]:
    """All turns, a line each, as `written` has them."""
    pieces: list[Piece] = []
    for number, turn in enumerate(turns):
        pieces += ["\n"] if number else []
        pieces += written(turn, names)
    return pieces


def introduced(names: Sequence[str], task: Task) -> list[Piece]:
    """ "<sks> is und_1 … und_n." for each name, a line each; nothing without names."""
    pieces: list[Piece] = []
    for number, name in enumerate(names):
        pieces += ["\n"] if number else []
        pieces += [TokenSlot(name=name, part="id"), " is"]
        for part in SHOWN[task]:
            pieces += [TokenSlot(name=name, part=part)]
        pieces += ["."]
    return joined(pieces)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring texts in one, empty ones dropped: a prompt without slots is tokenised whole,
    exactly as without this package."""
    kept: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and kept and isinstance(kept[-1], str):
            kept[-1] = kept[-1] + piece
        elif piece != "":
            kept.append(piece)
    return kept


def spelled(
    pieces: Sequence[Piece], encode: Callable[[str], list[int]]
) -> list[list[int] | TokenSlot]:
    """Texts as token ids; ``encode`` adds no special tokens of its own."""
    return [encode(piece) if isinstance(piece, str) else piece for piece in joined(pieces)]


def embedded(
    script: Script, concepts: Mapping[str, ConceptTokens], table: torch.nn.Embedding
) -> Tensor:
    """Input embeddings [n, d] in the table's dtype, with gradients to the concepts' rows; wide ones
    where a concept that is shown has deep tokens."""
    weight: Tensor = table.weight
    rows: list[Tensor] = []
    for piece in script:
        if isinstance(piece, list):
            rows.append(weight[torch.tensor(piece, dtype=torch.long, device=weight.device)])
        else:
            rows.append(rows_of(concepts[piece.name], piece.part, weight.shape[1]).to(weight))
    return joined_rows(rows or [weight[:0]])


def rows_of(tokens: ConceptTokens, part: TokenPart, width: int) -> Tensor:
    """One part's rows [n, d], wide where it has deep tokens; SlotError where they are not ``width``
    wide."""
    check_width(tokens, width)
    return tokens.id if part == "id" else wide_rows(tokens, part)


def check_width(tokens: ConceptTokens, width: int, *, backend: str = "") -> None:
    """SlotError where not all rows are ``width`` wide, as those of this backbone are."""
    deep = (*tokens.deep("und").values(), *tokens.deep("gen").values())
    widths = {rows.shape[-1] for rows in (tokens.id, tokens.und, tokens.gen, *deep)}
    if widths != {width}:
        raise SlotError(
            f"<{tokens.name}> was learned on another backbone: its tokens are "
            f"{max(widths - {width})} wide, those of {backend or 'this one'} {width}",
            hint=f"op learn PHOTOS --name {tokens.name}" + (f" -b {backend}" if backend else ""),
        )


def start_tokens(
    name: str,
    *,
    features: Tensor,
    codes: Tensor,
    understand: int,
    generate: int,
    seed: int,
    length: float,
    codes_length: float | None = None,
) -> ConceptTokens:
    """Trainable float32 tokens from k-means centres of what the backbone sees in the photos.

    ``features`` [n, d] are vision features and ``codes`` [m, d] image-code embeddings, both as they
    enter the language model. Rows get ``length``, the usual l2 norm of a text row, because a row of
    another size would drown its neighbours or be drowned; ``codes_length`` is that of the backbone
    that paints, where it is another one.
    """

    def row(values: Tensor, length: float = length) -> Tensor:
        return trainable(values / values.norm(dim=1, keepdim=True).clamp(min=1e-6) * length)

    und = kmeans(features.detach().float(), understand, seed)
    gen = kmeans(codes.detach().float(), generate, seed + 1)
    painted = row(gen, length if codes_length is None else codes_length)
    return ConceptTokens(name=name, id=row(und.mean(0, keepdim=True)), und=row(und), gen=painted)


def trainable(values: Tensor, *, limit: float | None = None) -> Tensor:
    """A float32 copy that learning may move; rows longer than ``limit`` are shortened to it."""
    own = values.detach().clone().float()
    if limit is not None:
        own *= (limit / own.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1.0)
    return own.requires_grad_(True)


def kmeans(rows: Tensor, count: int, seed: int, rounds: int = 20) -> Tensor:
    """Centres [count, d] of rows [n, d]; with too few rows, rows repeat with a little noise.
    Deterministic in ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    centres = rows[order.repeat(-(-count // len(rows)))[:count]].clone()
    if len(rows) <= count:
        noise = torch.randn(centres.shape, generator=generator).to(rows.device)
        return centres + 0.02 * rows.std() * noise
    for _ in range(rounds if count else 0):
        nearest = torch.cdist(rows, centres).argmin(1)
        for index in range(count):
            if (nearest == index).any():
                centres[index] = rows[nearest == index].mean(0)
    return centres


def usual_length(table: torch.nn.Embedding, ids: int) -> float:
    """The mean l2 norm of the first ``ids`` rows, those that text uses."""
    return float(_norms(table.weight[:ids]).mean())


def norm_limit(table: Tensor) -> float:
    """Ten times the largest row norm of a text embedding table [V, d]: what a pack may bring."""
    return NORMS * float(_norms(table).max())


def _norms(table: Tensor, rows: int = 8192) -> Tensor:
    """l2 norms [V] in float32, piece by piece: the whole table in float32 is 2 GB of a BAGEL."""
    pieces = torch.split(table.detach(), rows)
    return torch.cat([torch.linalg.vector_norm(one.float(), dim=1) for one in pieces])
