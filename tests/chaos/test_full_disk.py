"""The disk of the database is full: all say so and lose nothing, and go on when there is room."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import runqueue
from runqueue import Queue, StorageFull, StorageLost, reading
from runqueue.daemon import Daemon
from tests import postgres
from tests.chaos import places
from tests.chaos.places import Disk
from tests.helpers import start, status_of, wait_until
from tests.outage.processes import Programs

pytestmark = pytest.mark.chaos

SLOW = 30.0
"""Seconds for what takes an interpreter's start, on a machine that is busy."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of a mebibyte, for the database alone."""
    with places.small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def url(disk: Disk) -> str:
    return f"sqlite:///{disk.path / 'queue.db'}"


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    """A queue on the small disk."""
    with runqueue.connect(url) as queue:
        yield queue


@pytest.fixture
def programs(tmp_path: Path, disk: Disk) -> Iterator[Programs]:
    """Starts programs, which have all ended before the disk is unmounted."""
    programs = Programs(tmp_path)
    yield programs
    programs.close()


def fill_up(queue: Queue, size: int = 8000) -> list[str]:
    """Enqueue until there is no room; return what was acknowledged."""
    acknowledged = []
    while True:
        try:
            # Random, so that no database can store it in less.
            acknowledged.append(queue.enqueue(secrets.token_hex(size // 2)).run_id)
        except StorageFull:
            return acknowledged


def empty_log(queue: Queue) -> None:
    """Make the log as short as it can be: where it was longer, a commit may find room."""
    checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)"
    wait_until(lambda: queue.database.execute_sql(checkpoint).fetchall() == [(0, 0, 0)])


def test_what_was_acknowledged_before_the_disk_was_full_is_there(queue: Queue, disk: Disk) -> None:
    """It can be read while the disk is full, and nothing of what was refused is there after."""
    acknowledged = fill_up(queue)
    assert len(acknowledged) > 10
    assert {run.run_id for run in queue.find()} == set(acknowledged)
    disk.grow(4)
    assert {run.run_id for run in queue.find()} == set(acknowledged)
    assert reading.problems(queue.store) == []


def test_every_verb_says_that_the_disk_is_full_and_works_when_there_is_room(
    queue: Queue, disk: Disk
) -> None:
    """With the same queue and runner; meanwhile all can be read."""
    with queue.runner("worker") as runner:
        at_work = queue.enqueue("first")
        claim = start(runner)
        due = queue.enqueue("due", timeout=0.001, priority=-1)
        waiting = queue.enqueue("second")
        verbs = {
            "enqueue": lambda: queue.enqueue("third"),
            "claim": lambda: runner.claim(timeout=0),
            "stop": lambda: queue.stop(waiting.run_id),
            "complete": lambda: claim.complete("done"),
            "sweep": queue.sweep,
        }
        empty_log(queue)
        disk.fill()
        for name, verb in verbs.items():
            with pytest.raises(StorageFull, match="full") as refusal:
                verb()
            assert refusal.value.retryable, name
            assert "\n" not in str(refusal.value), name
        assert [status_of(queue, run) for run in (at_work, due)] == ["running", "pending"]
        assert len(queue.timeline(at_work.run_id)) == 3
        disk.grow(4)
        for verb in verbs.values():
            verb()
        assert [status_of(queue, run) for run in (at_work, due)] == ["completed", "failed"]
    assert len(queue.find()) == 4
    assert reading.problems(queue.store) == []


def test_a_queue_that_is_opened_on_a_full_disk_says_so(url: str, disk: Disk) -> None:
    """A daemon that is started again there is told to make room, and not that the disk failed."""
    with runqueue.connect(url) as queue:
        run_id = queue.enqueue("x").run_id
    wait_until(lambda: [one.name for one in disk.path.iterdir()] == ["queue.db"])
    disk.fill()
    # Before Python 3.11 nothing tells this error from a disk that failed.
    expected = StorageFull if sys.version_info >= (3, 11) else StorageLost
    with pytest.raises(expected) as refusal:
        runqueue.connect(url)
    assert refusal.value.exit_code == 75
    disk.grow(4)
    with runqueue.connect(url) as queue:
        assert queue.get(run_id).prompt == "x"


def test_a_daemon_says_once_a_cause_that_the_disk_is_full(
    queue: Queue, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """Not at each tick, or the log fills the next disk; then that it works again."""
    daemon = Daemon(queue, interval=1.0, keep=None)
    run = queue.enqueue("due", timeout=0.001)
    empty_log(queue)
    disk.fill()
    with caplog.at_level(logging.INFO, "runqueue.daemon"):
        for _ in range(50):
            daemon.tick()
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1
        assert "StorageFull" in told[0]
        disk.grow(4)
        daemon.tick()
    told = [record.getMessage() for record in caplog.records][1:]
    assert told == [
        "sweep: 1 expired",
        f"run {run.run_id} is failed: expired: no runner is alive",
        "the sweep works again after 50 failures",
    ]


def test_the_processes_live_through_a_full_disk(
    queue: Queue, url: str, disk: Disk, programs: Programs, tmp_path: Path
) -> None:
    """The daemon expires what became due meanwhile, and the runner reports what its agent did."""
    daemon = programs.daemon(url)
    gate = tmp_path / "gate"
    agent = ("sh", "-c", f"while ! [ -e {gate} ]; do sleep 0.05; done; echo the result")
    runner = programs.runner(url, "worker", command=agent)
    at_work = queue.enqueue("x").run_id
    wait_until(lambda: status_of_id(queue, at_work) == "running", timeout=SLOW)
    empty_log(queue)
    os.kill(daemon.pid, signal.SIGSTOP)  # else it might be done before the disk is full
    due = queue.enqueue("due", timeout=0.001, demands={"tags": ["none"]}).run_id
    disk.fill()
    os.kill(daemon.pid, signal.SIGCONT)
    daemon.says("StorageFull: the disk of the database is full")
    gate.touch()
    runner.says(f"run {at_work}: its report waits: the disk of the database is full")
    # Long enough for several ticks.
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        assert status_of_id(queue, at_work) == "running"
        assert status_of_id(queue, due) == "pending"
        assert daemon.is_alive
        assert runner.is_alive
    disk.grow(16)
    wait_until(lambda: status_of_id(queue, due) == "failed", timeout=SLOW)
    wait_until(lambda: status_of_id(queue, at_work) == "completed", timeout=SLOW)
    daemon.says("the sweep works again after ")
    assert queue.get(at_work).result == "the result\n"
    assert daemon.log.count("the sweep failed") == 1
    for process in (daemon, runner):
        assert process.end(SLOW) == 0
        assert "Traceback" not in process.log
    assert reading.problems(queue.store) == []


def status_of_id(queue: Queue, run_id: str) -> str:
    return str(queue.get(run_id).status)


@pytest.fixture
def tablespace(tmp_path: Path) -> Iterator[tuple[Disk, str]]:
    """A small disk for the tables of one PostgreSQL database, and that database's URL."""
    server = postgres.shared()
    with places.small_disk(tmp_path / "disk", 16) as disk:
        owner = server.directory.stat()
        for directory in (tmp_path, *tmp_path.parents[:2]):
            directory.chmod(0o755)  # the server may be another user
        os.chown(disk.path, owner.st_uid, owner.st_gid)
        disk.path.chmod(0o700)
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk.path}'")
        try:
            server.execute("CREATE DATABASE small TABLESPACE small")
            yield disk, server.url("small")
        finally:
            server.drop_database("small")
            server.execute("DROP TABLESPACE small")


def test_a_full_disk_of_postgresql_is_told_and_survived(tablespace: tuple[Disk, str]) -> None:
    """The same error as on SQLite, nothing acknowledged is lost, and it goes on afterwards."""
    disk, url = tablespace
    with runqueue.connect(url) as queue:
        acknowledged = fill_up(queue, size=100_000)
        assert [status_of_id(queue, one) for one in acknowledged] == ["pending"] * len(acknowledged)
        disk.grow(32)
        with queue.runner("worker") as runner:
            start(runner).complete("done")
        assert len(queue.find(status="completed")) == 1
        acknowledged.append(queue.enqueue("z").run_id)
        assert len(queue.find()) == len(acknowledged)
