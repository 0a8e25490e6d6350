"""Read what UniCTokens saved of a concept: the rows by which it grew Show-o's two tables.

``saves/<concept>/<task>/epoch_N_embed.pt`` [n, d], ``epoch_N_lm_head_weight.pt`` [n, d] and
``epoch_N_lm_head_bias.pt`` [n] hold the concept's row and then token_0, token_1, …; neither the
names of the rows nor the base are written down, so the number of rows has to tell the stage
(UniCTokens, section 3). Files are opened as tensors alone; nothing in them is run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from omnipersona_cli.backend import ConceptTokens
from omnipersona_cli.errors import MissingError, PackError, UsageError, shell_word
from omnipersona_cli.hookspecs import Foreign
from omnipersona_cli.reading import where_to_look
from op_showo.placing import BIAS, HEAD

PARTS = ("embed", "lm_head_weight", "lm_head_bias")
"""The files of one epoch: ``epoch_N_<part>.pt``."""

NAME = re.compile(rf"epoch_(\d{{1,9}})_({'|'.join(PARTS)})\.pt")

AGAIN = "only folders that UniCTokens saved are read; nothing in this one was run"


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """What the rows of one stage are for, by the numbers of their tokens (token_0 is row 1)."""

    number: int
    taught: str
    und: tuple[range, ...]
    gen: tuple[range, ...]


SHARED, SHARED_AND_PAINTING, UNDERSTANDING = range(16), range(24), range(24, 32)
"""Stage 1 brings 16 tokens for both, stage 2 eight for painting, stage 3 eight to understand."""

STAGES = {
    17: TrainingStage(number=1, taught="understanding alone", und=(SHARED,), gen=(SHARED,)),
    25: TrainingStage(number=2, taught="painting too", und=(SHARED,), gen=(SHARED_AND_PAINTING,)),
    33: TrainingStage(
        number=3,
        taught="painting, and understanding helped by what was painted",
        und=(SHARED, UNDERSTANDING),
        gen=(SHARED_AND_PAINTING,),
    ),
}
"""By the number of rows that a stage leaves; the counts are UniCTokens' own defaults."""


def read(path: Path, *, epoch: int | None) -> Foreign:
    """The concept in the folder ``path``, of its latest epoch or of ``epoch``.

    Of the head, the identifier's row is kept: the other tokens are never said. Raises UsageError
    for a path that is no folder, MissingError where files are absent, PackError for files that
    are broken, hostile or of other shapes.
    """
    epochs = saved_epochs(path)
    chosen = max(epochs) if epoch is None else epoch
    embed, weight, bias = (read_rows(file) for file in files_of(path, chosen, epochs))
    stage = checked_stage(path, embed, weight, bias)
    rows, width = embed.shape
    numbers = {"und": stage.und, "gen": stage.gen}
    und, gen = (
        embed[[1 + number for part in parts for number in part]] for parts in numbers.values()
    )
    name = concept_of(path)
    told = {key: " and ".join(map(_span, parts)) for key, parts in numbers.items()}
    others = ", ".join(str(number) for number in sorted(epochs - {chosen}))
    return Foreign(
        tokens=ConceptTokens(
            name=name,
            id=embed[:1].clone(),
            und=und,
            gen=gen,
            extra={HEAD: weight[:1].clone(), BIAS: bias[:1].clone()},
        ),
        understood={
            "epoch": chosen,
            "stage": stage.number,
            "rows": rows,
            "width": width,
            "id": "<concept>",
            **told,
        },
        notes=(
            f"UniCTokens, epoch {chosen}" + (f" (also here: {others})" if others else ""),
            f"{rows} rows of width {width}: stage {stage.number}, {stage.taught}",
            "the first row becomes the name",
            f"{told['und']} become its understanding part",
            f"{told['gen']} become its painting part",
        ),
    )


def saved_epochs(folder: Path) -> set[int]:
    """The epochs of which anything is in ``folder``."""
    if not folder.exists():
        raise MissingError(f"there is no folder {folder}", hint=where_to_look(folder))
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder",
            hint=f"name the folder it lies in: op concepts import {shell_word(folder.parent)} "
            "--from unictokens",
        )
    found = {int(match[1]) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))}
    if not found:
        below = sorted(path.parent for path in folder.glob("*/epoch_*_embed.pt"))
        below += sorted(path.parent for path in folder.glob("*/*/epoch_*_embed.pt"))
        hint = "it holds epoch_N_embed.pt, epoch_N_lm_head_weight.pt and epoch_N_lm_head_bias.pt"
        if below:
            hint = f"op concepts import {below[0]} --from unictokens"
        raise MissingError(f"UniCTokens saved nothing in {folder}", hint=hint)
    return found


def files_of(folder: Path, epoch: int, epochs: set[int]) -> list[Path]:
    """The three files of ``epoch``; MissingError names the first that is not there, and an epoch
    that is whole."""
    files = [folder / f"epoch_{epoch}_{part}.pt" for part in PARTS]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is None:
        return files
    whole = [
        number
        for number in sorted(epochs - {epoch})
        if all((folder / f"epoch_{number}_{part}.pt").is_file() for part in PARTS)
    ]
    hint = f"--epoch {whole[-1]} is whole" if whole else "copy the three files of an epoch together"
    raise MissingError(f"there is no {missing}", hint=hint)


def read_rows(path: Path) -> Tensor:
    """The tensor in a file, float32. PackError for anything but finite numbers."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zip, pickle and mapping errors of a broken or hostile file
        raise PackError(
            f"{path} is cut off, or holds something else than a tensor", hint=AGAIN
        ) from error
    if (
        not isinstance(found, Tensor)
        or found.layout != torch.strided
        or found.is_meta
        or not found.is_floating_point()
    ):
        raise PackError(f"{path} is not a tensor of numbers", hint=AGAIN)
    if found.ndim not in (1, 2) or not 0 < found.shape[0] <= max(STAGES):
        raise PackError(f"{path} is shaped {tuple(found.shape)}: {_wanted()}", hint=AGAIN)
    if found.ndim == 2 and not 0 < found.shape[1] <= 1 << 16:
        raise PackError(f"{path} has rows of {found.shape[1]} numbers", hint=AGAIN)
    values = found.detach().to(torch.float32, copy=True).contiguous()
    if not bool(torch.isfinite(values).all()):
        raise PackError(
            f"{path} has numbers that are not finite", hint="take another epoch: --epoch N"
        )
    return values


def checked_stage(folder: Path, embed: Tensor, weight: Tensor, bias: Tensor) -> TrainingStage:
    """The stage that three tensors are of; PackError where they do not belong together."""
    if embed.ndim != 2 or weight.shape != embed.shape or bias.shape != embed.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (embed, weight, bias))
        raise PackError(
            f"the files in {folder} do not belong together: they are shaped {shapes}",
            hint="copy the three files of one epoch together",
        )
    if len(embed) not in STAGES:
        raise PackError(f"the files in {folder} have {len(embed)} rows: {_wanted()}", hint=AGAIN)
    return STAGES[len(embed)]


def concept_of(folder: Path) -> str:
    """``saves/<concept>/<task>`` -> concept; the folder's own name where it lies elsewhere."""
    place = folder.resolve()
    return place.parent.name if place.parent.parent.name == "saves" else place.name


def _span(tokens: range) -> str:
    return f"token_{tokens[0]} to {tokens[-1]}"


def _wanted() -> str:
    stages = (f"{rows} (stage {stage.number})" for rows, stage in STAGES.items())
    return f"UniCTokens saves {', '.join(stages)}"
