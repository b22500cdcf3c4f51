"""One clock for all machines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone


class ServerClock:
    """The server's time, whatever the host's clock says.

    It is asked for at long intervals; in between, time passes as on the host, by a clock that
    nobody can set.
    """

    RENEW = 10.0
    """Seconds for which an answer is used: crystals differ by some 20 us in that time."""

    def __init__(self, ask: Callable[[], datetime], errors: tuple[type[Exception], ...]) -> None:
        self._server_time = ask
        self._errors = errors
        self._lock = threading.Lock()
        self._base: tuple[datetime, float] | None = None
        self._last = datetime.min.replace(tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        base = self._base
        if base is None or _ticks() - base[1] > self.RENEW:
            base = self._ask(base)
        now = base[0] + timedelta(seconds=_ticks() - base[1])
        with self._lock:
            # A new answer may be off by the time that it took to come; what happens here one
            # after the other must be told so.
            if timedelta(0) <= self._last - now < timedelta(seconds=1):
                now = self._last + timedelta(microseconds=1)
            self._last = now
        return now

    def _ask(self, base: tuple[datetime, float] | None) -> tuple[datetime, float]:
        asked = _ticks()
        try:
            moment = self._server_time()
        except self._errors:
            if base is None:
                raise
            return base  # the server is away; time passes all the same
        answered = _ticks()
        self._base = (moment, (asked + answered) / 2)
        return self._base


def _ticks() -> float:
    """Seconds since the boot, those of a suspended machine too where that can be told."""
    with suppress(AttributeError, OSError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
