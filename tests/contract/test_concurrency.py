"""Many at once: each run once, each session one at a time, and no error but the typed ones."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any

import pytest

import runqueue
from runqueue import IllegalMove, Queue, Runner, RunqueueError, SessionNotFound, Status
from tests.helpers import (
    LONG,
    MovableClock,
    count,
    events_of,
    execute_sql,
    ids,
    in_background,
    start,
    status_of,
    together,
)


def claim_all(runner: Runner, at_once: int = 1) -> list[str]:
    """Claim until there is nothing left; return the ids."""
    taken: list[str] = []
    while claims := runner.claim_many(at_once):
        taken += ids(claims)
    return taken


def test_eight_runners_claim_each_run_once(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """Nothing is claimed twice, nothing is left, and the rows say what the runners were told."""
    runs = queue.enqueue_many({"prompt": "x"} for _ in range(100))
    runners = [open_runner(f"r{number}") for number in range(8)]
    taken = together(queue, [lambda one=one: claim_all(one) for one in runners])
    assert sorted(chain.from_iterable(taken)) == sorted(ids(runs))
    for runner, mine in zip(runners, taken, strict=True):
        assert sorted(ids(queue.find(runner_id=runner.runner_id))) == sorted(mine)
    assert all(events_of(queue, run) == ["pending", "claimed"] for run in runs)


def test_eight_threads_of_one_runner_claim_each_run_once(queue: Queue, runner: Runner) -> None:
    """A runner may be used by any number of threads, in batches of any size."""
    runs = queue.enqueue_many({"prompt": "x"} for _ in range(100))
    taken = together(queue, [lambda size=size: claim_all(runner, size) for size in range(1, 9)])
    assert sorted(chain.from_iterable(taken)) == sorted(ids(runs))
    assert len(runner.held) == 100


def test_runners_with_several_queues_claim_each_run_once(
    queue: Queue, connect: Callable[..., Queue], open_runner: Callable[..., Runner]
) -> None:
    """The database alone decides: runners of different processes have nothing else in common."""
    runs = queue.enqueue_many({"prompt": "x"} for _ in range(60))
    queues = [connect() for _ in range(4)]
    runners = [open_runner(f"r{number}", on=one) for number, one in enumerate(queues)]

    def work(own: Queue, runner: Runner) -> list[str]:
        try:
            return claim_all(runner, 3)
        finally:
            own.close()

    pairs = list(zip(queues, runners, strict=True))
    taken = together(queue, [lambda pair=pair: work(*pair) for pair in pairs])
    assert sorted(chain.from_iterable(taken)) == sorted(ids(runs))


def test_two_runners_never_hold_two_runs_of_one_session(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """Runs of a session are executed one after the other, in their order, by whomever."""
    wanted: dict[str, list[str]] = {}
    for _ in range(6):
        session_id = queue.enqueue("first").session_id
        wanted[session_id] = ids(queue.find(session_id=session_id))
        for _ in range(5):
            clock.advance(0.001)
            wanted[session_id].append(queue.enqueue("next", session_id=session_id).run_id)
    guard, busy, overlaps = threading.Lock(), set(), []
    order: dict[str, list[str]] = {session_id: [] for session_id in wanted}

    def work(runner: Runner) -> int:
        done = 0
        while sum(map(len, order.values())) < 36:
            claim = runner.claim(timeout=0.05)
            if claim is None:
                continue
            session_id = claim.run.session_id
            with guard:
                if session_id in busy:
                    overlaps.append(session_id)
                busy.add(session_id)
                order[session_id].append(claim.run.run_id)
            claim.start()
            with guard:
                busy.discard(session_id)
            claim.complete()
            done += 1
        return done

    runners = [open_runner(f"r{number}", hostname="box") for number in range(4)]
    done = together(queue, [lambda one=one: work(one) for one in runners])
    assert sum(done) == 36
    assert overlaps == []
    assert order == wanted


def test_one_run_id_enqueued_by_many_is_one_run(queue: Queue) -> None:
    """Of callers who enqueue the same at the same time one adds it, and all get it."""
    enqueue = lambda: queue.enqueue("x", run_id="run_0123456789ab")  # noqa: E731
    runs = together(queue, [enqueue] * 8)
    assert len({run.session_id for run in runs}) == 1
    assert count(queue, "runs") == count(queue, "sessions") == count(queue, "run_events") == 1


def test_a_stop_and_a_claim_at_once_have_one_winner(queue: Queue, runner: Runner) -> None:
    """Either it was cancelled and nobody has it, or its owner is asked to stop."""
    for _ in range(20):
        run = queue.enqueue("x")
        stopped, claim = together(
            queue, [lambda run=run: queue.stop(run.run_id), lambda: runner.claim(timeout=0)]
        )
        if claim is None:
            assert stopped.status == status_of(queue, run) == Status.STOPPED
        else:
            assert stopped.status == status_of(queue, run) == Status.STOPPING
            claim.confirm_stop()


def test_a_stop_and_a_complete_at_once_end_in_completed(queue: Queue, runner: Runner) -> None:
    """The result is not lost in either order; the stop may find that it came too late."""

    def stop(run_id: str) -> None:
        with suppress(IllegalMove):
            queue.stop(run_id)

    for _ in range(20):
        queue.enqueue("x")
        claim = start(runner)
        together(
            queue,
            [
                lambda claim=claim: stop(claim.run.run_id),
                lambda claim=claim: claim.complete("r"),
            ],
        )
        assert queue.get(claim.run.run_id).result == "r"


def test_an_enqueue_and_a_deletion_at_once_leave_no_orphan(queue: Queue) -> None:
    """The resume either comes too late, or goes with its session."""

    def resume(session_id: str) -> None:
        with suppress(SessionNotFound):
            queue.enqueue("y", session_id=session_id)

    for _ in range(20):
        session_id = queue.enqueue("x").session_id
        together(
            queue,
            [
                lambda session_id=session_id: resume(session_id),
                lambda session_id=session_id: queue.delete_session(session_id),
            ],
        )
    rows = execute_sql(
        queue, "SELECT 1 FROM runs WHERE session_id NOT IN (SELECT session_id FROM sessions)"
    )
    assert rows == []
    assert count(queue, "sessions") == 0


def test_a_fresh_database_is_created_once_by_many(database_url: str) -> None:
    """Of processes that start at once one creates the schema, and all can use it."""

    def begin() -> str:
        with runqueue.connect(database_url) as queue:
            return queue.enqueue("x").run_id

    # Each closes its own queue; `together` needs one to close for its threads.
    barrier_queue = type("Nothing", (), {"close": lambda self: None})()
    run_ids = together(barrier_queue, [begin] * 8)
    with runqueue.connect(database_url) as queue:
        assert sorted(ids(queue.find())) == sorted(run_ids)


def test_a_hundred_threads_enqueue_at_once_and_none_is_refused(queue: Queue) -> None:
    """Threads of one process wait in line; trying together, they keep the writer from ending."""
    failures: list[Exception] = []

    def enqueue() -> None:
        try:
            queue.enqueue("x")
            queue.enqueue("y")
        except RunqueueError as error:
            failures.append(error)
        finally:
            queue.close()

    threads = [threading.Thread(target=enqueue) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert count(queue, "runs") == 200


def test_a_fork_waits_for_a_thread_that_writes(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child would inherit the lock of a writer who is not there, and never write itself."""
    forking = threading.Event()
    begun = threading.Event()
    real = type(queue.store.engine).hold_for_fork

    def hold(engine: Any) -> None:
        forking.set()
        real(engine)

    monkeypatch.setattr(type(queue.store.engine), "hold_for_fork", hold)

    def write() -> str:
        with queue.database.atomic():
            run = queue.enqueue("by the thread")
            begun.set()
            assert forking.wait(LONG)
        return run.run_id

    with in_background(write, queue) as written:
        assert begun.wait(LONG)
        if (child := os.fork()) == 0:
            code = 1
            try:
                queue.enqueue("by the child")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert queue.get(written.result(LONG)).prompt == "by the thread"
    assert sorted(run.prompt for run in queue.find()) == ["by the child", "by the thread"]
    assert queue.enqueue("by the parent").status == Status.PENDING
