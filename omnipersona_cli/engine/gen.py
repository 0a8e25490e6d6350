"""Paint pictures of what was learned.

Find the concepts in the prompt, replay what is known about them in words, paint once per seed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from PIL.Image import Image

from omnipersona_cli import __version__
from omnipersona_cli.backend import Backend, OnStep, Task
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine.picture import Picture
from omnipersona_cli.engine.recognise import best_of, can_recognise, odds_of
from omnipersona_cli.engine.replay import Trace, replay, unchanged
from omnipersona_cli.engine.request import (
    ANY,
    OnProgress,
    Opening,
    Request,
    checked_count,
    memory_errors,
    open_request,
)
from omnipersona_cli.errors import PhotoError, UsageError
from omnipersona_cli.hookspecs import Progress

SEEDS = 2**32
"""Seeds are whole numbers from 0 to one less than this."""

LARGEST_SIDE = 8192
MOST_TRIES = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a picture was made, read from the picture, to make it again.

    ``prompt`` is what was painted in the end: a rewritten prompt is not rewritten again.
    """

    prompt: str
    concepts: tuple[str, ...] = ()
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    backend: str = ""
    packs: Mapping[str, str]


def gen(
    prompt: str,
    *,
    concepts: Sequence[str] = (),
    count: int = 1,
    tries: int = 1,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    replayed: bool = True,
    expected: Mapping[str, str] | None = None,
    backend: Backend | None = None,
    opening: Opening = ANY,
    library: Library | None = None,
    on_progress: OnProgress | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_picture: Callable[[Picture], None] | None = None,
) -> tuple[Picture, ...]:
    """Paint ``prompt`` ``count`` times, with ``seed``, ``seed`` + 1 and so on.

    With more than one of ``tries`` each picture is painted so often, and that is kept in which the
    model itself recognises the concepts best; its ``seed`` alone paints it again. ``size`` is
    (width, height) in pixels; None is the backend's default, as for ``steps`` and ``guidance``.
    ``on_trace`` is called before anything is painted, ``on_picture`` after each picture.
    ``expected`` are pack hashes of an earlier picture: a note says where they changed.
    Raises what `open_request` raises, TaskError for a size that the backend does not paint.
    """
    checked_count(count)
    check_settings(steps=steps, guidance=guidance, size=size, tries=tries)
    seeds = seeds_from(seed, count * tries)
    request = open_request(
        prompt,
        concepts=concepts,
        backend=backend,
        opening=opening,
        library=library,
        task="generate",
        on_progress=on_progress,
    )
    tell(on_progress, (*request.notes, *_changes(request, expected or {})))
    if tries > 1 and not can_recognise(request):
        tell(on_progress, ("nothing can be recognised here, so that the first try is kept",))
        tries = 1
    trace = replay_of(request, replayed)
    if on_trace is not None:
        on_trace(trace)
    seeds = tuple(it for first in range(count) for it in seeds[first::count][:tries])
    with memory_errors(request.backend.info.name):
        images = request.backend.gen(
            request.prompt(trace.rewritten),
            size=size,
            steps=steps,
            guidance=guidance,
            seeds=seeds,
            on_step=painting(on_progress),
        )
        return collected(
            request,
            trace,
            images,
            seeds,
            tries=tries,
            steps=steps,
            guidance=guidance,
            on_picture=on_picture,
        )


def recipe_of(about: Mapping[str, Any]) -> Recipe:
    """What a picture says about itself, as settings; PhotoError where it is no picture of `gen`.

    The picture may be a stranger's: values of the wrong type are left out.
    """
    prompt = about.get("rewritten") or about.get("prompt")
    if not isinstance(prompt, str) or about.get("task") != "generate":
        raise PhotoError(
            "this picture was not made by op gen", hint="op edit and photographs have no recipe"
        )
    size, packs, names = about.get("size"), about.get("packs"), about.get("concepts")
    seed, steps, guidance = about.get("seed"), about.get("steps"), about.get("guidance")
    whole = isinstance(size, list) and len(size) == 2 and all(_is_int(side) for side in size)
    return Recipe(
        prompt=prompt,
        concepts=tuple(str(name) for name in names) if isinstance(names, list) else (),
        seed=seed if isinstance(seed, int) and 0 <= seed < SEEDS else None,
        steps=steps if _is_int(steps) else None,
        guidance=float(guidance) if isinstance(guidance, (int, float)) else None,
        size=(size[0], size[1]) if isinstance(size, list) and whole else None,
        backend=str(about.get("backend", "")),
        packs={str(k): str(v) for k, v in packs.items()} if isinstance(packs, dict) else {},
    )


def replay_of(request: Request, wanted: bool) -> Trace:
    """The replay of the request, or the request as it is; replay asks, so that a backend which
    only paints has none."""
    able = "understand" in request.backend.info.tasks
    if not wanted or not able or not request.concepts:
        return unchanged(request.text)
    return replay(request.backend, request.text, concepts=request.concepts, facts=request.facts)


def seeds_from(seed: int | None, count: int) -> tuple[int, ...]:
    """``count`` seeds in a row; a random start where none is given."""
    if seed is not None and not 0 <= seed < SEEDS:
        raise UsageError(f"{seed} is not a seed", hint=f"--seed takes 0 to {SEEDS - 1}")
    start = secrets.randbelow(2**31) if seed is None else seed
    return tuple((start + index) % SEEDS for index in range(count))


def check_settings(
    *,
    steps: int | None,
    guidance: float | None,
    size: tuple[int, int] | None = None,
    tries: int | None = None,
) -> None:
    """UsageError for numbers that no backend could take."""
    if tries is not None and not 1 <= tries <= MOST_TRIES:
        raise UsageError(f"{tries} tries are none", hint=f"--tries takes 1 to {MOST_TRIES}")
    if steps is not None and not 1 <= steps <= 1000:
        raise UsageError(f"{steps} steps paint nothing", hint="--steps takes 1 to 1000")
    if guidance is not None and not (math.isfinite(guidance) and 0 <= guidance <= 100):
        raise UsageError(f"a guidance of {guidance} is none", hint="--guidance takes 0 to 100")
    if size is not None and not all(8 <= side <= LARGEST_SIDE for side in size):
        raise UsageError(
            f"{size[0]}x{size[1]} is not a size", hint=f"sides go from 8 to {LARGEST_SIDE} pixels"
        )


def collected(
    request: Request,
    trace: Trace,
    images: Iterable[Image],
    seeds: Sequence[int],
    *,
    tries: int = 1,
    steps: int | None,
    guidance: float | None,
    on_picture: Callable[[Picture], None] | None,
) -> tuple[Picture, ...]:
    """The painted images, of each ``tries`` in a row the best, each with its story, handed on as
    they come."""
    pictures = []
    painted = zip(images, seeds, strict=True)
    while some := list(islice(painted, tries)):
        best = best_of([odds_of(request, image) for image, _ in some]) if tries > 1 else 0
        image, seed = some[best]
        about = story(request, trace, "generate", image, seed=seed, steps=steps, guidance=guidance)
        picture = Picture(image=image, seed=seed, trace=trace, about=about | {"tries": tries})
        pictures.append(picture)
        if on_picture is not None:
            on_picture(picture)
    return tuple(pictures)


def story(
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
        "model": request.backend.model,
        "fingerprint": request.backend.fingerprint,
        "seed": seed,
        "steps": info.steps if steps is None else steps,
        "guidance": info.guidance if guidance is None else guidance,
        "size": list(image.size),
    }


def painting(on_progress: OnProgress | None, *, part: int = 0, parts: int = 1) -> OnStep | None:
    """A step counter that reports as progress, of one of several parts of the same length."""
    if on_progress is None:
        return None
    report = on_progress

    def step(done: int, total: int) -> None:
        report(Progress(phase="painting", step=part * total + done, total=parts * total))

    return step


def tell(on_progress: OnProgress | None, notes: Iterable[str]) -> None:
    """Hand notes for a person on."""
    if on_progress is not None:
        for note in notes:
            on_progress(Progress(phase="reading", note=note))


def _changes(request: Request, expected: Mapping[str, str]) -> Iterator[str]:
    for name, old in expected.items():
        now = request.hashes.get(name, old)
        if now != old:
            yield f"<{name}> has changed since that picture; it will not come out the same"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
