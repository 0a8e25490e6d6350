"""Wait for a piece of work from the event loop: for its value, or beat by beat.

Whoever stops waiting, stops the work: a client that goes away must not keep the model busy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from omnipersona_cli.backend import Backend
from op_serve.worker import Stopped, Ticket, Worker

T = TypeVar("T")

model_seconds: ContextVar[float | None] = ContextVar("model_seconds", default=None)
"""How long the model worked for the request at hand."""

PATIENCE = 5.0
"""Seconds of silence after which a stream says that it is still alive."""


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Nothing new: ``position`` pieces of work come first, 0 where it is being done."""

    position: int


@dataclass(frozen=True, kw_only=True)
class Ended(Generic[T]):
    """The last beat of a stream."""

    value: T


async def result_of(
    worker: Worker,
    what: str,
    work: Callable[[Backend, Ticket[T]], T],
    *,
    leaving: Awaitable[None] | None = None,
    patient: bool = False,
) -> T:
    """The value of ``work``. ``leaving`` is done when the client has left, which ends the work."""
    left = None if leaving is None else asyncio.ensure_future(leaving)
    try:
        ticket = worker.submit(what, work, patient=patient)
        value = asyncio.wrap_future(ticket.result)
        try:
            if left is not None:
                await asyncio.wait((value, left), return_when=asyncio.FIRST_COMPLETED)
                if not value.done():
                    raise Stopped
            result = await value
            model_seconds.set(ticket.seconds)
            return result
        finally:
            worker.cancel(ticket)
            _forget(value)
    finally:
        if left is not None:
            left.cancel()


async def beats_of(
    worker: Worker,
    what: str,
    work: Callable[[Backend, Ticket[T]], T],
    *,
    patient: bool = False,
) -> AsyncGenerator[Any | Waits | Ended[T], None]:
    """Everything that ``work`` sends, `Waits` in between, and `Ended` at the end."""
    loop = asyncio.get_running_loop()
    beats: asyncio.Queue[Any] = asyncio.Queue()

    def on_beat(beat: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(beats.put_nowait, beat)

    ticket = worker.submit(what, work, on_beat=on_beat, patient=patient)
    value = asyncio.wrap_future(ticket.result)
    value.add_done_callback(lambda _: beats.put_nowait(_END))
    try:
        if position := worker.position(ticket):
            yield Waits(position=position)
        while True:
            try:
                beat = await asyncio.wait_for(beats.get(), PATIENCE)
            except TimeoutError:
                yield Waits(position=worker.position(ticket))
                continue
            if beat is _END:
                break
            yield beat
        yield Ended(value=await value)
    finally:
        worker.cancel(ticket)
        _forget(value)


_END = object()


def _forget(value: asyncio.Future[Any]) -> None:
    """Nobody reads the error of work that nobody waits for."""
    value.cancel()
    if value.done() and not value.cancelled():
        value.exception()
