"""The one seam between the databases: what each of them must do in its own way.

`sqlite` and `postgres` implement `Engine`; everything above uses an `Engine` without asking
which. Where a statement's SQL must differ, it is `Either` of two expressions, and the choice is
made when the statement is compiled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, NamedTuple

import peewee

from runqueue import clock
from runqueue.bell import ALL, Bell
from runqueue.errors import ConfigurationError, RunqueueError, StorageBusy
from runqueue.findings import Check
from runqueue.states import Wake

HISTORY: Final = "runqueue_migrations"
"""The table of the schema's steps that were applied."""
MOVED_TO: Final = "moved to "
FILLED_FROM: Final = "being filled from "
MOVED: Final = (MOVED_TO, FILLED_FROM)
"""How the sentences begin with which a database refuses a change: it was moved elsewhere, or a
move to it has not ended."""
MOVED_STATE: Final = "RQ001"
"""The SQLSTATE of that refusal."""


class SessionTaken(StorageBusy):
    """The unique index of active runs refuses a second one of a session; see `claims`."""


class Conflict(StorageBusy):
    """The server undid a transaction for the sake of another: made again, it passes."""


class Closing(NamedTuple):
    """Why a database is closed to every change; it holds this itself."""

    sentence: str
    """Begins as one of `MOVED`."""
    place: str
    """The URL of the database at the other end of the move, fit to be shown."""
    token: str
    """Of the move; the same at both ends."""

    @property
    def is_arriving(self) -> bool:
        """Whether this is the target of a move that has not ended, and not the source of one."""
        return self.sentence.startswith(FILLED_FROM)


class Transfer(ABC):
    """Taking all rows out of a database of one kind or putting them in, and closing it."""

    own_columns: ClassVar[frozenset[str]] = frozenset()
    """Columns of ours that no model has: what they say is true of this one database."""
    unstorable: ClassVar[str] = ""
    """A character that no text of the database can have."""

    @abstractmethod
    def identity(self) -> tuple[Any, ...]:
        """Return what no other database has, by whatever URL it is opened."""

    @abstractmethod
    def keep_writers_out(self) -> None:
        """Let others only read until the transaction ends, which may take minutes."""

    @abstractmethod
    def rows(self, select: str) -> Generator[tuple[Any, ...], None, None]:
        """Yield the rows of a query, which has no parameters, and hold only a few at a time."""

    @abstractmethod
    def fill(
        self, table: str, columns: Sequence[str], insert: str, rows: Iterable[tuple[Any, ...]]
    ) -> None:
        """Add rows to a table, as many as there are; `insert` adds one, with a parameter each."""

    @abstractmethod
    def in_bulk(self, tables: Sequence[str]) -> AbstractContextManager[None]:
        """Within a transaction: meanwhile fire no trigger of these tables, which are refilled."""

    @abstractmethod
    def count_on(self) -> None:
        """Have the numbers of new events follow those that are there."""

    @abstractmethod
    def closing(self) -> Closing | None:
        """Return why the database is closed to changes; None when it is not."""

    @abstractmethod
    def close_to_changes(self, tables: Sequence[str], why: Closing) -> None:
        """Have the database itself refuse every change of these tables, whoever makes it."""

    @abstractmethod
    def open_to_changes(self, tables: Sequence[str]) -> None:
        """Undo `close_to_changes`."""


class Engine(ABC):
    """An open database of one kind."""

    transfer: Transfer

    name: ClassVar[str]
    """Which kind; also the folder of its migrations."""
    is_shared: ClassVar[bool]
    """Whether a thread borrows its connection from a pool for each verb, and gives it back."""
    locks_rows: ClassVar[bool]
    """Whether many transactions write at once, each locking the rows that it changes."""
    writes_in_one: ClassVar[bool]
    """Whether a statement may hold several writes, and take arrays."""
    begin: ClassVar[tuple[str, ...]]
    """How a transaction of ours begins, as arguments of Peewee's `atomic`."""

    def __init__(self, database: peewee.Database, url: str, address: str | None = None) -> None:
        self.database = database
        self.url = url
        """Where the database is, fit to be shown: without a password."""
        self.address = address or url
        """What another process opens the same database with; may hold a password."""
        self.bell = Bell()

    @abstractmethod
    def clock(self) -> clock.Clock:
        """Return the clock that everybody who uses this database goes by."""

    @abstractmethod
    def translate(self, error: BaseException) -> RunqueueError | None:
        """Return one of our errors for one link of a chain of the driver's, None if it has none."""

    def rows(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Execute a statement and return all its rows. Raises Peewee's errors or the driver's."""
        cursor = self.database.execute_sql(sql, parameters)
        return list(cursor.fetchall()) if cursor.description else []

    def change(self, sql: str, parameters: Sequence[Any]) -> int:
        """Execute a statement and return how many rows it changed; raises as `rows` does."""
        return int(self.database.execute_sql(sql, parameters).rowcount)

    @abstractmethod
    def as_list(self, texts: Sequence[str]) -> Any:
        """Return texts as the one parameter that `listed` takes."""

    @abstractmethod
    def schema_version(self) -> int:
        """Return the number of the schema's last step, 0 for an empty or a given database.

        Raises ConfigurationError for a database that is another program's.
        """

    @abstractmethod
    def migrating(self) -> AbstractContextManager[None]:
        """Hold the transaction in which the schema changes, while no other process changes it."""

    @abstractmethod
    def stamp(self, version: int) -> None:
        """Record, within `migrating`, what `schema_version` will return."""

    def ring(self, kinds: Iterable[Wake] = ALL) -> None:
        """Tell those who wait that something was committed."""
        self.bell.ring(kinds)

    @abstractmethod
    def watch(self, watcher: object, *, is_in_haste: bool = True) -> None:
        """Have the bell rung for what other processes commit, as long as `watcher` exists.

        Within a few hundredths of a second for one that is not in haste.
        """

    @abstractmethod
    def unwatch(self, watcher: object) -> None:
        """End what `watch` began."""

    def damage(self) -> list[str]:
        """Return what the database itself finds wrong with its storage and references."""
        return []

    def places(self) -> Iterable[Check]:
        """Return the checks of where the database is, for which it need not be reached."""
        return ()

    def checks(self) -> Iterable[Check]:
        """Return the checks of how it is set up, which are made with a connection."""
        return ()

    def back_up(self, target: str) -> None:  # noqa: ARG002
        """Copy the database to the empty file `target`, online."""
        raise ConfigurationError(
            f"{self.url} is no file to copy; back it up with pg_dump, or as its host does"
        )

    def give_back(self) -> bool:
        """Return a little of the room of deleted rows to the system; whether nothing is left."""
        return True

    def trim_log(self) -> None:  # noqa: B027 - a server does that by itself
        """Make a log small again that grew behind a long reader; does nothing while it reads."""

    def is_lost(self) -> bool:
        """Whether the connection that this thread has was ended by the server."""
        return False

    def undo(self) -> None:  # noqa: B027
        """Undo what an interrupt left open, if Peewee does not know of it any more."""

    def settle_in(self) -> None:  # noqa: B027
        """Do what is due once the database is known to be runqueue's."""

    def hurry(self, seconds: float) -> None:  # noqa: B027
        """Let no call of another thread wait for much longer than this."""

    def close(self) -> None:  # noqa: B027
        """Give up connections that no thread uses."""

    def hold_for_fork(self) -> None:  # noqa: B027
        """Wait until the process may be forked, and keep it so."""

    def go_on_after_fork(self) -> None:  # noqa: B027
        """End in the parent what `hold_for_fork` began."""

    def abandon(self) -> list[Any]:
        """Forget all connections in the child of a fork; return what must not be closed here."""
        return []


def without_password(url: str) -> str:
    """Return a database URL fit for a message: without password and options."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    rest = rest.partition("?")[0].partition("#")[0]
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}"


class Either(peewee.ColumnBase):
    """An expression for each kind of database; compiling picks the one."""

    def __init__(self, sqlite: Any, postgres: Any) -> None:
        self._sqlite = sqlite
        self._postgres = postgres

    def __sql__(self, ctx: Any) -> Any:
        # Peewee's own flag: only a database whose rows can be locked knows FOR UPDATE.
        return ctx.sql(self._postgres if ctx.state.for_update else self._sqlite)
