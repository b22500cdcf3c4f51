"""How a daemon appears: to its service manager, and to people who read its log."""

from __future__ import annotations

import logging
import time
from typing import Final

from runqueue import telling
from runqueue.about import about
from runqueue.database import Store
from runqueue.systemd.notify import Manager

log = logging.getLogger("runqueue.daemon")

LOOK: Final = 5.0
"""Seconds between two looks at how much there is to do, and between two words about it."""
SPARE: Final = 15.0
"""Seconds that a watchdog waits for longer than the daemon itself would go on without a sweep."""


class Reporter:
    """What one daemon tells; its sweeps and its failures are told to it."""

    def __init__(self, store: Store, manager: Manager) -> None:
        self._store = store
        self.manager = manager
        self.swept_at: float | None = None
        """When the last sweep succeeded, in time.monotonic()."""
        self.failing = ""
        """Why sweeps fail at present."""
        self._at_hand = ""
        self._looked = self._said = -LOOK
        self._seen_event = 0

    def begin(self) -> None:
        """Tell of no decision that was made before now."""
        self._seen_event = telling.last_event(self._store)

    def ready(self) -> None:
        """Tell that the daemon, started or reloaded, does its work."""
        self.manager.ready(self._status())

    def expect(self, *, patience: float | None, interval: float) -> None:
        """Leave a watchdog time for what is no fault: a pause as wanted, and the patience."""
        self.manager.expect(SPARE + max(patience or 0.0, 3 * interval))

    def swept(self) -> None:
        """Note that a sweep succeeded; of a watchdog nothing else is a sign of life."""
        self.swept_at = time.monotonic()
        self.manager.alive()

    def say(self) -> None:
        """Tell the manager how the daemon is, now and then; for a thread that never sweeps."""
        moment = time.monotonic()
        if self.manager.is_there and moment - self._said >= LOOK:
            self._said = moment
            self.manager.status(self._status())

    def look(self) -> None:
        """Look at what is told, now and then; for the thread that sweeps."""
        moment = time.monotonic()
        if moment - self._looked < LOOK:
            return
        self._looked = moment
        # So that the next decisions are looked for among few events.
        self._seen_event = telling.last_event(self._store)
        if self.manager.is_there:
            self._at_hand = telling.at_hand(self._store)

    def tell_decisions(self) -> None:
        """Tell of each run that a sweep changed, for people who look for that run."""
        decided = telling.decisions(self._store, self._seen_event)
        for one in decided:
            with about(run_id=one.run_id, session_id=one.session_id):
                why = f": {one.detail}" if one.detail else ""
                log.info("run %s is %s%s", one.run_id, one.status, why)
        if len(decided) == telling.TOLD:
            log.info("and more; the runs' timelines say why")
        self._seen_event = telling.last_event(self._store)

    def _status(self) -> str:
        swept = "no sweep yet"
        if self.swept_at is not None:
            swept = f"last sweep {time.monotonic() - self.swept_at:.1f} s ago"
        words = [self._at_hand, swept, f"it fails: {self.failing}" if self.failing else ""]
        return "; ".join(word for word in words if word)
