"""The units of a run shared out among processes; their records as they come."""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from omnipersona_cli.bench.clock import Unit
from omnipersona_cli.bench.dataset import read_dataset
from omnipersona_cli.bench.judging import Panel
from omnipersona_cli.bench.unit import Event, Keys, Order, opened, run_unit
from omnipersona_cli.errors import PersonaError

PATIENCE = 2.0
"""Seconds for which finished items are still taken in after a failure."""


def in_processes(order: Order, units: Sequence[Unit], done: Keys) -> Iterator[Event]:
    """The units shared out among processes; their records as they come."""
    context: Any = multiprocessing.get_context(order.start_method)
    todo, came = context.Queue(), context.Queue()
    for unit in units:
        todo.put(unit)
    count = min(order.workers, len(units))
    for _ in range(count):
        todo.put(None)
    workers = [
        context.Process(target=_work, args=(order, done, todo, came), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    running = count
    try:
        while running:
            try:
                kind, value = came.get(timeout=1.0)
            except queue.Empty:
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    raise PersonaError(
                        "a worker died; the finished items are kept",
                        hint="run the same command again, with fewer --workers where memory is low",
                    ) from None
                continue
            if kind == "event":
                yield value
            elif kind == "end":
                running -= 1
            else:
                yield from _come_already(came)
                raise value if kind == "error" else RuntimeError(f"in a worker:\n{value}")
    finally:
        for worker in workers:
            if worker.is_alive() and running:
                worker.terminate()
            worker.join()


def _come_already(came: Any) -> Iterator[Event]:
    """What the others have finished when one fails; what they are at is given up."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            kind, value = came.get(timeout=0.1)
        except queue.Empty:
            return
        if kind == "event":
            yield value


def _work(order: Order, done: Keys, todo: Any, came: Any) -> None:
    """One worker's life: units until there are none."""
    try:
        torch.set_num_threads(1)
        dataset = read_dataset(order.data, order.concepts)
        backend, panel = opened(order), Panel.of(order.judges)
        while (unit := todo.get()) is not None:
            for event in run_unit(order, dataset, backend, panel, unit, done):
                _stop_alone()
                came.put(("event", event))
    except PersonaError as error:
        message = PersonaError(str(error), hint=error.hint)  # its class may not travel
        came.put(("error", message))
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception:
        came.put(("bug", traceback.format_exc()))
    else:
        came.put(("end", None))


def _stop_alone() -> None:
    """Stop where the process that keeps the results was killed: a new run may have begun."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
