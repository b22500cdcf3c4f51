"""The engine of SQLite: a file, in which one writes at a time."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import peewee

from runqueue import clock, errors
from runqueue.engines import base, sqlite_health
from runqueue.engines.sqlite_doorbell import SqliteDoorbell
from runqueue.engines.sqlite_files import close_to_the_world, file_of, path_of, prepare_file
from runqueue.engines.sqlite_forks import guard
from runqueue.engines.sqlite_transfer import SqliteTransfer
from runqueue.engines.sqlite_turns import JOURNAL_LIMIT, Database
from runqueue.findings import Check

ERRORS: Final = (sqlite3.Error,)
DAMAGED: Final = "the database file is damaged; restore a backup"
FULL: Final = "the disk of the database is full; make room, try again"

INCREMENTAL: Final = 2
"""What `PRAGMA auto_vacuum` says of a file that can give back pages at any time."""
STEP: Final = 50
"""Pages given back to the system in one transaction, for which others wait."""
SPARE: Final = 0.2
"""Share of the file that stays free, for what is deleted now makes room for what is added next."""
FORK_PATIENCE: Final = 10.0
"""Seconds for which a fork is put off while another thread is within SQLite."""
APPLICATION_ID: Final = 0x72756E71
"""`runq`, in the SQLite file's header: tells our files from other programs'."""


class Sqlite(base.Engine):
    """An SQLite file; each thread keeps a connection of its own."""

    name: ClassVar[str] = "sqlite"
    is_shared: ClassVar[bool] = False
    locks_rows: ClassVar[bool] = False
    writes_in_one: ClassVar[bool] = False
    begin: ClassVar[tuple[str, ...]] = ("IMMEDIATE",)

    def __init__(self, database: peewee.SqliteDatabase, url: str) -> None:
        super().__init__(database, url)
        self.transfer = SqliteTransfer(database)
        self._doorbell = SqliteDoorbell(self.bell)
        self._outside: Callable[..., Any] = guard.inside
        self._is_ours = isinstance(database, Database)
        if isinstance(database, Database):
            self._outside = database.outside_of_transactions

    def clock(self) -> clock.Clock:
        return clock.system_clock

    def rows(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        state = self.database._state  # type: ignore[attr-defined]
        if self._is_ours and state.transactions:
            # Past Peewee's wrapping of each cursor and error, a third of a small statement.
            found: list[tuple[Any, ...]] = state.conn.execute(sql, parameters).fetchall()
            return found
        read: list[tuple[Any, ...]] = self._outside(super().rows, sql, parameters)
        return read

    def change(self, sql: str, parameters: Sequence[Any]) -> int:
        state = self.database._state  # type: ignore[attr-defined]
        if self._is_ours and state.transactions:
            return int(state.conn.execute(sql, parameters).rowcount)
        return int(self._outside(super().change, sql, parameters))

    def as_list(self, texts: Sequence[str]) -> Any:
        return json.dumps(texts)

    def watch(self, watcher: object, *, is_in_haste: bool = True) -> None:
        if self._doorbell.file is None:
            self._doorbell.file = file_of(self.database)
        self._doorbell.listen_for(watcher, is_in_haste=is_in_haste)

    def unwatch(self, watcher: object) -> None:
        self._doorbell.forget(watcher)

    def schema_version(self) -> int:
        database = self.database
        application = database.execute_sql("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION_ID:
            tables = set(database.get_tables())
            if application or (tables and not {"runs", "sessions"} <= tables):
                raise errors.ConfigurationError(
                    f"{self.url} is a database of another program; give runqueue its own"
                )
            return 0
        return int(database.execute_sql("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def migrating(self) -> Iterator[None]:
        """The lock is the database's own: one IMMEDIATE transaction."""
        database = self.database
        if not database.execute_sql("PRAGMA page_count").fetchone()[0]:
            # Before the first page, or never but by a VACUUM: each page has its place noted (1 %).
            database.execute_sql("PRAGMA auto_vacuum = incremental")
        # Persistent, and not possible inside a transaction.
        database.execute_sql("PRAGMA journal_mode = wal")
        # Rebuilding a table must not cascade, and the pragma is ignored inside a transaction.
        database.execute_sql("PRAGMA foreign_keys = OFF")
        try:
            with database.atomic("IMMEDIATE"):
                yield
        finally:
            database.execute_sql("PRAGMA foreign_keys = ON")

    def stamp(self, version: int) -> None:
        database = self.database
        if broken := database.execute_sql("PRAGMA foreign_key_check").fetchall():
            raise errors.ConfigurationError(
                f"{self.url} has {len(broken)} rows that refer to rows that do not exist"
            )
        database.execute_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute_sql(f"PRAGMA user_version = {version}")

    def damage(self) -> list[str]:
        found = [
            str(row[0])
            for row in self.database.execute_sql("PRAGMA integrity_check").fetchall()
            if row[0] != "ok"
        ]
        broken = self.database.execute_sql("PRAGMA foreign_key_check").fetchall()
        return found + [f"a row of {row[0]} refers to no row of {row[2]}" for row in broken]

    def places(self) -> Iterable[Check]:
        database = self.database
        return sqlite_health.places(database.path) if isinstance(database, Database) else ()

    def checks(self) -> Iterable[Check]:
        return sqlite_health.checks(self.database)

    def back_up(self, target: str) -> None:
        with closing(sqlite3.connect(target)) as copy:
            self.database.connection().backup(copy)

    def give_back(self) -> bool:
        database = self.database
        (free,) = database.execute_sql("PRAGMA freelist_count").fetchone()
        (pages,) = database.execute_sql("PRAGMA page_count").fetchone()
        (mode,) = database.execute_sql("PRAGMA auto_vacuum").fetchone()
        surplus = free - int(pages * SPARE)
        if mode != INCREMENTAL or surplus < STEP:
            return True
        # One at a time: Python's driver ends the pragma after its first page, whatever is asked.
        with database.atomic("IMMEDIATE"):
            for _ in range(STEP):
                database.execute_sql("PRAGMA incremental_vacuum(1)").fetchall()
        return False

    def trim_log(self) -> None:
        # Not the name that it was opened by, which may be a link or a URI.
        if not (file := file_of(self.database)):
            return
        try:
            if Path(f"{file}-wal").stat().st_size <= JOURNAL_LIMIT:
                return
        except OSError:  # a caller's own database may keep another journal
            return
        # What takes long first, beside the writers: only what is left then keeps them out.
        _, pages, done = self.database.execute_sql("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages == done:
            self.database.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def undo(self) -> None:
        if isinstance(self.database, Database):
            self.database.undo()

    def settle_in(self) -> None:
        if isinstance(self.database, Database):
            close_to_the_world(self.database.path)

    def hurry(self, seconds: float) -> None:
        if isinstance(self.database, Database):
            self.database.busy_timeout = seconds

    def close(self) -> None:
        self._doorbell.close()
        if isinstance(self.database, Database):
            self.database.close_line()

    def hold_for_fork(self) -> None:
        guard.hold(FORK_PATIENCE)

    def go_on_after_fork(self) -> None:
        guard.go_on()

    def abandon(self) -> list[Any]:
        database = self.database
        # Closing it here could checkpoint or unlink under the parent, who still uses it.
        inherited = [self._doorbell.abandon()]
        if not database.is_closed():
            inherited.append(database.connection())
        # Another thread of the parent may have held it at the fork, and is not here to let go.
        database._lock = threading.Lock()  # type: ignore[attr-defined]
        if isinstance(database, Database):
            database.renew_turn()
        database.dispose()
        return inherited

    def translate(self, error: BaseException) -> errors.RunqueueError | None:
        text = str(error)
        if text.startswith(base.MOVED):
            return errors.ConfigurationError(f"{self.url} was {text}")
        if "UNIQUE constraint failed: runs.session_id" in text:
            return base.SessionTaken("another run of the session has become active; try again")
        # What SQLite says of a damaged schema quotes it, and that need not be text any more.
        if (
            isinstance(error, UnicodeDecodeError) or "Could not decode to UTF-8" in text
        ):  # and then quotes it, which may be a prompt
            return errors.StorageDamaged(DAMAGED)
        if isinstance(error, sqlite3.IntegrityError):
            return errors.InvalidRun(f"the database refuses it: {error}")
        code = _code_of(error) or next(
            (code for part, code in _BY_MESSAGE.items() if part in text), ""
        )
        for known, (kind, sentence) in _BY_CODE.items():
            if code.startswith(known):
                return kind(sentence)
        return None


def _code_of(error: BaseException) -> str | None:
    """Return SQLite's own name of an error, or of the one that Peewee has made it from."""
    # Not along its context: that may be an error of the caller's, who handles it just now.
    one: Any = error
    while one is not None:
        if name := getattr(one, "sqlite_errorname", None):
            return str(name)
        one = getattr(one, "orig", None)
    return None


def open_url(url: str, *, busy_timeout: float, create: bool) -> Sqlite:
    """Open the file of an `sqlite:///` URL.

    Raises ConfigurationError when it cannot be used, or is not there and `create` is false.
    """
    path = path_of(url)
    try:
        is_there = path.exists()
    except PermissionError:  # its directory may not be entered
        raise errors.ConfigurationError(
            f"the database {path} may not be read and written by you"
        ) from None
    if not create and not is_there:
        raise errors.ConfigurationError(
            f"there is no database {path}; make it with: runqueue --db sqlite:///{path} db init"
        )
    prepare_file(path)
    return Sqlite(Database(path, busy_timeout), f"sqlite:///{path}")


_BUSY: Final = (errors.StorageBusy, "another process is writing to the database; try again")
_BY_CODE: Final[dict[str, tuple[type[errors.RunqueueError], str]]] = {
    "SQLITE_BUSY": _BUSY,
    "SQLITE_LOCKED": _BUSY,
    "SQLITE_FULL": (errors.StorageFull, FULL),
    # What SQLite says when there is no room for the index of its log.
    "SQLITE_IOERR_SHMSIZE": (errors.StorageFull, FULL),
    "SQLITE_IOERR": (errors.StorageLost, "the disk of the database failed; look at the system log"),
    "SQLITE_CANTOPEN": (errors.StorageLost, "the database file cannot be opened"),
    "SQLITE_PERM": (errors.StorageLost, "the database file may not be opened"),
    "SQLITE_READONLY": (errors.ConfigurationError, "the database is read-only for this user"),
    "SQLITE_NOTADB": (errors.ConfigurationError, "the file is not a database"),
    "SQLITE_CORRUPT": (errors.StorageDamaged, DAMAGED),
}

# Python 3.10 has no sqlite_errorname.
_BY_MESSAGE: Final = {
    "is locked": "SQLITE_BUSY",
    "is full": "SQLITE_FULL",
    "disk I/O error": "SQLITE_IOERR",
    "unable to open": "SQLITE_CANTOPEN",
    "readonly": "SQLITE_READONLY",
    "not a database": "SQLITE_NOTADB",
    "malformed": "SQLITE_CORRUPT",
}
