"""How a picture was made, as plain values: written into its file, and read to make it again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from PIL.Image import Image

from omnipersona_cli import __version__
from omnipersona_cli.backend import Task
from omnipersona_cli.engine.limits import SEEDS
from omnipersona_cli.engine.replay import Trace
from omnipersona_cli.engine.request import Request
from omnipersona_cli.errors import PhotoError


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


def provenance_of(
    request: Request,
    trace: Trace,
    task: Task,
    image: Image,
    *,
    seed: int,
    steps: int | None,
    guidance: float | None,
) -> dict[str, Any]:
    """How a picture was made, in plain values: enough to make it again."""
    info = request.backend.info
    return {
        "version": __version__,
        "task": task,
        "prompt": trace.request,
        "rewritten": trace.rewritten,
        "concepts": [tokens.name for tokens in request.concepts],
        "packs": request.hashes,
        "backend": info.name,
        "model": name_of_model(request.backend.model),
        "fingerprint": request.backend.fingerprint,
        "seed": seed,
        "steps": info.steps if steps is None else steps,
        "guidance": info.guidance if guidance is None else guidance,
        "size": list(image.size),
    } | ({"fast": True} if request.fast else {})


def name_of_model(model: str) -> str:
    """``model`` without the folders of this machine: a hub id stays, of a path the last part."""
    local = (
        PurePosixPath(model).is_absolute()
        or PureWindowsPath(model).is_absolute()
        or model.startswith((".", "~"))
        or os.path.exists(model)
    )
    return PureWindowsPath(model).name if local else model  # splits at both kinds of slash


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
