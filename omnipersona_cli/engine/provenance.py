"""How a picture was made, as plain values: written into its file (`data.about` reads them)."""

from __future__ import annotations

import os
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from PIL.Image import Image

from omnipersona_cli import __version__
from omnipersona_cli.backend import Task
from omnipersona_cli.engine.replay import Trace
from omnipersona_cli.engine.request import Request


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
