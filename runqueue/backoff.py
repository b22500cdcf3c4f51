"""How long to wait for a database that is away before it is tried again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from runqueue.errors import StorageError

T = TypeVar("T")

BACK_OFF: Final = (0.1, 5.0)
"""Shortest and longest pause, in seconds, between two tries while the database is away."""


def pauses() -> Iterator[float]:
    """Yield ever longer random pauses, in seconds, so that those who wait do not come at once."""
    longest = BACK_OFF[0]
    while True:
        yield random.uniform(BACK_OFF[0], longest)
        longest = min(2 * longest, BACK_OFF[1])


def patiently(
    act: Callable[[], T],
    patience: float,
    ended: threading.Event,
    tell: Callable[[StorageError], None],
) -> T | None:
    """Return what `act` returns, trying for so many seconds while the database is away.

    Returns None when `ended` is set meanwhile. Raises what `act` raises when nothing is gained
    by waiting, or the patience is over.
    """
    until = time.monotonic() + patience
    waits = pauses()
    while not ended.is_set():
        try:
            return act()
        except StorageError as error:
            if not error.retryable or time.monotonic() >= until:
                raise
            tell(error)
        ended.wait(next(waits))
    return None
