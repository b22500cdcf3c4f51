"""The checker of `runqueue.testing`: it passes what is so, and names each promise that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runqueue import Claim, Queue, StaleClaim, Status
from runqueue.testing import (
    BrokenPromise,
    Ledger,
    MovableClock,
    Note,
    Promise,
    check,
    crashing,
    temporary_queue,
)
from tests.helpers import execute_sql

LEASE = 30.0


@pytest.fixture
def queue(clock: MovableClock) -> Iterator[Queue]:
    with temporary_queue(clock) as queue:
        yield queue


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger") as ledger:
        yield ledger


def execute(queue: Queue, ledger: Ledger, runner_id: str = "worker", limit: int = 99) -> None:
    """A runner that notes all that it does."""
    with queue.runner(runner_id) as runner:
        ledger.opened(runner)
        while limit and (claim := runner.claim(timeout=0)):
            limit -= 1
            ledger.claimed(claim)
            try:
                claim.start()
                ledger.started(claim)
                ledger.done(claim)
                claim.complete("x")
                ledger.reported(claim, Status.COMPLETED)
            except StaleClaim:
                ledger.refused(claim)


@pytest.fixture
def done(queue: Queue, ledger: Ledger) -> str:
    """The id of a run that was executed, with every note."""
    run = queue.enqueue("x")
    ledger.acknowledged(run)
    execute(queue, ledger)
    return run.run_id


def broken(queue: Queue, ledger: Ledger) -> list[Promise]:
    """Which promises the checker finds broken."""
    with pytest.raises(BrokenPromise) as caught:
        check(queue, ledger)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return sorted({problem.promise for problem in caught.value.problems})


def rewrite(queue: Queue, sql: str, *parameters: str) -> None:
    """Change the history by hand, which the database does not let anybody do."""
    execute_sql(queue, "DROP TRIGGER run_events_update")
    execute_sql(queue, sql, *parameters)


def test_a_faultless_history_passes_and_is_counted(queue: Queue, ledger: Ledger) -> None:
    """Completed, failed, released, stopped, expired and never claimed: all as it should be."""
    ledger.acknowledged(queue.enqueue_many([{"prompt": "x"}] * 3))
    execute(queue, ledger)
    with queue.runner("second") as runner:
        ledger.opened(runner)
        runs = queue.enqueue_many([{"prompt": str(number)} for number in range(3)])
        ledger.acknowledged(runs)
        for claim in runner.claim_many(3):
            ledger.claimed(claim)
            if claim.run.prompt == "0":
                claim.release()
                ledger.reported(claim, Status.PENDING)
                continue
            claim.start()
            ledger.started(claim)
            if claim.run.prompt == "1":
                claim.fail("y")
                ledger.reported(claim, Status.FAILED)
            else:
                queue.stop(claim.run.run_id)
                claim.confirm_stop()
                ledger.reported(claim, Status.STOPPED)
    late = queue.enqueue("x", demands={"tags": ["gpu"]}, timeout=1)
    ledger.acknowledged(late)
    queue.cancel(runs[0].run_id)
    queue.sweep(now=late.timeout_at)
    ledger.acknowledged(queue.enqueue("x"))
    report = check(queue, ledger)
    assert report.runs == 8
    assert report.statuses == {
        Status.COMPLETED: 3,
        Status.FAILED: 2,
        Status.STOPPED: 2,
        Status.PENDING: 1,
    }
    assert report.notes[Note.ACKNOWLEDGED] == 8
    assert (report.claims, report.orphans, report.late, report.torn) == (6, 0, 0, 0)


def test_a_crash_leaves_one_orphan_that_is_forgiven(
    queue: Queue, ledger: Ledger, clock: MovableClock
) -> None:
    """Once it is resolved: given back and executed by another, or failed."""
    for point in ("claimed", "starting", "started", "reporting", "reported"):
        ledger.acknowledged(queue.enqueue("x"))
        with crashing(queue, at=point) as doomed:
            execute(doomed, ledger, point)
        clock.advance(LEASE)
        queue.sweep()
    clock.advance(1)
    execute(queue, ledger, "last")
    report = check(queue, ledger)
    assert report.statuses == {Status.COMPLETED: 3, Status.FAILED: 2}
    assert report.orphans == 5


def test_a_refused_report_and_its_late_result_are_no_fault(
    queue: Queue, ledger: Ledger, clock: MovableClock
) -> None:
    """The run was lost and has ended; what its owner says then is history."""
    ledger.acknowledged(queue.enqueue("x"))
    with queue.runner("worker") as runner:
        (claim,) = runner.claim_many(1)
        ledger.claimed(claim)
        claim.start()
        ledger.started(claim)
        clock.advance(LEASE)
        queue.sweep()
        with pytest.raises(StaleClaim):
            claim.complete("too late")
        ledger.refused(claim)
    report = check(queue, ledger)
    assert (report.late, report.orphans, report.statuses) == (1, 0, {Status.FAILED: 1})


def test_a_lost_run_is_named(queue: Queue, ledger: Ledger, done: str) -> None:
    """It was acknowledged, and is not there."""
    execute_sql(queue, "DELETE FROM runs")
    assert broken(queue, ledger) == [Promise.ACKNOWLEDGED]


def test_a_claim_that_two_were_given_is_named(queue: Queue, ledger: Ledger) -> None:
    """Whoever they are."""
    ledger.acknowledged(queue.enqueue("x"))
    with queue.runner("worker") as runner:
        (claim,) = runner.claim_many(1)
        ledger.claimed(claim)
        ledger.claimed(claim)
        claim.start()
        claim.complete()
        ledger.reported(claim, Status.COMPLETED)
    assert broken(queue, ledger) == [Promise.CLAIMED_ONCE]


def test_a_run_that_is_executed_again_is_named(
    queue: Queue, ledger: Ledger, done: str, clock: MovableClock
) -> None:
    """Even though each execution by itself is as it should be."""
    execute_sql(queue, "UPDATE runs SET status = 'pending', runner_id = NULL, claimed_at = NULL")
    clock.advance(1)
    execute(queue, ledger)
    assert Promise.EXECUTED_ONCE in broken(queue, ledger)


@pytest.mark.parametrize("actor", ["daemon", "runner"])
def test_a_run_that_ends_twice_is_named(
    queue: Queue, ledger: Ledger, done: str, actor: str
) -> None:
    """As two daemons without a guard would end it."""
    columns = "INSERT INTO run_events (run_id, at, status, actor, detail) "
    execute_sql(queue, columns + "VALUES (?, ?, 'completed', ?, 'x')", done, queue.now(), actor)
    assert broken(queue, ledger) == sorted([Promise.ENDED_ONCE, Promise.LEGAL])


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE run_events SET actor = 'daemon' WHERE status = 'completed'",
        "DELETE FROM run_events WHERE status = 'claimed'",
        "UPDATE run_events SET status = 'stopping' WHERE status = 'claimed'",
        "UPDATE runs SET status = 'failed'",
    ],
    ids=["another's move", "no claim", "no such move", "a hand on the row"],
)
def test_an_illegal_history_is_named(queue: Queue, ledger: Ledger, sql: str) -> None:
    """By the moves as the product itself has them; without a note of anybody's."""
    queue.enqueue("x")
    execute(queue, Ledger("/dev/null"))
    rewrite(queue, sql)
    assert Promise.LEGAL in broken(queue, ledger)


@pytest.mark.parametrize("status", ["claimed", "running"])
def test_an_answer_that_the_database_forgot_is_named(
    queue: Queue, ledger: Ledger, done: str, status: str
) -> None:
    """The runner was told so, and the history of its claim does not tell it."""
    execute_sql(queue, "DELETE FROM run_events WHERE status = ?", status)
    assert Promise.KEPT in broken(queue, ledger)


def test_a_run_that_became_something_else_than_reported_is_named(
    queue: Queue, ledger: Ledger
) -> None:
    """`complete` has returned, and the run has failed."""
    queue.enqueue("x")
    with queue.runner() as runner:
        (claim,) = runner.claim_many(1)
        claim.start()
        claim.fail("y")
        ledger.reported(claim, Status.COMPLETED)
    assert broken(queue, ledger) == [Promise.KEPT]


def test_a_greedy_claim_is_named(queue: Queue, ledger: Ledger, clock: MovableClock) -> None:
    """It takes more than it returns, and nobody works on the rest."""
    queue.enqueue_many([{"prompt": "x"}] * 3)
    with crashing(queue) as doomed, doomed.runner("worker") as runner:
        ledger.opened(runner)
        ledger.claimed(runner.claim_many(3)[0])
        doomed.crash()
    clock.advance(LEASE)
    queue.sweep()
    assert broken(queue, ledger) == [Promise.ORPHANS]
    assert check(queue, ledger, slots=3).orphans == 3


def test_two_active_runs_of_one_session_are_named(
    queue: Queue, ledger: Ledger, clock: MovableClock
) -> None:
    """Though each of them has a faultless history."""
    first = queue.enqueue("x")
    clock.advance(1)
    queue.enqueue("y", session_id=first.session_id)
    execute(queue, Ledger("/dev/null"))
    check(queue, ledger)
    later = "UPDATE run_events SET event_id = event_id + 100 WHERE run_id = ? AND status = ?"
    rewrite(queue, later, first.run_id, "completed")
    assert broken(queue, ledger) == [Promise.SESSION]


@pytest.mark.parametrize("move", ["claim", "start", "stop"])
def test_a_run_that_is_left_active_is_named(queue: Queue, ledger: Ledger, move: str) -> None:
    """Somebody still has it, or nobody knows."""
    verbs: dict[str, Callable[[Claim], object]] = {
        "claim": lambda claim: None,
        "start": lambda claim: claim.start(),
        "stop": lambda claim: queue.stop(claim.run.run_id),
    }
    queue.enqueue("x")
    with queue.runner() as runner:
        verbs[move](runner.claim_many(1)[0])
        assert broken(queue, ledger) == [Promise.RESOLVED]
