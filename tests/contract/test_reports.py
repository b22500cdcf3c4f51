"""The owner's reports: what each does, to whom it is refused, and how."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runqueue import (
    TERMINAL,
    Claim,
    IllegalMove,
    Queue,
    Runner,
    RunNotFound,
    StaleClaim,
    Status,
)
from tests.helpers import (
    MICROSECOND,
    OWNERS_VERBS,
    MovableClock,
    events_of,
    execute_sql,
    row_of,
    start,
    status_of,
    take,
)

# The table of the contract, written out: not MOVES, which it is to check.
ALLOWED = {
    "start": ({"claimed"}, "running"),
    "complete": ({"running", "stopping"}, "completed"),
    "fail": ({"claimed", "running", "stopping"}, "failed"),
    "confirm": ({"stopping"}, "stopped"),
    "release": ({"claimed"}, "pending"),
}
OWNED = ("claimed", "running", "stopping", "completed", "failed", "stopped")
EVERY = [(verb, status) for verb in ALLOWED for status in OWNED]


@pytest.fixture
def claim(queue: Queue, runner: Runner) -> Claim:
    """A run that was claimed and not started."""
    queue.enqueue("x")
    return take(runner)


def set_status(queue: Queue, claim: Claim, status: str) -> None:
    execute_sql(queue, "UPDATE runs SET status = ? WHERE run_id = ?", status, claim.run.run_id)


@pytest.mark.parametrize(("verb", "status"), EVERY, ids=lambda value: value)
def test_each_report_is_accepted_in_exactly_its_sources(
    queue: Queue, claim: Claim, verb: str, status: str
) -> None:
    """Every verb in every status: it moves the run from its sources, else it changes nothing."""
    set_status(queue, claim, status)
    before = row_of(queue, claim.run)
    sources, target = ALLOWED[verb]
    if status in sources:
        OWNERS_VERBS[verb](claim)
        assert status_of(queue, claim.run) == target
    elif status == target and verb in ("start", "confirm"):
        OWNERS_VERBS[verb](claim)  # as if repeated
        assert row_of(queue, claim.run) == before
    else:
        with pytest.raises(StaleClaim if status in TERMINAL else IllegalMove):
            OWNERS_VERBS[verb](claim)
        assert row_of(queue, claim.run) == before


def test_start_and_complete_stamp_their_times(
    queue: Queue, claim: Claim, clock: MovableClock
) -> None:
    """Each step has its time, and the result is kept."""
    clock.advance(1)
    claim.start()
    clock.advance(1)
    claim.complete(result="done ☃\n")
    run = queue.get(claim.run.run_id)
    assert run.status == Status.COMPLETED
    assert run.result == "done ☃\n"
    assert run.error is None
    assert [run.claimed_at, run.started_at, run.completed_at] == [
        clock.text(-2),
        clock.text(-1),
        clock.text(),
    ]


def test_complete_needs_no_result(queue: Queue, claim: Claim) -> None:
    """A run may end without anything to say."""
    claim.start()
    claim.complete()
    assert queue.get(claim.run.run_id).result is None


def test_fail_keeps_the_error(queue: Queue, claim: Claim, clock: MovableClock) -> None:
    """A failed run says why, and when."""
    clock.advance(1)
    claim.fail("the agent is not installed")
    run = queue.get(claim.run.run_id)
    assert run.error == "the agent is not installed"
    assert run.completed_at == clock.text()


def test_confirm_ends_a_stopping_run(queue: Queue, claim: Claim, clock: MovableClock) -> None:
    """A confirmed stop is stopped without an error, for nothing is presumed."""
    claim.start()
    queue.stop(claim.run.run_id)
    clock.advance(1)
    claim.confirm_stop()
    run = queue.get(claim.run.run_id)
    assert run.status == Status.STOPPED
    assert run.error is None
    assert run.completed_at == clock.text()


def test_release_clears_the_owner(queue: Queue, claim: Claim) -> None:
    """A run that was given back has neither an owner nor a time of claim."""
    claim.release()
    run = queue.get(claim.run.run_id)
    assert run.status == Status.PENDING
    assert run.runner_id is None
    assert run.claimed_at is None


@pytest.mark.parametrize("verb", ["start", "complete", "fail", "confirm"])
def test_a_repeated_report_is_accepted_and_changes_nothing(
    queue: Queue, claim: Claim, clock: MovableClock, verb: str
) -> None:
    """A report whose answer was lost may be sent again: same verb, same content."""
    if verb != "start":
        claim.start()
    if verb == "confirm":
        queue.stop(claim.run.run_id)
    OWNERS_VERBS[verb](claim)
    before, events = row_of(queue, claim.run), events_of(queue, claim.run)
    clock.advance(1)
    OWNERS_VERBS[verb](claim)
    assert row_of(queue, claim.run) == before
    assert events_of(queue, claim.run) == events


def test_another_result_for_a_completed_run_is_refused(queue: Queue, claim: Claim) -> None:
    """The first result stays: terminal is final, also for the owner."""
    claim.start()
    claim.complete("first")
    with pytest.raises(StaleClaim):
        claim.complete("second")
    assert queue.get(claim.run.run_id).result == "first"


def test_another_error_for_a_failed_run_is_refused(queue: Queue, claim: Claim) -> None:
    """The first error stays."""
    claim.fail("first")
    with pytest.raises(StaleClaim):
        claim.fail("second")
    assert queue.get(claim.run.run_id).error == "first"


@pytest.mark.parametrize("verb", OWNERS_VERBS)
def test_a_report_by_a_former_owner_changes_nothing(
    queue: Queue, claim: Claim, open_runner: Callable[..., Runner], verb: str
) -> None:
    """A run that belongs to another runner now is not touched: StaleClaim, and stop."""
    queue.release(claim.run.run_id)
    start(open_runner("successor"))
    before = row_of(queue, claim.run)
    with pytest.raises(StaleClaim):
        OWNERS_VERBS[verb](claim)
    assert row_of(queue, claim.run) == before
    assert claim.is_over
    assert claim.stop_requested


@pytest.mark.parametrize("verb", OWNERS_VERBS)
def test_an_earlier_claim_of_the_same_runner_is_stale(
    queue: Queue, claim: Claim, runner: Runner, clock: MovableClock, verb: str
) -> None:
    """The fence is runner and time of claim: the same runner's next claim is another."""
    queue.release(claim.run.run_id)
    clock.advance(MICROSECOND)
    take(runner)
    before = row_of(queue, claim.run)
    with pytest.raises(StaleClaim):
        OWNERS_VERBS[verb](claim)
    assert row_of(queue, claim.run) == before


@pytest.mark.parametrize("verb", OWNERS_VERBS)
def test_a_report_on_a_deleted_run_is_not_found(queue: Queue, claim: Claim, verb: str) -> None:
    """When the session was deleted under the run, its owner learns it by the next report."""
    queue.delete_session(claim.run.session_id, force=True)
    with pytest.raises(RunNotFound):
        OWNERS_VERBS[verb](claim)
    assert claim.is_over
    assert claim.stop_requested


def test_late_complete_does_not_revive_an_expired_run(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A zombie that reports after its run was given back and expired changes nothing."""
    queue.enqueue("x", timeout=5)
    claim = take(open_runner("zombie"))
    queue.release(claim.run.run_id)
    clock.advance(5)
    assert queue.sweep().expired == 1
    before = row_of(queue, claim.run)
    for verb in OWNERS_VERBS.values():
        with pytest.raises(StaleClaim):
            verb(claim)
    assert row_of(queue, claim.run) == before


def test_late_complete_does_not_revive_a_lost_run(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A run that failed with its runner's lease stays failed, whatever the runner says later."""
    queue.enqueue("x")
    claim = start(runner)
    clock.advance(31)
    assert queue.sweep().lost == 1
    before = row_of(queue, claim.run)
    with pytest.raises(StaleClaim):
        claim.complete("too late")
    assert row_of(queue, claim.run) == before


def test_late_complete_does_not_revive_a_settled_run(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A stop that was presumed stays presumed."""
    queue.enqueue("x")
    claim = start(runner)
    queue.stop(claim.run.run_id)
    clock.advance(12)
    assert queue.sweep().settled == 1
    before = row_of(queue, claim.run)
    for verb in (claim.confirm_stop, claim.complete, lambda: claim.fail("late")):
        with pytest.raises(StaleClaim):
            verb()
    assert row_of(queue, claim.run) == before


@pytest.mark.parametrize(
    ("report", "detail"),
    [
        (lambda claim: claim.complete("a poem"), "late result of runner worker: a poem"),
        (lambda claim: claim.complete(), "late result of runner worker"),
        (lambda claim: claim.fail("no rhyme"), "late failure of runner worker: no rhyme"),
        (lambda claim: claim.confirm_stop(), "late confirmation of runner worker"),
    ],
)
def test_a_late_report_is_kept(
    queue: Queue, runner: Runner, clock: MovableClock, report: Callable[[Claim], None], detail: str
) -> None:
    """It changes nothing, but what the agent produced stands in the history, once."""
    run = queue.enqueue("x")
    claim = start(runner)
    clock.advance(31)
    assert queue.sweep().lost == 1
    before, events = row_of(queue, claim.run), queue.timeline(run.run_id)
    clock.advance(1)
    for _ in range(2):
        with pytest.raises(StaleClaim):
            report(claim)
    assert row_of(queue, claim.run) == before
    [late] = queue.timeline(run.run_id)[len(events) :]
    assert (late.status, late.actor, late.at) == (Status.FAILED, "runner", clock.text())
    assert late.detail == detail


def test_late_results_of_a_batch_are_kept(queue: Queue, runner: Runner) -> None:
    """Those that were refused, and only those."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    first, second = claims = runner.claim_many(2)
    queue.release(first.run.run_id)
    queue.cancel(first.run.run_id)
    assert runner.finish_many([(claim, "poem") for claim in claims]) == [first]
    assert queue.timeline(first.run.run_id)[-1].detail == "late result of runner worker: poem"
    assert queue.timeline(second.run.run_id)[-1].detail is None


def test_late_starts_are_not_kept(queue: Queue, claim: Claim) -> None:
    """Nothing was produced."""
    queue.release(claim.run.run_id)
    events = queue.timeline(claim.run.run_id)
    for verb in ("start", "release"):
        with pytest.raises(StaleClaim):
            OWNERS_VERBS[verb](claim)
    assert queue.timeline(claim.run.run_id) == events


def test_a_late_report_does_not_lengthen_another_stop(
    queue: Queue, runner: Runner, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """The grace of a stop counts from the asking, whatever a former owner tells meanwhile."""
    run = queue.enqueue("x")
    former = take(runner)
    queue.release(run.run_id)
    start(open_runner("successor"))
    queue.stop(run.run_id)
    clock.advance(9)
    with pytest.raises(StaleClaim):
        former.complete("too late")
    assert queue.timeline(run.run_id)[-1].status == Status.STOPPING
    clock.advance(2)
    assert queue.sweep().settled == 1


@pytest.mark.parametrize("status", sorted(TERMINAL))
@pytest.mark.parametrize("verb", ["stop", "cancel", "release"])
def test_terminal_is_final_for_everybody(
    queue: Queue, claim: Claim, status: str, verb: str
) -> None:
    """No caller's verb changes a run that has ended."""
    set_status(queue, claim, status)
    before = row_of(queue, claim.run)
    with pytest.raises(IllegalMove):
        getattr(queue, verb)(claim.run.run_id)
    queue.sweep()
    assert row_of(queue, claim.run) == before


@pytest.mark.parametrize("status", ["pending", "running", "stopping"])
def test_only_a_claimed_run_is_released(queue: Queue, claim: Claim, status: str) -> None:
    """What runs is not given back, for it would be executed twice."""
    set_status(queue, claim, status)
    with pytest.raises(IllegalMove):
        queue.release(claim.run.run_id)
    assert status_of(queue, claim.run) == status


@pytest.mark.parametrize("verb", ["stop", "cancel", "release", "retry", "why", "timeline", "wait"])
def test_a_verb_on_an_unknown_run_is_not_found(queue: Queue, verb: str) -> None:
    """Whatever is asked about a run that does not exist is RunNotFound."""
    with pytest.raises(RunNotFound):
        getattr(queue, verb)("run_0123456789ab")


def test_what_no_database_can_store_is_replaced_in_a_report(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """An agent's odd output does not keep its run from ending."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    first, second = open_runner().claim_many(2)
    first.start()
    first.complete("a\0b\ud800c")
    second.fail("d\0e\ud800f")
    assert queue.get(first.run.run_id).status == Status.COMPLETED
    assert queue.get(first.run.run_id).result.startswith("a\ufffdb")
    assert queue.get(second.run.run_id).error.startswith("d\ufffde")


def test_a_late_result_that_was_undone_is_kept_when_it_is_reported_again(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """It was not kept, for the caller's transaction was rolled back with it."""
    run = queue.enqueue("x")
    claim = start(runner)
    clock.advance(31)
    assert queue.sweep().lost == 1
    with pytest.raises(StaleClaim), queue.database.atomic():
        claim.complete("a poem")
    assert not queue.timeline(run.run_id)[-1].is_late
    with pytest.raises(StaleClaim):
        claim.complete("a poem")
    assert queue.timeline(run.run_id)[-1].is_late
    assert claim.is_over


def test_a_late_report_hides_no_end_that_was_written_by_hand(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """The timeline tells of both, in that order."""
    run = queue.enqueue("x")
    claim = start(runner)
    execute_sql(queue, "UPDATE runs SET status = 'completed'")
    with pytest.raises(StaleClaim):
        claim.fail("too late")
    *_, by_hand, late = queue.timeline(run.run_id)
    assert (by_hand.status, by_hand.actor) == (Status.COMPLETED, "sql")
    assert late.is_late
