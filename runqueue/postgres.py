"""What is PostgreSQL's own: its URLs, its connections, its errors, and its clock for everybody."""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, Final
from urllib.parse import quote

import peewee
from playhouse.pool import MaxConnectionsExceeded, PooledDatabase

from runqueue import clock, engine, errors
from runqueue.bell import ALL
from runqueue.doorbell import Doorbell
from runqueue.states import Wake

try:
    import psycopg
    import psycopg.sql
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError:  # the extra `postgres` is not installed
    psycopg = None  # type: ignore[assignment]

ERRORS: Final = (MaxConnectionsExceeded, *([psycopg.Error] if psycopg else []))

OLDEST: Final = 14
"""The oldest major version of the server that runqueue is tested with."""
POOL_SIZE: Final = 8
"""Connections that the threads of one process share; each borrows one for the time of a verb."""
POOL_AGE: Final = 600
"""Seconds after which a connection is replaced, so that those of a former primary run out."""
MIGRATION_LOCK: Final = 0x72756E71
"""The advisory lock of whoever changes the schema: `runq`."""

_CONNECTION: Final = {
    "application_name": "runqueue",
    # A host that is cut off answers nothing: whoever waits for it must hear so in seconds, for
    # a lease may be running out meanwhile.
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_SETTINGS: Final = {
    # Every verb is written for it, whatever the server's default is.
    "default_transaction_isolation": "read committed",
    # Plans are kept for a connection's life, and a table that is empty now may hold a million
    # runs before it is analysed: a plan by index is right for both.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "join_collapse_limit": "1",
    "jit": "off",
    # Tells the triggers that this connection's changes are told to others after the commit.
    "runqueue.rings": "after commit",
}


# An acknowledged run must survive a crash, also where the rest of a server's data need not.
_APPLY: Final = """
    SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)
    UNION ALL
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off'"""


class _Driver(peewee.PostgresqlDatabase):
    """New connections, with our settings."""

    lock_timeout = 10.0

    def _connect(self) -> Any:
        connection = super()._connect()  # type: ignore[misc]
        wanted = {**_SETTINGS, "lock_timeout": f"{self.lock_timeout * 1000:.0f}ms"}
        try:
            connection.execute(_APPLY, (list(wanted), list(wanted.values())))
        except BaseException:
            connection.close()
            raise
        return connection


class Database(PooledDatabase, _Driver):  # type: ignore[misc]
    """Connections that the threads of a process share; nobody holds one while an agent works."""

    def __init__(self, address: str, busy_timeout: float, **options: Any) -> None:
        self.lock_timeout = busy_timeout
        super().__init__(
            address,
            prefer_psycopg3=True,
            max_connections=POOL_SIZE,
            stale_timeout=POOL_AGE,
            timeout=max(1, math.ceil(busy_timeout)),
            **options,
        )

    def _is_closed(self, conn: Any) -> bool:
        # A server that ends a connection says so, and an idle connection has nothing else to
        # read: this asks the socket and not the server, which would cost a round trip a verb.
        return conn.closed or _is_readable(conn.pgconn.socket)

    def _can_reuse(self, conn: Any) -> bool:
        return bool(self._adapter.is_connection_reusable(conn))

    def break_off(self) -> None:
        """End the calls of other threads that still wait for the server."""
        with self._pool_lock:
            for entry in list(self._in_use.values()):
                with (
                    suppress(OSError, psycopg.Error),
                    socket.socket(fileno=os.dup(entry.connection.fileno())) as handle,
                ):
                    handle.shutdown(socket.SHUT_RDWR)


def _is_readable(handle: int) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


class ServerClock:
    """The server's time, whatever the host's clock says.

    It is asked for at long intervals; in between, time passes as on the host, by a clock that
    nobody can set.
    """

    RENEW = 10.0
    """Seconds for which an answer is used: crystals differ by some 20 us in that time."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._lock = threading.Lock()
        self._base: tuple[datetime, float] | None = None
        self._last = datetime.min.replace(tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        base = self._base
        if base is None or _ticks() - base[1] > self.RENEW:
            base = self._ask(base)
        now = base[0] + timedelta(seconds=_ticks() - base[1])
        with self._lock:
            # A new answer may be off by the time that it took to come; what happens here one
            # after the other must be told so.
            if timedelta(0) <= self._last - now < timedelta(seconds=1):
                now = self._last + timedelta(microseconds=1)
            self._last = now
        return now

    def _ask(self, base: tuple[datetime, float] | None) -> tuple[datetime, float]:
        asked = _ticks()
        try:
            moment = self._postgres.server_time()
        except (peewee.PeeweeException, *ERRORS):
            if base is None:
                raise
            return base  # the server is away; time passes all the same
        answered = _ticks()
        self._base = (moment, (asked + answered) / 2)
        return self._base


def _ticks() -> float:
    """Seconds since the boot, those of a suspended machine too where that can be told."""
    with suppress(AttributeError, OSError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Postgres(engine.Engine):
    """A PostgreSQL database, of our own connections."""

    name: ClassVar[str] = "postgres"
    is_shared: ClassVar[bool] = True
    locks_rows: ClassVar[bool] = True
    begin: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, database: peewee.PostgresqlDatabase, url: str, address: str, conninfo: str
    ) -> None:
        super().__init__(database, url, address)
        self._doorbell = Doorbell(conninfo, self.bell)
        self._clock = ServerClock(self)

    def clock(self) -> clock.Clock:
        return self._clock

    def server_time(self) -> datetime:
        """Return the server's time."""
        opened = self.database.is_closed()
        try:
            row = self.database.execute_sql("SELECT clock_timestamp()").fetchone()
        finally:
            if opened and self.is_shared and not self.database.is_closed():
                self.database.close()
        moment: datetime = row[0]
        return moment.astimezone(timezone.utc)

    def as_list(self, texts: Sequence[str]) -> Any:
        return list(texts)

    def ring(self, kinds: Iterable[Wake] = ALL) -> None:
        kinds = set(kinds)
        self.bell.ring(kinds)
        self._doorbell.send(kinds)

    def watch(self, watcher: object) -> None:
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
        (encoding,) = database.execute_sql("SHOW server_encoding").fetchone()
        if encoding != "UTF8":
            raise errors.ConfigurationError(
                f"the database has the encoding {encoding}; make one with ENCODING 'UTF8'"
            )
        tables = set(database.get_tables())
        if engine.HISTORY in tables:
            names = database.execute_sql("SELECT name FROM runqueue_migrations").fetchall()
            if names:
                return max(int(name[:4]) for (name,) in names)
        for table in ("runs", "sessions", "runners", "run_events", "daemons"):
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

    def hurry(self, seconds: float) -> None:
        if isinstance(self.database, Database):
            timer = threading.Timer(seconds, self.database.break_off)
            timer.daemon = True
            timer.start()

    def close(self) -> None:
        self._doorbell.close()
        if isinstance(self.database, Database):
            self.database.close_idle()

    def abandon(self) -> list[Any]:
        database = self.database
        database._lock = threading.Lock()  # type: ignore[attr-defined]
        inherited = [self._doorbell.abandon()]
        if not database.is_closed():
            inherited.append(database.connection())
        if isinstance(database, Database):
            inherited.append(list(database._connections))
            inherited.append(list(database._in_use.values()))
            database._pool_lock = threading.RLock()
            database._pool_available = threading.Condition(database._pool_lock)
        database.dispose()
        self._clock = ServerClock(self)
        return inherited

    # The roles of who registered a runner, and of who claimed a run.
    own_columns: ClassVar[frozenset[str]] = frozenset({"registered_by", "claimed_by"})
    unstorable: ClassVar[str] = "\0"

    def identity(self) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.database.execute_sql(
            "SELECT pg_postmaster_start_time(), oid, current_schema() FROM pg_database "
            "WHERE datname = current_database()"
        ).fetchone()
        return row

    def keep_writers_out(self) -> None:
        for statement in _ALONE:
            self.database.execute_sql(statement)

    def rows(self, select: str) -> Generator[tuple[Any, ...], None, None]:
        with self.database.connection().cursor() as cursor:
            yield from cursor.stream(select)

    def fill(
        self,
        table: str,
        columns: Sequence[str],
        insert: str,  # noqa: ARG002 - a COPY takes a third of the time
        rows: Iterable[tuple[Any, ...]],
    ) -> None:
        statement = psycopg.sql.SQL("COPY {} ({}) FROM STDIN").format(
            psycopg.sql.Identifier(table),
            psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, columns)),
        )
        # In one statement, for at its end every session must have its parent.
        with self.database.connection().cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)

    @contextmanager
    def in_bulk(self, tables: Sequence[str]) -> Iterator[None]:
        self._execute_each(
            "SELECT format('ALTER TABLE %%I DISABLE TRIGGER USER', t) FROM unnest(%s::text[]) t",
            list(tables),
        )
        yield
        self._execute_each(
            "SELECT format('ALTER TABLE %%I ENABLE TRIGGER USER', t) FROM unnest(%s::text[]) t",
            list(tables),
        )

    def count_on(self) -> None:
        self.database.execute_sql(
            "SELECT setval(pg_get_serial_sequence('run_events', 'event_id'), "
            "coalesce(max(event_id), 1), max(event_id) IS NOT NULL) FROM run_events"
        )

    def closing(self) -> engine.Closing | None:
        database = self.database
        (view,) = database.execute_sql("SELECT to_regclass('runqueue_closing')").fetchone()
        if view is None:
            return None
        row = database.execute_sql("SELECT sentence, place, token FROM runqueue_closing").fetchone()
        return engine.Closing(*row)

    def close_to_changes(self, tables: Sequence[str], why: engine.Closing) -> None:
        self._execute_each(_CLOSING_VIEW, *why)
        self.database.execute_sql(_CLOSED)
        self._execute_each(_CLOSING_TRIGGERS, why.sentence, engine.MOVED_STATE, list(tables))

    def open_to_changes(self, tables: Sequence[str]) -> None:
        self._execute_each(
            "SELECT format('DROP TRIGGER runqueue_closed ON %%I', t) FROM unnest(%s::text[]) t",
            list(tables),
        )
        self.database.execute_sql("DROP FUNCTION runqueue_closed()")
        self.database.execute_sql("DROP VIEW runqueue_closing")

    def _execute_each(self, made: str, *parameters: Any) -> None:
        """Execute the statements that a query of format() returns, which quotes what is in them."""
        for (statement,) in self.database.execute_sql(made, parameters).fetchall():
            self.database.execute_sql(statement)

    def translate(self, error: BaseException) -> errors.RunqueueError | None:
        if isinstance(error, MaxConnectionsExceeded):
            return errors.StorageBusy("all connections of this process are in use; try again")
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if state is not None:
            if state == engine.MOVED_STATE:
                return errors.ConfigurationError(f"{self.url} was {_primary(error)}")
            return _by_state(state, error)
        if type(error).__module__.partition(".")[0] not in ("psycopg", "psycopg2"):
            return None
        if type(error).__name__ not in ("OperationalError", "InterfaceError", "ConnectionTimeout"):
            return None
        return _by_message(str(error))


class Shared(Postgres):
    """A PostgreSQL database through the caller's own Peewee database and connections."""

    is_shared: ClassVar[bool] = False


def share(database: peewee.PostgresqlDatabase) -> Postgres:
    """Return the engine of the caller's own Peewee database."""
    parameters = dict(database.connect_params)
    name = str(database.database)
    _need_driver()
    if name.startswith("postgresql://"):
        conninfo = make_conninfo(name, **parameters)
    else:
        conninfo = make_conninfo("", dbname=name, **_libpq(parameters))
    known = conninfo_to_dict(conninfo)
    return Shared(database, _shown(known), _address(known), conninfo)


def _libpq(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if isinstance(value, (str, int))}


def open_url(url: str, *, busy_timeout: float) -> Postgres:
    """Open a database by its `postgresql://` URL, in any of libpq's forms.

    Raises ConfigurationError when it cannot be read.
    """
    _need_driver()
    if url.startswith("postgres://"):
        url = f"postgresql://{url.removeprefix('postgres://')}"
    try:
        known = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        known = {"host": "@"}
    if "@" in str(known.get("host")) or not _are_ports(str(known.get("port") or "")):
        # No part of it is quoted, nor libpq's own words: it may be a part of the password.
        raise errors.ConfigurationError(
            "the database URL cannot be read as postgresql://USER:PASSWORD@HOST:PORT/DATABASE; "
            "in a password, what is no letter or digit must be percent-encoded"
        )
    defaults: dict[str, Any] = {
        key: value for key, value in _CONNECTION.items() if key not in known
    }
    defaults["connect_timeout"] = known.get(
        "connect_timeout", min(5, max(2, math.ceil(busy_timeout)))
    )
    if "," in str(known.get("host", "")) and "target_session_attrs" not in known:
        defaults["target_session_attrs"] = "read-write"  # of several hosts, the primary
    database = Database(url, busy_timeout, **defaults)
    return Postgres(database, _shown(known), url, make_conninfo(url, **defaults))


def _are_ports(text: str) -> bool:
    ports = [port for port in text.split(",") if port]
    return all(port.isdecimal() and 0 < int(port) < 65536 for port in ports)


def _need_driver() -> None:
    if psycopg is None:
        raise errors.ConfigurationError(
            "PostgreSQL needs its driver; install it with: pip install 'runqueue[postgres]'"
        )


def _shown(known: dict[str, Any]) -> str:
    """A URL that names the database and whoever connects, and nothing that is secret."""
    hosts = str(known.get("host") or known.get("hostaddr") or "").split(",")
    ports = str(known.get("port") or "").split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    user = f"{quote(str(known['user']))}@" if known.get("user") else ""
    name = quote(str(known.get("dbname") or ""))
    if hosts[0].startswith("/"):
        port = f"&port={ports[0]}" if ports[0] else ""
        return f"postgresql://{user}/{name}?host={quote(hosts[0])}{port}"
    places = [f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=True)]
    return f"postgresql://{user}{','.join(places)}/{name}"


def _address(known: dict[str, Any]) -> str:
    """The URL with all that is needed to connect."""
    options = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in known.items())
    return f"postgresql://?{options}"


# Readers go on; a server's own limits are meant for verbs, and a move takes minutes.
_ALONE: Final = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "LOCK TABLE sessions, runs, run_events, runners, daemons IN EXCLUSIVE MODE",
)
# A view of constants: what is no row, no writer can change.
_CLOSING_VIEW: Final = """
    SELECT format('CREATE VIEW runqueue_closing AS SELECT %%L::text AS sentence, '
        '%%L::text AS place, %%L::text AS token', %s::text, %s::text, %s::text)"""
_CLOSED: Final = """
    CREATE FUNCTION runqueue_closed() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = TG_ARGV[1]; END'"""
_CLOSING_TRIGGERS: Final = """
    SELECT format('CREATE TRIGGER runqueue_closed BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE '
        'ON %%I FOR EACH STATEMENT EXECUTE FUNCTION runqueue_closed(%%L, %%L)', t, a.said, a.state)
    FROM (SELECT %s::text AS said, %s::text AS state) a, unnest(%s::text[]) t"""

_LOST: Final = "the database server is not to be reached: "
_REFUSAL: Final = "the server refuses the connection: "
_BUSY: Final = "other sessions hold what is needed for too long; try again"

# By SQLSTATE, the longest prefix first. The server's sentence is quoted without its DETAIL, which
# for a refused row is the row, and that holds a prompt.
_BY_STATE: Final[tuple[tuple[str, type[errors.RunqueueError], str], ...]] = (
    ("25006", errors.StorageLost, "the server is read-only; use the URL of the primary"),
    ("42501", errors.ConfigurationError, "the role lacks a right: {primary}"),
    ("57014", errors.StorageBusy, "the server cancelled the statement: {primary}"),
    ("57P", errors.StorageLost, f"{_LOST}{{primary}}"),
    ("53100", errors.StorageFull, "the disk of the server is full; make room, try again"),
    ("53", errors.StorageBusy, "the server has no more room for this now: {primary}"),
    ("55P03", errors.StorageBusy, _BUSY),
    ("55006", errors.StorageBusy, _BUSY),
    ("40", errors.StorageBusy, _BUSY),
    ("08", errors.StorageLost, f"{_LOST}{{primary}}"),
    ("28", errors.ConfigurationError, f"{_REFUSAL}{{primary}}"),
    ("3F", errors.ConfigurationError, "the role lacks a right: {primary}"),
    ("3D", errors.ConfigurationError, f"{_REFUSAL}{{primary}}"),
    ("XX001", errors.StorageDamaged, "the database is damaged: {primary}"),
    ("XX002", errors.StorageDamaged, "the database is damaged: {primary}"),
    ("58", errors.StorageLost, "the disk of the server failed; look at its log"),
    ("22", errors.InvalidRun, "the database refuses it: {primary}"),
    ("23", errors.InvalidRun, "the database refuses it: {primary}"),
    ("54", errors.InvalidRun, "the database refuses it: {primary}"),
)


def _primary(error: BaseException) -> str:
    told: str | None = getattr(getattr(error, "diag", None), "message_primary", None)
    return told or str(error).partition("\n")[0]


def _by_state(state: str, error: BaseException) -> errors.RunqueueError:
    primary = _primary(error)
    constraint = getattr(getattr(error, "diag", None), "constraint_name", "")
    if state == "23505" and constraint == "idx_runs_one_active":
        return engine.SessionTaken("another run of the session has become active; try again")
    for prefix, kind, sentence in _BY_STATE:
        if state.startswith(prefix):
            return kind(sentence.replace("{primary}", primary))
    return errors.StorageError(f"the database failed: {primary}")


# libpq has no SQLSTATE for a connection that was refused, only what the server said.
_REFUSED: Final = (
    *("authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist"),
    *("not permitted to log in", "permission denied", "certificate", "SSL was required"),
)


def _by_message(message: str) -> errors.RunqueueError:
    lines = [line.strip() for line in message.splitlines()]
    # Without libpq's question whether the server is there.
    told = "; ".join(line for line in lines if line and not line.endswith("?"))[:400]
    told = told.removeprefix("connection failed: ").removeprefix("connection is bad: ")
    if any(part in message for part in _REFUSED):
        return errors.ConfigurationError(f"{_REFUSAL}{told}; correct the URL, or the server")
    return errors.StorageLost(f"{_LOST}{told}")
