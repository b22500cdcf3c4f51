"""`runqueued` as a process: it keeps time, survives trouble, and ends when told to."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue, clock, reading
from tests.process.conftest import Other

ENDS_WITHIN = 5.0
"""Seconds within which a daemon promises to end."""


def test_a_run_is_expired_within_a_second_of_its_timeout(
    queue: Queue, start_daemon: Callable[..., Any], has_status: Callable[..., Any]
) -> None:
    """With the default interval; the reason says what was missing."""
    start_daemon()
    run_id = queue.enqueue("x", demands={"tags": ["gpu"]}, timeout=0.5).run_id
    run = has_status(run_id, "failed")
    assert run.timeout_at is not None
    assert run.completed_at is not None
    assert 0 <= clock.seconds_between(run.timeout_at, run.completed_at) < 1.1
    assert run.error == "expired: no runner is alive"


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_failing_sweep_is_told_once_and_so_is_its_recovery(
    queue: Queue,
    start_daemon: Callable[..., Any],
    has_status: Callable[..., Any],
    until: Callable[..., None],
    place: Path,
) -> None:
    """The database's directory goes away and comes back: the daemon lives on."""
    process = start_daemon("--interval", "0.1")
    run_id = queue.enqueue("x", timeout=0.3).run_id
    queue.close()
    away = place.with_name("away")
    place.rename(away)
    until(lambda: "the sweep failed" in process.log)
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 0.6)
    away.rename(place)
    has_status(run_id, "failed")
    until(lambda: "works again" in process.log)
    failures = [line for line in process.log.splitlines() if "the sweep failed" in line]
    causes = {line.partition("tried again: ")[2] for line in failures}
    assert len(failures) == len(causes) <= 2
    assert process.log.count("works again after") == 1
    assert "Traceback" not in process.log
    assert process.end_within(signal.SIGTERM, ENDS_WITHIN) == 0


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_failing_sweep_leaves_no_empty_database_behind(
    queue: Queue, start_daemon: Callable[..., Any], until: Callable[..., None], path: Path
) -> None:
    """A file that was moved away is missing, not empty: the daemon must not make another."""
    process = start_daemon("--interval", "0.1")
    queue.close()
    away = path.with_name("away.db")
    path.rename(away)
    until(lambda: "the sweep failed" in process.log)
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 0.3)
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(
    queue: Queue, start_daemon: Callable[..., Any], other: Other, number: int
) -> None:
    """Exit code 0 in the time that is promised, and it has signed off."""
    process = start_daemon()
    assert process.end_within(number, ENDS_WITHIN) == 0
    assert "Traceback" not in process.log
    assert "ended" in process.log
    assert other.execute("SELECT * FROM daemons").fetchall() == []


@pytest.mark.parametrize(
    ("number", "is_due"),
    [(signal.SIGTERM, True), (signal.SIGINT, False)],
    ids=["SIGTERM with a run to expire", "SIGINT with nothing to do"],
)
def test_a_signal_ends_it_in_time_while_a_writer_holds_the_lock(
    queue: Queue,
    start_daemon: Callable[..., Any],
    other: Other,
    until: Callable[..., None],
    number: int,
    is_due: bool,
) -> None:
    """Within five seconds, also when its sweep has only begun to wait for the other writer."""
    process = start_daemon("--interval", "0.2")
    other.keep_writers_out()
    try:
        if is_due:
            # The lock's holder itself makes the run that the next sweep wants to expire.
            other.let_writers_in()
            run = queue.enqueue("x", timeout=0.2)
            other.keep_writers_out()
            assert run.timeout_at is not None
            due = clock.shift(run.timeout_at, 0.4)
            until(lambda: queue.now() > due)
        assert process.end_within(number, ENDS_WITHIN) == 0
    finally:
        other.let_writers_in()
    assert "Traceback" not in process.log
    assert "apscheduler" not in process.log  # that ticks were skipped is nobody's business


def test_ended_at_any_moment_it_leaves_no_traceback(
    queue: Queue, start: Callable[..., Any], other: Other
) -> None:
    """Ten starts, each ended at another moment of its start or its work."""
    moments = random.Random(20261124)
    for _ in range(10):
        process = start("runqueued", "--interval", "0.05")
        with contextlib.suppress(AssertionError):
            process.wait(moments.uniform(0.02, 0.6))
        code = process.end_within(signal.SIGTERM, ENDS_WITHIN)
        # Before its handler is there, a signal has its default effect.
        assert code in (0, -signal.SIGTERM)
        assert code == 0 or " sweeps " not in process.log
        assert "Traceback" not in process.log
        assert "ERROR" not in process.log
    assert reading.problems(queue.store) == []


def test_two_daemons_expire_each_run_once(
    queue: Queue,
    start_daemon: Callable[..., Any],
    other: Other,
    until: Callable[..., None],
) -> None:
    """One failed event a run, and neither daemon complains."""
    daemons = [start_daemon("--interval", "0.05") for _ in range(2)]
    requests = [{"prompt": "x", "timeout": 0.2 + number / 200} for number in range(100)]
    queue.enqueue_many(requests)
    until(lambda: len(queue.find(status="failed")) == 100)
    sql = "SELECT run_id, count(*) FROM run_events WHERE status = 'failed' GROUP BY run_id"
    assert {count for _, count in other.execute(sql)} == {1}
    for daemon in daemons:
        assert daemon.end_within(signal.SIGTERM, ENDS_WITHIN) == 0
        assert "ERROR" not in daemon.log
        assert "WARNING" not in daemon.log


def test_a_killed_daemon_loses_nothing(
    queue: Queue,
    start_daemon: Callable[..., Any],
    other: Other,
    until: Callable[..., None],
) -> None:
    """Another one goes on where it was killed, in the middle of a stream of expiries."""
    first = start_daemon("--interval", "0.05")
    requests = [{"prompt": "x", "timeout": 0.1 + number / 200} for number in range(200)]
    queue.enqueue_many(requests)
    until(lambda: len(queue.find(status="failed")) > 20)
    first.send(signal.SIGKILL)
    first.wait()
    assert len(queue.find(status="failed")) < 200
    start_daemon("--interval", "0.05")
    until(lambda: len(queue.find(status="failed")) == 200)
    sql = "SELECT run_id, count(*) FROM run_events WHERE status = 'failed' GROUP BY run_id"
    assert [count for _, count in other.execute(sql)] == [1] * 200
    assert reading.problems(queue.store) == []


@pytest.mark.parametrize("kind", ["text", "url", "directory"])
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_bad_database_is_78(start: Callable[..., Any], path: Path, kind: str) -> None:
    """At once, with one sentence, so that systemd need not start it again and again."""
    url = f"sqlite:///{path}"
    if kind == "text":
        path.write_text("this is no database " * 100)
    elif kind == "directory":
        path.mkdir()
    else:
        url = "mysql://user:secret@host/db"
    process = start("runqueued", db=url)
    assert process.wait() == 78
    assert process.log.startswith("Error: ")
    assert process.log.count("\n") == 1
    assert "secret" not in process.log


def test_a_dead_hand_of_time_does_not_stop_it(
    queue: Queue, start_daemon: Callable[..., Any], has_status: Callable[..., Any]
) -> None:
    """Stopped for longer than many intervals (a laptop's lid), it sweeps as soon as it goes on."""
    process = start_daemon("--interval", "0.1")
    process.send(signal.SIGSTOP)
    run_id = queue.enqueue("x", timeout=0.2).run_id
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        assert queue.get(run_id).status == "pending"
    os.kill(process.pid, signal.SIGCONT)
    has_status(run_id, "failed", timeout=2.0)
    assert process.end_within(signal.SIGTERM, ENDS_WITHIN) == 0
    assert "Traceback" not in process.log
