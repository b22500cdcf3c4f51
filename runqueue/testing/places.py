"""A queue for one test, and the time that it goes by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

from runqueue import clock as time_of
from runqueue.queue import Queue, connect
from runqueue.settings import Settings

START: Final = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
"""An instant with decimals, as nearly every real one has."""


class MovableClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, moment: datetime = START) -> None:
        time_of.to_text(moment)  # a time without a zone is refused here and not in the first verb
        self.moment = moment

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        """Let time pass, or with a negative number set the clock back."""
        self.moment += timedelta(seconds=seconds)

    def text(self, seconds: float = 0) -> str:
        """Return the time so many seconds from now, as the database holds it."""
        return time_of.to_text(self.moment + timedelta(seconds=seconds))


@contextmanager
def temporary_queue(
    clock: time_of.Clock | None = None, *, settings: Settings | None = None
) -> Iterator[Queue]:
    """Make a queue on a file of its own, which goes when the context is left.

    `clock` is the time that the queue goes by, such as a MovableClock; None is the host's.
    """
    with tempfile.TemporaryDirectory(prefix="runqueue-") as place:
        url = f"sqlite:///{Path(place) / 'queue.db'}"
        with connect(url, settings=settings, clock=clock) as queue:
            yield queue
