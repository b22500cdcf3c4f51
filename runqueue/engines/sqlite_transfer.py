"""Moving all rows of an SQLite database, and closing it by triggers."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import peewee

from runqueue.engines.base import Closing, Transfer
from runqueue.engines.sqlite_files import file_of


class SqliteTransfer(Transfer):
    """See `Transfer`."""

    def __init__(self, database: peewee.SqliteDatabase) -> None:
        self.database = database

    def identity(self) -> tuple[Any, ...]:
        status = Path(file_of(self.database)).stat()
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
        dropped = database.execute_sql(_BURDENS, (json.dumps(tables),)).fetchall()
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

    def closing(self) -> Closing | None:
        database = self.database
        if not database.execute_sql(_IS_CLOSED).fetchone():
            return None
        return Closing(*database.execute_sql(_CLOSING).fetchone())

    def close_to_changes(self, tables: Sequence[str], why: Closing) -> None:
        database = self.database
        (view,) = database.execute_sql(_CLOSING_VIEW, tuple(why)).fetchone()
        database.execute_sql(view)
        parameters = (why.sentence, json.dumps(tables))
        for (trigger,) in database.execute_sql(_CLOSING_TRIGGERS, parameters).fetchall():
            database.execute_sql(trigger)

    def open_to_changes(self, tables: Sequence[str]) -> None:
        database = self.database
        for (drop,) in database.execute_sql(_OPENING, (json.dumps(tables),)).fetchall():
            database.execute_sql(drop)
        database.execute_sql("DROP VIEW runqueue_closing")


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
