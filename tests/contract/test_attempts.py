"""Retries: asked for, never assumed, and each attempt is a run of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from runqueue import (
    Claim,
    IllegalMove,
    InvalidRun,
    Queue,
    Run,
    Runner,
    WaitTimeout,
    parse_callback,
    retention,
)
from runqueue.testing import crashing
from tests.conftest import OtherProgram
from tests.helpers import (
    MovableClock,
    count,
    execute_sql,
    ids,
    in_background,
    row_of,
    start,
    status_of,
    together,
)


def fail_next(runner: Runner, error: str = "busy", retry: bool = True) -> Claim:
    claim = start(runner)
    claim.fail(error, retry=retry)
    return claim


def lose_next(queue: Queue, clock: MovableClock, number: int = 0) -> None:
    """Have a runner die with the next run, and the daemon see it."""
    with crashing(queue, at="started") as doomed, doomed.runner(f"doomed-{number}") as runner:
        runner.claim(timeout=0).start()
    clock.advance(31)
    queue.sweep()


# --- asked for


@pytest.mark.parametrize("retry", [True, False])
def test_nothing_is_retried_that_was_not_asked_for(
    queue: Queue, runner: Runner, clock: MovableClock, retry: bool
) -> None:
    """Whatever its runner says of the failure."""
    queue.enqueue("x")
    fail_next(runner, retry=retry)
    clock.advance(3600)
    assert not queue.sweep()
    assert count(queue, "runs") == 1
    assert count(queue, "run_attempts") == 0


def test_a_failure_that_may_be_retried_is_followed_by_another_attempt(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """In the transaction of the failure: the same work in the same session."""
    first = queue.enqueue(
        "x", agent_name="a", project_dir="/p", priority=3, demands={"tags": []}, retries=2
    )
    assert first.attempt == 1
    fail_next(runner)
    runs = queue.attempts(first.run_id)
    assert [run.attempt for run in runs] == [1, 2]
    assert (runs[1].status, runs[1].type) == ("pending", "RESUME_SESSION")
    for name in ("session_id", "prompt", "agent_name", "project_dir", "priority"):
        assert getattr(runs[1], name) == getattr(first, name)
    fail_next(runner)
    fail_next(runner)
    runs = queue.attempts(first.run_id)
    assert [(run.attempt, run.status) for run in runs] == [(n, "failed") for n in (1, 2, 3)]
    assert runner.claim(timeout=0) is None, "no attempt is left"


@pytest.mark.parametrize("end", ["fail", "complete", "confirm", "expire", "by hand"])
def test_no_other_end_is_retried(
    queue: Queue, runner: Runner, clock: MovableClock, end: str
) -> None:
    """Not a plain failure, not a stop, not an expiry, not what somebody wrote."""
    run = queue.enqueue("x", retries=3, retry_lost=True, timeout=60)
    if end == "expire":
        clock.advance(60)
        queue.sweep()
    elif end == "by hand":
        execute_sql(queue, "UPDATE runs SET status = 'failed'")
    else:
        claim = start(runner)
        if end == "confirm":
            queue.stop(run.run_id)
            claim.confirm_stop()
        else:
            getattr(claim, end)("x")
    clock.advance(3600)
    queue.sweep()
    assert count(queue, "runs") == 1


def test_a_run_that_was_to_be_stopped_is_not_retried(queue: Queue, runner: Runner) -> None:
    """It fails on its way out, in a way that could be retried."""
    run = queue.enqueue("x", retries=3)
    claim = start(runner)
    queue.stop(run.run_id)
    claim.fail("busy", retry=True)
    assert status_of(queue, run) == "failed"
    assert count(queue, "runs") == 1


def test_a_claim_that_fails_before_it_starts_may_be_retried(queue: Queue, runner: Runner) -> None:
    """Nothing has resumed it yet, so the next one starts the session."""
    run = queue.enqueue("x", retries=1)
    claim = runner.claim(timeout=0)
    claim.fail("busy", retry=True)
    assert [one.type for one in queue.attempts(run.run_id)] == ["START_SESSION"] * 2


def test_a_repeated_report_makes_one_attempt(queue: Queue, runner: Runner) -> None:
    """The answer to the first may have been lost."""
    queue.enqueue("x", retries=5)
    claim = start(runner)
    for _ in range(2):
        claim.fail("busy", retry=True)
    assert count(queue, "runs") == 2


# --- the delay


def test_a_delayed_attempt_is_made_when_it_is_due(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """By a tick, once; its timeout begins then."""
    first = queue.enqueue("x", retries=1, retry_delay=60, timeout=30)
    fail_next(runner)
    clock.advance(59.9)
    assert not queue.sweep()
    clock.advance(0.1)
    assert queue.sweep().retried == 1
    assert not queue.sweep()
    _, second = queue.attempts(first.run_id)
    assert second.created_at == clock.text()
    assert second.timeout_at == clock.text(30)


def test_two_sweeps_at_once_make_each_attempt_once(
    queue: Queue, connect: Callable[..., Queue], runner: Runner, clock: MovableClock
) -> None:
    """Six runs that are due, three daemons."""
    queues = [connect() for _ in range(3)]
    for _ in range(6):
        queue.enqueue("x", retries=1, retry_delay=1)
        fail_next(runner)
    clock.advance(1)
    swept = together(queue, [other.sweep for other in queues], queues)
    for other in queues:
        other.close()
    assert sum(one.retried for one in swept) == 6
    assert count(queue, "runs") == 12


def test_a_stop_between_two_attempts_is_the_end(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Else nobody could end what will be retried in an hour."""
    run = queue.enqueue("x", retries=1, retry_delay=60)
    fail_next(runner)
    assert queue.stop(run.run_id).status == "failed"
    clock.advance(60)
    assert not queue.sweep()
    assert count(queue, "runs") == 1
    with pytest.raises(IllegalMove):
        queue.stop(run.run_id)


def test_a_retry_by_hand_takes_the_place_of_the_one_that_is_waited_for(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """With what is left of the terms."""
    run = queue.enqueue("x", retries=2, retry_delay=60)
    fail_next(runner)
    second = queue.retry(run.run_id)
    assert second.attempt == 2
    clock.advance(60)
    assert not queue.sweep()
    fail_next(runner)
    clock.advance(60)
    assert queue.sweep().retried == 1
    assert len(queue.attempts(run.run_id)) == 3


# --- lost runners


def test_a_lost_run_is_retried_only_where_that_was_asked_for(
    queue: Queue, clock: MovableClock
) -> None:
    """Agents are not idempotent."""
    queue.enqueue("x", retries=3)
    lose_next(queue, clock)
    assert count(queue, "runs") == 1


def test_a_run_that_took_two_runners_down_is_not_given_to_a_third(
    queue: Queue, clock: MovableClock, runner: Runner
) -> None:
    """Though there are attempts left; and its error says so."""
    runner.drain()
    run = queue.enqueue("poison", retries=9, retry_lost=True)
    lose_next(queue, clock, 1)
    assert len(queue.attempts(run.run_id)) == 2
    lose_next(queue, clock, 2)
    runs = queue.attempts(run.run_id)
    assert [one.status for one in runs] == ["failed", "failed"]
    assert runs[0].error == "runner doomed-1 was lost: its lease ran out"
    assert runs[1].error == (
        "runner doomed-2 was lost: its lease ran out; it took 2 runners down with it, so it is "
        "given to no other"
    )


def test_losses_are_counted_across_other_failures(
    queue: Queue, clock: MovableClock, open_runner: Callable[..., Runner]
) -> None:
    """A failure between two crashes does not make them one each."""
    run = queue.enqueue("poison", retries=9, retry_lost=True)
    lose_next(queue, clock, 1)
    with queue.runner("survivor") as survivor:
        fail_next(survivor)
    lose_next(queue, clock, 2)
    assert [one.status for one in queue.attempts(run.run_id)] == ["failed"] * 3


def test_a_lost_run_waits_for_its_delay_and_counts_as_lost(
    queue: Queue, clock: MovableClock
) -> None:
    """The count is kept while nothing but the schedule knows of the run."""
    run = queue.enqueue("poison", retries=9, retry_delay=5, retry_lost=True)
    for number in (1, 2):
        lose_next(queue, clock, number)
        clock.advance(5)
        queue.sweep()
    assert len(queue.attempts(run.run_id)) == 2


def test_a_removed_runner_is_a_lost_one(queue: Queue, clock: MovableClock) -> None:
    """An operator says so before its lease does."""
    run = queue.enqueue("x", retries=1, retry_lost=True)
    with crashing(queue, at="started") as doomed, doomed.runner("doomed") as runner:
        runner.claim(timeout=0).start()
    retention.remove_runner(queue.store, "doomed", now=queue.now(), force=True)
    assert len(queue.attempts(run.run_id)) == 2


# --- how attempts are linked


def test_attempts_are_linked_both_ways_and_their_histories_tell(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """From any of them to all."""
    first = queue.enqueue("x", retries=2)
    fail_next(runner), fail_next(runner)
    runs = queue.attempts(first.run_id)
    for run in runs:
        assert ids(queue.attempts(run.run_id)) == ids(runs)
    for earlier, later in pairwise(runs):
        assert later.run_id in queue.timeline(earlier.run_id)[-1].detail
        assert earlier.run_id in queue.timeline(later.run_id)[0].detail


def test_a_retry_by_hand_is_linked_too(queue: Queue, runner: Runner) -> None:
    """As often as somebody wants; it is not retried by itself."""
    run = queue.enqueue("x")
    fail_next(runner)
    before = row_of(queue, run)
    second = queue.retry(run.run_id)
    assert ids(queue.attempts(second.run_id)) == [run.run_id, second.run_id]
    assert row_of(queue, run) == before
    fail_next(runner)
    assert count(queue, "runs") == 2
    third = queue.retry(run.run_id)
    assert ids(queue.attempts(third.run_id))[0] == run.run_id


def test_links_go_with_the_run(
    queue: Queue, runner: Runner, clock: MovableClock, program: OtherProgram
) -> None:
    """Also where the other program leaves foreign keys off."""
    run = queue.enqueue("x", retries=1)
    fail_next(runner)
    program.execute("DELETE FROM runs WHERE run_id = ?", run.run_id)
    assert count(queue, "run_attempts") == 1
    queue.delete_session(run.session_id)
    assert count(queue, "run_attempts") == 0


def test_why_tells_of_the_next_attempt_and_of_the_callback(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """What becomes of a failure is a part of its explanation."""
    parent = queue.enqueue("parent")
    start(runner)
    clock.advance(1)
    run = queue.enqueue(
        "x",
        parent_session_id=parent.session_id,
        execution_mode="async_callback",
        retries=1,
        retry_delay=5,
    )
    fail_next(runner)
    assert queue.why(run.run_id).details == (f"another attempt is due at {clock.text(5)}",)
    clock.advance(5)
    queue.sweep()
    _, second = queue.attempts(run.run_id)
    assert queue.why(run.run_id).details == (f"the next attempt is {second.run_id}",)
    fail_next(runner)
    callback = queue.get(second.run_id).callback_run_id
    assert queue.why(second.run_id).details == (
        f"session {parent.session_id} is told of it by {callback}",
    )


# --- who waits, and who is told


def test_a_wait_is_for_the_run_or_for_its_last_attempt(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """The one returns its own end, the other what came of it."""
    run = queue.enqueue("x", retries=1)
    fail_next(runner)
    assert queue.wait(run.run_id).run_id == run.run_id
    with pytest.raises(WaitTimeout):
        queue.wait(run.run_id, timeout=0, last_attempt=True)
    start(runner).complete("at last")
    assert queue.wait(run.run_id, last_attempt=True).result == "at last"


def test_a_wait_for_the_last_attempt_is_woken(
    queue: Queue, connect: Callable[..., Queue], runner: Runner, clock: MovableClock, parked: Any
) -> None:
    """Across the end of the first, and the time until the second."""
    run = queue.enqueue("x", retries=1, retry_delay=60)
    other = connect()
    with in_background(lambda: other.wait(run.run_id, last_attempt=True), other) as future:
        assert parked.wait(10)
        fail_next(runner)
        clock.advance(60)
        assert queue.sweep().retried == 1
        start(runner).complete("at last")
        assert future.result(timeout=10).result == "at last"


@pytest.mark.parametrize("delay", [0, 20])
def test_a_parent_hears_once_of_the_last_attempt(
    queue: Queue, runner: Runner, clock: MovableClock, delay: float
) -> None:
    """Not of those before, whose end is none of the work."""
    parent = queue.enqueue("parent")
    claim = start(runner)
    clock.advance(1)
    child = queue.enqueue(
        "child",
        parent_session_id=parent.session_id,
        execution_mode="async_callback",
        retries=1,
        retry_delay=delay,
    )
    fail_next(runner)
    queue.sweep()
    clock.advance(delay)
    queue.sweep()
    assert ids(queue.find(session_id=parent.session_id)) == [parent.run_id]
    assert queue.get(child.run_id).callback_run_id == "none", "or each tick would look at it again"
    fail_next(runner, "for good")
    queue.sweep()
    callback, _ = queue.find(session_id=parent.session_id)
    (end,) = parse_callback(callback.prompt)
    assert end.error == "for good"
    assert end.run_id == queue.attempts(child.run_id)[-1].run_id
    claim.complete("")


def test_a_parent_hears_of_the_end_when_no_other_attempt_is_made_after_all(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Somebody stopped the child between two attempts."""
    parent = queue.enqueue("parent", priority=1)
    start(runner)
    clock.advance(1)
    child = queue.enqueue(
        "child",
        parent_session_id=parent.session_id,
        execution_mode="async_callback",
        retries=1,
        retry_delay=20,
    )
    fail_next(runner, "busy")
    queue.stop(child.run_id)
    callback, _ = queue.find(session_id=parent.session_id)
    assert [end.error for end in parse_callback(callback.prompt)] == ["busy"]
    clock.advance(20)
    assert not queue.sweep()


# --- bad input

BAD: list[dict[str, Any]] = [
    {"retries": -1},
    {"retries": 101},
    {"retries": 1.5},
    {"retries": True},
    {"retries": 1, "retry_delay": -1},
    {"retries": 1, "retry_delay": "soon"},
    {"retries": 1, "retry_delay": float("nan")},
    {"retries": 1, "retry_lost": 1},
    {"retry_delay": 5},
    {"retry_lost": True},
]


@pytest.mark.parametrize("keywords", BAD, ids=str)
def test_terms_that_make_no_sense_are_refused(queue: Queue, keywords: dict[str, Any]) -> None:
    """In one sentence, and nothing is added."""
    with pytest.raises(InvalidRun):
        queue.enqueue("x", **keywords)
    with pytest.raises(InvalidRun):
        queue.enqueue_many([{"prompt": "fine"}, {"prompt": "x", **keywords}])
    assert count(queue, "runs") == 0


def test_a_batch_may_have_terms(queue: Queue, runner: Runner) -> None:
    """They are keywords as all others are."""
    runs: list[Run] = queue.enqueue_many([{"prompt": "a", "retries": 1}, {"prompt": "b"}])
    assert [run.attempt for run in runs] == [1, None]
    fail_next(runner), fail_next(runner)
    assert [len(queue.attempts(run.run_id)) for run in runs] == [2, 1]
