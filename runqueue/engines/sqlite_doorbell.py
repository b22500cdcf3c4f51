"""Hearing what other processes commit to an SQLite file: the kernel tells of its write-ahead log.

Every commit appends to the file beside the database whose name ends in `-wal`, whoever makes it,
also the `sqlite3` shell. The kernel tells of the writing, and a commit is seen a little later,
when the disk has taken it: from the one to the other this looks at the count of commits that
SQLite keeps, at ever longer intervals.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any, Final

import peewee

from runqueue.bell import Bell
from runqueue.engines.doorbell import Doorbell, wait_for

try:
    from inotify_simple import INotify, flags
except (ImportError, OSError):  # not Linux
    INotify = None

GAP: Final = 0.002
"""Seconds between two rings, however many commits there are meanwhile."""
LOOKS: Final = (0.0001, 0.02)
"""Shortest and longest pause, in seconds, between two looks for a commit that is on its way."""
STALLED: Final = 1.0
"""Seconds after which what was written is taken not to become a commit: it was rolled back."""
NET: Final = 0.5
"""Seconds between two looks when the kernel told nothing: a net, should it not tell."""


class SqliteDoorbell(Doorbell):
    """A connection that looks, and does nothing else."""

    def __init__(self, database: peewee.SqliteDatabase, bell: Bell) -> None:
        self._database = database
        super().__init__(bell)

    def _serve_connection(self, reader: int) -> bool:
        database = self._database
        database.connect(reuse_if_open=True)
        try:
            self._connection = database.connection()
            ((file,),) = self._read("SELECT file FROM pragma_database_list WHERE name = 'main'")
            self._version()  # from the first reading on the log is there
            log = _watched(f"{file}-wal") if file else None
            if log is None:
                return self._listen(reader, None)
            with closing(log):
                return self._listen(reader, log)
        finally:
            database.close()
            self._bell.ring()  # whoever waits looks for itself, and meets what is wrong

    def _read(self, sql: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._database.execute_sql(sql).fetchall()
        return rows

    def _version(self) -> int:
        """Return a number that changes when another connection has committed (3 us)."""
        return int(self._read("PRAGMA data_version")[0][0])

    def _listen(self, reader: int, log: Any) -> bool:
        handles = [reader] if log is None else [reader, log.fileno()]
        seen = self._version()
        self._bell.ring()  # what was committed before this is no change
        idle_since = time.monotonic()
        told_at, pause = -STALLED, LOOKS[0]
        while True:
            moment = time.monotonic()
            if len(self._watchers):
                idle_since = moment
            elif moment - idle_since >= self._linger() and self._is_over():
                return True
            if moment - told_at < STALLED:
                left, pause = pause, min(2 * pause, LOOKS[1])
            else:
                left = NET if log is not None else LOOKS[1]
            ready = wait_for(handles, left)
            if reader in ready:
                os.read(reader, 4096)
            if len(ready) > (reader in ready):
                told_at, pause = time.monotonic(), LOOKS[0]
                if any(event.mask != flags.MODIFY for event in log.read(timeout=0)):
                    raise FileNotFoundError  # another file takes its place
            if (version := self._version()) != seen:
                seen, told_at, pause = version, -STALLED, LOOKS[0]
                self._bell.ring()
                time.sleep(GAP)


def _watched(path: str) -> Any:
    """Return what the kernel tells of a file; None where it does not tell."""
    if INotify is None:
        return None
    try:
        log = INotify()
    except OSError:  # this user has as many as it may have
        return None
    try:
        log.add_watch(path, flags.MODIFY | flags.DELETE_SELF | flags.MOVE_SELF)
    except OSError:
        log.close()
        return None
    return log
