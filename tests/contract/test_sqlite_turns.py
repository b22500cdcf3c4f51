"""Whatever ends a transaction on SQLite, the next one of the process may write."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import peewee
import pytest

import runqueue
from runqueue import Queue, StorageBusy, StorageError
from tests.helpers import LONG, in_background


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with runqueue.connect(f"sqlite:///{tmp_path / 'queue.db'}", busy_timeout=LONG) as one:
        one.enqueue("x")
        yield one


def everybody_writes(queue: Queue) -> None:
    with in_background(lambda: queue.enqueue("by another"), queue) as added:
        assert added.result(LONG).status == "pending"
    assert queue.enqueue("by this thread").status == "pending"


@pytest.mark.parametrize("verb", ["begin", "commit", "rollback"])
def test_an_interrupt_keeps_nobody_from_writing(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """It comes while the disk takes the commit, mostly, and Peewee undoes nothing then."""
    original: Callable[..., Any] = getattr(peewee.SqliteDatabase, verb)

    def interrupted(*args: Any) -> None:
        original(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(peewee.SqliteDatabase, verb, interrupted)
        with queue.database.atomic():
            if verb == "rollback":
                raise LookupError
            queue.enqueue("y")
    everybody_writes(queue)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_thread_that_ended_within_a_transaction_keeps_nobody_from_writing(queue: Queue) -> None:
    """SQLite has undone it with its connection."""
    ended = threading.Thread(target=queue.database.begin)
    ended.start()
    ended.join(LONG)
    gc.collect()  # the connection
    everybody_writes(queue)


def test_a_connection_closed_within_a_transaction_keeps_nobody_from_writing(queue: Queue) -> None:
    queue.database.begin()
    queue.database.close()
    everybody_writes(queue)


def test_who_could_not_begin_keeps_nobody_from_writing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    with runqueue.connect(url, busy_timeout=0.01) as queue:
        with closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageBusy):
                queue.enqueue("x")
        everybody_writes(queue)


def test_a_transaction_that_only_reads_keeps_nobody_from_writing(queue: Queue) -> None:
    """A caller's own may last."""
    with queue.database.atomic("DEFERRED"):
        assert queue.database.execute_sql("SELECT count(*) FROM runs").fetchone() == (1,)
        with in_background(lambda: queue.enqueue("y"), queue) as added:
            assert added.result(LONG).status == "pending"
    everybody_writes(queue)


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN DEFERRED", "BEGIN IMMEDIATE"])
def test_a_verb_leaves_a_transaction_alone_that_was_begun_by_hand(queue: Queue, begin: str) -> None:
    """It cannot be part of what Peewee does not know of, and must not undo it either."""
    (run,) = queue.find()
    queue.database.execute_sql(begin)
    queue.database.execute_sql("UPDATE runs SET priority = 7")
    with pytest.raises(StorageError):
        queue.enqueue("y")
    queue.database.execute_sql("COMMIT")
    assert queue.get(run.run_id).priority == 7
    everybody_writes(queue)
