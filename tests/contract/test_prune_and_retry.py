"""Letting go of what is over, and doing again what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from runqueue import (
    IllegalMove,
    Queue,
    Run,
    Runner,
    RunNotFound,
    RunType,
    SessionNotFound,
    Status,
)
from tests.helpers import (
    MICROSECOND,
    MovableClock,
    count,
    execute_sql,
    is_empty,
    row_of,
    start,
    take,
)


def failed(queue: Queue, runner: Runner, **content: object) -> Run:
    """Enqueue a run and let it fail before it was started."""
    run = queue.enqueue("x", **content)
    take(runner).fail("why")
    return queue.get(run.run_id)


def test_prune_deletes_what_ended_long_enough_ago(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A run is kept for its time and then goes, with its history and its empty session."""
    queue.enqueue("x")
    clock.advance(1000)
    start(runner).complete("r")
    clock.advance(60)
    assert queue.prune(60) == 0
    clock.advance(MICROSECOND)
    assert queue.prune(60) == 1
    assert is_empty(queue)


def test_prune_goes_by_the_end_of_a_run_not_by_its_beginning(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A run that waited for a year and ended now is kept."""
    queue.enqueue("x")
    clock.advance(365 * 86_400)
    start(runner).complete("r")
    clock.advance(1)
    assert queue.prune(86_400) == 0


@pytest.mark.parametrize("status", ["completed", "failed", "stopped"])
def test_prune_deletes_every_kind_of_end(queue: Queue, clock: MovableClock, status: str) -> None:
    """Terminal is terminal, also when somebody wrote it by hand, without a time."""
    queue.enqueue("x")
    execute_sql(queue, "UPDATE runs SET status = ?", status)
    clock.advance(10)
    assert queue.prune(5) == 1


@pytest.mark.parametrize("status", ["pending", "claimed", "running", "stopping"])
def test_prune_keeps_what_has_not_ended(queue: Queue, clock: MovableClock, status: str) -> None:
    """However old it is."""
    queue.enqueue("x")
    execute_sql(queue, "UPDATE runs SET status = ?", status)
    clock.advance(10 * 365 * 86_400)
    assert queue.prune(0) == 0
    assert count(queue, "runs") == 1


def test_prune_keeps_a_session_that_has_runs_left(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """The conversation goes on, with the home that it has."""
    old = queue.enqueue("x")
    start(runner).complete()
    clock.advance(100)
    young = queue.enqueue("y", session_id=old.session_id)
    assert queue.prune(50) == 1
    assert queue.session(old.session_id).hostname == runner.hostname
    assert [run.run_id for run in queue.find()] == [young.run_id]
    assert len(queue.timeline(young.run_id)) == 1


def test_prune_takes_any_number(queue: Queue, clock: MovableClock) -> None:
    """More than fit in one transaction go in one call."""
    queue.enqueue_many({"prompt": "x", "timeout": 0} for _ in range(450))
    clock.advance(1)
    queue.sweep()
    clock.advance(1)
    assert queue.prune(0) == 450
    assert is_empty(queue)


def test_a_pruned_parent_leaves_its_children(queue: Queue, clock: MovableClock) -> None:
    """A child's session only loses the reference."""
    parent = queue.enqueue("parent")
    queue.stop(parent.run_id)
    child = queue.enqueue("child", parent_session_id=parent.session_id)
    clock.advance(1)
    assert queue.prune(0) == 1
    with pytest.raises(SessionNotFound):
        queue.session(parent.session_id)
    assert queue.session(child.session_id).parent_session_id is None


def test_retry_adds_a_run_with_the_same_content(queue: Queue, clock: MovableClock) -> None:
    """Everything that was asked for is asked for again, from now on; the old run stays."""
    parent = queue.enqueue("parent")
    clock.advance(1)
    old = queue.enqueue(
        "Write",
        agent_name="writer",
        project_dir="/srv/app",
        parent_session_id=parent.session_id,
        execution_mode="async_poll",
        demands={"tags": ["gpu"]},
        timeout=60,
        priority=5,
    )
    clock.advance(60)
    queue.sweep()
    before = row_of(queue, old)
    new = queue.retry(old.run_id)
    assert new.run_id != old.run_id
    assert new.status == Status.PENDING
    assert new.created_at == clock.text()
    assert new.timeout_at == clock.text(60)
    same = ("session_id", "prompt", "agent_name", "project_dir", "parent_session_id")
    for name in (*same, "execution_mode", "demands", "priority"):
        assert getattr(new, name) == getattr(old, name)
    assert new.as_dict().items() <= queue.get(new.run_id).as_dict().items()
    assert row_of(queue, old) == before


def test_retry_of_a_run_that_never_started_starts_the_session(queue: Queue, runner: Runner) -> None:
    """There is nothing to resume yet."""
    assert queue.retry(failed(queue, runner).run_id).type == RunType.START_SESSION


def test_retry_of_a_run_that_was_started_resumes_the_session(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """The conversation exists, and the retry goes to where it lives."""
    run = queue.enqueue("x")
    home = open_runner("home", hostname="box", executor_type="shell")
    start(home).fail("why")
    new = queue.retry(run.run_id)
    assert new.type == RunType.RESUME_SESSION
    assert json.loads(new.demands) == {"hostname": "box", "executor_type": "shell"}
    assert open_runner("stranger", hostname="other").claim(timeout=0) is None
    assert take(home).run.run_id == new.run_id


def test_a_retry_names_the_run_that_it_retries(queue: Queue, runner: Runner) -> None:
    """The new run's history begins with the old run's id."""
    old = failed(queue, runner)
    new = queue.retry(old.run_id)
    assert old.run_id in queue.timeline(new.run_id)[0].detail


@pytest.mark.parametrize("status", ["pending", "claimed", "running", "stopping"])
def test_retry_of_a_run_that_has_not_ended_is_refused(queue: Queue, status: str) -> None:
    """What still happens is not done twice."""
    run = queue.enqueue("x")
    execute_sql(queue, "UPDATE runs SET status = ?", status)
    with pytest.raises(IllegalMove):
        queue.retry(run.run_id)
    assert count(queue, "runs") == 1


def test_retry_of_an_unknown_run_is_refused(queue: Queue) -> None:
    """There is nothing to retry."""
    with pytest.raises(RunNotFound):
        queue.retry("run_0123456789ab")
