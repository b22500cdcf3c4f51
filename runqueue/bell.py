"""Telling those who wait in this process that something changed, and what kind of thing."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from runqueue.states import Wake

ALL: Final = frozenset(Wake)


class Bell:
    """Wakes this process's own waiters at once; what other processes do is rung here, too."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = dict.fromkeys(Wake, 0)

    def ring(self, kinds: Iterable[Wake] = ALL) -> None:
        with self._condition:
            for kind in kinds:
                self._rung[kind] += 1
            self._condition.notify_all()

    def count(self, kinds: Iterable[Wake] = ALL) -> int:
        """Return how often any of these kinds was rung; to be compared, for it only grows."""
        return sum(self._rung[kind] for kind in kinds)

    def wait(self, seen: int, timeout: float, kinds: Iterable[Wake] = ALL) -> int:
        """Return the count of these kinds as soon as it is not `seen`, or after `timeout`."""
        with self._condition:
            self._condition.wait_for(lambda: self.count(kinds) != seen, timeout)
            return self.count(kinds)
