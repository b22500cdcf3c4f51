"""Opening a database: the one place that knows that databases differ.

Everything above it sees a `Store`: transactions that write from their first statement,
statements compiled once, and errors of our own types.
"""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import peewee

from runqueue import errors, settings

T = TypeVar("T")

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


class Hole:
    """The place of one value in a compiled statement's parameters."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Statement:
    """A Peewee query with named holes, turned into SQL once for each database.

    Building and compiling a query costs Peewee ten times what SQLite needs to execute it.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self.build = build

    def compile(self, database: peewee.Database) -> Compiled:
        sql, template = self.build().bind(database).sql()
        return Compiled(sql, tuple(template))


class Compiled(NamedTuple):
    """The SQL of a statement, and its parameters with holes for a call's values."""

    sql: str
    template: tuple[Any, ...]

    def parameters(self, values: dict[str, Any]) -> list[Any]:
        return [values[part.name] if type(part) is Hole else part for part in self.template]


class QueueSqliteDatabase(peewee.SqliteDatabase):
    """SQLite whose writers begin IMMEDIATE and wait for each other fairly.

    A deferred transaction that reads and then writes fails with SQLITE_BUSY at once, whatever
    the timeout. And SQLite's own busy handler sleeps ever longer, so that whoever waits longest
    is served last (p99 of 730 ms among eight busy writers); short random pauses keep it at 10 ms.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
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

    def begin(self, lock_type: str | None = None) -> None:
        self._patiently(lambda: super(QueueSqliteDatabase, self).begin(lock_type))

    def execute_sql(self, sql: str, params: Sequence[Any] | None = None) -> Any:
        if self.in_transaction():
            return super().execute_sql(sql, params)
        return self._patiently(lambda: super(QueueSqliteDatabase, self).execute_sql(sql, params))

    def _patiently(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + self.busy_timeout
        tries = 0
        while True:
            try:
                return call()
            except (peewee.OperationalError, sqlite3.OperationalError) as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise
            tries += 1
            # After some 10 ms the holder is slow, not unlucky: stop burning its processor.
            low, high = (0.00002, 0.0003) if tries < 50 else (0.001, 0.003)
            time.sleep(random.uniform(low, high))


def _is_busy(error: BaseException) -> bool:
    return "database is locked" in str(error) or "database table is locked" in str(error)


class Store:
    """An open database, for any number of threads; each has a connection of its own."""

    def __init__(self, database: peewee.Database, url: str) -> None:
        self.database = database
        self.url = url
        self._compiled: dict[Statement, Compiled] = {}
        self._within = threading.local()
        _opened.add(self)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write in one transaction, or in a savepoint of the one that the caller is in.

        A verb within another verb needs no savepoint: it fails before it writes, or whole.
        """
        if getattr(self._within, "verb", False) and self.database.in_transaction():
            yield
            return
        with translated_errors(), self.database.atomic("IMMEDIATE"):
            self._within.verb = True
            try:
                yield
            finally:
                self._within.verb = False

    def run(self, statement: Statement, **values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows.

        The cursor is read to the end at once: on SQLite an UPDATE .. RETURNING with a row
        unread keeps the write lock.
        """
        with translated_errors():
            rows: list[tuple[Any, ...]] = self._execute(statement, values).fetchall()
            return rows

    def change(self, statement: Statement, **values: Any) -> int:
        """Execute a statement that returns no rows; return how many it changed."""
        with translated_errors():
            return int(self._execute(statement, values).rowcount)

    def _execute(self, statement: Statement, values: dict[str, Any]) -> Any:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = statement.compile(self.database)
        parameters = compiled.parameters(values)
        try:
            return self.database.execute_sql(compiled.sql, parameters)
        except UnicodeEncodeError:
            # What is stored was checked; this is an id to look for with half a character in it,
            # which no row can have: in another form it is not found, too.
            parameters = [_encodable(value) for value in parameters]
            return self.database.execute_sql(compiled.sql, parameters)

    def query(self, query: Any) -> list[tuple[Any, ...]]:
        """Execute a query that is built for one call, such as a filtered list."""
        with translated_errors():
            sql, parameters = query.bind(self.database).sql()
            cursor = self.database.execute_sql(sql, [_encodable(value) for value in parameters])
            return cursor.fetchall() if cursor.description else []

    def version_of_data(self) -> int:
        """Return a number that changes when another connection has committed (SQLite)."""
        with translated_errors():
            row = self.database.execute_sql("PRAGMA data_version").fetchone()
            return int(row[0])

    def hurry(self, busy_timeout: float) -> None:
        """Wait no longer than this for other writers from now on."""
        if isinstance(self.database, QueueSqliteDatabase):
            self.database.busy_timeout = busy_timeout

    def damage(self) -> list[str]:
        """Return what the database itself finds wrong with its file and references."""
        with translated_errors():
            found = [
                str(row[0])
                for row in self.database.execute_sql("PRAGMA integrity_check").fetchall()
                if row[0] != "ok"
            ]
            broken = self.database.execute_sql("PRAGMA foreign_key_check").fetchall()
            return found + [f"a row of {row[0]} refers to no row of {row[2]}" for row in broken]

    def back_up(self, target: sqlite3.Connection) -> None:
        """Copy the database to another connection, online."""
        with translated_errors():
            self.database.connection().backup(target)

    def close(self) -> None:
        """Close this thread's connection."""
        if not self.database.is_closed():
            self.database.close()

    def abandon(self) -> None:
        """Forget this thread's connection without closing it, in the child of a fork."""
        if not self.database.is_closed():
            # Closing it here could checkpoint or unlock under the parent, who still uses it.
            _inherited.append(self.database.connection())
        # Another thread of the parent may have held it at the fork, and is not here to let go.
        self.database._lock = threading.Lock()  # type: ignore[attr-defined]
        self.database.dispose()


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


_opened: weakref.WeakSet[Store] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    for store in list(_opened):
        store.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def open_store(target: str | peewee.Database, *, busy_timeout: float, create: bool = True) -> Store:
    """Open a database by its URL, or share the caller's own Peewee database.

    Raises ConfigurationError when the URL cannot be used, or names no database and `create`
    is false.
    """
    if isinstance(target, peewee.Database):
        if not isinstance(target, peewee.SqliteDatabase):
            raise errors.ConfigurationError("this version of runqueue runs on SQLite only")
        return Store(target, f"sqlite:///{target.database}")
    path = _sqlite_path(target)
    if not create and not path.exists():
        raise errors.ConfigurationError(
            f"there is no database {path}; make it with: runqueue --db sqlite:///{path} db init"
        )
    _prepare_file(path)
    return Store(QueueSqliteDatabase(path, busy_timeout), f"sqlite:///{path}")


def _sqlite_path(url: str) -> Path:
    scheme, separator, rest = url.partition("://")
    if not separator:
        # What is no URL may be the password of one.
        is_path = not set(url) & set("@=: ")
        raise errors.ConfigurationError(
            f"{url} is not a database URL; write sqlite:///{url}"
            if is_path
            else "the database URL has no scheme; write sqlite:///PATH"
        )
    if scheme in ("postgresql", "postgres"):
        raise errors.ConfigurationError(
            "this version of runqueue runs on SQLite only; write sqlite:///PATH"
        )
    if scheme != "sqlite":
        raise errors.ConfigurationError(f"unknown database scheme {scheme[:20]!r}; use sqlite://")
    if not rest.startswith("/") or len(rest) < 2:
        raise errors.ConfigurationError(
            f"{without_password(url)} names no file; write sqlite:///PATH"
        )
    if rest == "/:memory:":
        raise errors.ConfigurationError(
            "an in-memory database cannot be shared by processes; name a file"
        )
    if "?" in rest or "#" in rest:
        raise errors.ConfigurationError(
            f"{without_password(url)} has options behind ? or #, which sqlite:// does not take"
        )
    path = unquote(rest[1:])
    if "\0" in path:
        raise errors.ConfigurationError("the database's path holds a NUL character")
    # Absolute: a run gets the URL in its environment, and has another working directory.
    return Path(path).expanduser().absolute()


def without_password(url: str) -> str:
    """Return a database URL fit for a message: without password and options."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    rest = rest.partition("?")[0].partition("#")[0]
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}"


def _prepare_file(path: Path) -> None:
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
    return _sqlite_path(settings.default_url({**os.environ, "RUNQUEUE_DB": ""})).parent


def _check_file(path: Path) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise errors.ConfigurationError(f"the database {path} is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise errors.ConfigurationError(f"the database {path} is not a regular file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise errors.ConfigurationError(f"the database {path} may not be read and written by you")


def close_to_the_world(store: Store) -> None:
    """Take everybody else's rights on a database that somebody created open."""
    if not isinstance(store.database, QueueSqliteDatabase):
        return  # the caller's own
    for end in ("", "-wal", "-shm"):
        path = Path(f"{store.database.path}{end}")
        try:
            status = path.stat()
            if status.st_mode & 0o007 and status.st_uid == os.geteuid():
                path.chmod(stat.S_IMODE(status.st_mode) & ~0o007)
        except FileNotFoundError:
            continue


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except (peewee.PeeweeException, sqlite3.Error) as error:
        raise _translate(error) from error


_BY_CODE: Final[dict[str, tuple[type[errors.RunqueueError], str]]] = {
    "SQLITE_BUSY": (errors.StorageBusy, "another process is writing to the database; try again"),
    "SQLITE_LOCKED": (errors.StorageBusy, "another process is writing to the database; try again"),
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


def _translate(error: BaseException) -> errors.RunqueueError:
    # SQLite may roll back by itself (disk full); Peewee's own rollback then fails and hides
    # the cause one link up the chain.
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        code = getattr(link, "sqlite_errorname", None) or next(
            (code for part, code in _BY_MESSAGE.items() if part in str(link)), ""
        )
        for known, (kind, sentence) in _BY_CODE.items():
            if code.startswith(known):
                return kind(sentence)
        link = link.__cause__ or link.__context__
    if isinstance(error, peewee.IntegrityError):
        return errors.InvalidRun(f"the database refuses it: {error}")
    return errors.StorageError(f"the database failed: {error}")
