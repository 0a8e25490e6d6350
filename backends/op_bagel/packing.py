"""From samples to one packed batch: how the rows of segments are laid out.

`pack` turns samples into index tensors once; the model then
keeps all understanding rows in one dense tensor and all generation rows in another.

Source: BAGEL release, packed data set and its mask, position and label rules; the routing of
learned rows follows OmniPersona (arXiv 2601.06965), section on decoupled concept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from omnipersona_cli.family.deep import level
from op_bagel.config import BagelConfig
from op_bagel.pictures import Grid, position_ids
from op_bagel.segments import Latent, Noise, Sample, SoftRows, Text, Vit

APART = 256
"""Rows of the longest sample from which on attention may run sample by sample."""

WASTE = 1.25
"""How much more than needed attention over padded samples works before it runs sample by sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A batch of B samples, padded to L rows for attention only; N rows are real.

    Rows are ordered text, ViT patches, ViT features, soft und (the Nu understanding rows), then
    latents, soft gen (the Ng generation rows). "Flat" is sample * L + row in the sample.
    """

    batch: int
    length: int
    und_rows: int
    apart: tuple[int, ...] | None  # rows of each sample where each is to attend alone
    lengths: Tensor  # [B] rows of each sample
    advance: Tensor  # [B] positions that each sample takes
    gather: Tensor  # [B * L] row at each flat place (padding: row 0)
    place: Tensor  # [N] flat place of each row
    order: Tensor  # [N] rows in reading order, sample after sample
    positions: Tensor  # [N, 3] frame, row, column, counted from the start of the sample
    sample: Tensor  # [N] sample of each row
    mask: Tensor | None  # [B, 1, L, L] may query see key; None where all may
    text_ids: Tensor  # [Nt]
    patches: Tensor | None  # [Nv, patch width]
    patch_ids: Tensor  # [Nv] into the ViT tables
    patch_counts: tuple[int, ...]  # patches of each picture
    features: Tensor | None  # [Nf, D]
    soft_und: Tensor | None  # [Nsu, D (1 + K)]
    latents: Tensor | None  # [Nl, latent width], noised where they are to be generated
    latent_ids: Tensor  # [Nl] into the latent table
    latent_image: Tensor  # [Nl] which entry of `times`
    times: Tensor  # [I] one per latent picture
    soft_gen: Tensor | None  # [Nsg, D (1 + K)]
    labels: Tensor  # [K] ids to predict
    label_at: Tensor  # [K] und row that predicts each
    label_weights: Tensor  # [K] n^-0.5 per turn of n labels; 1 for a follow-up token
    label_sample: Tensor  # [K]
    noised_at: Tensor  # [M] gen row of each noised token
    noised_sample: Tensor  # [M]
    target: Tensor | None  # [M, latent width], velocity from data to noise

    def to(self, device: torch.device | str) -> Packed:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


Place = int | tuple[int, int, int]
"""A rotary position: the same on all axes, or frame, row and column."""


class _Rows:
    """Rows of one kind: which sample, which row in it, which rotary position."""

    def __init__(self) -> None:
        self.sample: list[int] = []
        self.row: list[int] = []
        self.position: list[Place] = []

    def __len__(self) -> int:
        return len(self.sample)

    def add(self, sample: int, rows: Sequence[int], positions: Sequence[Place]) -> None:
        self.sample.extend([sample] * len(rows))
        self.row.extend(rows)
        self.position.extend(positions)


@dataclass(frozen=True)
class _Label:
    sample: int
    kind: Literal["text", "und"]
    row: int  # in its kind
    id: int
    weight: float


def pack(
    samples: Sequence[Sample],
    config: BagelConfig,
    device: torch.device | str | None = None,
    *,
    multiple: int = 1,
) -> Packed:
    """Lay out samples as one batch (cheap; called for every step).

    L is rounded up to a `multiple`: attention over many short samples is faster at 16.

    Positions: a text turn takes one per row; a picture one in all; a picture to be generated none.
    Where the decoder has `mrope_section`, a picture of h x w tokens takes max(h, w) + 2, as
    `picture_places` lays them out.
    Masks: causal, but full inside a picture; noised pictures are visible to themselves only.
    Raises ValueError for an empty sample, a position table too small, or shapes that do not agree.
    """
    build = _Build(config)
    for number, sample in enumerate(samples):
        build.add(number, sample)
    packed = build.finish(multiple)
    return packed if device is None else packed.to(device)


class _Build:
    def __init__(self, config: BagelConfig) -> None:
        self.config = config
        self.text, self.patch, self.feature, self.soft_und = _Rows(), _Rows(), _Rows(), _Rows()
        self.latent, self.soft_gen = _Rows(), _Rows()
        self.text_ids: list[int] = []
        self.values: dict[str, list[Tensor]] = {
            name: []
            for name in ("patches", "patch_ids", "features", "und", "latents", "ids", "gen")
        }
        self.targets: list[Tensor] = []
        self.patch_counts: list[int] = []
        self.latent_counts: list[int] = []
        self.times: list[float | Tensor] = []
        self.labels: list[_Label] = []
        self.noised: list[tuple[int, int, int]] = []  # sample, first latent row, count
        self.blocks: list[tuple[int, int, int, int]] = []  # sample, start, end, kind
        self.lengths: list[int] = []
        self.advance: list[int] = []

    def add(self, sample: int, segments: Sample) -> None:
        row = position = 0
        for segment in segments:
            start = row
            if isinstance(segment, Text):
                row += self._text(sample, segment, row, position)
                position += row - start
                kind = 0
            else:
                row += self._picture(sample, segment, row, position)
                kind = 2 if isinstance(segment, Noise) else 1
                if self.config.llm.mrope_section:
                    position += max(segment.grid) + 2
                else:
                    position += kind == 1
            self.blocks.append((sample, start, row, kind))
        if not row:
            raise ValueError(f"sample {sample} has no rows")
        self.lengths.append(row)
        self.advance.append(position)

    def _text(self, sample: int, turn: Text, row: int, position: int) -> int:
        special = self.config.special_tokens
        ids = [int(i) for i in turn.ids]
        if not turn.raw:
            ids = [special.bos_token_id, *ids, special.eos_token_id]
        kinds: dict[int, tuple[str, int]] = {}
        for soft in turn.soft:
            self._soft(sample, turn, soft, row, position, kinds)
        first = len(self.text)
        if kinds:
            plain = [i for i in range(len(ids)) if i not in kinds]
            rows = {i: ("text", first + n) for n, i in enumerate(plain)} | kinds
            self.text.add(sample, [row + i for i in plain], [position + i for i in plain])
            self.text_ids.extend(ids[i] for i in plain)
        else:
            n = len(ids)
            rows = {}
            self.text.add(sample, range(row, row + n), range(position, position + n))
            self.text_ids.extend(ids)
        if turn.loss:
            begin = turn.loss_from - 1 if turn.raw else turn.loss_from
            pairs = [i for i in range(max(0, begin), len(ids) - 1) if i + 1 not in kinds]
            pairs = [i for i in pairs if kinds.get(i, ("",))[0] != "gen"]
            self._label(sample, first, rows, pairs, [ids[i + 1] for i in pairs])
        if turn.after is not None:
            self._label(sample, first, rows, [len(ids) - 1], [turn.after])
        return len(ids)

    def _label(
        self,
        sample: int,
        first: int,
        rows: dict[int, tuple[str, int]],
        at: Sequence[int],
        ids: Sequence[int],
    ) -> None:
        weight = len(at) ** -0.5 if at else 0.0
        for i, label in zip(at, ids, strict=True):
            kind, row = rows.get(i, ("text", first + i))
            kept: Literal["text", "und"] = "text" if kind == "text" else "und"
            self.labels.append(_Label(sample, kept, row, label, weight))

    def _soft(
        self,
        sample: int,
        turn: Text,
        soft: SoftRows,
        row: int,
        position: int,
        kinds: dict[int, tuple[str, int]],
    ) -> None:
        shift = 0 if turn.raw else 1
        at = [int(i) + shift for i in soft.at]
        width = self.config.llm.hidden_size
        count, wide = soft.rows.shape
        if count != len(at) or not wide or wide % width:
            raise ValueError(
                f"{len(at)} soft rows of width {width} wanted, not {list(soft.rows.shape)}"
            )
        inside = range(shift, len(turn.ids) + shift)
        if len({*at}) < len(at) or any(i not in inside or i in kinds for i in at):
            raise ValueError("soft rows need distinct positions inside their turn")
        group = self.soft_und if soft.expert == "und" else self.soft_gen
        for i in at:
            kinds[i] = (soft.expert, len(group))
            group.add(sample, [row + i], [position + i])
        self.values[soft.expert].append(soft.rows)

    def _picture(self, sample: int, item: Vit | Latent | Noise, row: int, position: int) -> int:
        if isinstance(item, Vit):
            group, count = self._vit(item)
        else:
            group, count = self.latent, self._latent(sample, item)
        start, inside, end = self._places(item, count, position)
        group.add(sample, range(row + 1, row + 1 + count), inside)
        special = self.config.special_tokens
        self.text.add(sample, [row, row + count + 1], [start, end])
        self.text_ids += (special.start_of_image, special.end_of_image)
        return count + 2

    def _places(
        self, item: Vit | Latent | Noise, count: int, position: int
    ) -> tuple[Place, Sequence[Place], Place]:
        """Positions of the first token, the picture's and the last of its block."""
        if isinstance(item, Noise) and item.start is not None:
            position = item.start
        if not self.config.llm.mrope_section:
            return position, [position] * count, position
        start, *inside, end = picture_places(
            item.grid, position, item.frame_shift if isinstance(item, Vit) else 0
        )
        if len(inside) != count:
            raise ValueError(f"{count} picture tokens do not fill a grid of {item.grid}")
        return start, inside, end

    def _vit(self, item: Vit) -> tuple[_Rows, int]:
        config = self.config
        if (item.patches is None) == (item.features is None):
            raise ValueError("a Vit segment holds either patches or features")
        if item.features is not None:
            count = _rows_of(item.features, config.llm.hidden_size, None, "ViT features")
            self.values["features"].append(item.features)
            group = self.feature
        else:
            assert item.patches is not None  # for the type checker; checked above
            count = _rows_of(item.patches, config.vit.patch_width, item.grid, "ViT patches")
            self.values["patches"].append(item.patches)
            self.values["patch_ids"].append(
                _ids(item.grid, config.vit.side, config.interpolate_pos)
            )
            self.patch_counts.append(count)
            group = self.patch
        return group, count

    def _latent(self, sample: int, item: Latent | Noise) -> int:
        config = self.config
        count = _rows_of(item.tokens, config.latent_width, item.grid, "latent tokens")
        tokens = item.tokens
        self.times.append(item.t if isinstance(item, Noise) else 0.0)
        if isinstance(item, Noise):
            self.noised.append((sample, len(self.latent), count))
            if item.noise is not None:
                tokens = (1 - item.t) * item.tokens + item.t * item.noise
                self.targets.append(item.noise - item.tokens)
        self.values["latents"].append(tokens)
        self.values["ids"].append(_ids(item.grid, config.max_latent_size, config.interpolate_pos))
        self.latent_counts.append(count)
        return count

    def finish(self, multiple: int) -> Packed:
        if not self.lengths:
            raise ValueError("nothing to pack")
        if self.targets and len(self.targets) != len(self.noised):
            raise ValueError("either every picture to be generated comes with its noise, or none")
        groups = (self.text, self.patch, self.feature, self.soft_und, self.latent, self.soft_gen)
        batch, length = len(self.lengths), -(-max(self.lengths) // multiple) * multiple
        sample = _long([i for group in groups for i in group.sample])
        place = sample * length + _long([i for group in groups for i in group.row])
        rows = torch.arange(len(place))
        gather = torch.zeros(batch * length, dtype=torch.long)
        gather[place] = rows
        und_rows = len(self.text) + len(self.patch) + len(self.feature) + len(self.soft_und)
        soft_base = und_rows - len(self.soft_und)
        times = [torch.as_tensor(t, dtype=torch.float32).reshape(()).cpu() for t in self.times]
        noised = [i for _, first, n in self.noised for i in range(first, first + n)]
        return Packed(
            batch=batch,
            length=length,
            und_rows=und_rows,
            apart=tuple(self.lengths) if _wasteful(self.lengths, length) else None,
            lengths=_long(self.lengths),
            advance=_long(self.advance),
            gather=gather,
            place=place,
            order=place.argsort(),
            positions=_axes([place for group in groups for place in group.position]),
            sample=sample,
            mask=self._mask(batch, length),
            text_ids=_long(self.text_ids),
            patches=_joined(self.values["patches"]),
            patch_ids=_joined_ids(self.values["patch_ids"]),
            patch_counts=tuple(self.patch_counts),
            features=_joined(self.values["features"]),
            soft_und=_joined(level(self.values["und"])),
            latents=_joined(self.values["latents"]),
            latent_ids=_joined_ids(self.values["ids"]),
            latent_image=torch.repeat_interleave(_long(self.latent_counts)),
            times=torch.stack(times) if times else torch.zeros(0),
            soft_gen=_joined(level(self.values["gen"])),
            labels=_long([label.id for label in self.labels]),
            label_at=_long(
                [la.row if la.kind == "text" else soft_base + la.row for la in self.labels]
            ),
            label_weights=torch.tensor([label.weight for label in self.labels]),
            label_sample=_long([label.sample for label in self.labels]),
            noised_at=_long(noised),
            noised_sample=_long([s for s, _, n in self.noised for _ in range(n)]),
            target=_joined(self.targets),
        )

    def _mask(self, batch: int, length: int) -> Tensor | None:
        even = all(n == length for n in self.lengths)
        if even and len(self.blocks) == batch:
            if all(kind or length == 1 for *_, kind in self.blocks):
                return None
        block = torch.full((batch, length), -1)
        kind = torch.zeros(batch, length, dtype=torch.long)
        for number, (sample, start, end, what) in enumerate(self.blocks):
            block[sample, start:end] = number
            kind[sample, start:end] = what
        same = block[:, :, None] == block[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        visible = causal | (same & (kind > 0)[:, :, None])
        visible &= same | (kind < 2)[:, None, :]
        if not even:
            # No real row attends to padding; padding attends to itself: its softmax stays finite.
            padding = block < 0
            eye = torch.eye(length, dtype=torch.bool)
            visible &= ~padding[:, None, :] | eye
        return visible[:, None]


@lru_cache(maxsize=256)
def _ids(grid: Grid, side: int, interpolate: bool) -> Tensor:
    return position_ids(grid, side, interpolate=interpolate)


def picture_places(grid: Grid, position: int, frame_shift: int = 0) -> list[tuple[int, int, int]]:
    """Frame, row and column of a picture's rows, its two special tokens included, from `position`
    on: the tokens count rows and columns, the last one stands behind the longer side."""
    p, end = position + 1, position + 1 + max(grid)
    inside = [(p, p + row, p + column) for row in range(grid[0]) for column in range(grid[1])]
    rows = [(position, position, position), *inside, (end, end, end)]
    return [(frame + frame_shift, row, column) for frame, row, column in rows]


def _axes(places: Sequence[Place]) -> Tensor:
    """[N, 3]"""
    if all(isinstance(place, int) for place in places):
        return torch.tensor(places, dtype=torch.long)[:, None].expand(-1, 3)
    return torch.tensor(
        [(place,) * 3 if isinstance(place, int) else place for place in places], dtype=torch.long
    )


def _wasteful(lengths: Sequence[int], length: int) -> bool:
    """Whether attention over samples padded to `length` rows works much for nothing."""
    needed = sum(own**2 for own in lengths)
    return length >= APART and len(lengths) * length**2 > WASTE * needed


def _long(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _joined(values: list[Tensor]) -> Tensor | None:
    return torch.cat(values) if values else None


def _joined_ids(values: list[Tensor]) -> Tensor:
    return torch.cat(values) if values else _long([])


def _rows_of(values: Tensor, width: int, grid: Grid | None, what: str) -> int:
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(f"{what} of width {width} wanted, not {list(values.shape)}")
    if grid is not None and values.shape[0] != grid[0] * grid[1]:
        raise ValueError(f"{values.shape[0]} {what} do not fill a grid of {grid[0]}x{grid[1]}")
    return int(values.shape[0])
