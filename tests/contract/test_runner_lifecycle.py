"""A runner's life: it registers, beats, takes over, drains and goes, and leaves nothing open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

import runqueue
from runqueue import InvalidRun, Queue, Runner, RunnerConflict, Status, retention
from tests.helpers import (
    LONG,
    MovableClock,
    count,
    execute_sql,
    in_another_process,
    start,
    status_of,
    wait_until,
)

ELSEWHERE = "another-boot:1/4711/1.00/abcdef01"
"""The incarnation of a process that cannot be seen from here."""


@pytest.fixture
def quick(connect: Callable[..., Queue]) -> Queue:
    """A queue whose runners beat every 20 ms, real time, for a lease of 60 ms of the clock."""
    return connect(lease=0.06)


def runner_column(queue: Queue, column: str) -> object:
    return execute_sql(queue, f"SELECT {column} FROM runners")[0][0]


def register_by_hand(queue: Queue, runner_id: str, lease_until: str) -> None:
    """Leave a runner's row as a process on another machine would."""
    execute_sql(
        queue,
        "INSERT INTO runners (runner_id, incarnation, registered_at, heartbeat_at, lease_until) "
        "VALUES (?, ?, ?, ?, ?)",
        *(runner_id, ELSEWHERE, lease_until, lease_until, lease_until),
    )


def test_a_runner_registers_with_what_it_offers(queue: Queue, clock: MovableClock) -> None:
    """On entry the runner is in the table, alive for one lease."""
    with queue.runner("worker", hostname="box", tags=["gpu"], properties={"memory": 64}):
        columns = "runner_id, hostname, tags, properties, state, registered_at, lease_until"
        assert execute_sql(queue, f"SELECT {columns} FROM runners") == [
            ("worker", "box", '["gpu"]', '{"memory":64}', "online", clock.text(), clock.text(30))
        ]


def test_a_clean_exit_removes_the_runner(queue: Queue) -> None:
    """Nothing is left of a runner that ended, not even a thread."""
    with queue.runner("worker") as runner:
        assert runner.is_open
    assert not runner.is_open
    assert count(queue, "runners") == 0
    ours = ("runqueue-heartbeat", "runqueue-stops")
    assert not [one for one in threading.enumerate() if one.name.startswith(ours)]


def test_a_runner_that_ends_by_an_exception_is_removed_too(queue: Queue) -> None:
    """The context is left in order, whatever ended it."""
    with pytest.raises(ZeroDivisionError), queue.runner("worker"):
        raise ZeroDivisionError
    assert count(queue, "runners") == 0


def test_opening_and_closing_twice_is_harmless(queue: Queue) -> None:
    """Only the first of each counts."""
    runner = queue.runner("worker")
    runner.open()
    runner.open()
    assert count(queue, "runners") == 1
    runner.close()
    runner.close()
    assert count(queue, "runners") == 0


def test_a_runner_without_id_or_host_gets_its_own(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """Ids that nobody chose do not meet; the host is this one."""
    first, second = open_runner(None), open_runner(None)
    assert first.runner_id != second.runner_id
    assert first.hostname == socket.gethostname()


@pytest.mark.parametrize(
    "bad",
    [
        {"runner_id": ""},
        {"runner_id": "a\0"},
        {"runner_id": "a" * 129},
        {"runner_id": 5},
        {"tags": "gpu"},
        {"tags": [""]},
        {"tags": [5]},
        {"properties": {"memory": {1, 2}}},
        {"properties": {"memory": float("nan")}},
    ],
    ids=lambda bad: str(bad)[:30],
)
def test_a_runner_with_impossible_capabilities_is_refused(
    queue: Queue, bad: dict[str, object]
) -> None:
    """What could not be stored or matched is InvalidRun, and nothing is registered."""
    with pytest.raises(InvalidRun):
        queue.runner(**bad).open()
    assert count(queue, "runners") == 0


def test_ending_resolves_what_was_not_reported(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """Never started goes back, running fails with the reason, stopping is settled."""
    queue.enqueue_many({"prompt": "x"} for _ in range(3))
    runner = open_runner()
    claimed, running, stopping = runner.claim_many(3)
    running.start()
    stopping.start()
    queue.stop(stopping.run.run_id)
    runner.close()
    assert status_of(queue, claimed.run) == Status.PENDING
    assert queue.get(claimed.run.run_id).runner_id is None
    assert status_of(queue, running.run) == Status.FAILED
    assert "worker" in queue.get(running.run.run_id).error
    assert status_of(queue, stopping.run) == Status.STOPPED
    assert all(one.stop_requested for one in (claimed, running, stopping))


def test_a_heartbeat_extends_the_lease(
    quick: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A runner goes on being alive without doing anything about it."""
    open_runner(on=quick)
    clock.advance(0.05)
    wait_until(lambda: runner_column(quick, "lease_until") == clock.text(0.06))
    assert runner_column(quick, "heartbeat_at") == clock.text()


def test_a_draining_runner_beats_on(
    quick: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """What it still holds is alive until it was reported."""
    quick.enqueue("x")
    runner = open_runner(on=quick)
    claim = start(runner)
    runner.drain()
    clock.advance(0.05)
    wait_until(lambda: runner_column(quick, "lease_until") == clock.text(0.06))
    claim.complete()
    assert status_of(quick, claim.run) == Status.COMPLETED


def test_a_runner_keeps_the_lease_that_a_daemon_wants(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """The daemon says for how long a runner may be silent."""
    execute_sql(
        queue,
        "INSERT INTO daemons (daemon_id, hostname, started_at, tick_at, alive_until, lease) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        *("d", "h", clock.text(), clock.text(), clock.text(5), 7.5),
    )
    open_runner()
    assert runner_column(queue, "lease_until") == clock.text(7.5)


def test_a_runner_silent_past_its_lease_keeps_what_nobody_took(
    quick: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A laptop that slept lost nothing if nobody resolved its runs meanwhile."""
    quick.enqueue("x")
    runner = open_runner(on=quick)
    running = start(runner)
    clock.advance(10)
    wait_until(lambda: runner_column(quick, "lease_until") == clock.text(0.06))
    # Again and again on a slow machine, where a beat comes too late for so short a lease.
    wait_until(lambda: not running.stop_requested)
    running.complete("done after all")
    assert quick.get(running.run.run_id).result == "done after all"


def test_a_runner_silent_past_its_lease_ends_what_was_taken(
    connect: Callable[..., Queue], open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """What the daemon resolved while it slept is not its own any more."""
    queue = connect(lease=30)
    queue.enqueue("x")
    runner = open_runner(on=queue)
    running = start(runner)
    told = threading.Event()
    running.on_stop(told.set)
    clock.advance(31)
    assert queue.sweep().lost == 1
    assert told.wait(LONG)
    assert not runner.is_draining


def test_a_callback_that_fails_does_not_keep_the_next_stop_away(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """The thread that watches for stops outlives what it calls."""
    runner = open_runner()
    told = threading.Event()
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    first, second = runner.claim_many(2)
    first.on_stop(lambda: 1 // 0)
    second.on_stop(told.set)
    queue.stop(first.run.run_id)
    wait_until(lambda: first.stop_requested)
    queue.stop(second.run.run_id)
    assert told.wait(LONG)


def test_a_runner_that_is_to_drain_claims_nothing_more(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """At once, and not only after its next heartbeat; a removed one neither."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    drained, removed = open_runner("drained"), open_runner("removed")
    retention.drain_runner(queue.store, "drained")
    retention.remove_runner(queue.store, "removed", now=queue.now(), force=True)
    assert drained.claim(timeout=0) is None
    assert removed.claim(timeout=0) is None
    assert {run.status for run in queue.find()} == {Status.PENDING}


FORKS = """
queue.enqueue("x")
with queue.runner() as runner:
    claim = runner.claim(timeout=0)
    claim.start()
    child = os.fork()
    if child == 0:
        try:
            runner.claim(timeout=0)
        except runqueue.RunnerConflict:
            print("refused", flush=True)
        runner.close()
        os._exit(0)
    os.waitpid(child, 0)
    claim.complete("still mine")
print(queue.get(claim.run.run_id).result)
"""


def test_the_child_of_a_fork_neither_claims_for_its_parent_nor_ends_its_runs(
    database_url: str,
) -> None:
    """A child that leaves the runner's block resolves nothing."""
    assert in_another_process(database_url, FORKS).split("\n") == ["refused", "still mine", ""]


@pytest.mark.parametrize(
    "sql",
    ["DELETE FROM runners", "UPDATE runners SET incarnation = 'another'"],
    ids=["removed", "replaced"],
)
def test_a_runner_that_was_removed_or_replaced_ends(
    quick: Queue, open_runner: Callable[..., Runner], sql: str
) -> None:
    """It learns of it by its next beat: it drains, and its agents are told to stop."""
    quick.enqueue("x")
    runner = open_runner(on=quick)
    told = threading.Event()
    start(runner).on_stop(told.set)
    execute_sql(quick, sql)
    assert told.wait(LONG)
    # A beat that came too late has told the agents before it drains.
    wait_until(lambda: runner.is_draining)
    runner.close()
    assert count(quick, "runners") == (0 if sql.startswith("DELETE") else 1)


def test_a_second_runner_with_a_live_ones_id_is_refused(
    queue: Queue, runner: Runner, connect: Callable[..., Queue]
) -> None:
    """Two of one id would share runs: the second is refused, and the first undisturbed."""
    queue.enqueue("x")
    claim = start(runner)
    with pytest.raises(RunnerConflict):
        connect().runner("worker").open()
    assert status_of(queue, claim.run) == Status.RUNNING
    assert count(queue, "runners") == 1


def test_a_second_process_with_a_live_runners_id_is_refused(database_url: str) -> None:
    """The same holds between processes, by the system's clock."""
    code = "try: queue.runner('worker').open()\nexcept runqueue.RunnerConflict: print('refused')"
    with runqueue.connect(database_url) as queue, queue.runner("worker"):
        assert in_another_process(database_url, code) == "refused\n"


def test_a_restarted_runner_takes_over_from_its_dead_process_at_once(database_url: str) -> None:
    """It sees that its predecessor is dead and resolves its runs without waiting for the lease."""
    code = """
runs = queue.enqueue_many({"prompt": str(number)} for number in range(3))
runner = queue.runner("worker")
runner.open()
claimed, running, stopping = runner.claim_many(3)
running.start(); stopping.start(); queue.stop(stopping.run.run_id)
print(claimed.run.run_id, running.run.run_id, stopping.run.run_id, flush=True)
os._exit(1)
"""
    with runqueue.connect(database_url) as queue:
        claimed, running, stopping = in_another_process(database_url, code).split()
        assert queue.get(running).status == Status.RUNNING
        with queue.runner("worker"):
            assert queue.get(claimed).status == Status.PENDING
            assert queue.get(running).status == Status.FAILED
            assert "restarted" in queue.get(running).error
            assert queue.get(stopping).status == Status.STOPPED
            assert count(queue, "runners") == 1


def test_a_runner_elsewhere_keeps_its_id_for_its_lease(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A process that cannot be seen is alive until its lease is over, and then replaced."""
    register_by_hand(queue, "worker", clock.text(1))
    with pytest.raises(RunnerConflict):
        queue.runner("worker").open()
    clock.advance(1)
    open_runner("worker")
    assert runner_column(queue, "incarnation") != ELSEWHERE
    assert runner_column(queue, "registered_at") == clock.text()
