"""What happened to a run, and why it is where it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runqueue import Queue, Runner, RunNotFound, Status
from tests.helpers import MovableClock, execute_sql, start, take


def history(queue: Queue, run_id: str) -> list[tuple[str, str, str]]:
    return [(event.at, str(event.status), event.actor) for event in queue.timeline(run_id)]


def test_a_timeline_tells_every_move_in_order(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Each status that was entered, with its time and who did it."""
    run = queue.enqueue("x")
    clock.advance(1)
    claim = take(runner)
    clock.advance(1)
    claim.start()
    clock.advance(1)
    claim.complete("r")
    assert history(queue, run.run_id) == [
        (clock.text(-3), "pending", "caller"),
        (clock.text(-2), "claimed", "runner"),
        (clock.text(-1), "running", "runner"),
        (clock.text(), "completed", "runner"),
    ]


def test_a_timeline_names_who_moved_the_run(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Operators, the daemon and callers are told apart."""
    run = queue.enqueue("x", timeout=60)
    take(runner)
    queue.release(run.run_id, reason="wrong host")
    clock.advance(60)
    queue.sweep()
    assert [event.actor for event in queue.timeline(run.run_id)] == [
        "caller",
        "runner",
        "operator",
        "daemon",
    ]
    assert queue.timeline(run.run_id)[2].detail == "wrong host"


def test_a_refused_move_is_not_recorded(queue: Queue, runner: Runner) -> None:
    """The timeline holds what happened, not what was tried."""
    queue.enqueue("x")
    claim = start(runner)
    claim.complete("r")
    before = history(queue, claim.run.run_id)
    for verb in (queue.stop, queue.cancel, queue.release):
        with pytest.raises(Exception, match=claim.run.run_id):
            verb(claim.run.run_id)
    assert history(queue, claim.run.run_id) == before


def test_a_status_written_by_hand_is_in_the_timeline(queue: Queue, clock: MovableClock) -> None:
    """What only the row knows is shown as done by SQL."""
    run = queue.enqueue("x")
    execute_sql(
        queue,
        "UPDATE runs SET status = 'failed', completed_at = ? WHERE run_id = ?",
        *(clock.text(9), run.run_id),
    )
    assert history(queue, run.run_id)[-1] == (clock.text(9), "failed", "sql")


def test_a_run_inserted_by_hand_has_a_timeline(queue: Queue, clock: MovableClock) -> None:
    """A run without any recorded event was pending from its creation on."""
    run = queue.enqueue("x")
    execute_sql(queue, "DELETE FROM run_events")
    assert history(queue, run.run_id) == [(clock.text(), "pending", "sql")]


def why(queue: Queue, run_id: str) -> str:
    explanation = queue.why(run_id)
    assert explanation.run_id == run_id
    assert explanation.status == queue.get(run_id).status
    return "\n".join((explanation.summary, *explanation.details))


def test_why_says_that_no_runner_is_alive(queue: Queue) -> None:
    """Without runners nothing runs."""
    assert "no runner is alive" in why(queue, queue.enqueue("x").run_id)


def test_why_says_that_the_only_runner_is_dead(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A runner whose lease is over does not count."""
    run = queue.enqueue("x")
    clock.advance(30)
    assert "no runner is alive" in why(queue, run.run_id)


def test_why_names_the_demand_that_is_not_met(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """What is asked for, and what each runner has instead."""
    open_runner("small", tags=["cpu"], properties={"memory": 16})
    run = queue.enqueue("x", demands={"tags": ["gpu"], "memory": 64})
    text = why(queue, run.run_id)
    assert 'tags ["gpu"]' in text
    assert "memory 64 (has 16)" in text
    assert "small" in text


def test_why_names_the_closest_runner(queue: Queue, open_runner: Callable[..., Runner]) -> None:
    """When each demand is met by somebody, but not all by one, the closest one is named."""
    open_runner("far", tags=["a"])
    open_runner("near", tags=["b"], properties={"memory": 64})
    run = queue.enqueue("x", demands={"tags": ["a"], "memory": 64, "hostname": None})
    text = queue.why(run.run_id).summary
    assert "no live runner meets all demands" in text
    assert "closest" in text


def test_why_says_that_a_runner_will_come(queue: Queue, runner: Runner) -> None:
    """A run that can be served waits for a runner to be free."""
    assert "waiting" in why(queue, queue.enqueue("x").run_id)


def test_why_says_that_the_runners_drain(queue: Queue, open_runner: Callable[..., Runner]) -> None:
    """A runner that claims nothing more will not serve it."""
    open_runner()
    execute_sql(queue, "UPDATE runners SET state = 'draining'")
    assert "draining" in why(queue, queue.enqueue("x").run_id)


def test_why_names_the_run_that_keeps_the_session_busy(queue: Queue, runner: Runner) -> None:
    """A resume waits for the active run of its session."""
    first = queue.enqueue("x")
    start(runner)
    second = queue.enqueue("y", session_id=first.session_id)
    text = why(queue, second.run_id)
    assert "busy" in text
    assert first.run_id in text


def test_why_names_the_run_that_comes_first(queue: Queue, clock: MovableClock) -> None:
    """A resume waits for the pending run before it."""
    first = queue.enqueue("x")
    clock.advance(1)
    second = queue.enqueue("y", session_id=first.session_id)
    assert f"{first.run_id} comes before" in why(queue, second.run_id)


def test_why_says_when_a_run_expires_and_that_no_daemon_is_there(
    queue: Queue, clock: MovableClock
) -> None:
    """The time that is left, and that nobody watches it."""
    run = queue.enqueue("x", timeout=90)
    assert "expires in 90 s" in why(queue, run.run_id)
    assert "no daemon" in why(queue, run.run_id)
    clock.advance(100)
    assert "past its timeout for 10 s" in why(queue, run.run_id)


def test_why_follows_an_active_run(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """Claimed, running and stopping runs name their owner and since when."""
    queue.enqueue("x")
    claim = take(runner)
    clock.advance(3)
    assert "claimed by worker for 3 s" in why(queue, claim.run.run_id)
    claim.start()
    clock.advance(4)
    assert "running on worker for 4 s" in why(queue, claim.run.run_id)
    queue.stop(claim.run.run_id)
    clock.advance(5)
    assert "stopping for 5 s" in why(queue, claim.run.run_id)


def test_why_says_that_the_owner_is_not_alive(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A run of a dead runner is about to be resolved."""
    queue.enqueue("x")
    claim = start(runner)
    clock.advance(30)
    assert "worker is not alive" in why(queue, claim.run.run_id)


def test_why_gives_the_error_of_a_failed_run(queue: Queue, runner: Runner) -> None:
    """Of a run that has ended it says how, and never what it was asked."""
    queue.enqueue("SECRET")
    claim = take(runner)
    claim.fail("disk full")
    text = why(queue, claim.run.run_id)
    assert "failed" in text
    assert "disk full" in text
    assert "SECRET" not in text


def test_why_survives_a_status_without_times(queue: Queue) -> None:
    """A row that somebody set to an active status by hand has nothing to count from."""
    run = queue.enqueue("x")
    for status in ("claimed", "running", "stopping"):
        execute_sql(queue, "UPDATE runs SET status = ?", status)
        assert queue.why(run.run_id).status == Status(status)
        assert "an unknown runner" in why(queue, run.run_id)


def test_timeline_and_why_of_an_unknown_run_are_refused(queue: Queue) -> None:
    """There is nothing to tell about a run that does not exist."""
    for verb in (queue.timeline, queue.why):
        with pytest.raises(RunNotFound):
            verb("run_0123456789ab")
