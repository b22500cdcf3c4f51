"""Stopping: at once for a run that nobody owns, through its owner for one that somebody does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from runqueue import IllegalMove, Queue, Runner, RunqueueError, Status
from tests.helpers import (
    LONG,
    MovableClock,
    events_of,
    row_of,
    start,
    status_of,
    take,
    wait_until,
)


def test_stop_of_a_pending_run_cancels_it(queue: Queue, clock: MovableClock) -> None:
    """Nobody owns it, so it is stopped at once, and not presumed."""
    run = queue.enqueue("x")
    clock.advance(1)
    stopped = queue.stop(run.run_id)
    assert stopped.status == Status.STOPPED
    assert stopped.completed_at == clock.text()
    assert stopped.error is None
    assert events_of(queue, run) == ["pending", "stopped"]


def test_stop_of_a_claimed_run_waits_for_its_owner(queue: Queue, runner: Runner) -> None:
    """The owner keeps the run until it has confirmed."""
    queue.enqueue("x")
    claim = take(runner)
    stopping = queue.stop(claim.run.run_id)
    assert stopping.status == Status.STOPPING
    assert stopping.runner_id == "worker"
    assert stopping.completed_at is None


def test_stop_of_a_running_run_waits_for_its_owner(queue: Queue, runner: Runner) -> None:
    """A running run is stopping until its agent is gone."""
    queue.enqueue("x")
    claim = start(runner)
    assert queue.stop(claim.run.run_id).status == Status.STOPPING


def test_a_second_stop_is_harmless(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """Asking again changes nothing, and does not lengthen the grace."""
    queue.enqueue("x")
    claim = start(runner)
    queue.stop(claim.run.run_id)
    before, events = row_of(queue, claim.run), events_of(queue, claim.run)
    clock.advance(5)
    queue.stop(claim.run.run_id)
    assert row_of(queue, claim.run) == before
    assert events_of(queue, claim.run) == events
    clock.advance(7)
    assert queue.sweep().settled == 1


def test_stop_of_a_run_that_has_ended_is_refused(queue: Queue, runner: Runner) -> None:
    """A caller who comes too late is told so."""
    queue.enqueue("x")
    claim = start(runner)
    claim.complete("r")
    with pytest.raises(IllegalMove):
        queue.stop(claim.run.run_id)
    assert status_of(queue, claim.run) == Status.COMPLETED


@pytest.mark.parametrize("is_started", [False, True], ids=["claimed", "running"])
def test_cancel_leaves_a_run_with_an_owner_alone(
    queue: Queue, runner: Runner, is_started: bool
) -> None:
    """cancel ends only what nobody owns yet."""
    queue.enqueue("x")
    claim = start(runner) if is_started else take(runner)
    before = row_of(queue, claim.run)
    with pytest.raises(IllegalMove):
        queue.cancel(claim.run.run_id)
    assert row_of(queue, claim.run) == before


def test_the_reason_of_a_stop_is_in_the_timeline(queue: Queue, runner: Runner) -> None:
    """Who looks later reads why, whether the run had an owner or not."""
    owned, unowned = queue.enqueue("x", priority=1), queue.enqueue("y")
    take(runner)
    for run in (owned, unowned):
        queue.stop(run.run_id, reason="wrong branch")
        last = queue.timeline(run.run_id)[-1]
        assert (last.detail, last.actor) == ("wrong branch", "caller")


def test_stop_requested_is_false_while_nobody_asks(queue: Queue, runner: Runner) -> None:
    """A claim is good until it is stopped or lost."""
    queue.enqueue("x")
    claim = take(runner)
    assert not claim.stop_requested
    claim.start()
    assert not claim.stop_requested


def test_stop_requested_is_true_at_once(queue: Queue, runner: Runner) -> None:
    """Whoever asks the claim after the stop was made learns of it, without waiting."""
    queue.enqueue("x")
    claim = start(runner)
    queue.stop(claim.run.run_id)
    assert claim.stop_requested


@pytest.mark.parametrize("is_started", [False, True], ids=["claimed", "running"])
def test_a_stop_calls_the_owner(queue: Queue, runner: Runner, is_started: bool) -> None:
    """The owner's callback is called without asking, on a thread of the runner's."""
    queue.enqueue("x")
    claim = start(runner) if is_started else take(runner)
    callers: list[threading.Thread] = []
    claim.on_stop(lambda: callers.append(threading.current_thread()))
    queue.stop(claim.run.run_id)
    wait_until(lambda: callers)
    assert callers[0] is not threading.current_thread()


def test_a_stop_by_another_process_calls_the_owner(
    queue: Queue, runner: Runner, connect: Callable[..., Queue]
) -> None:
    """The stop is in the database: whoever writes it there reaches the owner."""
    queue.enqueue("x")
    claim = start(runner)
    called = threading.Event()
    claim.on_stop(called.set)
    connect().stop(claim.run.run_id)
    assert called.wait(LONG)


def test_a_callback_set_after_the_stop_is_called_at_once(queue: Queue, runner: Runner) -> None:
    """A stop that comes first is not missed."""
    queue.enqueue("x")
    claim = start(runner)
    first, second = threading.Event(), threading.Event()
    claim.on_stop(first.set)
    queue.stop(claim.run.run_id)
    assert first.wait(LONG)
    claim.on_stop(second.set)
    assert second.is_set()


def test_only_the_stopped_run_is_told(queue: Queue, runner: Runner) -> None:
    """A stop ends one agent, not its neighbours."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    stopped, other = runner.claim_many(2)
    told: list[str] = []
    for claim in (stopped, other):
        claim.start()
        claim.on_stop(lambda claim=claim: told.append(claim.run.run_id))
    queue.stop(stopped.run.run_id)
    wait_until(lambda: told)
    assert told == [stopped.run.run_id]
    assert not other.stop_requested


@pytest.mark.parametrize("verb", ["release", "delete"])
def test_an_owner_that_has_lost_its_run_is_told_to_stop(
    queue: Queue, runner: Runner, verb: str
) -> None:
    """A claim that was taken away, or whose session was deleted, asks its agent to end."""
    queue.enqueue("x")
    claim = take(runner)
    called = threading.Event()
    claim.on_stop(called.set)
    if verb == "release":
        queue.release(claim.run.run_id)
    else:
        queue.delete_session(claim.run.session_id, force=True)
    assert claim.stop_requested
    assert called.wait(LONG)


def test_a_stopping_run_may_still_complete(queue: Queue, runner: Runner) -> None:
    """Work that was done before the stop arrived is not thrown away."""
    queue.enqueue("x")
    claim = start(runner)
    queue.stop(claim.run.run_id)
    claim.complete("done already")
    assert queue.get(claim.run.run_id).result == "done already"


def test_a_stopping_run_may_still_fail(queue: Queue, runner: Runner) -> None:
    """An agent that broke down while it was stopped says so."""
    queue.enqueue("x")
    claim = take(runner)
    queue.stop(claim.run.run_id)
    claim.fail("broke down")
    assert queue.get(claim.run.run_id).error == "broke down"


def test_a_stop_before_the_start_keeps_the_run_from_starting(queue: Queue, runner: Runner) -> None:
    """A run that was stopped in time is not started."""
    queue.enqueue("x")
    claim = take(runner)
    queue.stop(claim.run.run_id)
    with pytest.raises(IllegalMove):
        claim.start()
    assert queue.get(claim.run.run_id).started_at is None
    claim.confirm_stop()
    assert status_of(queue, claim.run) == Status.STOPPED


def test_a_stop_before_the_with_block_is_confirmed(queue: Queue, runner: Runner) -> None:
    """No agent runs yet, so the stop is a fact and not for the daemon to presume later."""
    queue.enqueue("x")
    claim = take(runner)
    queue.stop(claim.run.run_id)
    with suppress(RunqueueError), claim:
        pass
    run = queue.get(claim.run.run_id)
    assert run.status == Status.STOPPED
    assert run.error is None
