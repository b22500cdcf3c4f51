"""Claiming: the right run, one owner, and nothing more than was returned."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runqueue import InvalidRun, Queue, Runner, RunqueueError, Status
from tests.helpers import (
    MICROSECOND,
    MovableClock,
    count,
    events_of,
    execute_sql,
    ids,
    start,
    status_of,
    take,
)


def test_a_claim_makes_the_runner_the_owner(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A claimed run names its owner and the time of the claim, in the claim and in the row."""
    run = queue.enqueue("x", priority=4)
    clock.advance(1)
    claim = take(runner)
    assert claim.run.run_id == run.run_id
    assert claim.run.prompt == "x"
    assert claim.run.priority == 4
    for owned in (claim.run, queue.get(run.run_id)):
        assert owned.status == Status.CLAIMED
        assert owned.runner_id == "worker"
        assert owned.claimed_at == clock.text()
        assert owned.started_at is None


def test_a_claim_of_nothing_is_none(queue: Queue, runner: Runner) -> None:
    """An empty queue gives no claim, and no error."""
    assert runner.claim(timeout=0) is None
    assert runner.claim(timeout=0.01) is None


def test_a_claimed_run_is_not_claimed_again(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """A run has one owner: neither the same runner nor another gets it twice."""
    queue.enqueue("x")
    first, second = open_runner("first"), open_runner("second")
    take(first)
    assert first.claim(timeout=0) is None
    assert second.claim(timeout=0) is None


def test_the_oldest_run_is_claimed_first(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """Of runs with one priority the one that waits longest is next."""
    runs = []
    for _ in range(4):
        runs.append(queue.enqueue("x"))
        clock.advance(MICROSECOND)
    assert [take(runner).run.run_id for _ in runs] == ids(runs)


def test_a_higher_priority_is_claimed_first(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Priority goes before age, and a negative one after everything else."""
    for priority in (0, -1, 10, 2):
        queue.enqueue("x", priority=priority)
        clock.advance(1)
    assert [take(runner).run.priority for _ in range(4)] == [10, 2, 0, -1]


def test_priority_goes_across_different_demands(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """Runs with different demands that one runner serves stand in one line."""
    wanted = [
        queue.enqueue("x", demands={"tags": ["a"]}, priority=1),
        queue.enqueue("x", priority=3),
        queue.enqueue("x", demands={"tags": ["b"]}, priority=2),
        queue.enqueue("x", demands={"tags": ["a"]}, priority=4),
    ]
    runner = open_runner(tags=["a", "b"])
    order = [take(runner).run.run_id for _ in wanted]
    assert order == [wanted[3].run_id, wanted[1].run_id, wanted[2].run_id, wanted[0].run_id]


def test_age_goes_across_different_demands(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """Of runs with equal priority the oldest is next, whatever it demands."""
    runs = []
    for demands in ({"tags": ["z"]}, None, {"tags": ["a"]}):
        runs.append(queue.enqueue("x", demands=demands))
        clock.advance(1)
    runner = open_runner(tags=["a", "z"])
    assert [take(runner).run.run_id for _ in runs] == ids(runs)


def test_claim_many_takes_up_to_its_limit(queue: Queue, runner: Runner) -> None:
    """A batch is no larger than asked for, and what it takes it returns."""
    queue.enqueue_many({"prompt": "x"} for _ in range(5))
    taken = runner.claim_many(3)
    assert len(taken) == 3
    assert sorted(ids(taken)) == sorted(ids(queue.find(status="claimed")))
    assert len(runner.claim_many(3)) == 2
    assert runner.claim_many(3) == []


def test_one_claim_changes_one_run(queue: Queue, runner: Runner) -> None:
    """A claim takes exactly the run that it returns, however many wait."""
    queue.enqueue_many({"prompt": "x"} for _ in range(60))
    take(runner)
    assert len(queue.find(status="claimed")) == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_claim_many_refuses_to_claim_nothing(queue: Queue, runner: Runner, limit: int) -> None:
    """A batch is of one run at least."""
    with pytest.raises(InvalidRun):
        runner.claim_many(limit)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5"], ids=str)
def test_claim_refuses_a_timeout_that_is_no_duration(
    queue: Queue, runner: Runner, timeout: float
) -> None:
    """The time to wait is a finite number of seconds that is not negative."""
    queue.enqueue("x")
    with pytest.raises(InvalidRun):
        runner.claim(timeout=timeout)
    assert len(queue.find(status="pending")) == 1


def test_a_released_run_is_claimed_again_by_another(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A run that was given back belongs to whoever claims it next."""
    run = queue.enqueue("x")
    take(open_runner("first")).release()
    clock.advance(1)
    claim = take(open_runner("second"))
    assert claim.run.run_id == run.run_id
    assert queue.get(run.run_id).runner_id == "second"
    assert queue.get(run.run_id).claimed_at == clock.text()


def test_an_operator_releases_a_claimed_run(queue: Queue, runner: Runner) -> None:
    """queue.release gives a claimed run back without its owner, who then has lost it."""
    run = queue.enqueue("x")
    claim = take(runner)
    released = queue.release(run.run_id)
    assert released.status == Status.PENDING
    assert released.runner_id is None
    assert released.claimed_at is None
    assert claim.stop_requested


def test_a_cancelled_run_is_not_claimed(queue: Queue, runner: Runner) -> None:
    """What ended before it was claimed never reaches a runner."""
    queue.cancel(queue.enqueue("x").run_id)
    assert runner.claim(timeout=0) is None


def test_a_claim_is_recorded_with_its_runner(queue: Queue, runner: Runner) -> None:
    """The claim is in the run's history in the transaction that made it."""
    run = queue.enqueue("x")
    take(runner)
    assert events_of(queue, run) == ["pending", "claimed"]
    assert queue.timeline(run.run_id)[-1].detail == "worker"


def test_a_runner_knows_what_it_holds(queue: Queue, runner: Runner) -> None:
    """What was claimed is held until it was reported."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    first, second = runner.claim_many(2)
    assert runner.held == [first, second]
    first.release()
    assert runner.held == [second]
    second.fail("why")
    assert runner.held == []


def test_a_draining_runner_claims_nothing(queue: Queue, runner: Runner) -> None:
    """After drain there is nothing to claim, however much waits."""
    queue.enqueue("x")
    runner.drain()
    assert runner.is_draining
    assert runner.claim(timeout=0) is None
    assert runner.claim(timeout=60) is None
    assert runner.claim_many(5) == []


def test_a_closed_runner_claims_nothing_and_stays_gone(queue: Queue) -> None:
    """A claim after the runner's end does not register it again, without a heartbeat."""
    queue.enqueue("x")
    with queue.runner("worker") as runner:
        pass
    try:
        taken = runner.claim(timeout=0)
    except RunqueueError:
        taken = None
    registered = count(queue, "runners")
    runner.close()
    assert taken is None
    assert registered == 0


def test_finish_many_completes_all_in_one_go(queue: Queue, runner: Runner) -> None:
    """A batch is completed, each run with its own result, also where none was started."""
    queue.enqueue_many({"prompt": str(number)} for number in range(3))
    claims = runner.claim_many(3)
    claims[1].start()
    assert runner.finish_many([(claim, f"r{claim.run.prompt}") for claim in claims]) == []
    for claim in claims:
        run = queue.get(claim.run.run_id)
        assert run.status == Status.COMPLETED
        assert run.result == f"r{run.prompt}"
        assert events_of(queue, run) == ["pending", "claimed", "running", "completed"]
    assert runner.held == []


def test_finish_many_returns_what_was_lost_and_completes_the_rest(
    queue: Queue, runner: Runner
) -> None:
    """One lost claim does not keep the others from being completed."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    lost, kept = runner.claim_many(2)
    queue.release(lost.run.run_id)
    assert runner.finish_many([(lost, "a"), (kept, "b")]) == [lost]
    assert status_of(queue, lost.run) == Status.PENDING
    assert queue.get(kept.run.run_id).result == "b"


def test_finish_many_completes_a_run_whose_stop_came_too_late(queue: Queue, runner: Runner) -> None:
    """A stop that was requested after the work was done does not take its result away."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    claimed, started = runner.claim_many(2)
    started.start()
    for claim in (claimed, started):
        queue.stop(claim.run.run_id)
    assert runner.finish_many([(claimed, "a"), (started, "b")]) == []
    assert status_of(queue, claimed.run) == status_of(queue, started.run) == Status.COMPLETED


def test_a_claim_is_the_price_of_one_owner_only(queue: Queue, runner: Runner) -> None:
    """Finished runs of a session are in nobody's way: the next of it is claimed."""
    run = queue.enqueue("x")
    start(runner).complete("r")
    again = queue.enqueue("y", session_id=run.session_id)
    assert take(runner).run.run_id == again.run_id
    rows = execute_sql(queue, "SELECT count(*) FROM runs WHERE runner_id = ?", "worker")
    assert rows == [(2,)]
