"""Waiting for the database to change, instead of asking it again and again.

SQLite counts the commits of other connections (`PRAGMA data_version`, 3 microseconds); changes
by threads of this process ring a bell that they share.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from runqueue.database import Store
from runqueue.errors import StorageError

POLL: Final = 0.02
"""Seconds between two looks at the counter: 0.4 % of a core, and the pick-up's worst case."""


class Bell:
    """Wakes this process's own waiters at once; every queue on a database rings its own."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = 0

    def ring(self) -> None:
        with self._condition:
            self._rung += 1
            self._condition.notify_all()

    def count(self) -> int:
        return self._rung

    def wait(self, seen: int, timeout: float) -> int:
        """Return the count as soon as it is not `seen`, or after `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._rung != seen, timeout)
            return self._rung


class Watch:
    """Notices changes since the last look, by this process or any other.

    Belongs to one thread, whose connection it uses.
    """

    def __init__(self, store: Store, bell: Bell) -> None:
        self._store = store
        self._bell = bell
        self._rung = bell.count()
        self._version = store.version_of_data()

    def wait(self, timeout: float) -> bool:
        """Return whether there was a change; wait for it at most `timeout` seconds.

        A storage error counts as a change: whoever waits then meets it where it can be handled.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                version = self._store.version_of_data()
            except StorageError:
                return True
            if version != self._version or self._bell.count() != self._rung:
                self._version, self._rung = version, self._bell.count()
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._bell.wait(self._rung, min(left, POLL))
