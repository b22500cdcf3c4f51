"""A commit whose answer never came: what was done is found again, and done only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peewee
import pytest

from runqueue import Claim, InvalidRun, Queue, Runner, Status, StorageError
from runqueue.errors import StorageLost
from tests.helpers import MovableClock, make_commits_by


@pytest.fixture
def lose_answer(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have the next commit succeed, and its answer get lost."""
    is_due = False

    def answer(commit: Callable[[], Any]) -> Any:
        nonlocal is_due
        answered = commit()
        if is_due:
            is_due = False
            raise StorageLost("the answer was lost")
        return answered

    def arm() -> None:
        nonlocal is_due
        is_due = True

    make_commits_by(answer, queue, monkeypatch)
    return arm


@pytest.fixture
def forgotten(queue: Queue, runner: Runner, lose_answer: Callable[[], None]) -> str:
    """The id of a run that the runner has claimed without knowing it."""
    run_id = queue.enqueue("x").run_id
    lose_answer()
    with pytest.raises(StorageError):
        runner.claim(timeout=0)
    assert queue.get(run_id).status == Status.CLAIMED
    return run_id


def test_a_claim_whose_answer_was_lost_is_found_again(
    queue: Queue, runner: Runner, forgotten: str
) -> None:
    """The runner's next claim is that run, before any other, and it is executed as usual."""
    other = queue.enqueue("y", priority=9)
    first, second = runner.claim(timeout=0), runner.claim(timeout=0)
    assert first is not None
    assert second is not None
    assert [first.run.run_id, second.run.run_id] == [forgotten, other.run_id]
    first.start()
    first.complete("done")
    assert queue.get(forgotten).result == "done"
    statuses = [event.status for event in queue.timeline(forgotten)]
    assert statuses == ["pending", "claimed", "running", "completed"]


def test_what_is_held_is_not_found_again(
    queue: Queue, runner: Runner, lose_answer: Callable[[], None]
) -> None:
    """A storage error hands out no run twice: only what the runner does not know of."""
    queue.enqueue("x")
    held = runner.claim(timeout=0)
    assert held is not None
    lost = queue.enqueue("y")
    lose_answer()
    with pytest.raises(StorageError):
        runner.claim(timeout=0)
    assert [claim.run.run_id for claim in runner.claim_many(9)] == [lost.run_id]
    assert runner.claim_many(9) == []


def test_more_lost_claims_than_are_asked_for_are_all_found(
    queue: Queue, runner: Runner, lose_answer: Callable[[], None]
) -> None:
    """Whatever the limit of the next claims is, none is forgotten."""
    lost = {run.run_id for run in queue.enqueue_many([{"prompt": "x"}] * 3)}
    lose_answer()
    with pytest.raises(StorageError):
        runner.claim_many(3)
    found = [runner.claim(timeout=0) for _ in range(3)]
    assert {claim.run.run_id for claim in found if claim} == lost


def test_a_stop_of_a_lost_claim_is_confirmed(queue: Queue, runner: Runner, forgotten: str) -> None:
    """It is found as one that must not be started."""
    queue.stop(forgotten)
    claim = runner.claim(timeout=0)
    assert claim is not None
    assert claim.stop_requested
    claim.confirm_stop()
    assert queue.get(forgotten).status == Status.STOPPED


def test_a_runner_that_was_replaced_finds_nothing(
    queue: Queue, runner: Runner, forgotten: str, clock: MovableClock
) -> None:
    """What is claimed by its id may be the successor's by then."""
    queue.store.database.execute_sql("UPDATE runners SET incarnation = 'another'")
    assert runner.claim(timeout=0) is None
    assert queue.get(forgotten).status == Status.CLAIMED
    queue.store.database.execute_sql("DELETE FROM runners")


def test_a_runner_that_ends_gives_a_lost_claim_back(
    queue: Queue, runner: Runner, forgotten: str
) -> None:
    """It was never started, so it is pending again."""
    runner.close()
    assert queue.get(forgotten).status == Status.PENDING


def test_a_lost_claim_of_a_silent_runner_is_released(
    queue: Queue, runner: Runner, forgotten: str, clock: MovableClock
) -> None:
    """By the daemon, once the start deadline is over, although the runner lives."""
    clock.advance(29)
    assert runner._beat()
    clock.advance(29)
    assert runner._beat()
    assert not queue.sweep()
    clock.advance(2)
    assert queue.sweep().released == 1
    assert queue.get(forgotten).status == Status.PENDING


@pytest.mark.parametrize("verb", ["start", "complete", "fail", "confirm", "release"])
def test_a_report_whose_answer_was_lost_is_repeated(
    queue: Queue, runner: Runner, lose_answer: Callable[[], None], verb: str
) -> None:
    """The owner's second report of the same succeeds, and the history tells of one."""
    run_id = queue.enqueue("x").run_id
    claim = runner.claim(timeout=0)
    assert claim is not None
    if verb in ("complete", "fail", "confirm"):
        claim.start()
    if verb == "confirm":
        queue.stop(run_id)
    report: Callable[[Claim], None] = {
        "start": Claim.start,
        "complete": lambda claim: claim.complete("r"),
        "fail": lambda claim: claim.fail("e"),
        "confirm": Claim.confirm_stop,
        "release": Claim.release,
    }[verb]
    lose_answer()
    with pytest.raises(StorageError):
        report(claim)
    events = queue.timeline(run_id)
    if verb == "release":
        # Given back, it is anybody's: nobody can tell that it was this owner's doing.
        assert queue.get(run_id).status == Status.PENDING
        return
    report(claim)
    assert queue.timeline(run_id) == events


def test_an_enqueue_whose_answer_was_lost_is_repeated(
    queue: Queue, lose_answer: Callable[[], None]
) -> None:
    """With the same id it is the same run."""
    lose_answer()
    with pytest.raises(StorageError):
        queue.enqueue("x", run_id="run_0123456789ab")
    assert queue.enqueue("x", run_id="run_0123456789ab").status == Status.PENDING
    assert len(queue.find()) == 1


def test_a_registration_whose_answer_was_lost_is_no_conflict(
    queue: Queue, lose_answer: Callable[[], None]
) -> None:
    """The runner meets itself, and goes on."""
    run = queue.enqueue("x")
    runner = queue.runner("worker")
    lose_answer()
    with pytest.raises(StorageError):
        runner.open()
    with runner:
        claim = runner.claim(timeout=0)
        assert claim is not None
        assert claim.run.run_id == run.run_id


def test_a_repeated_enqueue_of_a_session_that_was_bound_meanwhile_is_the_same(
    queue: Queue, runner: Runner
) -> None:
    """Another run of the session went first, and the home that it bound became a demand."""
    run = queue.enqueue("x", run_id="run_0123456789ab", demands={"executor_type": None})
    queue.enqueue("first", session_id=run.session_id, priority=9)
    claim = runner.claim(timeout=0)
    assert claim is not None
    claim.start()
    assert queue.get(run.run_id).demands is not None
    assert queue.enqueue("x", run_id="run_0123456789ab").run_id == run.run_id
    with pytest.raises(InvalidRun):
        queue.enqueue("x", run_id="run_0123456789ab", demands={"tags": ["gpu"]})


def test_a_report_whose_commit_failed_leaves_the_claim_held(
    queue: Queue, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a transaction of the caller's that the database has undone by itself."""
    run = queue.enqueue("x")
    claim = runner.claim(timeout=0)
    assert claim is not None
    claim.start()
    database = queue.database

    undo = database.rollback

    def fail() -> None:
        undo()
        raise peewee.OperationalError("the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr(database, "commit", fail)
        patch.setattr(database, "rollback", fail)
        with pytest.raises(peewee.OperationalError), database.atomic():
            claim.complete("lost")
    queue.enqueue("y")  # another commit of this thread
    assert queue.get(run.run_id).status == Status.RUNNING
    assert not claim.is_over
    assert runner.held == [claim]
    claim.complete("kept")
    assert claim.is_over
    assert queue.get(run.run_id).result == "kept"


def test_a_report_whose_savepoint_was_rolled_back_is_made_by_the_end_of_the_block(
    queue: Queue, runner: Runner
) -> None:
    """What was undone was not reported, though the outer transaction is committed."""
    run = queue.enqueue("x")
    claim = runner.claim(timeout=0)
    assert claim is not None
    with claim, queue.database.atomic():
        with pytest.raises(ZeroDivisionError), queue.database.atomic():  # noqa: PT012
            claim.complete("undone")
            raise ZeroDivisionError
    assert claim.is_over
    assert queue.get(run.run_id).status == Status.COMPLETED
    assert queue.get(run.run_id).result is None
