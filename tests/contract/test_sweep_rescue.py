"""The tick's second half: runs of dead or silent owners are settled, lost or released."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runqueue import Queue, Run, Runner, Status, Sweep
from tests.helpers import (
    MICROSECOND,
    MovableClock,
    events_of,
    execute_sql,
    row_of,
    start,
    status_of,
    take,
    together,
)

LEASE, GRACE, START_DEADLINE = 30, 10, 60
ALLOWANCE = 1
"""Seconds that a live owner is given on top of the grace, to report what it has done."""


def beat(queue: Queue, clock: MovableClock) -> None:
    """Renew the lease of every runner, as its heartbeat would."""
    execute_sql(queue, "UPDATE runners SET lease_until = ?", clock.text(LEASE))


def by_hand(queue: Queue, status: str, owner: str | None, claimed: str | None = None) -> Run:
    """Enqueue a run and give it a status and an owner as somebody with a shell would."""
    run = queue.enqueue("x")
    execute_sql(
        queue,
        "UPDATE runs SET status = ?, runner_id = ?, claimed_at = ? WHERE run_id = ?",
        *(status, owner, claimed, run.run_id),
    )
    return run


def test_a_dead_runners_running_run_is_lost(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """What may have been half done is not done again: it fails, and says why."""
    queue.enqueue("x")
    claim = start(runner)
    clock.advance(LEASE + 1)
    assert queue.sweep() == Sweep(lost=1)
    run = queue.get(claim.run.run_id)
    assert run.status == Status.FAILED
    assert run.completed_at == clock.text()
    assert "worker" in run.error
    assert "lost" in run.error
    assert queue.timeline(run.run_id)[-1].actor == "daemon"


def test_a_dead_runners_claimed_run_is_released(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """What was never started goes back to pending, for another runner."""
    run = queue.enqueue("x")
    take(open_runner("dead"))
    clock.advance(LEASE + 1)
    assert queue.sweep() == Sweep(released=1)
    released = queue.get(run.run_id)
    assert (released.status, released.runner_id, released.claimed_at) == ("pending", None, None)
    assert take(open_runner("alive")).run.run_id == run.run_id


def test_a_dead_runners_stopping_run_is_settled(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Nobody is left to confirm the stop, so it is presumed, and recorded as that."""
    queue.enqueue("x")
    claim = start(runner)
    clock.advance(LEASE)
    queue.stop(claim.run.run_id)
    assert queue.sweep() == Sweep(settled=1)
    run = queue.get(claim.run.run_id)
    assert run.status == Status.STOPPED
    assert run.completed_at == clock.text()
    assert "presumed" in run.error
    assert events_of(queue, run)[-2:] == ["stopping", "stopped"]


def test_a_lease_ends_on_the_microsecond(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """A runner is alive until the last microsecond of its lease, and dead from its end on."""
    queue.enqueue("x")
    start(runner)
    clock.advance(LEASE - MICROSECOND)
    assert not queue.sweep()
    clock.advance(MICROSECOND)
    assert queue.sweep() == Sweep(lost=1)


def test_a_live_runners_run_is_never_taken_however_long_it_takes(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Rescue goes by liveness, not by age."""
    queue.enqueue("x", timeout=5)
    claim = start(runner)
    for _ in range(3):
        clock.advance(30 * 86_400)
        beat(queue, clock)
        assert not queue.sweep()
    claim.complete("after three months")
    assert status_of(queue, claim.run) == Status.COMPLETED


def test_only_the_dead_runners_runs_are_taken(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A living neighbour keeps what it holds."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    start(open_runner("dead"))
    clock.advance(LEASE - 1)
    kept = start(open_runner("alive"))
    clock.advance(2)
    assert queue.sweep() == Sweep(lost=1)
    assert status_of(queue, kept.run) == Status.RUNNING


def test_a_claim_that_is_not_started_in_time_is_released(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A live runner that does not begin loses the run at its start deadline, not before."""
    queue.enqueue("x")
    claim = take(runner)
    clock.advance(START_DEADLINE - MICROSECOND)
    beat(queue, clock)
    assert not queue.sweep()
    clock.advance(MICROSECOND)
    assert queue.sweep() == Sweep(released=1)
    assert claim.stop_requested


def test_a_stop_is_not_settled_within_its_grace(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A live owner has the whole grace to end its agent and confirm."""
    queue.enqueue("x")
    claim = start(runner)
    clock.advance(5)
    queue.stop(claim.run.run_id)
    clock.advance(GRACE)
    assert not queue.sweep()
    claim.confirm_stop()
    assert queue.get(claim.run.run_id).error is None


def test_a_stop_is_settled_when_its_grace_is_over(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A live owner that says nothing does not keep its run stopping for ever."""
    queue.enqueue("x")
    claim = start(runner)
    queue.stop(claim.run.run_id)
    clock.advance(GRACE + ALLOWANCE)
    assert queue.sweep() == Sweep(settled=1)
    assert "presumed" in queue.get(claim.run.run_id).error


def test_a_settled_run_frees_its_session(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """The session's next run is claimed once the stop is presumed."""
    run = queue.enqueue("x")
    start(runner)
    following = queue.enqueue("y", session_id=run.session_id)
    queue.stop(run.run_id)
    clock.advance(GRACE + ALLOWANCE)
    queue.sweep()
    assert take(runner).run.run_id == following.run_id


def test_stopping_written_by_hand_is_settled_at_the_next_tick(queue: Queue, runner: Runner) -> None:
    """A stopping run with no recorded stop has no grace, though its owner lives."""
    queue.enqueue("x")
    claim = start(runner)
    execute_sql(queue, "UPDATE runs SET status = 'stopping'")
    assert queue.sweep() == Sweep(settled=1)
    assert status_of(queue, claim.run) == Status.STOPPED


@pytest.mark.parametrize("owner", ["ghost", None], ids=["unregistered", "nobody"])
@pytest.mark.parametrize(
    ("status", "swept"), [("running", Sweep(lost=1)), ("claimed", Sweep(released=1))]
)
def test_an_owner_that_never_registered_is_given_one_lease(
    queue: Queue, clock: MovableClock, owner: str | None, status: str, swept: Sweep
) -> None:
    """A claim that was written by hand is resolved one lease after it, not before."""
    run = by_hand(queue, status, owner, clock.text())
    clock.advance(LEASE - MICROSECOND)
    assert not queue.sweep()
    clock.advance(MICROSECOND)
    assert queue.sweep() == swept
    assert status_of(queue, run) == ("failed" if status == "running" else "pending")


def test_a_lease_of_a_run_without_any_time_begins_with_the_run(
    queue: Queue, clock: MovableClock
) -> None:
    """A status that was written by hand, and nothing else, counts from created_at."""
    run = by_hand(queue, "running", None)
    clock.advance(LEASE - 1)
    assert not queue.sweep()
    clock.advance(1)
    assert queue.sweep() == Sweep(lost=1)
    assert queue.get(run.run_id).error


def test_a_run_of_a_runner_that_was_removed_by_hand_is_resolved(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Deleting a runner's row makes it one that never registered."""
    queue.enqueue("x")
    start(runner)
    execute_sql(queue, "DELETE FROM runners")
    clock.advance(LEASE)
    assert queue.sweep() == Sweep(lost=1)


@pytest.mark.parametrize("status", ["completed", "failed", "stopped"])
def test_what_ended_by_hand_is_left_alone(queue: Queue, clock: MovableClock, status: str) -> None:
    """A terminal status is respected, whoever wrote it."""
    run = by_hand(queue, status, "ghost", clock.text())
    before = row_of(queue, run)
    clock.advance(3600)
    assert not queue.sweep()
    assert row_of(queue, run) == before


def test_one_tick_counts_what_it_did_to_each(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Expired, settled, lost and released are counted apart; a second tick counts nothing."""
    queue.enqueue_many({"prompt": "x"} for _ in range(6))
    claims = runner.claim_many(6)
    for claim in claims[:5]:
        claim.start()
    for claim in claims[:3]:
        queue.stop(claim.run.run_id)
    queue.enqueue_many({"prompt": "x", "timeout": 1} for _ in range(4))
    clock.advance(LEASE)
    assert queue.sweep() == Sweep(expired=4, settled=3, lost=2, released=1)
    events = {claim.run.run_id: events_of(queue, claim.run) for claim in claims}
    assert not queue.sweep()
    assert {claim.run.run_id: events_of(queue, claim.run) for claim in claims} == events


def test_two_daemons_rescue_each_run_once(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Ticks at the same time lose each run once."""
    queue.enqueue_many({"prompt": "x"} for _ in range(40))
    claims = runner.claim_many(40)
    for claim in claims:
        claim.start()
    clock.advance(LEASE)
    swept = together(queue, [queue.sweep] * 4)
    assert sum(one.lost for one in swept) == 40
    ends = [events_of(queue, claim.run)[-2:] for claim in claims]
    assert ends == [["running", "failed"]] * 40


def test_the_lease_is_the_runners_promise_not_the_sweepers_setting(
    connect: Callable[..., Queue], open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A tick with a shorter lease of its own does not take a registered runner's runs early."""
    patient, hasty = connect(lease=600), connect(lease=1)
    patient.enqueue("x")
    start(open_runner(on=patient))
    clock.advance(599)
    assert not hasty.sweep()
    clock.advance(1)
    assert hasty.sweep() == Sweep(lost=1)
