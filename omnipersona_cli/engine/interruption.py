"""Ctrl-C while learning: the step at hand is finished first, a second press is heeded at once.

SIGTERM (a batch system, a container that stops) and SIGHUP (a terminal that closes) are heard like
the first press. They may come twice, so that a second one is no hurry.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C, SIGTERM or SIGHUP only sets what the callable returns; a second
    Ctrl-C raises KeyboardInterrupt. SIGTERM and SIGHUP stay ignored where they were (nohup).
    Outside the main thread, where signals cannot be heard, it is never set."""
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed and signum == signal.SIGINT:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    heard = [sign for sign in signal.Signals if sign.name in names]
    handlers = {sign: signal.getsignal(sign) for sign in heard}
    before = {
        sign: old
        for sign, old in handlers.items()
        if old is not None and (old != signal.SIG_IGN or sign == signal.SIGINT)
    }
    for sign in before:
        signal.signal(sign, note)
    try:
        yield lambda: pressed
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
