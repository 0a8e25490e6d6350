"""What a picture says of how it was made, read from its file. The picture may be a stranger's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnipersona_cli.data.decode import opened
from omnipersona_cli.errors import MissingError, PhotoError
from omnipersona_cli.reading import Origin, parse_json

CHUNK = "omnipersona"
"""The keyword of the PNG text chunk that says it."""

SEEDS = 2**32
"""Seeds are whole numbers from 0 to one less than this."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How a picture was made, read from the picture, to make it again.

    ``prompt`` is what was painted in the end: a rewritten prompt is not rewritten again.
    """

    prompt: str
    concepts: tuple[str, ...] = ()
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    fast: bool = False
    size: tuple[int, int] | None = None
    backend: str = ""
    packs: Mapping[str, str]


def read_about(path: Path) -> dict[str, Any]:
    """How the picture at ``path`` was made, as it says itself.

    Raises MissingError for no such file, PhotoError where it does not say. What it says is a
    stranger's text: only plain values of the expected types come back.
    """
    if not path.is_file():
        raise MissingError(f"there is no {path}", hint="op gen --like PICTURE")
    try:
        with opened(path) as (image, _):
            image.load()
            text = image.info.get(CHUNK)
    except PhotoError as error:
        raise PhotoError(
            f"{path.name} cannot be read as a picture of op: {error}",
            hint="op gen --like PICTURE.png",
        ) from error
    if not isinstance(text, str):
        raise PhotoError(
            f"{path.name} does not say how it was made",
            hint="only pictures saved with --metadata full do",
        )
    origin = Origin(
        name=f"what {path.name} says of how it was made",
        error=PhotoError,
        hint="op gen --like PICTURE.png",
    )
    document = parse_json(text, origin)
    if not isinstance(document, dict):
        raise PhotoError(f"{path.name} says nothing readable", hint="op gen --like PICTURE.png")
    return document


def settings_of(about: Mapping[str, Any]) -> GenerationSettings:
    """What a picture says about itself, as settings; PhotoError where it is no picture of `gen`.

    The picture may be a stranger's: values of the wrong type are left out.
    """
    prompt = about.get("rewritten") or about.get("prompt")
    if not isinstance(prompt, str) or about.get("task") != "generate":
        raise PhotoError(
            "this picture was not made by op gen",
            hint="op gen --like PICTURE.png, one of op gen's",
        )
    size, packs, names = about.get("size"), about.get("packs"), about.get("concepts")
    seed, steps, guidance = about.get("seed"), about.get("steps"), about.get("guidance")
    whole = isinstance(size, list) and len(size) == 2 and all(_is_int(side) for side in size)
    return GenerationSettings(
        prompt=prompt,
        concepts=tuple(str(name) for name in names) if isinstance(names, list) else (),
        seed=seed if isinstance(seed, int) and 0 <= seed < SEEDS else None,
        steps=steps if _is_int(steps) else None,
        guidance=float(guidance) if isinstance(guidance, (int, float)) else None,
        fast=about.get("fast") is True,
        size=(size[0], size[1]) if isinstance(size, list) and whole else None,
        backend=str(about.get("backend", "")),
        packs={str(name): str(value) for name, value in packs.items()}
        if isinstance(packs, dict)
        else {},
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
