"""`for claim in runner: with claim as run: ...`: every way a run can end in the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from runqueue import Queue, Runner, RunNotFound, StaleClaim, Status, StorageBusy, StorageDamaged
from runqueue.database import Store
from runqueue.states import Wake
from runqueue.wake import Watch
from tests.helpers import (
    LONG,
    events_of,
    execute_sql,
    in_background,
    row_of,
    status_of,
    take,
    wait_until,
)


def test_the_loop_executes_every_run_and_ends_after_drain(queue: Queue, runner: Runner) -> None:
    """Each run is started, completed on leaving the block, and the loop ends by drain."""
    runs = queue.enqueue_many({"prompt": str(number)} for number in range(3))
    seen = []
    for claim in runner:
        with claim as run:
            assert status_of(queue, run) == Status.RUNNING
            seen.append(run.run_id)
        if len(seen) == 3:
            runner.drain()
    assert sorted(seen) == sorted(run.run_id for run in runs)
    for run in runs:
        assert events_of(queue, run) == ["pending", "claimed", "running", "completed"]


def test_a_drain_ends_a_loop_that_waits(
    queue: Queue, runner: Runner, parked: threading.Event
) -> None:
    """The loop of an idle runner ends at once when it is drained from another thread."""
    with in_background(lambda: list(runner), queue) as looped:
        assert parked.wait(LONG)
        runner.drain()
        assert looped.result(LONG) == []


def test_a_drain_in_the_instant_before_the_wait_ends_it(
    queue: Queue, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rings for nobody then: who begins to wait must look once more."""
    monkeypatch.setattr("runqueue.runner.LOOK_AGAIN", 1.5 * LONG)

    def watch(store: Store, kinds: tuple[Wake, ...]) -> Watch:
        runner.drain()
        return Watch(store, kinds)

    with Watch(queue.store) as already:
        already.wait(LONG)  # a doorbell rings once when it begins to hear, and now does
        monkeypatch.setattr("runqueue.runner.Watch", watch)
        with in_background(lambda: runner.claim(timeout=1.5 * LONG), queue) as claimed:
            assert claimed.result(LONG) is None


def test_a_drain_by_an_operator_ends_the_loop(
    connect: Callable[..., Queue], open_runner: Callable[..., Runner]
) -> None:
    """A runner that is marked as draining in the database learns of it by its next beat."""
    queue = connect(lease=0.06)
    runner = open_runner(on=queue)
    execute_sql(queue, "UPDATE runners SET state = 'draining'")
    wait_until(lambda: runner.is_draining)
    queue.enqueue("x")
    assert list(runner) == []


def test_a_drain_leaves_the_run_in_hand_to_its_end(queue: Queue, runner: Runner) -> None:
    """Draining claims nothing more, and takes nothing away."""
    first = queue.enqueue("x", priority=1)
    second = queue.enqueue("y")
    for claim in runner:
        with claim:
            runner.drain()
    assert status_of(queue, first) == Status.COMPLETED
    assert status_of(queue, second) == Status.PENDING


def test_an_exception_fails_the_run_and_goes_on(queue: Queue, runner: Runner) -> None:
    """The run says what happened; the exception is not swallowed."""
    run = queue.enqueue("x")
    with pytest.raises(KeyError), take(runner):
        raise KeyError("no such file")
    failed = queue.get(run.run_id)
    assert failed.status == Status.FAILED
    assert failed.error == "KeyError: 'no such file'"


def test_an_interrupt_fails_the_run(queue: Queue, runner: Runner) -> None:
    """Control-C ends the run in the database too, not only in the process."""
    run = queue.enqueue("x")
    with pytest.raises(KeyboardInterrupt), take(runner):
        raise KeyboardInterrupt
    assert queue.get(run.run_id).error == "KeyboardInterrupt"


def test_a_loop_that_catches_goes_on_with_the_next_run(queue: Queue, runner: Runner) -> None:
    """One failed run does not harm the runner."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    statuses = []
    for claim in runner:
        try:
            with claim as run:
                if not statuses:
                    raise ValueError("the first one")
        except ValueError:
            pass
        statuses.append(status_of(queue, run))
        if len(statuses) == 2:
            runner.drain()
    assert statuses == [Status.FAILED, Status.COMPLETED]


def test_leaving_the_block_after_a_stop_confirms_it(queue: Queue, runner: Runner) -> None:
    """A body that ends because of a stop has stopped: nothing is completed, nothing presumed."""
    run = queue.enqueue("x")
    claim = take(runner)
    with claim:
        queue.stop(run.run_id)
        assert claim.stop_requested
    stopped = queue.get(run.run_id)
    assert stopped.status == Status.STOPPED
    assert stopped.error is None


def test_an_exception_after_a_stop_confirms_it(queue: Queue, runner: Runner) -> None:
    """An agent that is killed often raises; it was stopped all the same."""
    run = queue.enqueue("x")
    with pytest.raises(OSError, match="killed"), take(runner):  # noqa: PT012
        queue.stop(run.run_id)
        raise OSError("killed")
    assert status_of(queue, run) == Status.STOPPED


def test_what_the_body_reported_stays(queue: Queue, runner: Runner) -> None:
    """A result, an error or nothing of the body's own is not overwritten on leaving."""
    queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    first, second = runner.claim_many(2)
    with first:
        first.complete("my result")
    with second:
        second.fail("my error")
    assert queue.get(first.run.run_id).result == "my result"
    assert queue.get(second.run.run_id).error == "my error"


@pytest.mark.parametrize("is_raising", [False, True], ids=["returns", "raises"])
def test_a_run_lost_in_the_block_raises_stale_claim(
    queue: Queue, runner: Runner, is_raising: bool
) -> None:
    """Whoever lost the run is told so, also when the body failed; the run is not touched."""
    run = queue.enqueue("x")
    with pytest.raises(StaleClaim), take(runner):  # noqa: PT012
        execute_sql(queue, "UPDATE runs SET status = 'failed', error = 'by hand'")
        before = row_of(queue, run)
        if is_raising:
            raise ValueError("of the body")
    assert row_of(queue, run) == before


def test_a_run_deleted_in_the_block_raises_not_found(queue: Queue, runner: Runner) -> None:
    """Whose session was deleted meanwhile, the end of the block says so."""
    run = queue.enqueue("x")
    with pytest.raises(RunNotFound), take(runner):
        queue.delete_session(run.session_id, force=True)


def test_the_loop_survives_a_database_that_is_away(
    queue: Queue, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage error that may pass is waited out."""
    run = queue.enqueue("x")
    real, calls = runner._take, []

    def take_at_the_second_try(limit: int) -> object:
        calls.append(limit)
        if len(calls) == 1:
            raise StorageBusy("another process is writing to the database")
        return real(limit)

    monkeypatch.setattr("runqueue.backoff.BACK_OFF", (0.001, 0.002))
    monkeypatch.setattr(runner, "_take", take_at_the_second_try)
    for claim in runner:
        with claim as seen:
            runner.drain()
    assert seen.run_id == run.run_id
    assert len(calls) == 2


def test_the_loop_ends_when_waiting_cannot_help(
    queue: Queue, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged database is not asked again and again."""

    def damaged(limit: int) -> object:
        raise StorageDamaged("the database file is damaged")

    monkeypatch.setattr(runner, "_take", damaged)
    with pytest.raises(StorageDamaged):
        next(iter(runner))
