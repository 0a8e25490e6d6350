"""Progress leaves the engine through a callback; nothing is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from omnipersona_cli.backend import BackendInfo, OnStep
from omnipersona_cli.hookspecs import OnProgress as OnProgress
from omnipersona_cli.hookspecs import Progress


def painting_steps(
    on_progress: OnProgress | None, phase: str = "painting", *, part: int = 0, parts: int = 1
) -> OnStep | None:
    """A step counter that reports as progress, of one of several parts of the same length."""
    if on_progress is None:
        return None

    def step(done: int, total: int) -> None:
        on_progress(Progress(phase=phase, step=part * total + done, total=parts * total))

    return step


def begin(on_progress: OnProgress | None, phase: str) -> None:
    """Say that ``phase`` begins; how much it is comes with its steps, if it has any."""
    if on_progress is not None:
        on_progress(Progress(phase=phase, total=1))


def done(on_progress: OnProgress | None) -> None:
    """Say that nothing is at work any more: a bar goes, and the answer has the line."""
    if on_progress is not None:
        on_progress(Progress(phase=""))


def counting(on_progress: OnProgress, phase: str) -> OnStep:
    """A step counter that reports as progress of ``phase``, which it opens at once."""
    begin(on_progress, phase)

    def step(done: int, total: int) -> None:
        on_progress(Progress(phase=phase, step=done, total=total))

    return step


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Whoever looks on: up to ``most`` estimates of each picture on its way, evenly spaced, for
    ``show(number of the picture, estimate)``. Each costs a run of the picture decoder."""

    most: int
    show: Callable[[int, Image], None]


def estimates(
    looking: Looking | None,
    info: BackendInfo,
    picture: int,
    *,
    part: int = 0,
    parts: int = 1,
    shown: Callable[[Image], Image] | None = None,
) -> dict[str, Any]:
    """What `gen` and `edit` of a backend are given so that it shows one of several ``parts`` of
    painting ``picture``: nothing where nobody looks on, or it cannot."""
    if looking is None or not looking.most or not info.estimates:
        return {}

    def on_estimate(done: int, total: int, look: Callable[[], Image]) -> None:
        at, end = part * total + done, parts * total
        due, before = ((looking.most + 1) * step // end for step in (at, at - 1))
        if before < due and at < end:
            image = look()
            looking.show(picture, image if shown is None else shown(image))

    return {"on_estimate": on_estimate}


def tell(on_progress: OnProgress | None, notes: Iterable[str]) -> None:
    """Hand notes for a person on."""
    if on_progress is not None:
        for note in notes:
            on_progress(Progress(phase="reading", note=note))
