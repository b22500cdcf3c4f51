"""The tick's first half: runs expire on the microsecond, with an error that says why."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta, timezone

import pytest

from runqueue import Queue, Runner, Status, Sweep, sweeper
from tests.helpers import (
    LONG,
    MICROSECOND,
    MovableClock,
    events_of,
    execute_sql,
    ids,
    in_background,
    row_of,
    start,
    status_of,
    take,
    together,
)


def test_a_sweep_of_nothing_does_nothing(queue: Queue, runner: Runner) -> None:
    """A tick with nothing due changes no run, and is falsy."""
    queue.enqueue("x", timeout=60)
    queue.enqueue("y")
    start(runner)
    swept = queue.sweep()
    assert swept == Sweep(expired=0, settled=0, lost=0, released=0)
    assert not swept


def test_a_run_does_not_expire_a_microsecond_before_its_timeout(
    queue: Queue, clock: MovableClock
) -> None:
    """A run has all of its time."""
    run = queue.enqueue("x", timeout=5)
    clock.advance(5 - MICROSECOND)
    assert queue.sweep().expired == 0
    assert status_of(queue, run) == Status.PENDING


def test_a_run_expires_at_exactly_its_timeout(queue: Queue, clock: MovableClock) -> None:
    """At timeout_at the run fails, at that time and with an error."""
    run = queue.enqueue("x", timeout=5)
    clock.advance(5)
    swept = queue.sweep()
    assert swept == Sweep(expired=1)
    assert swept
    failed = queue.get(run.run_id)
    assert failed.status == Status.FAILED
    assert failed.completed_at == failed.timeout_at == clock.text()
    assert failed.error.startswith("expired: ")
    assert events_of(queue, run) == ["pending", "failed"]


def test_a_run_is_claimed_until_a_microsecond_before_its_timeout(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """The last moment to claim a run is the one before timeout_at."""
    run = queue.enqueue("x", timeout=5)
    clock.advance(5 - MICROSECOND)
    assert take(runner).run.run_id == run.run_id


@pytest.mark.parametrize("late", [0, MICROSECOND, 3600], ids=["at", "microsecond", "hour"])
def test_a_run_is_never_claimed_from_its_timeout_on(
    queue: Queue, runner: Runner, clock: MovableClock, late: float
) -> None:
    """The claim itself refuses an expired run: it does not trust the tick to be on time."""
    queue.enqueue("x", timeout=5)
    clock.advance(5 + late)
    assert runner.claim(timeout=0) is None
    assert runner.claim_many(5) == []


def test_an_expired_run_does_not_hide_the_next(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Before the tick has come, the run behind an expired one is claimed."""
    queue.enqueue("x", timeout=1, priority=9)
    good = queue.enqueue("y")
    clock.advance(1)
    assert take(runner).run.run_id == good.run_id


def test_a_timeout_of_zero_is_over_at_once(queue: Queue, runner: Runner) -> None:
    """A run that must be claimed by now is not claimed and expires."""
    queue.enqueue("x", timeout=0)
    assert runner.claim(timeout=0) is None
    assert queue.sweep().expired == 1


@pytest.mark.parametrize("is_started", [False, True], ids=["claimed", "running"])
def test_a_run_with_an_owner_does_not_expire(
    queue: Queue, runner: Runner, clock: MovableClock, is_started: bool
) -> None:
    """timeout_at is the deadline of the claim, not of the work."""
    queue.enqueue("x", timeout=5)
    claim = start(runner) if is_started else take(runner)
    clock.advance(6)
    assert not queue.sweep()
    assert status_of(queue, claim.run) == ("running" if is_started else "claimed")


def test_the_error_says_that_no_runner_is_alive(queue: Queue, clock: MovableClock) -> None:
    """Without any runner, that is why."""
    run = queue.enqueue("x", timeout=1)
    clock.advance(1)
    queue.sweep()
    assert "no runner is alive" in queue.get(run.run_id).error


def test_the_error_says_which_demand_no_live_runner_met(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """The demand that was not met is named, and those that were are not."""
    open_runner(tags=["cpu"], properties={"region": "eu"})
    run = queue.enqueue("x", demands={"tags": ["gpu"], "region": "eu"}, timeout=1)
    clock.advance(1)
    queue.sweep()
    error = queue.get(run.run_id).error
    assert 'tags ["gpu"]' in error
    assert "region" not in error
    assert queue.timeline(run.run_id)[-1].detail == error


def test_a_dead_runner_is_not_counted_as_one_that_meets_the_demands(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """Only live runners could have claimed the run."""
    open_runner(tags=["gpu"])
    run = queue.enqueue("x", demands={"tags": ["gpu"]}, timeout=60)
    clock.advance(60)
    queue.sweep()
    assert "no runner is alive" in queue.get(run.run_id).error


def test_each_expired_run_has_its_own_error(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """Runs that expire in one tick with different demands have different reasons."""
    open_runner(tags=["cpu"])
    runs = [queue.enqueue("x", demands={"tags": [tag]}, timeout=1) for tag in ("gpu", "cpu", "tpu")]
    clock.advance(2)
    assert queue.sweep().expired == 3
    errors = [queue.get(run.run_id).error for run in runs]
    assert 'tags ["gpu"]' in errors[0]
    assert "busy" in errors[1]
    assert 'tags ["tpu"]' in errors[2]


def test_a_run_behind_its_session_expires_and_says_so(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A run that waits for its session expires too; the error names the run in its way."""
    first = queue.enqueue("x")
    start(runner)
    clock.advance(1)
    second = queue.enqueue("y", session_id=first.session_id, timeout=1)
    clock.advance(1)
    assert queue.sweep().expired == 1
    assert first.run_id in queue.get(second.run_id).error


def test_one_tick_expires_a_whole_backlog(queue: Queue, clock: MovableClock) -> None:
    """More runs than fit in one transaction expire in one tick all the same."""
    queue.enqueue_many({"prompt": "x", "timeout": 1} for _ in range(1203))
    clock.advance(2)
    assert queue.sweep().expired == 1203
    assert queue.find(status="pending") == []


def test_two_sweeps_do_no_more_than_one(queue: Queue, clock: MovableClock) -> None:
    """A repeated tick finds nothing, and leaves what the first one wrote."""
    run = queue.enqueue("x", timeout=1)
    clock.advance(1)
    queue.sweep()
    before = row_of(queue, run)
    clock.advance(1)
    assert not queue.sweep()
    assert row_of(queue, run) == before
    assert events_of(queue, run) == ["pending", "failed"]


def test_two_daemons_expire_each_run_once(queue: Queue, clock: MovableClock) -> None:
    """Ticks at the same time share the work: the counts add up, and each run has one end."""
    runs = queue.enqueue_many({"prompt": "x", "timeout": 1} for _ in range(100))
    clock.advance(2)
    swept = together(queue, [queue.sweep] * 4)
    assert sum(one.expired for one in swept) == 100
    assert sorted(ids(queue.find(status="failed"))) == sorted(ids(runs))
    assert all(events_of(queue, run) == ["pending", "failed"] for run in runs)


def test_sweep_takes_the_time_it_is_given(queue: Queue, clock: MovableClock) -> None:
    """The time of a tick may be a datetime of any zone, or a stored time."""
    first = queue.enqueue("x", timeout=10)
    clock.advance(1)
    second = queue.enqueue("x", timeout=10)
    clock.advance(-1)
    zone = timezone(timedelta(hours=5, minutes=30))
    assert queue.sweep(clock.moment.astimezone(zone)).expired == 0
    assert queue.sweep((clock.moment + timedelta(seconds=10)).astimezone(zone)).expired == 1
    assert queue.get(first.run_id).status == Status.FAILED
    assert queue.sweep(clock.text(11)).expired == 1
    assert queue.get(second.run_id).completed_at == clock.text(11)


def test_sweep_refuses_a_time_without_a_zone(queue: Queue, clock: MovableClock) -> None:
    """What a datetime without a zone means depends on the host, so it is an error."""
    with pytest.raises(ValueError, match="time zone"):
        queue.sweep(clock.moment.replace(tzinfo=None))


def test_a_sweep_without_rescues_only_expires(queue: Queue, clock: MovableClock) -> None:
    """For a daemon that slept: it cannot tell silent runners from its own sleep."""
    queue.enqueue("late", timeout=5)
    dead = queue.enqueue("running")
    execute_sql(queue, "UPDATE runs SET status = 'running' WHERE run_id = ?", dead.run_id)
    clock.advance(3600)
    assert queue.sweep(rescues=False) == (1, 0, 0, 0)
    assert queue.sweep() == (0, 0, 1, 0)


def test_runs_that_wait_behind_nobody_are_healed(queue: Queue) -> None:
    """Whatever left the mark, the daemon takes it away."""
    run = queue.enqueue("x")
    execute_sql(queue, "UPDATE runs SET waiting = 1 WHERE run_id = ?", run.run_id)
    with queue.runner() as runner:
        assert runner.claim(timeout=0) is None
        assert sweeper.heal(queue.store) == 1
        assert runner.claim(timeout=0) is not None
    assert sweeper.heal(queue.store) == 0


def test_looking_for_what_is_to_be_healed_waits_for_nobody(
    queue: Queue, connect: Callable[..., Queue]
) -> None:
    """Nor does anybody wait for it: all pending runs are read, and no lock is taken for that."""
    run = queue.enqueue("x")
    other = connect()
    with queue.database.atomic(*queue.store.engine.begin):
        queue.database.execute_sql("UPDATE runs SET priority = 1")
        queue.database.execute_sql("UPDATE sessions SET agent_name = 'busy'")
        # Were it to wait, it would wait for this transaction, which waits for it.
        with in_background(lambda: sweeper.heal(other.store), other) as healed:
            assert healed.result(LONG) == 0
    assert queue.get(run.run_id).priority == 1


def test_runners_that_died_a_day_ago_are_forgotten(queue: Queue, clock: MovableClock) -> None:
    """One that still owns a run is kept until that is resolved."""
    queue.enqueue("x")
    for runner_id in ("owner", "idle"):
        execute_sql(
            queue,
            "INSERT INTO runners (runner_id, incarnation, registered_at, heartbeat_at, "
            "lease_until) VALUES (?, 'i', ?, ?, ?)",
            *(runner_id, clock.text(), clock.text(), clock.text()),
        )
    execute_sql(queue, "UPDATE runs SET status = 'running', runner_id = 'owner'")
    clock.advance(90_000)
    assert sweeper.forget_runners(queue.store, now=queue.now()) == 1
    assert execute_sql(queue, "SELECT runner_id FROM runners") == [("owner",)]
