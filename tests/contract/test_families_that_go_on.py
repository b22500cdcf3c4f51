"""What is still to follow an end is not lost: by a prune, a stop, or two who meet."""

from __future__ import annotations

from typing import Any

import pytest

from runqueue import Queue, Run, Runner, attempts, statements_family
from tests.helpers import MovableClock, count, execute_sql, in_background, start

HOUR = 3600.0


@pytest.fixture
def parent(queue: Queue, runner: Runner, clock: MovableClock) -> Run:
    """The run of a parent's session, which has ended."""
    run = queue.enqueue("orchestrate")
    start(runner).complete("fanned out")
    clock.advance(1)
    return run


def add_child(queue: Queue, parent: Run, **keywords: Any) -> Run:
    return queue.enqueue(
        "child",
        parent_session_id=parent.session_id,
        execution_mode="async_callback",
        **keywords,
    )


def callbacks_of(queue: Queue, parent: Run) -> list[Run]:
    return [run for run in queue.find(session_id=parent.session_id) if run.tells is not None]


def fail_to_be_retried(queue: Queue, runner: Runner, parent: Run, clock: MovableClock) -> Run:
    """A child that has failed and waits an hour for its next attempt."""
    child = add_child(queue, parent, retries=1, retry_delay=HOUR)
    start(runner).fail("busy", retry=True)
    clock.advance(1)
    return child


def test_a_prune_keeps_the_session_whose_children_are_at_work(
    queue: Queue, runner: Runner, parent: Run, clock: MovableClock
) -> None:
    """The parent is idle while they work; it goes with the last that it could be told of."""
    add_child(queue, parent)
    claim = start(runner)
    clock.advance(HOUR)
    assert queue.prune(HOUR / 2) == 1
    claim.complete("done")
    (callback,) = callbacks_of(queue, parent)
    assert callback.run_id == queue.get(claim.run.run_id).callback_run_id
    start(runner).complete("read")
    clock.advance(HOUR)
    assert queue.prune(HOUR / 2) == 2
    assert count(queue, "sessions") == 0


def test_a_prune_keeps_the_session_whose_child_waits_for_its_next_attempt(
    queue: Queue, runner: Runner, parent: Run, clock: MovableClock
) -> None:
    """It is to hear of the last one."""
    fail_to_be_retried(queue, runner, parent, clock)
    queue.prune(0)
    clock.advance(HOUR)
    queue.sweep()
    start(runner).complete("done")
    assert len(callbacks_of(queue, parent)) == 1


def test_a_prune_keeps_a_run_that_waits_for_its_next_attempt(
    queue: Queue, runner: Runner, parent: Run, clock: MovableClock
) -> None:
    """However old its end is."""
    child = fail_to_be_retried(queue, runner, parent, clock)
    queue.prune(0)
    clock.advance(HOUR)
    queue.sweep()
    assert [run.attempt for run in queue.attempts(child.run_id)] == [1, 2]


def test_a_prune_keeps_a_run_whose_parent_was_not_told(
    queue: Queue, parent: Run, clock: MovableClock
) -> None:
    """Somebody has written its end by hand, and no tick has seen it yet."""
    child = add_child(queue, parent)
    execute_sql(
        queue,
        "UPDATE runs SET status = 'failed', completed_at = created_at WHERE run_id = ?",
        child.run_id,
    )
    clock.advance(1)
    queue.prune(0)
    queue.sweep()
    assert len(callbacks_of(queue, parent)) == 1


def test_a_stop_of_a_part_of_a_tree_tells_the_parent_outside_of_an_end_that_was_to_be_retried(
    queue: Queue, runner: Runner, parent: Run, clock: MovableClock
) -> None:
    """It would have heard of the last attempt, and there will be none."""
    child = fail_to_be_retried(queue, runner, parent, clock)
    stopped = queue.stop_tree(child.session_id, below=True)
    assert [run.run_id for run in stopped] == [child.run_id]
    assert len(callbacks_of(queue, parent)) == 1
    clock.advance(HOUR)
    queue.sweep()
    assert len(queue.attempts(child.run_id)) == 1
    assert len(callbacks_of(queue, parent)) == 1


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("verb", ["stop", "stop_tree"])
def test_an_attempt_that_was_given_up_while_a_sweep_was_about_to_make_it_is_not_made(
    queue: Queue,
    runner: Runner,
    parent: Run,
    clock: MovableClock,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    """Where many write at once, what was read before the lock is asked again."""
    child = fail_to_be_retried(queue, runner, parent, clock)
    clock.advance(HOUR)
    real = attempts.was_stopped

    def stopped_meanwhile(store: Any, run: Run) -> bool:
        answer = real(store, run)
        monkeypatch.undo()
        with in_background(lambda: getattr(queue, verb)(child.run_id), queue) as stopping:
            stopping.result()
        return answer

    monkeypatch.setattr(attempts, "was_stopped", stopped_meanwhile)
    queue.sweep()
    assert len(queue.attempts(child.run_id)) == 1
    assert len(callbacks_of(queue, parent)) == (1 if verb == "stop" else 0)


def test_what_was_set_back_by_hand_does_not_keep_the_others_from_their_attempts(
    queue: Queue, runner: Runner, parent: Run, clock: MovableClock
) -> None:
    """A sweep looks at some at a time, those first that were due first."""
    child = fail_to_be_retried(queue, runner, parent, clock)
    execute_sql(queue, "UPDATE runs SET status = 'pending' WHERE run_id = ?", child.run_id)
    clock.advance(HOUR)
    queue.sweep()
    now = {"now": queue.now(), "limit": 9}
    assert queue.store.run(statements_family.DUE_ATTEMPTS, **now) == []


def test_a_run_that_was_set_back_while_an_attempt_was_waited_for_tells_its_parent(
    queue: Queue, runner: Runner, parent: Run, clock: MovableClock
) -> None:
    """The attempt is taken back, and with it that nobody was to hear of the run itself."""
    child = fail_to_be_retried(queue, runner, parent, clock)
    sql = "UPDATE runs SET status = 'pending', completed_at = NULL WHERE run_id = ?"
    execute_sql(queue, sql, child.run_id)
    clock.advance(HOUR)
    queue.sweep()
    start(runner).complete("done after all")
    queue.sweep()
    assert len(callbacks_of(queue, parent)) == 1
    assert len(queue.attempts(child.run_id)) == 1


@pytest.mark.parametrize("by", ["its owner", "hand"])
def test_no_attempt_follows_a_run_that_has_completed_after_all(
    queue: Queue, runner: Runner, parent: Run, clock: MovableClock, by: str
) -> None:
    """It was waited for when somebody set the run back, or ended it, by hand."""
    child = fail_to_be_retried(queue, runner, parent, clock)
    if by == "hand":
        sql = "UPDATE runs SET status = 'completed', result = 'done' WHERE run_id = ?"
        execute_sql(queue, sql, child.run_id)
    else:
        sql = "UPDATE runs SET status = 'pending', completed_at = NULL WHERE run_id = ?"
        execute_sql(queue, sql, child.run_id)
        start(runner).complete("done")
    clock.advance(HOUR)
    queue.sweep()
    assert len(queue.attempts(child.run_id)) == 1
    assert len(callbacks_of(queue, parent)) == 1
