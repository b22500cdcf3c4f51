"""How the writers of an SQLite database take turns."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import peewee

from runqueue.engines.sqlite_forks import alive, guard
from runqueue.engines.sqlite_line import QUICK_PAUSE, Line

T = TypeVar("T")

JOURNAL_LIMIT: Final = 8 * 1024 * 1024
"""Bytes that the write-ahead log keeps on the disk when all of it is in the database."""
SLOW_WRITER: Final = 0.1
"""Seconds of waiting after which it is the writer that is slow, whom trying would only disturb."""
LOOK: Final = 0.1
"""Seconds after which who waits for another thread looks whether that is still alive."""
WITHIN: Final = "within a transaction"
"""What SQLite says when a transaction is to begin that has begun: a caller's own, by hand."""
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
        self._line = Line(Path(os.path.realpath(path)).parent)
        self._begin_turns()
        super().__init__(
            # Never created here: a file that went away must not come back empty and open.
            f"file:{quote(str(path))}?mode=rw",
            uri=True,
            pragmas=_PRAGMAS,
            lock_type="IMMEDIATE",
            timeout=0,
        )

    def _begin_turns(self) -> None:
        self._turn = threading.Lock()
        self._writer: int | None = None
        self._burying = threading.Lock()

    def renew_turn(self) -> None:
        """Forget who waits or writes: in the child of a fork they are not there."""
        self._begin_turns()
        self._line = self._line.renewed()

    def connect(self, reuse_if_open: bool = False) -> bool:
        # The guard is outside of Peewee's lock: who is within SQLite may be waiting for that.
        return bool(guard.inside(super().connect, reuse_if_open))

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection = self._patiently(super()._connect)  # type: ignore[misc]
        return connection

    def close(self) -> bool:
        try:
            return bool(guard.inside(super().close))
        finally:
            self._settle()

    def close_line(self) -> None:
        """Give up what the turns need, unless somebody writes; it is opened again when needed."""
        if self._turn.acquire(blocking=False):
            self._line.close()
            self._turn.release()

    def begin(self, lock_type: str | None = None) -> None:
        if lock_type is not None and lock_type.upper() == "DEFERRED":  # a caller's, to read
            self._patiently(guard.inside, super().begin, lock_type)
            return
        until = time.monotonic() + self.busy_timeout
        had_turn = self._writer == threading.get_ident()
        try:
            self._take_turn(until)
            self._patiently(super().begin, lock_type, until=until)
        except peewee.OperationalError as error:
            if not had_turn or WITHIN not in str(error):
                self._end_turn_of(threading.get_ident())
            raise
        except BaseException:  # an interrupt, maybe when it had begun
            self.undo()
            raise

    def _take_turn(self, until: float) -> None:
        if self._writer == threading.get_ident():
            return  # an interrupt came before it could be given back
        # Of a process one thread at a time: a hundred that try together keep the one that writes
        # from ever getting the interpreter to finish.
        while not self._turn.acquire(timeout=max(0.0, min(LOOK, until - time.monotonic()))):
            self._end_turn_of_the_dead()
            if time.monotonic() >= until:
                raise peewee.OperationalError("database is locked")
        self._writer = threading.get_ident()
        guard.begins_writing()
        self._line.enter(until - time.monotonic())

    def commit(self) -> Any:
        try:
            return super().commit()
        except Exception:
            raise  # Peewee undoes it
        except BaseException:
            # An interrupt, mostly while the disk takes the commit, which then is made.
            if self._is_within():
                super().rollback()
            raise
        finally:
            self._settle()

    def rollback(self) -> Any:
        try:
            return super().rollback()
        finally:
            self._settle()

    def undo(self) -> None:
        """Roll back what this thread has begun and Peewee does not know of."""
        if self._is_within():
            self.rollback()
        else:
            self._settle()

    def _settle(self) -> None:
        """Give this thread's turn back, unless SQLite is still within its transaction."""
        if self._writer == threading.get_ident() and not self._is_within():
            self._end_turn_of(self._writer)

    def _is_within(self) -> bool:
        state = self._state  # type: ignore[attr-defined]
        return not state.closed and bool(state.conn.in_transaction)

    def _end_turn_of_the_dead(self) -> None:
        with self._burying:  # of several that see it, one
            writer = self._writer
            if writer is not None and not alive([writer]):
                self._end_turn_of(writer)

    def _end_turn_of(self, thread: int) -> None:
        if self._writer != thread:
            return
        try:
            self._line.leave()
        finally:
            try:
                guard.ends_writing(thread)
            finally:
                self._writer = None
                self._turn.release()

    def execute_sql(self, sql: str, params: Sequence[Any] | None = None) -> Any:
        if self.in_transaction() or guard.is_inside():
            return super().execute_sql(sql, params)
        return self.outside_of_transactions(super().execute_sql, sql, params)

    def outside_of_transactions(self, call: Callable[..., T], *args: Any) -> T:
        """Call what executes statements, and again while somebody else has what they need."""
        done: T = self._patiently(guard.inside, call, *args)
        return done

    def _patiently(self, call: Callable[..., T], *args: Any, until: float | None = None) -> T:
        began = time.monotonic()
        last = began + self.busy_timeout if until is None else until
        while True:
            try:
                return call(*args)
            except (peewee.OperationalError, sqlite3.OperationalError) as error:
                if not _is_busy(error) or time.monotonic() >= last:
                    raise
            time.sleep(_pause(time.monotonic() - began))


def _pause(waited: float) -> float:
    """Return for how many seconds to wait before the next try, at random, so no two try in step."""
    if waited > SLOW_WRITER:
        return random.uniform(0.001, 0.003)
    return random.uniform(*QUICK_PAUSE)


def _is_busy(error: BaseException) -> bool:
    return "database is locked" in str(error) or "database table is locked" in str(error)
