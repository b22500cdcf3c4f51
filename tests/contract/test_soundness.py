"""A check of the database finds what the follow-ups of ends would never have left."""

from __future__ import annotations

from typing import Any

import pytest

from runqueue import Claim, Queue, Run, Runner, reading, soundness
from tests.helpers import MovableClock, execute_sql, start


@pytest.fixture(autouse=True)
def pages_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few rows are several pages."""
    monkeypatch.setattr(soundness, "PAGE", 2)


@pytest.fixture
def parent(queue: Queue, runner: Runner, clock: MovableClock) -> Claim:
    """A run of the parent's session, at work."""
    queue.enqueue("orchestrate")
    claim = start(runner)
    clock.advance(1)
    return claim


def end_child(queue: Queue, runner: Runner, parent: Claim, **keywords: Any) -> Run:
    """A child whose end a waiting callback tells of."""
    run = queue.enqueue(
        "child",
        parent_session_id=parent.run.session_id,
        execution_mode="async_callback",
        **keywords,
    )
    start(runner).complete("done")
    return queue.get(run.run_id)


def only_problem(queue: Queue) -> str:
    (problem,) = reading.problems(queue.store)
    assert "\n" not in problem
    return problem


def test_a_family_at_work_is_sound(
    queue: Queue, runner: Runner, parent: Claim, clock: MovableClock
) -> None:
    """Children of which a callback tells, that wait for an attempt, or were deleted meanwhile;
    and an end by hand, which the next tick tells of."""
    ended = [end_child(queue, runner, parent) for _ in range(5)]
    assert len({run.callback_run_id for run in ended}) == 1
    queue.delete_session(ended[0].session_id)
    queue.enqueue(
        "x",
        parent_session_id=parent.run.session_id,
        execution_mode="async_callback",
        retries=1,
        retry_delay=60,
    )
    start(runner).fail("busy", retry=True)
    by_hand = queue.enqueue(
        "x", parent_session_id=parent.run.session_id, execution_mode="async_callback"
    )
    execute_sql(
        queue,
        "UPDATE runs SET status = 'failed', completed_at = ? WHERE run_id = ?",
        *(clock().isoformat().replace("+00:00", "Z"), by_hand.run_id),
    )
    assert reading.problems(queue.store) == []
    queue.sweep()
    assert reading.problems(queue.store) == []


def test_a_child_whose_parent_was_told_by_no_callback_is_found(
    queue: Queue, runner: Runner, parent: Claim
) -> None:
    """No tick would tell of it; with the mark taken away as the sentence says, one does."""
    child = end_child(queue, runner, parent)
    execute_sql(queue, "DELETE FROM runs WHERE run_id = ?", child.callback_run_id)
    set_mark(queue, child, parent.run.run_id)
    problem = only_problem(queue)
    assert child.run_id in problem
    assert parent.run.run_id in problem
    assert "set callback_run_id to null" in problem
    set_mark(queue, child, None)
    assert queue.sweep().told == 1
    assert reading.problems(queue.store) == []


def set_mark(queue: Queue, child: Run, by: str | None) -> None:
    execute_sql(queue, "UPDATE runs SET callback_run_id = ? WHERE run_id = ?", by, child.run_id)


def test_a_callback_of_another_session_is_found(
    queue: Queue, runner: Runner, parent: Claim
) -> None:
    """It told somebody, but not this child's parent."""
    child = end_child(queue, runner, parent)
    other = queue.enqueue("x")
    sql = "UPDATE runs SET parent_session_id = ? WHERE run_id = ?"
    execute_sql(queue, sql, other.session_id, child.run_id)
    assert f"the parent of run {child.run_id} was not told" in only_problem(queue)


def test_a_run_that_has_a_mark_before_its_end_is_found(
    queue: Queue, runner: Runner, parent: Claim
) -> None:
    """Somebody has set it back by hand: its parent would not hear of the next end."""
    child = end_child(queue, runner, parent)
    sql = "UPDATE runs SET status = 'pending', completed_at = NULL WHERE run_id = ?"
    execute_sql(queue, sql, child.run_id)
    assert f"run {child.run_id} is pending, and its next end" in only_problem(queue)


@pytest.mark.parametrize("mark", ["none", None])
def test_a_waiting_callback_whose_child_has_another_mark_is_found(
    queue: Queue, runner: Runner, parent: Claim, mark: str | None
) -> None:
    """A tick would tell of the same end again, or the end is marked as one that nobody hears of."""
    children = [end_child(queue, runner, parent) for _ in range(5)]
    callback_id = children[0].callback_run_id
    set_mark(queue, children[3], mark)
    problem = only_problem(queue)
    assert f"run {callback_id} tells of the end of run {children[3].run_id}" in problem
    assert f"names {mark or 'nobody'}; set it to {callback_id}" in problem
    set_mark(queue, children[3], callback_id)
    assert reading.problems(queue.store) == []


def test_a_child_that_its_waiting_callback_does_not_tell_of_is_found(
    queue: Queue, runner: Runner, parent: Claim
) -> None:
    """It would never be told; with the mark taken away the next tick adds it."""
    children = [end_child(queue, runner, parent) for _ in range(4)]
    left_out = queue.enqueue("x", parent_session_id=parent.run.session_id, execution_mode="sync")
    start(runner).complete("y")
    execute_sql(
        queue,
        "UPDATE runs SET execution_mode = 'async_callback', callback_run_id = ? WHERE run_id = ?",
        *(children[0].callback_run_id, left_out.run_id),
    )
    assert f"does not tell of the end of run {left_out.run_id}" in only_problem(queue)
    set_mark(queue, left_out, None)
    assert queue.sweep().told == 1
    assert reading.problems(queue.store) == []


def fail_to_be_retried(queue: Queue, runner: Runner) -> Run:
    run = queue.enqueue("x", retries=2, retry_delay=60)
    start(runner).fail("busy", retry=True)
    assert reading.problems(queue.store) == []
    return run


def test_an_attempt_that_is_due_though_its_run_has_not_ended_is_found(
    queue: Queue, runner: Runner
) -> None:
    """It was set back by hand."""
    run = fail_to_be_retried(queue, runner)
    sql = "UPDATE runs SET status = 'pending', completed_at = NULL WHERE run_id = ?"
    execute_sql(queue, sql, run.run_id)
    assert f"run {run.run_id} waits for another attempt though it is pending" in only_problem(queue)


def test_an_attempt_that_is_due_though_the_next_is_there_is_found(
    queue: Queue, runner: Runner
) -> None:
    """No tick would ever be done with it."""
    run = fail_to_be_retried(queue, runner)
    sql = "UPDATE run_attempts SET next_run_id = 'run_next' WHERE run_id = ?"
    execute_sql(queue, sql, run.run_id)
    assert f"run {run.run_id} waits for another attempt though its next" in only_problem(queue)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("by", ["sessions", "runs"])
def test_each_circle_of_parents_is_found_once(queue: Queue, size: int, by: str) -> None:
    """Whoever is below it, or has parents without one, is no problem of its own."""
    ids = [queue.enqueue("x").session_id for _ in range(size)]
    other = queue.enqueue("x", parent_session_id=queue.enqueue("x").session_id)
    for below in (ids[0], other.session_id):
        queue.enqueue("x", parent_session_id=queue.enqueue("x", parent_session_id=below).session_id)
    assert reading.problems(queue.store) == []
    for child, above in zip(ids, [*ids[1:], ids[0]], strict=True):
        sql = f"UPDATE {by} SET parent_session_id = ? WHERE session_id = ?"
        execute_sql(queue, sql, above, child)
    problem = only_problem(queue)
    assert f"the parents of session {min(ids)} are in a circle of {size}" in problem
