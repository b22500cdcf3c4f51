"""How the writers of an SQLite database take turns."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import peewee

from runqueue.engines.sqlite_forks import guard
from runqueue.engines.sqlite_line import Line

T = TypeVar("T")

JOURNAL_LIMIT: Final = 8 * 1024 * 1024
"""Bytes that the write-ahead log keeps on the disk when all of it is in the database."""
SLOW_WRITER: Final = 0.1
"""Seconds of waiting after which it is the writer that is slow, whom trying would only disturb."""
_PRAGMAS: Final = {
    # WAL with FULL syncs each commit: NORMAL loses acknowledged runs in a power cut.
    "synchronous": "full",
    "foreign_keys": 1,
    "journal_size_limit": JOURNAL_LIMIT,
    # A statement with triggers keeps a journal of its own; in memory it costs a third less.
    "temp_store": "memory",
}


class Database(peewee.SqliteDatabase):
    """SQLite whose writers begin IMMEDIATE and wait for each other fairly.

    A deferred transaction that reads and then writes fails with SQLITE_BUSY at once, whatever
    the timeout. And SQLite's own busy handler sleeps ever longer, so that whoever waits longest
    is served last (p99 of 730 ms among eight busy writers). Here they stand in a line, and ask
    SQLite again and again only for those that do not: other programs, and processes behind a
    frozen one.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
        self._line = Line(path.parent)
        self.renew_turn()
        super().__init__(
            # Never created here: a file that went away must not come back empty and open.
            f"file:{quote(str(path))}?mode=rw",
            uri=True,
            pragmas=_PRAGMAS,
            lock_type="IMMEDIATE",
            timeout=0,
        )

    def _connect(self) -> sqlite3.Connection:
        connect = super()._connect  # type: ignore[misc]
        connection: sqlite3.Connection = guard.inside(self._patiently, connect)
        return connection

    def _close(self, conn: sqlite3.Connection) -> None:
        guard.inside(super()._close, conn)  # type: ignore[misc]

    def renew_turn(self) -> None:
        """Forget who waits or writes: in the child of a fork they are not there."""
        self._turn = threading.Lock()
        self._writer: int | None = None
        self._line.abandon()
        self._line = Line(self.path.parent)

    def close_line(self) -> None:
        """Give up what the turns need, unless somebody writes; it is opened again when needed."""
        if self._turn.acquire(blocking=False):
            self._line.close()
            self._turn.release()

    def begin(self, lock_type: str | None = None) -> None:
        # Of a process one thread at a time: a hundred that try together keep the one that writes
        # from ever getting the interpreter to finish.
        began = time.monotonic()
        if not self._turn.acquire(timeout=self.busy_timeout):
            raise peewee.OperationalError("database is locked")
        try:
            self._writer = threading.get_ident()
            guard.begins_writing()
            self._line.enter(began + self.busy_timeout - time.monotonic())
            self._patiently(super().begin, lock_type)
        except BaseException:
            self._ends_writing()
            raise

    def commit(self) -> Any:
        done = super().commit()
        self._ends_writing()
        return done

    def rollback(self) -> Any:
        try:
            return super().rollback()
        finally:
            self._ends_writing()

    def _ends_writing(self) -> None:
        if self._writer == threading.get_ident():
            self._writer = None
            try:
                self._line.leave()
            finally:
                guard.ends_writing()
                self._turn.release()

    def hold_for_fork(self) -> None:
        """Let no thread be within SQLite while the process is forked."""
        is_mine = self._writer == threading.get_ident()
        self._has_turn = not is_mine and self._turn.acquire(timeout=self.busy_timeout)
        guard.hold(self.busy_timeout)

    def go_on_after_fork(self) -> None:
        """In the parent: end what `hold_for_fork` began."""
        guard.go_on()
        if self._has_turn:
            self._turn.release()

    def execute_sql(self, sql: str, params: Sequence[Any] | None = None) -> Any:
        if self.in_transaction():
            return super().execute_sql(sql, params)
        return guard.inside(self._patiently, super().execute_sql, sql, params)

    def _patiently(self, call: Callable[..., T], *args: Any) -> T:
        began = time.monotonic()
        while True:
            try:
                return call(*args)
            except (peewee.OperationalError, sqlite3.OperationalError) as error:
                if not _is_busy(error) or time.monotonic() - began >= self.busy_timeout:
                    raise
            time.sleep(_pause(time.monotonic() - began))


def _pause(waited: float) -> float:
    """Return for how many seconds to wait before the next try, at random, so no two try in step."""
    if waited > SLOW_WRITER:
        return random.uniform(0.001, 0.003)
    return random.uniform(0.00005, 0.0003)


def _is_busy(error: BaseException) -> bool:
    return "database is locked" in str(error) or "database table is locked" in str(error)
