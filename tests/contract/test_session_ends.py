"""A session's derived status, and its deletion with everything that belongs to it."""

from __future__ import annotations

import pytest

from runqueue import IllegalMove, Queue, Runner, RunNotFound, SessionNotFound
from tests.helpers import MovableClock, count, execute_sql, is_empty, start, take


def test_a_sessions_status_follows_its_runs(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """The active run's status, else pending, else how the latest run ended."""
    session_id = queue.enqueue("x").session_id
    assert queue.session_status(session_id) == "pending"
    claim = take(runner)
    queue.enqueue("y", session_id=session_id)
    assert queue.session_status(session_id) == "claimed"
    claim.start()
    assert queue.session_status(session_id) == "running"
    queue.stop(claim.run.run_id)
    assert queue.session_status(session_id) == "stopping"
    claim.confirm_stop()
    assert queue.session_status(session_id) == "pending"
    take(runner).fail("why")
    clock.advance(1)
    queue.enqueue("z", session_id=session_id)
    start(runner).complete()
    assert queue.session_status(session_id) == "completed"


def test_a_session_without_runs_is_empty(queue: Queue) -> None:
    """A session that somebody created for later has no run to take a status from."""
    execute_sql(
        queue,
        "INSERT INTO sessions (session_id, created_at) VALUES (?, ?)",
        "ses_0123456789ab",
        "2026-01-01T00:00:00Z",
    )
    assert queue.session_status("ses_0123456789ab") == "empty"


def test_deleting_a_session_deletes_its_runs_and_their_history(
    queue: Queue, runner: Runner
) -> None:
    """Nothing is left of a deleted session, and the number of its runs is returned."""
    run = queue.enqueue("x")
    queue.enqueue("y", session_id=run.session_id)
    start(runner).complete()
    assert queue.delete_session(run.session_id) == 2
    assert is_empty(queue)
    with pytest.raises(RunNotFound):
        queue.get(run.run_id)
    with pytest.raises(SessionNotFound):
        queue.session(run.session_id)


def test_deleting_a_session_leaves_the_others(queue: Queue) -> None:
    """Only what belongs to the session goes with it."""
    one, other = queue.enqueue("x"), queue.enqueue("y")
    queue.delete_session(one.session_id)
    assert queue.get(other.run_id).prompt == "y"
    assert len(queue.timeline(other.run_id)) == 1
    assert count(queue, "run_events") == 1


def test_a_session_with_an_active_run_is_not_deleted(queue: Queue, runner: Runner) -> None:
    """An agent that runs is stopped first, unless the caller insists."""
    run = queue.enqueue("x")
    take(runner)
    with pytest.raises(IllegalMove):
        queue.delete_session(run.session_id)
    assert count(queue, "runs") == 1
    assert queue.delete_session(run.session_id, force=True) == 1
    assert is_empty(queue)


def test_deleting_an_unknown_session_is_refused(queue: Queue) -> None:
    """A session that does not exist is SessionNotFound, also with force."""
    for force in (False, True):
        with pytest.raises(SessionNotFound):
            queue.delete_session("ses_0123456789ab", force=force)


def test_children_of_a_deleted_session_stay(queue: Queue) -> None:
    """A child loses its parent and nothing else."""
    parent = queue.enqueue("parent")
    child = queue.enqueue("child", parent_session_id=parent.session_id)
    queue.delete_session(parent.session_id)
    assert queue.session(child.session_id).parent_session_id is None
    assert queue.get(child.run_id).status == "pending"
