"""Ctrl-C without harm: at once while nothing has begun, at the next safe place while something is torn.

Only the main thread may set handlers; elsewhere both do nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = "stopped; the same command goes on"


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """While torch is imported Ctrl-C ends the process: torch's own start-up code would answer an
    exception in the middle of it by aborting.
    """

    def leave(number: int, frame: object) -> None:
        os.write(2, f"\n{STOPPED}\n".encode())
        os._exit(130)

    if not _main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM become a flag, so that a step is never torn; yields its reader."""
    if not _main_thread():
        yield lambda: False
        return
    caught: list[int] = []
    previous = {
        number: signal.signal(number, lambda received, frame: caught.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
