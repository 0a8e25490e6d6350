"""Paint pictures of what was learned.

Find the concepts in the prompt, replay what is known about them in words, paint once per seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from PIL.Image import Image

from omnipersona_cli.backend import Backend
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine.limits import check_sampling, checked_count, checked_seeds
from omnipersona_cli.engine.picture import Picture
from omnipersona_cli.engine.progress import (
    Looking,
    OnProgress,
    estimates,
    painting_steps,
    tell,
)
from omnipersona_cli.engine.provenance import provenance_of
from omnipersona_cli.engine.recognise import best_of, can_recognise, odds_of
from omnipersona_cli.engine.replay import Trace, replay_request
from omnipersona_cli.engine.request import (
    ANY,
    Opening,
    Request,
    check_size,
    memory_errors,
    open_request,
)


def gen(
    prompt: str,
    *,
    concepts: Sequence[str] = (),
    count: int = 1,
    tries: int = 1,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    fast: bool = False,
    seed: int | None = None,
    replayed: bool = True,
    expected: Mapping[str, str] | None = None,
    backend: Backend | None = None,
    opening: Opening = ANY,
    library: Library | None = None,
    on_progress: OnProgress | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_picture: Callable[[Picture], None] | None = None,
    looking: Looking | None = None,
) -> tuple[Picture, ...]:
    """Paint ``prompt`` ``count`` times, with ``seed``, ``seed`` + 1 and so on.

    Pictures are painted one after another: in a batch sums are rounded another way, and a seed
    alone has to paint the same bits again.

    With more than one of ``tries`` each picture is painted so often, and that is kept in which the
    model itself recognises the concepts best; its ``seed`` alone paints it again. ``size`` is
    (width, height) in pixels; None is the backend's default, as for ``steps`` and ``guidance``.
    ``fast`` paints as the backend's ``info.fast`` says, with its own default of ``steps``.
    ``on_trace`` is called before anything is painted, ``on_picture`` after each picture;
    ``looking`` is shown pictures on their way, by backends that can.
    ``expected`` are pack hashes of an earlier picture: a note says where they changed.
    Raises what `open_request` raises, TaskError for a size that the backend does not paint,
    or where it cannot paint ``fast``.
    """
    checked_count(count)
    check_sampling(steps=steps, guidance=guidance, size=size, tries=tries)
    seeds = checked_seeds(seed, count * tries)
    request = open_request(
        prompt,
        concepts=concepts,
        backend=backend,
        opening=opening,
        library=library,
        task="generate",
        fast=fast,
        size=size,
        on_progress=on_progress,
    )
    check_size(request.backend.info, size)
    tell(on_progress, (*request.notes, *_changes(request, expected or {})))
    if tries > 1 and not can_recognise(request):
        tell(on_progress, ("nothing can be recognised here, so that the first try is kept",))
        tries = 1
    trace = replay_request(request, replayed, on_progress)
    if on_trace is not None:
        on_trace(trace)
    seeds = tuple(one for first in range(count) for one in seeds[first::count][:tries])
    info = request.backend.info
    with memory_errors(info.name):
        images = (
            image
            for part, one in enumerate(seeds)
            for image in request.backend.gen(
                request.prompt(trace.rewritten),
                size=size,
                steps=steps,
                guidance=guidance,
                seeds=(one,),
                on_step=painting_steps(on_progress, part=part, parts=len(seeds)),
                **estimates(looking, info, part // tries, part=part % tries, parts=tries),
            )
        )
        return _collected(
            request,
            trace,
            images,
            seeds,
            tries=tries,
            steps=steps,
            guidance=guidance,
            on_picture=on_picture,
        )


def _collected(
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
    """The painted images, of each ``tries`` in a row the best, with how each was made; handed on
    as they come."""
    pictures = []
    painted = zip(images, seeds, strict=True)
    while some := list(islice(painted, tries)):
        best = best_of([odds_of(request, image) for image, _ in some]) if tries > 1 else 0
        image, seed = some[best]
        about = provenance_of(
            request, trace, "generate", image, seed=seed, steps=steps, guidance=guidance
        )
        picture = Picture(image=image, seed=seed, trace=trace, about=about | {"tries": tries})
        pictures.append(picture)
        if on_picture is not None:
            on_picture(picture)
    return tuple(pictures)


def _changes(request: Request, expected: Mapping[str, str]) -> Iterator[str]:
    for name, old in expected.items():
        now = request.hashes.get(name, old)
        if now != old:
            yield f"<{name}> has changed since that picture; it will not come out the same"
