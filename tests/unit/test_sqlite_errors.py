"""What SQLite says, and nobody else: the error of the caller's own is not the database's."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import peewee
import pytest

from runqueue.engines.sqlite import open_url
from runqueue.errors import StorageBusy


def test_the_callers_own_error_is_not_taken_for_the_databases(tmp_path: Path) -> None:
    """A verb that meets a busy database while the caller handles an error of another file."""
    engine = open_url(f"sqlite:///{tmp_path / 'queue.db'}", busy_timeout=0, create=True)
    other = tmp_path / "other"
    other.write_text("this is no database, but some text that is long enough" * 20)
    busy = peewee.OperationalError("database is locked")
    with closing(sqlite3.connect(other)) as connection:
        try:
            connection.execute("SELECT * FROM sqlite_master")
        except sqlite3.DatabaseError:
            with pytest.raises(peewee.OperationalError) as raised:
                raise busy  # noqa: B904 - as Peewee does, in whatever its caller handles
    assert isinstance(engine.translate(raised.value), StorageBusy)
