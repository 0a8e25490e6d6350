"""Several ways of doing one thing, timed in turn: rounds are interleaved and their order
alternates, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Timings(Generic[T]):
    """Seconds of each way by round, by the clock and (``work``) of the processor; the results of
    the last round. One round before them does not count."""

    clock: Mapping[str, list[float]]
    work: Mapping[str, list[float]]
    results: Mapping[str, T]


def interleaved(
    ways: Mapping[str, Callable[[int], T]],
    *,
    rounds: int,
    check: Callable[[Mapping[str, T]], None] = lambda results: None,
) -> Timings[T]:
    """Each way once a round, given the round's number; ``check`` sees every round's results."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    work: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, T] = {}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            settle()
            began, worked = time.perf_counter(), time.process_time()
            results[name] = ways[name](number)
            settle()
            if number:
                clock[name].append(time.perf_counter() - began)
                work[name].append(time.process_time() - worked)
        check(results)
    return Timings(clock=clock, work=work, results=results)


def settle() -> None:
    """Wait for whatever an accelerator still does."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(timings: Timings[T], *, what: str) -> str:
    """Medians as Markdown, and what the last way takes as a multiple of the first."""
    rows = [f"| {what} | median | processor time |", "| --- | --- | --- |"]
    for name, seconds in timings.clock.items():
        middle, busy = statistics.median(seconds), statistics.median(timings.work[name])
        rows.append(f"| {name} | {middle * 1e3:.0f} ms | {busy * 1e3:.0f} ms |")
    first, *_, last = timings.clock
    for how, series in (("by the clock", timings.clock), ("in processor time", timings.work)):
        found = sorted(b / a for a, b in zip(series[first], series[last], strict=True))
        rows += [
            "",
            f"{last} / {first} {how}: {statistics.median(found):.2f} "
            f"(rounds from {found[0]:.2f} to {found[-1]:.2f})",
        ]
    return "\n".join(rows)


def copied_bytes_per_second(device: str) -> float:
    """What the device's memory does: bytes read and written by copying 512 MiB, best of five."""
    one = torch.empty(2**29, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    seconds = []
    for _ in range(5):
        settle()
        began = time.perf_counter()
        other.copy_(one)
        settle()
        seconds.append(time.perf_counter() - began)
    return 2 * one.numel() / min(seconds)
