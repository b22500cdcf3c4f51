"""What is SQLite's own: its URLs and files, settings, errors, and how its writers take turns."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote, unquote

import peewee

from runqueue import clock, engine, errors, settings

T = TypeVar("T")

ERRORS: Final = (sqlite3.Error,)

APPLICATION_ID: Final = 0x72756E71
"""`runq`, in the SQLite file's header: tells our files from other programs'."""

_PRAGMAS: Final = {
    # WAL with FULL syncs each commit: NORMAL loses acknowledged runs in a power cut.
    "synchronous": "full",
    "foreign_keys": 1,
    "journal_size_limit": 16 * 1024 * 1024,
    # A statement with triggers keeps a journal of its own; in memory it costs a third less.
    "temp_store": "memory",
}


class Database(peewee.SqliteDatabase):
    """SQLite whose writers begin IMMEDIATE and wait for each other fairly.

    A deferred transaction that reads and then writes fails with SQLITE_BUSY at once, whatever
    the timeout. And SQLite's own busy handler sleeps ever longer, so that whoever waits longest
    is served last (p99 of 730 ms among eight busy writers); short random pauses keep it at 10 ms.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
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
        connection: sqlite3.Connection = self._patiently(super()._connect)  # type: ignore[misc]
        return connection

    def renew_turn(self) -> None:
        """Forget who waits: in the child of a fork they are not there."""
        self._turn = threading.Lock()

    def begin(self, lock_type: str | None = None) -> None:
        # One thread of a process tries at a time: a hundred that try together keep the one
        # that holds the lock from ever getting the interpreter to finish.
        if not self._turn.acquire(timeout=self.busy_timeout):
            raise peewee.OperationalError("database is locked")
        try:
            self._patiently(lambda: super(Database, self).begin(lock_type))
        finally:
            self._turn.release()

    def execute_sql(self, sql: str, params: Sequence[Any] | None = None) -> Any:
        if self.in_transaction():
            return super().execute_sql(sql, params)
        return self._patiently(lambda: super(Database, self).execute_sql(sql, params))

    def _patiently(self, call: Callable[[], T]) -> T:
        began = time.monotonic()
        tries = 0
        while True:
            try:
                return call()
            except (peewee.OperationalError, sqlite3.OperationalError) as error:
                if not _is_busy(error) or time.monotonic() - began >= self.busy_timeout:
                    raise
            tries += 1
            # After some 10 ms the holder is slow, not unlucky: stop burning its processor.
            low, high = (0.00002, 0.0003) if tries < 50 else (0.001, 0.003)
            time.sleep(random.uniform(low, high))


def _is_busy(error: BaseException) -> bool:
    return "database is locked" in str(error) or "database table is locked" in str(error)


def path_of(url: str) -> Path:
    """Return the file of an `sqlite:///` URL. Raises ConfigurationError when it names none."""
    rest = url.partition("://")[2]
    if not rest.startswith("/") or len(rest) < 2:
        raise errors.ConfigurationError(
            f"{engine.without_password(url)} names no file; write sqlite:///PATH"
        )
    if rest == "/:memory:":
        raise errors.ConfigurationError(
            "an in-memory database cannot be shared by processes; name a file"
        )
    if "?" in rest or "#" in rest:
        shown = engine.without_password(url)
        raise errors.ConfigurationError(
            f"{shown} has options behind ? or #, which sqlite:// does not take"
        )
    path = unquote(rest[1:])
    if "\0" in path:
        raise errors.ConfigurationError("the database's path holds a NUL character")
    # Absolute: a run gets the URL in its environment, and has another working directory.
    return Path(path).expanduser().absolute()


def prepare_file(path: Path) -> None:
    """Create the file closed to the world, before SQLite can create it open.

    It must be closed again before SQLite opens it, for closing any handle of a file drops all
    POSIX locks that the process holds on it; therefore a file that exists is never opened here.
    """
    parent = path.parent
    try:
        if not parent.exists() and parent == _default_directory():
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise errors.ConfigurationError(
                f"the directory {parent} is writable by everybody; a database there is not safe"
            )
        shared = mode & stat.S_ISGID and mode & stat.S_IWGRP
        wanted = 0o660 if shared else 0o600
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, wanted)
        except FileExistsError:
            _check_file(path)
            return
        try:
            os.fchmod(handle, wanted)  # the umask may have taken the group's rights
        finally:
            os.close(handle)
    except FileNotFoundError:
        if path.is_symlink():
            raise errors.ConfigurationError(f"the link {path} leads to no file") from None
        raise errors.ConfigurationError(f"the directory {parent} does not exist") from None
    except (PermissionError, NotADirectoryError, OSError) as error:
        raise errors.ConfigurationError(
            f"the database {path} cannot be created: {error.strerror}"
        ) from None


def _default_directory() -> Path:
    return path_of(settings.default_url({**os.environ, "RUNQUEUE_DB": ""})).parent


def _check_file(path: Path) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise errors.ConfigurationError(f"the database {path} is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise errors.ConfigurationError(f"the database {path} is not a regular file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise errors.ConfigurationError(f"the database {path} may not be read and written by you")


def close_to_the_world(path: Path) -> None:
    """Take everybody else's rights on a database that somebody created open."""
    for side in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        try:
            status = side.stat()
            if status.st_mode & 0o007 and status.st_uid == os.geteuid():
                side.chmod(stat.S_IMODE(status.st_mode) & ~0o007)
        except FileNotFoundError:
            continue


class Sqlite(engine.Engine):
    """An SQLite file; each thread keeps a connection of its own."""

    name: ClassVar[str] = "sqlite"
    is_shared: ClassVar[bool] = False
    locks_rows: ClassVar[bool] = False
    begin: ClassVar[tuple[str, ...]] = ("IMMEDIATE",)
    poll = 0.02  # 0.4 % of a core, and the worst case of a pick-up

    def clock(self) -> clock.Clock:
        return clock.system_clock

    def as_list(self, texts: Sequence[str]) -> Any:
        return json.dumps(texts)

    def version_of_data(self) -> int:
        """Return a number that changes when another connection has committed (3 us)."""
        return int(self.database.execute_sql("PRAGMA data_version").fetchone()[0])

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

    def back_up(self, target: str) -> None:
        with closing(sqlite3.connect(target)) as copy:
            self.database.connection().backup(copy)

    def identity(self) -> tuple[Any, ...]:
        ((file,),) = self.database.execute_sql(
            "SELECT file FROM pragma_database_list WHERE name = 'main'"
        ).fetchall()
        status = Path(file).stat()
        return status.st_dev, status.st_ino

    def keep_writers_out(self) -> None:
        """IMMEDIATE does."""

    def rows(self, select: str) -> Generator[tuple[Any, ...], None, None]:
        yield from self.database.execute_sql(select)

    def fill(
        self,
        table: str,  # noqa: ARG002 - in `insert`, as the columns are
        columns: Sequence[str],  # noqa: ARG002
        insert: str,
        rows: Iterable[tuple[Any, ...]],
    ) -> None:
        connection = self.database.connection()
        # Of the index of the keys, which come in no order when they were made elsewhere, and of
        # the rows' parents the default of 2 MB holds too little.
        connection.execute("PRAGMA cache_size = -65536")
        try:
            connection.executemany(insert, rows)
        finally:
            connection.execute("PRAGMA cache_size = -2000")

    @contextmanager
    def in_bulk(self, tables: Sequence[str]) -> Iterator[None]:
        database = self.database
        # A session may stand before its parent; what is missing is found by the commit.
        database.execute_sql("PRAGMA defer_foreign_keys = ON")
        dropped = database.execute_sql(_BURDENS, (self.as_list(tables),)).fetchall()
        for drop, _ in dropped:
            database.execute_sql(drop)
        yield
        # An index that is made of millions of rows is sorted in files, not in memory.
        database.execute_sql("PRAGMA temp_store = file")
        for _, create in dropped:
            database.execute_sql(create)
        database.execute_sql("PRAGMA temp_store = memory")

    def count_on(self) -> None:
        """The next number is always the largest one and 1."""

    def closing(self) -> engine.Closing | None:
        database = self.database
        if not database.execute_sql(_IS_CLOSED).fetchone():
            return None
        return engine.Closing(*database.execute_sql(_CLOSING).fetchone())

    def close_to_changes(self, tables: Sequence[str], why: engine.Closing) -> None:
        database = self.database
        (view,) = database.execute_sql(_CLOSING_VIEW, tuple(why)).fetchone()
        database.execute_sql(view)
        parameters = (why.sentence, self.as_list(tables))
        for (trigger,) in database.execute_sql(_CLOSING_TRIGGERS, parameters).fetchall():
            database.execute_sql(trigger)

    def open_to_changes(self, tables: Sequence[str]) -> None:
        database = self.database
        for (drop,) in database.execute_sql(_OPENING, (self.as_list(tables),)).fetchall():
            database.execute_sql(drop)
        database.execute_sql("DROP VIEW runqueue_closing")

    def settle_in(self) -> None:
        if isinstance(self.database, Database):
            close_to_the_world(self.database.path)

    def hurry(self, seconds: float) -> None:
        if isinstance(self.database, Database):
            self.database.busy_timeout = seconds

    def abandon(self) -> list[Any]:
        database = self.database
        # Closing it here could checkpoint or unlink under the parent, who still uses it.
        inherited = [] if database.is_closed() else [database.connection()]
        # Another thread of the parent may have held it at the fork, and is not here to let go.
        database._lock = threading.Lock()  # type: ignore[attr-defined]
        if isinstance(database, Database):
            database.renew_turn()
        database.dispose()
        return inherited

    def translate(self, error: BaseException) -> errors.RunqueueError | None:
        text = str(error)
        if text.startswith(engine.MOVED):
            return errors.ConfigurationError(f"{self.url} was {text}")
        if "UNIQUE constraint failed: runs.session_id" in text:
            return engine.SessionTaken("another run of the session has become active; try again")
        code = getattr(error, "sqlite_errorname", None) or next(
            (code for part, code in _BY_MESSAGE.items() if part in text), ""
        )
        for known, (kind, sentence) in _BY_CODE.items():
            if code.startswith(known):
                return kind(sentence)
        return None


def open_url(url: str, *, busy_timeout: float, create: bool) -> Sqlite:
    """Open the file of an `sqlite:///` URL.

    Raises ConfigurationError when it cannot be used, or is not there and `create` is false.
    """
    path = path_of(url)
    if not create and not path.exists():
        raise errors.ConfigurationError(
            f"there is no database {path}; make it with: runqueue --db sqlite:///{path} db init"
        )
    prepare_file(path)
    return Sqlite(Database(path, busy_timeout), f"sqlite:///{path}")


# SQL that names what is known only now is put together by SQLite itself, which quotes it: %w a
# name within its quotes, %Q a text with them.
# Triggers, and indexes, which are made in half the time when all rows are there; those of sessions
# stay, for they find the children of a parent that comes late.
_BURDENS: Final = """
    SELECT printf('DROP %s "%w"', type, name), sql FROM sqlite_master
    WHERE (type = 'trigger' OR type = 'index' AND sql IS NOT NULL AND lower(tbl_name) <> 'sessions')
    AND lower(tbl_name) IN (SELECT value FROM json_each(?))"""
_IS_CLOSED: Final = "SELECT 1 FROM sqlite_master WHERE type = 'view' AND name = 'runqueue_closing'"
_CLOSING: Final = "SELECT sentence, place, token FROM runqueue_closing"
# A view of constants: what is no row, no writer can change.
_CLOSING_VIEW: Final = """
    SELECT printf('CREATE VIEW runqueue_closing AS SELECT %Q AS sentence, %Q AS place, %Q AS token',
        ?, ?, ?)"""
_CLOSING_TRIGGERS: Final = """
    SELECT printf('CREATE TRIGGER "runqueue_closed_%w_%w" BEFORE %s ON "%w" '
        || 'BEGIN SELECT RAISE(ABORT, %Q); END', t.value, c.value, c.value, t.value, ?)
    FROM json_each(?) AS t, json_each('["insert", "update", "delete"]') AS c"""
_OPENING: Final = """
    SELECT printf('DROP TRIGGER "%w"', name) FROM sqlite_master
    WHERE type = 'trigger' AND substr(name, 1, 16) = 'runqueue_closed_'
    AND lower(tbl_name) IN (SELECT value FROM json_each(?))"""

_BUSY: Final = (errors.StorageBusy, "another process is writing to the database; try again")
_BY_CODE: Final[dict[str, tuple[type[errors.RunqueueError], str]]] = {
    "SQLITE_BUSY": _BUSY,
    "SQLITE_LOCKED": _BUSY,
    "SQLITE_FULL": (errors.StorageFull, "the disk of the database is full; make room, try again"),
    "SQLITE_IOERR": (errors.StorageLost, "the disk of the database failed; look at the system log"),
    "SQLITE_CANTOPEN": (errors.StorageLost, "the database file cannot be opened"),
    "SQLITE_PERM": (errors.StorageLost, "the database file may not be opened"),
    "SQLITE_READONLY": (errors.ConfigurationError, "the database is read-only for this user"),
    "SQLITE_NOTADB": (errors.ConfigurationError, "the file is not a database"),
    "SQLITE_CORRUPT": (errors.StorageDamaged, "the database file is damaged; restore a backup"),
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
