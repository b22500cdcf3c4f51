"""Single connections are lost, by an administrator or by a crash, while the server is there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest

import runqueue
from runqueue import Queue, StorageLost
from tests.helpers import LONG, status_of, wait_until
from tests.outage.conftest import Server
from tests.outage.processes import SLOW, Ledger, Programs, check_history

Losing = Callable[[Server], None]


def _terminate(server: Server) -> None:
    server.end_connections("outage")


def _crash(server: Server) -> None:
    """Kill the process of one connection; the server then ends all others, and recovers."""
    with psycopg.connect(server.url("outage"), autocommit=True) as victim:
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            victim.execute("SELECT 1")

    def is_back() -> bool:
        try:
            return bool(server.execute("SELECT 1"))
        except psycopg.OperationalError:
            return False

    wait_until(is_back, timeout=3 * LONG)


@pytest.mark.parametrize("lose", [_terminate, _crash], ids=["terminated", "crashed"])
def test_lost_connections_end_no_runner(
    lose: Losing, server: Server, url: str, queue: Queue, programs: Programs, ledger: Ledger
) -> None:
    """In the middle of claims, heartbeats and reports; every run is executed once."""
    daemon = programs.daemon(url, "--start-deadline", "2", "--lease", "6")
    runner = programs.runner(url, "one", "--slots", "2", command=ledger.agent)
    runs = [queue.enqueue("sleep 0.05") for _ in range(30)]

    def has_begun(count: int) -> bool:
        return len(ledger.lines("START")) >= count

    for count in range(1, 7):
        wait_until(partial(has_begun, 4 * count), timeout=SLOW)
        lose(server)
    for run in runs:
        assert queue.wait(run.run_id, timeout=SLOW).status == "completed"
    check_history(queue, [run.run_id for run in runs], ledger)
    for process in (daemon, runner):
        assert process.end(5) == 0, process.log
        assert "Traceback" not in process.log


def test_an_idle_runner_hears_of_work_after_its_connections_were_lost(
    server: Server, url: str, queue: Queue, programs: Programs, ledger: Ledger
) -> None:
    """Also the connection by which it is told; it is made again at once."""
    programs.runner(url, "one", command=ledger.agent)
    for _ in range(3):
        run = queue.enqueue("true")
        assert queue.wait(run.run_id, timeout=LONG).status == "completed"
        assert server.end_connections("outage") > 0


@pytest.mark.parametrize("how", ["terminated", "restarted"])
@pytest.mark.parametrize("where", ["the connecting thread", "other threads"])
def test_idle_connections_that_the_server_ended_are_replaced(
    where: str, how: str, server: Server, queue: Queue
) -> None:
    """Whoever enqueues does not learn that all connections of the pool were lost meanwhile."""

    def enqueue_all() -> None:
        if where == "the connecting thread":
            queue.enqueue("x")
            return
        barrier = threading.Barrier(5)

        def enqueue(_: int) -> None:
            barrier.wait(LONG)
            queue.enqueue("x")

        with ThreadPoolExecutor(5, thread_name_prefix="test-pool") as threads:
            list(threads.map(enqueue, range(5)))

    enqueue_all()
    for _ in range(3):
        if how == "terminated":
            server.end_connections("outage")
        else:
            server.restart("fast")
        enqueue_all()
    assert len(queue.find()) == 4 * (1 if where == "the connecting thread" else 5)


def test_no_connection_is_held_while_nothing_is_asked(server: Server, url: str) -> None:
    """Not by the thread that connected either: every connection goes back to the pool."""
    with runqueue.connect(url) as queue:
        assert queue.database.is_closed()
        queue.find()
        assert queue.database.is_closed()


def test_forty_threads_share_the_pool(server: Server, queue: Queue) -> None:
    """None of them is refused, and the server has never more connections than the pool has."""
    barrier = threading.Barrier(40)
    seen = []

    def work(number: int) -> None:
        barrier.wait(LONG)
        for _ in range(5):
            run = queue.enqueue(f"{number}")
            assert status_of(queue, run) == "pending"
        if number % 10 == 0:
            seen.append(len(server.backends("outage")))

    with ThreadPoolExecutor(40, thread_name_prefix="test-pool") as threads:
        list(threads.map(work, range(40)))
    assert len(queue.find()) == 200
    assert max(seen) <= 8 + 1  # and the one by which others are told


def test_a_transaction_that_the_server_ended_for_being_idle_is_lost_and_not_broken(
    server: Server, queue: Queue
) -> None:
    """A process that slept in the middle of a verb may try again, as after any lost connection."""
    server.execute("ALTER DATABASE outage SET idle_in_transaction_session_timeout = '50ms'")
    server.end_connections("outage")
    with pytest.raises(StorageLost), queue.store.transaction():  # noqa: PT012
        queue.find()
        wait_until(lambda: len(server.backends("outage")) == 0)
        queue.find()
    queue.enqueue("x")


def test_no_thread_is_left_when_a_queue_is_closed_while_the_server_is_away(
    server: Server, url: str
) -> None:
    """Also when there was something to tell others: nobody is there to be told."""
    queue = runqueue.connect(url)
    queue.enqueue("x")
    server.stop("immediate")
    queue.store.engine.ring()
    queue.close()
    names = ("runqueue-",)
    wait_until(
        lambda: not [one for one in threading.enumerate() if one.name.startswith(names)],
        timeout=3 * LONG,
    )
