"""SIGTERM and SIGHUP end a command as Ctrl-C does: in words, with everything put away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt, unless they are ignored (nohup) or
    somebody handles them. Does nothing outside the main thread, where signals cannot be heard."""
    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    heard = [sign for sign in signal.Signals if sign.name in names]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    ours = [sign for sign in heard if signal.getsignal(sign) is signal.SIG_DFL]
    for sign in ours:
        signal.signal(sign, _interrupt)
    try:
        yield
    finally:
        for sign in ours:
            signal.signal(sign, signal.SIG_DFL)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
