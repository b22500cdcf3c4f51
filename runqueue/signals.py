"""Acting on signals in a thread of its own.

A Python signal handler interrupts the main thread anywhere, also while it holds the lock that
the handler would need. Here the handler does nothing; the interpreter writes the signal's
number to a pipe, and a thread that reads it may call anything.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

log = logging.getLogger("runqueue.signals")

ENDING = (signal.SIGTERM, signal.SIGINT)


def on_ending(act: Callable[[], None]) -> AbstractContextManager[None]:
    """Call `act` for each SIGTERM or SIGINT meanwhile; enter it in the main thread."""
    return on_signals(dict.fromkeys(ENDING, act))


@contextmanager
def on_signals(acts: Mapping[int, Callable[[], None]]) -> Iterator[None]:
    """Call what belongs to each of these signals meanwhile; enter it in the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(
        target=_read, args=(reader, acts), name="runqueue-signals", daemon=True
    )
    # Before the handlers, for one that comes between the two would be swallowed.
    fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before: dict[int, Any] = {number: signal.signal(number, _ignore) for number in acts}
    thread.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        os.close(writer)
        thread.join()
        os.close(reader)


def _ignore(number: int, frame: object) -> None:
    """A handler must be there for the interpreter to write the number."""


def _read(reader: int, acts: Mapping[int, Callable[[], None]]) -> None:
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number in acts:
                try:
                    acts[number]()
                except Exception:
                    # The next signal must be heard, too: it may be the one that ends the process.
                    log.exception("signal %d could not be acted upon", number)
