"""SQLite's log is made small again, by whatever name the database was opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import peewee
import pytest

import runqueue

TEN_MEGABYTES = "x" * 10_000_000


def _by_path(path: Path) -> str:
    return f"sqlite:///{path}"


def _by_link(path: Path) -> str:
    link = path.parent / "link.db"
    link.symlink_to(path)
    return f"sqlite:///{link}"


def _by_uri(path: Path) -> peewee.SqliteDatabase:
    return peewee.SqliteDatabase(f"file:{path}?mode=rw", uri=True)


@pytest.mark.parametrize("opened", [_by_path, _by_link, _by_uri])
def test_a_log_that_grew_is_trimmed(tmp_path: Path, opened: Callable[[Path], object]) -> None:
    """SQLite has it beside the file itself, not beside a link, and no URI is a file's name."""
    path = tmp_path / "queue.db"
    log = tmp_path / "queue.db-wal"
    runqueue.connect(f"sqlite:///{path}").close()
    with (
        closing(sqlite3.connect(path)) as writer,
        runqueue.connect(opened(path)) as queue,  # type: ignore[arg-type]
    ):
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute(
            "INSERT INTO sessions (session_id, created_at, project_dir) "
            "VALUES ('ses_a', '2026-01-01T00:00:00.000000Z', ?)",
            (TEN_MEGABYTES,),
        )
        writer.commit()
        assert log.stat().st_size > len(TEN_MEGABYTES)
        queue.store.trim_log()
        assert log.stat().st_size == 0


def test_a_database_in_memory_has_no_log_to_trim(tmp_path: Path, monkeypatch) -> None:
    """Nor is a file of that name, in the directory at hand, taken for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-wal").write_bytes(b"x" * 10_000_000)
    queue = runqueue.connect(peewee.SqliteDatabase(":memory:"))
    queue.store.trim_log()
    queue.close()
    assert (tmp_path / "-wal").stat().st_size == 10_000_000
