"""Hearing what other processes commit to an SQLite file: the kernel tells of its write-ahead log.

Every commit appends to the file beside the database whose name ends in `-wal`, whoever makes it,
also the `sqlite3` shell. The kernel tells of the writing, and a commit is seen a little later,
when the disk has taken it: from the one to the other this looks at the count of commits that
SQLite keeps, at ever longer intervals.
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Any, Final
from urllib.parse import quote

from runqueue.bell import Bell
from runqueue.engines.doorbell import LINGER, Doorbell, wait_for
from runqueue.engines.sqlite_forks import guard

try:
    from inotify_simple import INotify, flags
except (ImportError, OSError):  # not Linux
    INotify = None

GAPS: Final = (0.001, 0.01)
"""Shortest and longest pause, in seconds, between two rings: the longer, the more is committed.

Whoever is woken asks the database, and eight that ask at every commit take half of a writer's time.
"""
QUIET: Final = 0.015
"""Seconds without a ring, more than the longest pause, after which the next one is not held up."""
LOOKS: Final = (0.0001, 0.02)
"""Shortest and longest pause, in seconds, between two looks for a commit that is on its way."""
SOON: Final = (0.02, 0.0004)
"""Seconds after the kernel told in which a commit mostly comes, and the longest pause meanwhile."""
DEAF: Final = 0.01
"""Seconds for which the kernel is not heard again once it has told: the looks are close then."""
CALM: Final = 0.02
"""Seconds between two looks when the kernel is not asked: nobody is in haste, or it does not tell.

That it tells costs every writer some 15 us a commit, for each process that is told, and that
process a thread that wakes up.
"""
STALLED: Final = 1.0
"""Seconds after which what was written is taken not to become a commit: it was rolled back."""
NET: Final = 0.5
"""Seconds between two looks when the kernel told nothing: a net, should it not tell."""


class SqliteDoorbell(Doorbell):
    """A connection that looks, and does nothing else."""

    def __init__(self, bell: Bell) -> None:
        self.file: str | None = None
        """The database's file as SQLite names it; empty for one in memory, that has no others."""
        self._log: Any = None
        super().__init__(bell)

    def abandon(self) -> Any:
        if self._log is not None:
            self._log.close()
            self._log = None
        return super().abandon()

    def _serve_connection(self, reader: int) -> bool:
        if not self.file:
            if wait_for([reader], NET):
                os.read(reader, 4096)
            return self._is_over()
        # Not the caller's: a connection of theirs may belong to one thread.
        connection = guard.inside(_connect, self.file)
        log: _Log | None = None
        try:
            self._connection = connection
            _version(connection)  # from the first reading on the log is there
            # A local, for the thread that comes after this one may have begun before it ends.
            log = self._log = _Log(f"{self.file}-wal")
            return self._listen(reader, connection, log)
        finally:
            if log is not None:
                log.close()
                self._bell.ring()  # whoever waits looks for itself, and meets what is wrong
            guard.inside(connection.close)

    def _listen(self, reader: int, connection: sqlite3.Connection, log: _Log) -> bool:
        seen = _version(connection)
        self._bell.ring()  # what was committed before this is no change
        idle_since = time.monotonic()
        told_at, begun_at, pause = -STALLED, -STALLED, LOOKS[0]
        rung_at, gap, heard_at = -QUIET, GAPS[0], -DEAF
        while True:
            moment = time.monotonic()
            net = NET
            if len(self._watchers):
                idle_since = moment
            elif moment - idle_since >= self._linger() and self._is_over():
                return True
            else:
                net = min(net, LINGER / 2)
            if log.listen(bool(len(self._in_haste))):
                # Of what is being written just now the kernel has told nobody.
                begun_at, pause = moment, LOOKS[0]
            is_looking = moment - max(told_at, begun_at) < STALLED
            handles = [reader]
            # A writer whose transaction does not fit its memory tells at every page.
            hears = log.tells and moment - heard_at >= DEAF
            if hears:
                handles.append(log.fileno())
            if is_looking:
                is_soon = moment - max(told_at, begun_at) < SOON[0]
                longest = SOON[1] if is_soon else LOOKS[1]
                left, pause = pause, min(1.5 * pause, longest)
            else:
                left = net if log.tells else CALM
            if not hears and log.tells:
                left = min(left, heard_at + DEAF - moment)
            ready = wait_for(handles, left)
            if reader in ready:
                os.read(reader, 4096)
            if has_told := log.has_told():
                told_at = time.monotonic()
                if hears:
                    heard_at, pause = told_at, LOOKS[0]
            if (version := _version(connection)) == seen:
                continue
            seen, pause = version, LOOKS[0]
            if not has_told:  # else that may be the next commit, which is on its way
                told_at = -STALLED
            gap = GAPS[0] if moment - rung_at > QUIET else min(2 * gap, GAPS[1])
            rung_at = moment
            self._bell.ring()
            time.sleep(gap)


def _connect(file: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(file)}?mode=rw", uri=True)


def _version(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another connection has committed (3 us)."""
    return int(guard.inside(_ask, connection))


def _ask(connection: sqlite3.Connection) -> Any:
    return connection.execute("PRAGMA data_version").fetchone()[0]


class _Log:
    """The write-ahead log of a database, of which the kernel tells when it is asked to."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._watch: int | None = None
        try:
            self._kernel = INotify() if INotify is not None else None
        except OSError:  # this user has as many as it may have
            self._kernel = None

    @property
    def tells(self) -> bool:
        """Whether the kernel tells of the writing."""
        return self._watch is not None

    def listen(self, is_wanted: bool) -> bool:
        """Have the kernel tell or be silent; return whether it tells from now on."""
        if self._kernel is None or is_wanted == self.tells:
            return False
        if self._watch is not None:
            self._kernel.rm_watch(self._watch)
            self._watch = None
            return False
        self._kernel.read(timeout=0)  # what it said before it was silent
        try:
            self._watch = self._kernel.add_watch(self._path, flags.MODIFY | flags.MOVE_SELF)
        except OSError:
            self.close()
        return self.tells

    def has_told(self) -> bool:
        """Whether the kernel told of writing.

        Raises FileNotFoundError for a log that was renamed.
        """
        if self._kernel is None or self._watch is None:
            return False
        events = self._kernel.read(timeout=0)
        if any(event.wd == self._watch and event.mask != flags.MODIFY for event in events):
            raise FileNotFoundError
        return bool(events)

    def fileno(self) -> int:
        return int(self._kernel.fileno()) if self._kernel is not None else -1

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
        self._kernel = self._watch = None
