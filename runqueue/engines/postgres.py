"""The engine of PostgreSQL: a server, to which many write at once, from any machine."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, Final

import peewee
from playhouse.pool import MaxConnectionsExceeded

from runqueue import clock, errors
from runqueue.bell import ALL
from runqueue.engines import base, postgres_errors, postgres_health, postgres_urls
from runqueue.engines.postgres_doorbell import PostgresDoorbell
from runqueue.engines.postgres_pool import Database
from runqueue.engines.postgres_transfer import PostgresTransfer
from runqueue.engines.server_clock import ServerClock
from runqueue.findings import Check
from runqueue.states import Wake

try:
    import psycopg
except ImportError:  # the extra `postgres` is not installed
    psycopg = None  # type: ignore[assignment]

ERRORS: Final = (MaxConnectionsExceeded, *([psycopg.Error] if psycopg else []))

OLDEST: Final = 14
"""The oldest major version of the server that runqueue is tested with."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
MIGRATION_LOCK: Final = 0x72756E71
"""The advisory lock of whoever changes the schema: `runq`."""


class Postgres(base.Engine):
    """A PostgreSQL database, of our own connections."""

    name: ClassVar[str] = "postgres"
    is_shared: ClassVar[bool] = True
    locks_rows: ClassVar[bool] = True
    writes_in_one: ClassVar[bool] = True
    begin: ClassVar[tuple[str, ...]] = ()

    def __init__(self, database: peewee.PostgresqlDatabase, address: postgres_urls.Address) -> None:
        super().__init__(database, address.shown, address.url)
        self.transfer = PostgresTransfer(database)
        self._doorbell = PostgresDoorbell(address.conninfo, self.bell)
        self._clock = self._new_clock()

    def _new_clock(self) -> ServerClock:
        return ServerClock(lambda: self.server_time(), (peewee.PeeweeException, *ERRORS))

    def clock(self) -> clock.Clock:
        return self._clock

    def server_time(self) -> datetime:
        """Return the server's time."""
        opened = self.database.is_closed()
        try:
            # A number, for how a time is spelled is a setting of the server, database and role.
            (microseconds,) = self.database.execute_sql(
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
            ).fetchone()
        finally:
            if opened and self.is_shared and not self.database.is_closed():
                self.database.close()
        return _EPOCH + timedelta(microseconds=microseconds)

    def as_list(self, texts: Sequence[str]) -> Any:
        return list(texts)

    def ring(self, kinds: Iterable[Wake] = ALL) -> None:
        kinds = set(kinds)
        self.bell.ring(kinds)
        self._doorbell.send(kinds)

    def watch(self, watcher: object, *, is_in_haste: bool = True) -> None:  # noqa: ARG002
        self._doorbell.listen_for(watcher)

    def unwatch(self, watcher: object) -> None:
        self._doorbell.forget(watcher)

    def schema_version(self) -> int:
        database = self.database
        version = database.connection().info.server_version
        if version < OLDEST * 10_000:
            raise errors.ConfigurationError(
                f"the server is PostgreSQL {version // 10_000}; runqueue needs {OLDEST} or newer"
            )
        row = database.execute_sql("SHOW server_encoding").fetchone()
        if not isinstance(row, tuple):
            raise errors.ConfigurationError(
                f"your database returns each row as a {type(row).__name__}; give one without a "
                "row_factory"
            )
        (encoding,) = row
        if encoding != "UTF8":
            raise errors.ConfigurationError(
                f"the database has the encoding {encoding}; make one with ENCODING 'UTF8'"
            )
        tables = set(database.get_tables())
        if base.HISTORY in tables:
            names = database.execute_sql("SELECT name FROM runqueue_migrations").fetchall()
            if names:
                return max(int(name[:4]) for (name,) in names)
        ours = (
            "runs",
            "sessions",
            "runners",
            "run_events",
            "run_attempts",
            "run_output",
            "daemons",
        )
        for table in ours:
            if table in tables:
                raise errors.ConfigurationError(
                    f"the database has a table {table} that is not runqueue's; "
                    "give runqueue a database or a schema of its own"
                )
        return 0

    @contextmanager
    def migrating(self) -> Iterator[None]:
        with self.database.atomic():
            self.database.execute_sql("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
            yield

    def stamp(self, version: int) -> None:
        """The history of migrations is the record."""

    def checks(self) -> Iterable[Check]:
        return postgres_health.checks(self.database, self.server_time)

    def hurry(self, seconds: float) -> None:
        if isinstance(self.database, Database):
            timer = threading.Timer(seconds, self.database.break_off)
            timer.daemon = True
            timer.start()

    def is_lost(self) -> bool:
        return isinstance(self.database, Database) and self.database.is_lost()

    def close(self) -> None:
        self._doorbell.close()
        if isinstance(self.database, Database):
            self.database.close_idle()

    def abandon(self) -> list[Any]:
        database = self.database
        if not isinstance(database, Database):
            database._lock = threading.Lock()  # type: ignore[attr-defined]
        inherited = [self._doorbell.abandon()]
        if not database.is_closed():
            inherited.append(database.connection())
        if isinstance(database, Database):
            inherited.append(list(database._connections))
            inherited.append(list(database._in_use.values()))
            database._pool_lock = threading.RLock()
            database._pool_available = threading.Condition(database._pool_lock)
            database._connecting = 0
        database.dispose()
        self._clock = self._new_clock()
        return inherited

    def translate(self, error: BaseException) -> errors.RunqueueError | None:
        return postgres_errors.translate(error, self.url)


class Shared(Postgres):
    """A PostgreSQL database through the caller's own Peewee database and connections."""

    is_shared: ClassVar[bool] = False
    # The server's default may be a stricter one, for which our verbs are not written.
    begin: ClassVar[tuple[str, ...]] = ("READ COMMITTED",)


def share(database: peewee.PostgresqlDatabase) -> Postgres:
    """Return the engine of the caller's own Peewee database."""
    return Shared(database, postgres_urls.of(database))


def open_url(url: str, *, busy_timeout: float) -> Postgres:
    """Open a database by its URL. Raises ConfigurationError when it cannot be read."""
    address = postgres_urls.read(url, busy_timeout)
    return Postgres(Database(address.url, busy_timeout, **address.defaults), address)
