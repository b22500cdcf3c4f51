"""An open database as everything above sees it: a `Store`.

Transactions that write from their first statement, statements that are compiled once, errors of
our own types. What is SQLite's own is in `sqlite`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import peewee

from runqueue import errors, sqlite


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
        """Wait no longer than this for other writers, also where a wait has begun."""
        if isinstance(self.database, sqlite.Database):
            self.database.busy_timeout = busy_timeout

    def close_to_the_world(self) -> None:
        """Take everybody else's rights on a file of ours that somebody created open."""
        if isinstance(self.database, sqlite.Database):
            sqlite.close_to_the_world(self.database.path)

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
        if isinstance(self.database, sqlite.Database):
            self.database.renew_turn()
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
    path = sqlite.path_of(target)
    if not create and not path.exists():
        raise errors.ConfigurationError(
            f"there is no database {path}; make it with: runqueue --db sqlite:///{path} db init"
        )
    sqlite.prepare_file(path)
    return Store(sqlite.Database(path, busy_timeout), f"sqlite:///{path}")


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
