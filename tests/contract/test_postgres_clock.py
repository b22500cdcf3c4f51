"""One clock for all machines: the server's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import psycopg
import pytest

import runqueue
from runqueue import Queue, clock
from runqueue.settings import Settings
from tests.helpers import in_another_process

pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)

WRONG = """
import datetime, time, runqueue.clock
real_time, real = time.time, datetime.datetime
class Wrong(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(seconds=SHIFT)
time.time = lambda: real_time() + SHIFT
datetime.datetime = runqueue.clock.datetime = Wrong
"""
"""Makes a host's clock wrong for the code that is executed after it."""


@pytest.fixture
def real(database_url: str) -> Iterator[Callable[..., Queue]]:
    """Opens queues that go by the clock of the database."""
    opened: list[Queue] = []

    def open_queue(**settings: float) -> Queue:
        opened.append(runqueue.connect(database_url, settings=Settings(**settings)))
        return opened[-1]

    yield open_queue
    for queue in opened:
        queue.close()


def server_time(url: str) -> datetime:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return row[0].astimezone(timezone.utc)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_process_whose_clock_is_wrong_has_the_servers_time(
    real: Callable[..., Queue], database_url: str, hours: int
) -> None:
    """Whatever it writes is written in the time that everybody else has."""
    real()
    code = (
        f"SHIFT = {hours * 3600}\n{WRONG}\nprint(queue.now()); print(queue.enqueue('x').created_at)"
    )
    before = server_time(database_url)
    told = in_another_process(database_url, code).split()
    after = server_time(database_url)
    for text in told:
        assert before - timedelta(seconds=1) <= clock.from_text(text) <= after
    assert len(told) == 2


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_sweep_by_a_daemon_whose_clock_is_wrong_takes_nothing_from_the_living(
    real: Callable[..., Queue], database_url: str, hours: int
) -> None:
    """No lease is lost, and nothing expires before its time."""
    queue = real(lease=30)
    waiting = queue.enqueue("x", demands={"tags": ["nobody"]}, timeout=60)
    with queue.runner("alive") as runner:
        held = queue.enqueue("y")
        claim = runner.claim(timeout=0)
        assert claim is not None
        claim.start()
        code = f"SHIFT = {hours * 3600}\n{WRONG}\nprint(tuple(queue.sweep()))"
        assert in_another_process(database_url, code).strip() == "(0, 0, 0, 0)"
        assert queue.get(held.run_id).status == "running"
        assert queue.get(waiting.run_id).status == "pending"
        claim.complete()


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_runner_whose_clock_is_wrong_keeps_its_lease(
    real: Callable[..., Queue], database_url: str, hours: int
) -> None:
    """What it promised is judged by the same clock as it was written by."""
    queue = real(lease=30)
    run = queue.enqueue("x")
    code = (
        f"SHIFT = {hours * 3600}\n{WRONG}\n"
        "runner = queue.runner('wrong'); runner.open(); runner.claim(timeout=0).start()\n"
        "print(*queue.store.database.execute_sql('SELECT lease_until FROM runners').fetchone())\n"
        "sys.stdout.flush(); os._exit(0)"
    )
    lease_until = clock.from_text(in_another_process(database_url, code).strip())
    left = lease_until - server_time(database_url)
    assert timedelta(seconds=20) < left <= timedelta(seconds=30)
    assert tuple(queue.sweep()) == (0, 0, 0, 0)
    assert queue.get(run.run_id).status == "running"


def test_the_time_of_a_process_never_goes_back(
    real: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a new answer of the server is a little older than what was told before."""
    queue = real()
    times = []
    for number in range(300):
        if number % 20 == 0:
            monkeypatch.setattr(queue._clock, "RENEW", 0.0)
        times.append(queue.now())
        monkeypatch.setattr(queue._clock, "RENEW", 10.0)
    assert times == sorted(set(times))


def test_time_passes_while_the_server_is_away(
    real: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner must know when its lease is over, then above all."""
    queue = real()
    before = queue.now()

    def fail() -> datetime:
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(queue.store.engine, "server_time", fail)
    monkeypatch.setattr(queue._clock, "RENEW", 0.0)
    began = time.monotonic()
    while time.monotonic() - began < 0.01:
        pass
    assert 0.01 <= clock.seconds_between(before, queue.now()) < 5
