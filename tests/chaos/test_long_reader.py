"""Somebody reads for long while runs pass: the log that the reader holds on to is let go after."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import runqueue
from runqueue import Queue, reading
from runqueue.daemon import Daemon
from runqueue.settings import Settings
from tests.chaos import places
from tests.helpers import wait_until

pytestmark = pytest.mark.chaos

LIMIT = 16 * 1024 * 1024
"""Bytes that the log may have when nobody reads."""


@pytest.fixture
def path() -> Iterator[Path]:
    """In memory: thousands of commits wait for no disk."""
    with places.in_memory() as directory:
        yield directory / "queue.db"


@pytest.fixture
def queue(path: Path) -> Iterator[Queue]:
    """A queue whose runner needs no heartbeat during the test."""
    with runqueue.connect(f"sqlite:///{path}", settings=Settings(lease=600.0)) as queue:
        yield queue


def size_of_log(path: Path) -> int:
    log = path.with_name(f"{path.name}-wal")
    return log.stat().st_size if log.exists() else 0


def let_pass(queue: Queue, runs: int, batch: int = 20) -> None:
    """Enqueue, claim and complete so many runs with prompts of 2 kB, some at a time."""
    with queue.runner("worker") as runner:
        for _ in range(0, runs, batch):
            queue.enqueue_many([{"prompt": "x" * 2000}] * batch)
            claims = runner.claim_many(batch)
            assert len(claims) == batch
            for claim in claims[: batch // 10]:
                claim.start()
                claim.complete("done")
            assert runner.finish_many([(claim, "done") for claim in claims[batch // 10 :]]) == []


def pass_under_a_reader(
    queue: Queue, path: Path, runs: int, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Let runs pass while another connection reads what was there before; then it ends."""
    queue.enqueue("before", run_id="run_000000000001")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM runs").fetchall() == [(1,)]
        queue.stop("run_000000000001")
        let_pass(queue, runs)
        meanwhile()
        assert reader.execute("SELECT status FROM runs").fetchall() == [("pending",)]
        assert size_of_log(path) > LIMIT, "the reader held on to nothing"
        reader.execute("ROLLBACK")


@pytest.fixture
def runs(is_long: bool) -> int:
    return 10_000 if is_long else 1_000


def test_an_idle_tick_lets_the_log_go(queue: Queue, path: Path, runs: int) -> None:
    """The queue stays open, and nobody writes: the daemon makes the log small again."""
    daemon = Daemon(queue, interval=1.0, keep=None)
    pass_under_a_reader(queue, path, runs, meanwhile=daemon.tick)
    assert size_of_log(path) > LIMIT
    daemon.tick()
    assert size_of_log(path) < LIMIT
    assert len(queue.find(status="completed")) == runs
    assert reading.problems(queue.store) == []


def test_a_queue_that_is_closed_leaves_no_log(queue: Queue, path: Path) -> None:
    """Whoever closes it last takes everything over, and removes the log."""
    pass_under_a_reader(queue, path, 1_000)
    queue.close()
    wait_until(lambda: size_of_log(path) == 0)
    assert len(queue.find(status="completed")) == 1_000
    assert reading.problems(queue.store) == []


def test_without_a_reader_the_log_stays_small(queue: Queue, path: Path) -> None:
    """Whatever passes, and while somebody looks again and again, as `runqueue list` does."""
    largest = 0
    for _ in range(5):
        let_pass(queue, 200)
        with runqueue.connect(f"sqlite:///{path}") as other:
            assert other.find(limit=50)
        largest = max(largest, size_of_log(path))
    assert 0 < largest < LIMIT
