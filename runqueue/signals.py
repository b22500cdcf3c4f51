"""Acting on SIGTERM and SIGINT in a thread of its own.

A Python signal handler interrupts the main thread anywhere, also while it holds the lock that
the handler would need. Here the handler does nothing; the interpreter writes the signal's
number to a pipe, and a thread that reads it may call anything.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def on_ending(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` for each SIGTERM or SIGINT meanwhile; enter it in the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(
        target=_read, args=(reader, act), name="runqueue-signals", daemon=True
    )
    before: dict[int, Any] = {number: signal.signal(number, _ignore) for number in ENDING}
    fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)


def _ignore(number: int, frame: object) -> None:
    """A handler must be there for the interpreter to write the number."""


def _read(reader: int, act: Callable[[], None]) -> None:
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number in ENDING:
                act()
