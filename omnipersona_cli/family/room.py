"""What memory there is, and by which means a model fits into it.

`fitted` is asked before weights are read, by `registry.open_backend`; `table` is what
`op backends show` prints. Nothing heavy is imported until a card has to be asked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from omnipersona_cli.backend import BackendInfo, Opening, Verb, Work
from omnipersona_cli.errors import ResourceError
from omnipersona_cli.family.footprint import (
    GIB,
    SIZES,
    Footprint,
    Kind,
    Means,
    needed,
    offloaded,
)

VERBS: tuple[Verb, ...] = ("ask", "gen", "edit", "learn")
SHARED = 0.75
"""The share of an Apple computer's memory that its GPU may use, as Metal recommends."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Something to compute on that people have; ``room`` are the GiB that a model may take there, 0
    where that is what is asked for."""

    name: str
    kind: Kind
    room: float


PLACES = (
    *(Place(name=f"{size} GB GPU", kind="cuda", room=size) for size in (8, 12, 16, 24, 48)),
    *(Place(name=f"{size} GB Apple", kind="mps", room=SHARED * size) for size in (16, 32, 64)),
    Place(name="CPU only", kind="cpu", room=0.0),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to open and work, the ``flags`` that ask for it, and the GiB that it takes; ``waits``
    are GiB of the computer's own memory besides; ``means`` is what the figure was made of. One that
    is ``asked`` changes what is learned or painted, or is no matter of opening, so that a person
    has to ask for it."""

    opening: Opening
    means: Means
    flags: tuple[str, ...]
    takes: float
    waits: float = 0.0
    asked: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How a verb fits a place: the GiB that it takes there and the flags that make it so; it does
    not fit where ``fits`` is false, and the figure is the least that it takes."""

    place: Place
    verb: Verb
    takes: float
    flags: tuple[str, ...]
    fits: bool


def describe(info: BackendInfo, opening: Opening, size: tuple[int, int] | None) -> Footprint | None:
    """What the backend says of itself; None where it says nothing."""
    if not info.footprint:
        return None
    module, _, name = info.footprint.partition(":")
    return cast(Footprint, getattr(import_module(module), name)(opening, size))


def table(info: BackendInfo, opening: Opening) -> list[Cell]:
    """Every verb at every place; empty for a backend that does not describe itself."""
    what = describe(info, opening, None)
    if what is None:
        return []
    found = []
    for place in PLACES:
        for verb in VERBS:
            if verb not in what.passes and verb != "learn":
                continue
            ways = list(_choices(info, what, opening, Work(verb=verb), place.kind, place.room))
            if verb == "learn":
                ways += _of_smaller_pictures(info, ways, Work(verb=verb))
            way = next((it for it in ways if not place.room or it.takes <= place.room), None)
            least = way or min(ways, key=lambda it: it.takes)
            cell = Cell(
                place=place, verb=verb, takes=least.takes, flags=least.flags, fits=way is not None
            )
            found.append(cell)
    return found


def fitted(info: BackendInfo, opening: Opening, work: Work) -> tuple[Opening, str]:
    """How to open so that ``work`` fits: as asked, or where ``opening.memory`` sets a limit, by the
    first means that keep it, with a note on what is done otherwise than usual.

    Raises ResourceError, with the flags that would fit, where it does not; and UsageError for means
    that this backend or this device does not have, whatever fits.
    """
    what = describe(info, opening, work.size)
    if what is None or not what.here:  # that it has to be fetched comes first
        return opening, ""
    what = what.stretched(work.aspect_ratio)
    kind = _kind(opening.device, what)
    _check_means(info, what, opening, kind)
    if kind == "cpu" and not what.on_cpu and not _multiplies_bfloat16():
        what = replace(what, on_cpu="float32")
    room = opening.memory or free(kind, opening.device)
    if not room:
        return opening, ""
    card = whole_card(kind, opening.device)
    ways = list(_choices(info, what, opening, work, kind, card))
    here = free("cpu", "cpu")
    if here and ways[0].waits > here:
        raise ResourceError(
            f"{ways[0].waits:.1f} GB of {info.name} would wait in the computer's memory, "
            f"and {here:.1f} GB are free",
            hint="leave out --offload, or close other programs",
        )
    if work.verb == "learn":
        ways += _of_smaller_pictures(info, ways, work)
    ways = [way for way in ways if not here or way.waits <= here]
    if opening.memory and find_spec("bitsandbytes") is None:
        ways = [way for way in ways if not way.opening.quantize or opening.quantize]
    asked = ways[0]
    if asked.takes <= room:
        return opening, _announced(info, what, asked.opening, kind)
    fits = next((way for way in ways if way.takes <= room), None)
    own = next((way for way in ways if way.takes <= room and not way.asked), None)
    if opening.memory and own is not None:
        told = f"{info.name}: {' '.join(own.flags)} keeps it in {room:g} GB"
        more = _announced(info, what, own.opening, kind)
        return own.opening, f"{told}; {more}" if more else told
    raise ResourceError(
        f"{info.name} takes {asked.takes:.1f} GB to {_verb(work.verb)}, "
        f"and {room:.1f} GB are {'allowed' if opening.memory else 'free'}",
        hint=_hint(info, ways, fits, work),
    )


def _check_means(info: BackendInfo, what: Footprint, opening: Opening, kind: Kind) -> None:
    if opening.offload:
        from omnipersona_cli.family.offload import check_offload  # these two import torch

        check_offload(kind)
    if opening.quantize and not any(part.linear for part in what.parts):
        from omnipersona_cli.family.quantize import refuse_quantize

        refuse_quantize(opening.quantize, info.name)


def _announced(info: BackendInfo, what: Footprint, opening: Opening, kind: Kind) -> str:
    """That weights wait elsewhere, and how many."""
    if not opening.offload or kind != "cuda":
        return ""
    dtype = opening.dtype if opening.dtype in SIZES else usual_dtype(what, kind)
    means = Means(kind=kind, dtype=dtype)
    waits = offloaded(what, means)
    return f"{info.name}: {waits:.1f} GB of its layers wait in the computer's memory"


def free(kind: Kind, device: str) -> float:
    """GiB that are free on a device; 0 where the system does not say."""
    if kind == "cpu":
        return _free_here()
    import torch

    if kind == "mps":
        untyped: Any = torch.mps
        return float(untyped.recommended_max_memory() - untyped.driver_allocated_memory()) / GIB
    number = torch.device(device if ":" in device else "cuda")
    return float(torch.cuda.mem_get_info(number)[0]) / GIB


def whole_card(kind: Kind, device: str) -> float:
    """GiB that a CUDA card has, by which batches are cut into pieces; 0 elsewhere."""
    if kind != "cuda":
        return 0.0
    import torch

    number = torch.device(device if ":" in device else "cuda")
    return float(torch.cuda.get_device_properties(number).total_memory) / GIB


def _free_here() -> float:
    """GiB that processes may still take: what Linux calls available, within the container's own
    limit; all there is where only that is known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = dict(line.split(":", 1) for line in lines)
        found = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        try:
            found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return 0.0
    return min([found, *_container()]) / GIB


def _container() -> Iterator[int]:
    """Bytes that the process's control group leaves, where it has a limit (Linux, version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        statistics = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = next(int(it.split()[1]) for it in statistics if it.startswith("inactive_file "))
        if most != "max":
            yield max(0, int(most) - used + cached)
    except (OSError, ValueError, StopIteration):
        return


def _kind(device: str, what: Footprint) -> Kind:
    """Where it will run: "auto" is what `choose_device` makes of it."""
    from omnipersona_cli.family.device import choose_device

    best = "cpu" if what.small else ""
    return cast(Kind, choose_device(device, best=best).partition(":")[0])


def _multiplies_bfloat16() -> bool:
    from omnipersona_cli.family.device import has_bfloat16

    return has_bfloat16()


def _choices(
    info: BackendInfo,
    what: Footprint,
    opening: Opening,
    work: Work,
    kind: Kind,
    card: float,
) -> Iterator[Choice]:
    """As asked, then with one means after the other, the ones that cost least first."""
    means = Means(
        kind=kind,
        dtype=opening.dtype if opening.dtype in SIZES else usual_dtype(what, kind),
        batch=work.batch,
        at_once=work.at_once,
        depth=work.depth,
        images=work.images,
        card=card,
        activation_checkpointing=opening.activation_checkpointing,
        offload=opening.offload,
        quantize=opening.quantize,
    )
    way = Choice(
        opening=opening,
        means=means,
        flags=(),
        takes=needed(what, work.verb, means),
        waits=offloaded(what, means) if means.offload else 0.0,
    )
    yield way
    if opening.dtype is None and means.dtype == "float32" and "bfloat16" in what.dtypes:
        way = _with(way, what, work, "--dtype bfloat16", dtype="bfloat16")
        yield way
    before = way
    if work.verb == "learn" and what.pieces and means.at_once != 1:
        fewer = needed(what, "learn", replace(way.means, at_once=1))
        if fewer < way.takes:
            flags = (*way.flags, "--lessons-at-once 1")
            yield replace(way, flags=flags, takes=fewer, asked=True)
    if work.verb == "learn" and what.checkpoints and not opening.activation_checkpointing:
        way = _with(way, what, work, "--activation-checkpointing", activation_checkpointing=True)
        yield way
    if not opening.offload and not opening.quantize:  # each brings checkpointing with it
        if kind == "cuda" and any(part.layered for part in what.parts):
            way = _with(before, what, work, "--offload", offload=True)
            yield way
        if kind != "mps" and any(part.linear for part in what.parts):
            yield _with(before, what, work, "--quantize int8", quantize="int8")
            yield _with(before, what, work, "--quantize nf4", quantize="nf4")
    yield from _smaller(info, what, work, way)


def _with(way: Choice, what: Footprint, work: Work, flag: str, **means: Any) -> Choice:
    """A way with one means more; an opening and `Means` call it alike."""
    changed = replace(way.means, **means)
    return Choice(
        opening=replace(way.opening, **means),
        means=changed,
        flags=(*way.flags, flag),
        takes=needed(what, work.verb, changed),
        waits=offloaded(what, changed) if changed.offload else 0.0,
    )


def _smaller(info: BackendInfo, what: Footprint, work: Work, way: Choice) -> Iterator[Choice]:
    """What a person may ask for instead: fewer lessons in a step, a smaller picture."""
    if work.verb == "learn" and not what.pieces:
        batch = (work.batch or what.batch) // 2
        while batch:
            takes = needed(what, "learn", replace(way.means, batch=batch))
            flags = (*way.flags, f"--batch-size {batch}")
            yield replace(way, flags=flags, takes=takes, asked=True)
            batch //= 2
    if work.verb == "gen":
        area = _area(work.size or info.sizes[0])
        for size in sorted(info.sizes, key=_area, reverse=True):
            if _area(size) < area:
                smaller = describe(info, way.opening, size) or what
                shown = (*way.flags, f"--size {size[0]}x{size[1]}")
                takes = needed(smaller, "gen", way.means)
                yield replace(way, flags=shown, takes=takes, asked=True)


def _of_smaller_pictures(info: BackendInfo, ways: Sequence[Choice], work: Work) -> list[Choice]:
    """The same ways where lessons have pictures of the least size that the backend learns from."""
    least = info.lesson_sizes[0] if info.lesson_sizes else 0
    found = []
    for way in ways:
        opening = replace(way.opening, lesson_size=least)
        smaller = None if way.opening.lesson_size == least else describe(info, opening, work.size)
        takes = way.takes
        if smaller is not None:
            takes = needed(smaller.stretched(work.aspect_ratio), "learn", way.means)
        if takes < way.takes:
            flags = (*way.flags, f"--size {least}")
            found.append(replace(way, opening=opening, flags=flags, takes=takes, asked=True))
    return found


def usual_dtype(what: Footprint, kind: Kind) -> str:
    """What it runs in where nothing is asked for."""
    return (kind == "cpu" and what.on_cpu) or what.dtypes[0]


def _hint(info: BackendInfo, ways: Sequence[Choice], fits: Choice | None, work: Work) -> str:
    if fits is not None:
        return f"{' '.join(fits.flags)} takes {fits.takes:.1f} GB"
    least = min(ways, key=lambda way: way.takes)
    flags = " ".join(least.flags)
    with_flags = f" with {flags}" if flags else ""
    tries = f"{flags} --memory {math.ceil(least.takes)}G".strip()
    return (
        f"{least.takes:.1f} GB is the least{with_flags}: op backends show {info.name}; "
        f"{tries} tries all the same"
    )


def _verb(verb: Verb) -> str:
    return {"ask": "answer", "gen": "paint", "edit": "edit", "learn": "learn"}[verb]


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
