"""One thread owns the model; whatever needs it waits in one bounded queue.

A piece of work is a function of the opened backend and of its own ticket. Through the ticket it
sends beats to whoever waits, and asks at every step whether it is still wanted.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Literal, TypeVar

from omnipersona_cli.backend import Backend
from omnipersona_cli.errors import PersonaError

T = TypeVar("T")

WorkerState = Literal["loading", "ready", "asleep", "failed", "stopping"]

MOST_WAITING = 16
"""How many pieces of work may wait behind the one that runs."""


class Stopped(Exception):
    """Raised inside a piece of work that nobody waits for any more, and to whoever cancelled it."""


class BusyError(PersonaError):
    """The queue is full; ``seconds`` is when to try again."""

    def __init__(self, message: str, *, hint: str, seconds: int) -> None:
        super().__init__(message, hint=hint)
        self.seconds = seconds


class NotReadyError(PersonaError):
    """The model is being loaded, or the server is being stopped."""

    def __init__(self, message: str, *, hint: str = "", seconds: int = 2) -> None:
        super().__init__(message, hint=hint)
        self.seconds = seconds


class Ticket(Generic[T]):
    """One piece of work. ``what`` names it to people ("a picture", "learning <bo>"); ``result``
    ends with its value, its error or `Stopped`, ``seconds`` is how long it was worked on."""

    def __init__(
        self,
        number: int,
        what: str,
        work: Callable[[Backend, Ticket[T]], T],
        on_beat: Callable[[Any], None] | None,
    ) -> None:
        self.number = number
        self.what = what
        self.work = work
        self.on_beat = on_beat
        self.result: Future[T] = Future()
        self.seconds = 0.0
        self._unwanted = threading.Event()

    @property
    def unwanted(self) -> bool:
        """True once nobody waits for it."""
        return self._unwanted.is_set()

    def stop(self) -> None:
        """Ask it to end at its next step; `Worker.cancel` also takes it out of the queue."""
        self._unwanted.set()

    def go_on(self) -> None:
        """Called by the work at every step: raises `Stopped` where it is not wanted any more."""
        if self.unwanted:
            raise Stopped

    def send(self, beat: Any) -> None:
        """Hand something on to whoever waits; raises `Stopped` where nobody does."""
        self.go_on()
        if self.on_beat is not None:
            self.on_beat(beat)


class Worker:
    """The thread, its queue and the opened backend.

    ``open_backend`` is called in the thread: when it starts, and again after the backend was let go
    because nothing was asked for ``idle_seconds``, or could not be opened.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        *,
        most_waiting: int = MOST_WAITING,
        idle_seconds: float | None = None,
    ) -> None:
        self.most_waiting = most_waiting
        self.error: Exception | None = None
        self.done = 0
        self._open_backend = open_backend
        self._idle_seconds = idle_seconds
        self._backend: Backend | None = None
        self._queue: deque[Ticket[Any]] = deque()
        self._running: Ticket[Any] | None = None
        self._changed = threading.Condition()
        self._opened_once = threading.Event()
        self._stopping = False
        self._numbers = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="op-serve-worker", daemon=True)

    def start(self) -> None:
        """Open the backend in the background and take up work."""
        self._thread.start()

    def end(self) -> None:
        """Cancel everything and take no more work; does not wait."""
        with self._changed:
            self._stopping = True
            waiting, running = list(self._queue), self._running
            self._queue.clear()
            if running is not None:
                running.stop()
            self._changed.notify_all()
        for ticket in waiting:
            _end(ticket, Stopped())

    def stop(self, *, seconds: float = 30.0) -> None:
        """`end`, wait for the step at hand, let the backend go."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def state(self) -> WorkerState:
        """What the thread is doing, in a word."""
        if self._stopping:
            return "stopping"
        if not self._opened_once.is_set():
            return "loading"
        if self._backend is not None:
            return "ready"
        return "failed" if self.error is not None else "asleep"

    @property
    def waiting(self) -> int:
        """How many pieces of work wait."""
        return len(self._queue)

    @property
    def running(self) -> str:
        """What is being done, as a person reads it; empty for nothing."""
        ticket = self._running
        return ticket.what if ticket else ""

    def submit(
        self,
        what: str,
        work: Callable[[Backend, Ticket[T]], T],
        *,
        on_beat: Callable[[Any], None] | None = None,
        patient: bool = False,
    ) -> Ticket[T]:
        """Queue a piece of work. ``on_beat`` is called in the worker's thread.

        Raises BusyError where too much waits already, NotReadyError while the server stops and,
        for work that is not ``patient``, while the model is being loaded for the first time.
        """
        with self._changed:
            if self._stopping:
                raise NotReadyError("the server is being stopped", hint="op serve", seconds=5)
            if not patient and not self._opened_once.is_set():
                raise NotReadyError("the model is being loaded", hint="try again in a moment")
            if len(self._queue) >= self.most_waiting:
                doing = self._running.what if self._running else "other work"
                raise BusyError(
                    f"{len(self._queue)} requests wait already, behind {doing}",
                    hint="try again later, or start it with a larger --max-queue",
                    seconds=5,
                )
            ticket: Ticket[T] = Ticket(next(self._numbers), what, work, on_beat)
            self._queue.append(ticket)
            self._changed.notify_all()
        return ticket

    def position(self, ticket: Ticket[Any]) -> int:
        """How many pieces of work come before this one: 0 where it runs or is done."""
        with self._changed:
            if ticket in self._queue:
                return self._queue.index(ticket) + (self._running is not None)
        return 0

    def cancel(self, ticket: Ticket[Any]) -> None:
        """End a piece of work: at once where it waits, at its next step where it runs."""
        ticket.stop()
        with self._changed:
            waiting = ticket in self._queue
            if waiting:
                self._queue.remove(ticket)
        if waiting:
            _end(ticket, Stopped())

    def _run(self) -> None:
        self._try_to_open()
        while True:
            ticket = self._next()
            if ticket is None:
                self._backend = None
                return
            self._do(ticket)
            del ticket  # with what it made
            with self._changed:
                self._running = None
                self.done += 1

    def _next(self) -> Ticket[Any] | None:
        """The next piece of work; None where the server stops. Lets an idle backend go."""
        with self._changed:
            while not self._stopping:
                if self._queue:
                    self._running = self._queue.popleft()
                    return self._running
                if not self._changed.wait(self._idle_seconds) and self._backend is not None:
                    self._backend = None
                    _free_memory()
            return None

    def _do(self, ticket: Ticket[Any]) -> None:
        if not ticket.result.set_running_or_notify_cancel():
            return
        try:
            ticket.go_on()
            if self._backend is None:
                self._try_to_open()
            if self._backend is None:
                raise self.error or RuntimeError("the backend is not open")
            began = time.perf_counter()
            result = ticket.work(self._backend, ticket)
            ticket.seconds = time.perf_counter() - began
        except Exception as error:  # whatever it is belongs to whoever asked; the thread goes on
            _end(ticket, Stopped() if ticket.unwanted else error)
        else:
            ticket.result.set_result(result)

    def _try_to_open(self) -> None:
        try:
            self._backend, self.error = self._open_backend(), None
        except Exception as error:  # told to everybody who asks, until it works
            self.error = error
        self._opened_once.set()


def _end(ticket: Ticket[Any], error: Exception) -> None:
    """Give ``error`` to whoever waits, without what its frames hold: the model among it."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    if not ticket.result.done():
        ticket.result.set_exception(error)


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
