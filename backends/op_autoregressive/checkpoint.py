"""A checkpoint against its configuration, before its weights are read; reading it without noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn
from transformers.utils import logging

from omnipersona_cli.errors import MissingError, PersonaError

T = TypeVar("T")


def configured(make: Callable[[], T], folder: Path, *, backend: str) -> T:
    """What ``make`` builds from the folder's configuration.

    Raises MissingError where it cannot: whatever is raised about numbers that came out of a file
    (strict fields, divisions, sizes that do not fit) is about that file.
    """
    try:
        return make()
    except PersonaError:
        raise
    except Exception as error:
        reason = next((it.strip() for it in reversed(str(error).splitlines()) if it.strip()), "")
        raise MissingError(
            f"{folder / 'config.json'} describes no model: {reason or type(error).__name__}",
            hint=f"op backends fetch {backend}",
        ) from error


def shapes_of(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model that is built without memory for its numbers."""
    with torch.device("meta"):
        model = make()
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_shapes(
    files: Mapping[str, Path], wanted: Mapping[str, tuple[int, ...]], *, backend: str
) -> None:
    """MissingError, with file and tensor, where one of ``wanted`` is missing or of another shape.
    Tensors that nobody wants are left alone."""
    hint = f"op backends fetch {backend}"
    lost = sorted(name for name in wanted if name not in files)
    if lost:
        raise MissingError(f"{places(files)} lacks the tensor {lost[0]}", hint=hint)
    for path in sorted({files[name] for name in wanted}):
        with safe_open(path, framework="pt") as file:
            for name in sorted(it for it in wanted if files[it] == path):
                shape = tuple(file.get_slice(name).get_shape())
                if shape != wanted[name]:
                    raise MissingError(misfit(path, name, shape), hint=hint)


def misfit(path: Path, name: str, shape: tuple[int, ...]) -> str:
    """What is wrong with a tensor of a shape that its configuration does not have."""
    return f"{path}: the tensor {name} has the shape {list(shape)}, unlike its configuration"


def places(files: Mapping[str, Path]) -> str:
    """The file that all tensors are in, or the first and the last of several."""
    found = sorted(set(files.values()))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1].name}"


@contextmanager
def silently() -> Iterator[None]:
    """Without transformers' bars and warnings: what they would say is checked here, and there is
    one bar at a time."""
    told: Any = logging
    verbosity, bar = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(verbosity)
        if bar:
            told.enable_progress_bar()
