"""Ctrl-C without harm: the process ends at once before work has begun, and between two steps afterwards.

Only the main thread may set signal handlers; in another thread both functions change nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = "stopped; the same command continues"


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once with status 130.

    For the import of torch, whose start-up code aborts when a KeyboardInterrupt is raised in it.
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
def interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM only set a flag, so that a step is finished first; yields its reader."""
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
