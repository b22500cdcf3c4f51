"""Moving all rows of a PostgreSQL database, and closing it by triggers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final

import peewee

from runqueue.engines import base

with suppress(ImportError):  # the extra `postgres` is not installed
    import psycopg.sql


class PostgresTransfer(base.Transfer):
    """See `Transfer`."""

    # The roles of who registered a runner, and of who claimed a run.
    own_columns: ClassVar[frozenset[str]] = frozenset({"registered_by", "claimed_by"})
    unstorable: ClassVar[str] = "\0"

    def __init__(self, database: peewee.PostgresqlDatabase) -> None:
        self.database = database

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

    def closing(self) -> base.Closing | None:
        database = self.database
        (view,) = database.execute_sql("SELECT to_regclass('runqueue_closing')").fetchone()
        if view is None:
            return None
        row = database.execute_sql("SELECT sentence, place, token FROM runqueue_closing").fetchone()
        return base.Closing(*row)

    def close_to_changes(self, tables: Sequence[str], why: base.Closing) -> None:
        self._execute_each(_CLOSING_VIEW, *why)
        self.database.execute_sql(_CLOSED)
        self._execute_each(_CLOSING_TRIGGERS, why.sentence, base.MOVED_STATE, list(tables))

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


# Readers go on; a server's own limits are meant for verbs, and a move takes minutes.
_ALONE: Final = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "LOCK TABLE sessions, runs, run_events, run_attempts, run_output, runners, daemons "
    "IN EXCLUSIVE MODE",
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
