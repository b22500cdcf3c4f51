"""An open database as everything above sees it: a `Store`.

Transactions that write from their first statement, statements that are compiled once, errors of
our own types. What differs between databases is behind
`engines`.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from types import TracebackType
from typing import Any, Final, NamedTuple, NoReturn, TypeVar, cast

import peewee

from runqueue import errors
from runqueue.engines import postgres, sqlite
from runqueue.engines.base import Conflict, Engine
from runqueue.states import Wake

T = TypeVar("T")
Verb = TypeVar("Verb", bound=Callable[..., Any])
Execute = Callable[[str, Sequence[Any]], T]

TRIES: Final = 5
"""How often a verb is tried that the server undoes for the sake of another."""
PAUSE: Final = 0.05
"""Longest random pause between two such tries, in seconds, so that the two do not meet again."""


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
        sql, template = database.get_sql_context().sql(self.build()).query()
        return Compiled(sql, tuple(template))


def again(verb: Verb) -> Verb:
    """Make a verb of a store again that the server undid for the sake of another transaction.

    Ours take their locks in one order; those of SQL written by hand take others, and deleting
    a session changes its children. In a transaction of the caller's nothing can be repeated.
    """

    @wraps(verb)
    def insisting(store: Store, *args: Any, **options: Any) -> Any:
        for _ in range(TRIES):
            try:
                return verb(store, *args, **options)
            except Conflict:
                if store.database.in_transaction():
                    raise
                time.sleep(random.uniform(0.0, PAUSE))
        return verb(store, *args, **options)

    return cast("Verb", insisting)


class Compiled(NamedTuple):
    """The SQL of a statement, and its parameters with holes for a call's values."""

    sql: str
    template: tuple[Any, ...]

    def parameters(self, values: dict[str, Any]) -> list[Any]:
        return [values[part.name] if type(part) is Hole else part for part in self.template]


class Store:
    """An open database, for any number of threads; each has a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.database = engine.database
        self.url = engine.url
        self._compiled: dict[Statement, Compiled] = {}
        self.within = threading.local()
        _opened.add(self)

    def transaction(self) -> Transaction:
        """Write in one transaction, or in a savepoint of the one that the caller is in.

        A verb within another verb needs no savepoint: it fails before it writes, or whole.
        """
        return Transaction(self)

    @property
    def stands_alone(self) -> bool:
        """Whether a statement is a transaction by itself, and may hold several writes."""
        return self.engine.is_shared and not self.database.in_transaction()

    def one_statement(self) -> AbstractContextManager[None]:
        """The transaction of what is one statement where that can hold several writes.

        There the statement is a transaction by itself: a server is asked once, and not three times.
        """
        if self.stands_alone:
            return _NO_TRANSACTION
        return self.transaction()

    def wake(self, kinds: Iterable[Wake]) -> None:
        """Tell those who wait for this, once the transaction that is open is committed."""
        if getattr(self.within, "verb", False):
            self.within.wakes.update(kinds)
        elif kinds:
            self.engine.ring(kinds)

    def run(self, statement: Statement, **values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows.

        The cursor is read to the end at once: on SQLite an UPDATE .. RETURNING with a row
        unread keeps the write lock.
        """
        rows: list[tuple[Any, ...]]
        if self.engine.is_shared:
            with self.ready():
                rows = self._execute(self.engine.rows, statement, values)
            return rows
        try:
            rows = self._execute(self.engine.rows, statement, values)
        except RAISED as error:
            self.rethrow(error)
        return rows

    def change(self, statement: Statement, **values: Any) -> int:
        """Execute a statement that returns no rows; return how many it changed."""
        if self.engine.is_shared:
            with self.ready():
                return self._execute(self.engine.change, statement, values)
        try:
            return self._execute(self.engine.change, statement, values)
        except RAISED as error:
            self.rethrow(error)

    def change_many(self, statement: Statement, rows: Sequence[dict[str, Any]], **same: Any) -> int:
        """Execute a statement that returns no rows for each of these values; return the sum.

        A server is sent all of them at once.
        """
        if len(rows) == 1:
            return self.change(statement, **rows[0], **same)
        with self.ready():
            compiled = self._compile(statement)
            cursor = self.database.cursor()
            cursor.executemany(compiled.sql, [compiled.parameters({**row, **same}) for row in rows])
            return int(cursor.rowcount)

    def change_listed(
        self, statement: Statement, rows: Sequence[dict[str, Any]], **same: Any
    ) -> int:
        """Execute once a statement that takes an array for each name of these values.

        Which is how it is written where a statement can hold several writes; elsewhere it is one
        for each of them. Returns how many rows it changed.
        """
        if not self.engine.writes_in_one:
            return self.change_many(statement, rows, **same)
        arrays = {name: [row[name] for row in rows] for name in rows[0]}
        return self.change(statement, **arrays, **same)

    def lock(self, statement: Statement, **values: Any) -> list[tuple[Any, ...]]:
        """Lock rows with a SELECT; where a writer is alone anyway there is nothing to do."""
        return self.run(statement, **values) if self.engine.locks_rows else []

    def _compile(self, statement: Statement) -> Compiled:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = statement.compile(self.database)
        return compiled

    def _execute(self, how: Execute[T], statement: Statement, values: dict[str, Any]) -> T:
        compiled = self._compile(statement)
        return self._insist(how, compiled.sql, compiled.parameters(values))

    def _insist(self, execute: Execute[T], sql: str, parameters: list[Any]) -> T:
        try:
            return execute(sql, parameters)
        except (UnicodeEncodeError, peewee.DataError):
            # What is stored was checked; this is an id to look for that no row can have, for it
            # is no text to the database: in another form it is not found, too.
            storable = [_storable(value) for value in parameters]
            if storable == parameters:
                raise
            return execute(sql, storable)

    def query(self, query: Any) -> list[tuple[Any, ...]]:
        """Execute a query that is built for one call, such as a filtered list."""
        with self.ready():
            return self._insist(self.engine.rows, *query.bind(self.database).sql())

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except RAISED as error:
            self.rethrow(error)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Have a connection, from the pool if there is one, and errors of our own."""
        with self.translated_errors():
            if not self.engine.is_shared:
                yield
                return
            if not self.database.is_closed():
                if self.database.in_transaction() or not self.engine.is_lost():
                    yield
                    return
                # One that the thread kept, as by a transaction of its own, and that has ended.
                self.database.close()
            self.database.connect()
            try:
                yield
            finally:
                if not self.database.in_transaction():
                    self.database.close()

    def hurry(self, seconds: float) -> None:
        """Let no call of another thread wait for much longer than this."""
        self.engine.hurry(seconds)

    def give_back(self) -> bool:
        """Return some of the room of deleted rows to the system; whether that was all of it."""
        with self.ready():
            return self.engine.give_back()

    def trim_log(self) -> None:
        """Make a log small again that grew behind a long reader."""
        with self.translated_errors():
            self.engine.trim_log()

    def damage(self) -> list[str]:
        """Return what the database itself finds wrong with its storage and references."""
        with self.translated_errors():
            return self.engine.damage()

    def back_up(self, target: str) -> None:
        """Copy the database to the empty file `target`, online."""
        with self.translated_errors():
            self.engine.back_up(target)

    def close(self) -> None:
        """Close this thread's connection, or give it back."""
        if not self.database.is_closed():
            self.database.close()

    def abandon(self) -> None:
        """Forget all connections without closing them, in the child of a fork."""
        _inherited.extend(self.engine.abandon())
        self.within = threading.local()

    def rethrow(self, error: BaseException) -> NoReturn:
        """Raise our error for one of `RAISED`."""
        ours = self._translate(error)
        # What a database says of a row that it refuses is the row, and that holds a prompt.
        raise ours from (None if isinstance(ours, errors.InvalidRun) else error)

    def _translate(self, error: BaseException) -> errors.RunqueueError:
        # SQLite may roll back by itself (disk full); Peewee's own rollback then fails and hides
        # the cause one link up the chain.
        link: BaseException | None = error
        seen: set[int] = set()
        while link is not None and id(link) not in seen:
            seen.add(id(link))
            if (ours := self.engine.translate(link)) is not None:
                return ours
            link = link.__cause__ or link.__context__
        if isinstance(error, peewee.IntegrityError):
            return errors.InvalidRun(f"the database refuses it: {error}")
        return errors.StorageError(f"the database failed: {error}")


RAISED: Final = (peewee.PeeweeException, UnicodeDecodeError, *sqlite.ERRORS, *postgres.ERRORS)
"""What Peewee and the drivers raise when a statement fails."""


_NO_TRANSACTION: Final = nullcontext()


class Transaction:
    """The transaction of a verb as a context; within another verb's it is that one.

    A class, for a generator as context manager costs as much as a small statement.
    """

    __slots__ = ("_atomic", "_is_outermost", "_ready", "_store", "_wakes")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._atomic: Any = None
        self._is_outermost = False
        self._ready: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        store = self._store
        within, database = store.within, store.database
        if getattr(within, "verb", False) and database.in_transaction():
            return
        if store.engine.is_shared:
            self._ready = store.ready()
            self._ready.__enter__()
        self._is_outermost = not database.in_transaction()
        begin = database.transaction if self._is_outermost else database.atomic
        self._atomic = begin(*store.engine.begin)
        try:
            self._atomic.__enter__()
            within.wakes = self._wakes = set[Wake]()
            within.verb = True
        except BaseException as error:
            self._give_up(error)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._atomic is None:
            return
        store = self._store
        store.within.verb = False
        try:
            if error is None and self._wakes:
                # Not before everybody can see it, which is up to the caller's transaction.
                store.database.after_commit(partial(store.engine.ring, self._wakes))
            self._atomic.__exit__(kind, error, traceback)
        except BaseException as failure:
            self._give_up(failure)
            raise
        self._leave(error)

    def _give_up(self, error: BaseException) -> None:
        try:
            # Peewee undoes it for an error, but not for an interrupt while it begins or ends.
            if self._is_outermost and not isinstance(error, Exception):
                if self._store.database.in_transaction():
                    self._atomic.__exit__(type(error), error, error.__traceback__)
                else:
                    self._store.engine.undo()
        finally:
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Give the connection back, and raise our error for one of the driver's."""
        if self._ready is not None:
            self._ready.__exit__(type(error) if error else None, error, None)
        elif isinstance(error, RAISED):
            self._store.rethrow(error)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return value


_opened: weakref.WeakSet[Store] = weakref.WeakSet()
_inherited: list[Any] = []


_forking = threading.Lock()
_held: list[Engine] = []


def _before_fork() -> None:
    _forking.acquire()  # two threads may fork at once
    for engine in [store.engine for store in _opened]:
        _held.append(engine)  # first, for an interrupt may end the waiting
        engine.hold_for_fork()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().go_on_after_fork()
    _forking.release()


def _after_fork_in_child() -> None:
    _held.clear()
    _forking.release()
    for store in list(_opened):
        store.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def open_store(target: str | peewee.Database, *, busy_timeout: float, create: bool = True) -> Store:
    """Open a database by its URL, or share the caller's own Peewee database.

    Raises ConfigurationError when the URL cannot be used, or names no database and `create`
    is false.
    """
    if isinstance(target, peewee.SqliteDatabase):
        return Store(sqlite.Sqlite(target, f"sqlite:///{target.database}"))
    if isinstance(target, peewee.PostgresqlDatabase):
        return Store(postgres.share(target))
    if isinstance(target, peewee.Database):
        raise errors.ConfigurationError(
            f"runqueue does not run on a {type(target).__name__}; use SQLite or PostgreSQL"
        )
    scheme, separator, _ = target.partition("://")
    if not separator:
        # What is no URL may be the password of one.
        is_path = not set(target) & set("@=: ")
        raise errors.ConfigurationError(
            f"{target} is not a database URL; write sqlite:///{target}"
            if is_path
            else "the database URL has no scheme; write sqlite:///PATH or postgresql://HOST/NAME"
        )
    if scheme == "sqlite":
        return Store(sqlite.open_url(target, busy_timeout=busy_timeout, create=create))
    if scheme in ("postgresql", "postgres"):
        return Store(postgres.open_url(target, busy_timeout=busy_timeout))
    raise errors.ConfigurationError(
        f"unknown database scheme {scheme[:20]!r}; use sqlite:// or postgresql://"
    )
