"""Waiting for the database to change, instead of asking it again and again."""

from __future__ import annotations

import math
import time
from collections.abc import Collection

from runqueue.bell import ALL
from runqueue.database import Store
from runqueue.errors import StorageError
from runqueue.states import Wake


class Watch:
    """Notices changes of some kinds since the last look, by this process or any other.

    Belongs to one thread, whose connection it uses where changes are seen only by looking: SQLite
    counts the commits of other connections, of whatever kind they are.
    """

    def __init__(self, store: Store, kinds: Collection[Wake] = ALL) -> None:
        self._store = store
        self._kinds = kinds
        store.engine.watch(self)
        self._seen = self._look()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer."""
        self._store.engine.unwatch(self)

    def _look(self) -> tuple[int, int]:
        return self._store.version_of_data(), self._store.engine.bell.count(self._kinds)

    def wait(self, timeout: float) -> bool:
        """Return whether there was a change; wait for it at most `timeout` seconds.

        A storage error counts as a change: whoever waits then meets it where it can be handled.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                found = self._look()
            except StorageError:
                return True
            if found != self._seen:
                self._seen = found
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            engine = self._store.engine
            pause = min(left, engine.poll or math.inf)
            engine.bell.wait(found[1], pause, self._kinds)
