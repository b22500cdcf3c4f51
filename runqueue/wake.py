"""Waiting for the database to change, instead of asking it again and again."""

from __future__ import annotations

from collections.abc import Collection

from runqueue.bell import ALL
from runqueue.database import Store
from runqueue.states import Wake


class Watch:
    """Notices changes of some kinds since the last look, by this process or any other."""

    def __init__(self, store: Store, kinds: Collection[Wake] = ALL) -> None:
        self._engine = store.engine
        self._kinds = kinds
        # An agent runs for minutes; that a stop is seen at once is not worth what it costs writers.
        self._engine.watch(self, is_in_haste=set(kinds) != {Wake.STOP})
        self._seen = self._engine.bell.count(kinds)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer."""
        self._engine.unwatch(self)

    def wait(self, timeout: float) -> bool:
        """Return whether there was a change; wait for it at most `timeout` seconds.

        A database that is lost counts as changed: whoever waits meets it where it can be handled.
        """
        seen, self._seen = self._seen, self._engine.bell.wait(self._seen, timeout, self._kinds)
        return self._seen != seen
