"""Waiting callers and waiting runners are woken by what they wait for, and by nothing less."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from runqueue import Queue, Runner, RunNotFound, Status, WaitTimeout
from tests.helpers import LONG, MovableClock, in_background, start, status_of, take, together


def is_parked(parked: threading.Event) -> bool:
    return parked.wait(LONG)


def test_wait_returns_a_run_that_has_ended_at_once(queue: Queue, runner: Runner) -> None:
    """There is nothing to wait for, so even no time at all is enough."""
    queue.enqueue("x")
    claim = start(runner)
    claim.complete("r")
    assert queue.wait(claim.run.run_id, timeout=0).result == "r"


def test_wait_ends_with_a_typed_timeout_and_the_run_goes_on(queue: Queue) -> None:
    """WaitTimeout says nothing about the run, which is as it was."""
    run = queue.enqueue("x")
    with pytest.raises(WaitTimeout):
        queue.wait(run.run_id, timeout=0)
    with pytest.raises(TimeoutError):
        queue.wait(run.run_id, timeout=0.01)
    assert status_of(queue, run) == Status.PENDING


def test_wait_is_woken_by_the_end_in_another_thread(
    queue: Queue, runner: Runner, parked: threading.Event
) -> None:
    """A caller in one thread gets the result that a runner reports in another."""
    run = queue.enqueue("x")
    with in_background(lambda: queue.wait(run.run_id, timeout=LONG), queue) as ended:
        assert is_parked(parked)
        claim = start(runner)
        claim.complete("r")
        assert ended.result(LONG).result == "r"


def test_wait_is_not_ended_by_less_than_the_end(
    queue: Queue, runner: Runner, parked: threading.Event
) -> None:
    """Claimed, running and stopping are no ends."""
    run = queue.enqueue("x")
    with in_background(lambda: queue.wait(run.run_id, timeout=LONG), queue) as ended:
        assert is_parked(parked)
        claim = start(runner)
        queue.stop(run.run_id)
        assert not ended.done()
        claim.confirm_stop()
        assert ended.result(LONG).status == Status.STOPPED


@pytest.mark.parametrize("end", ["stop", "sweep"])
def test_wait_is_woken_by_every_way_to_end(
    queue: Queue, clock: MovableClock, parked: threading.Event, end: str
) -> None:
    """A cancelled and an expired run wake their caller too."""
    run = queue.enqueue("x", timeout=5)
    with in_background(lambda: queue.wait(run.run_id, timeout=LONG), queue) as ended:
        assert is_parked(parked)
        clock.advance(5)
        queue.stop(run.run_id) if end == "stop" else queue.sweep()
        assert ended.result(LONG).is_terminal


def test_wait_is_woken_by_the_deletion_of_the_run(queue: Queue, parked: threading.Event) -> None:
    """A caller does not wait for ever for a run that does not exist any more."""
    run = queue.enqueue("x")
    with in_background(lambda: queue.wait(run.run_id, timeout=LONG), queue) as ended:
        assert is_parked(parked)
        queue.delete_session(run.session_id)
        with pytest.raises(RunNotFound):
            ended.result(LONG)


def test_wait_is_woken_from_another_process(
    queue: Queue, connect: Callable[..., Queue], parked: threading.Event
) -> None:
    """Another queue on the database, as another process has it, wakes the caller."""
    run = queue.enqueue("x")
    with in_background(lambda: queue.wait(run.run_id, timeout=LONG), queue) as ended:
        assert is_parked(parked)
        connect().stop(run.run_id)
        assert ended.result(LONG).status == Status.STOPPED


def test_a_claim_is_woken_by_an_enqueue(
    queue: Queue, runner: Runner, parked: threading.Event
) -> None:
    """A waiting runner gets what is enqueued, not only what it finds when it looks again."""
    with in_background(lambda: runner.claim(timeout=LONG), queue) as claimed:
        assert is_parked(parked)
        run = queue.enqueue("x")
        assert claimed.result(LONG).run.run_id == run.run_id


def test_a_claim_is_woken_by_an_enqueue_of_another_process(
    queue: Queue, runner: Runner, connect: Callable[..., Queue], parked: threading.Event
) -> None:
    """The enqueuer and the runner need only the database in common."""
    with in_background(lambda: runner.claim(timeout=LONG), queue) as claimed:
        assert is_parked(parked)
        run = connect().enqueue("x")
        assert claimed.result(LONG).run.run_id == run.run_id


def test_a_claim_is_woken_by_a_release(
    queue: Queue, runner: Runner, open_runner: Callable[..., Runner], parked: threading.Event
) -> None:
    """What another runner gives back is claimed at once."""
    queue.enqueue("x")
    claim = take(open_runner("other"))
    with in_background(lambda: runner.claim(timeout=LONG), queue) as claimed:
        assert is_parked(parked)
        claim.release()
        assert claimed.result(LONG).run.run_id == claim.run.run_id


def test_a_claim_is_woken_when_the_session_is_free(
    queue: Queue, runner: Runner, open_runner: Callable[..., Runner], parked: threading.Event
) -> None:
    """The end of a session's active run lets a waiting runner have the next one."""
    first = queue.enqueue("x")
    active = start(open_runner("other", hostname=runner.hostname))
    second = queue.enqueue("y", session_id=first.session_id)
    with in_background(lambda: runner.claim(timeout=LONG), queue) as claimed:
        assert is_parked(parked)
        active.complete()
        assert claimed.result(LONG).run.run_id == second.run_id


def test_a_claim_waits_on_when_the_new_run_is_not_for_it(
    queue: Queue, runner: Runner, parked: threading.Event
) -> None:
    """A run that the runner does not serve neither ends its wait nor becomes its claim."""
    with in_background(lambda: runner.claim(timeout=LONG), queue) as claimed:
        assert is_parked(parked)
        queue.enqueue("x", demands={"tags": ["gpu"]})
        assert not claimed.done()
        run = queue.enqueue("y")
        assert claimed.result(LONG).run.run_id == run.run_id


def test_a_drain_ends_a_waiting_claim(
    queue: Queue, runner: Runner, parked: threading.Event
) -> None:
    """A runner that is to end does not wait its time out."""
    with in_background(lambda: runner.claim(timeout=3600), queue) as claimed:
        assert is_parked(parked)
        runner.drain()
        assert claimed.result(LONG) is None


def test_one_run_wakes_two_runners_and_is_claimed_by_one(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """Whoever is woken in vain goes on waiting, and has nothing at the end."""
    runners = [open_runner("first"), open_runner("second")]
    queue.enqueue("x")
    claims = together(queue, [lambda one=one: one.claim(timeout=0.2) for one in runners])
    assert sum(claim is not None for claim in claims) == 1
