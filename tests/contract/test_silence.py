"""When an agent was last heard of is shown, and nothing is done because of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runqueue import Queue, Runner, silence, statements_homes
from runqueue.errors import ConfigurationError, StorageBusy
from runqueue.silence import Heard
from tests.conftest import OtherProgram
from tests.helpers import MovableClock, count, execute_sql, start, status_of, take


def heard(queue: Queue, run_id: str) -> Heard:
    return silence.of_run(queue.store, queue.get(run_id), now=queue.now())


def test_a_heartbeat_tells_when_the_agent_was_last_heard_of(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """To others it is as long ago as it is."""
    run = queue.enqueue("x")
    claim = start(runner)
    clock.advance(60)
    claim.note_output()
    assert str(heard(queue, run.run_id)) == "no output since its start 60 s ago"
    runner._beat()
    clock.advance(840)
    assert str(heard(queue, run.run_id)) == "last output 14 min ago"
    assert "last output 14 min ago" in queue.why(run.run_id).details


def test_a_silent_agent_is_left_alone(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """However long it is silent, while its runner beats."""
    run = queue.enqueue("x")
    claim = start(runner)
    for _ in range(10):
        clock.advance(86_400)
        runner._beat()
        queue.sweep()
    assert status_of(queue, run) == "running"
    assert str(heard(queue, run.run_id)) == "no output since its start 10 days ago"
    assert not claim.stop_requested


def test_a_beat_writes_only_what_has_changed(
    queue: Queue, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One statement for all runs of a runner; none when no agent has said anything."""
    told: list[list[str]] = []
    real = queue.store.change_many

    def change_many(statement: object, rows: list[dict[str, str]]) -> int:
        if statement is statements_homes.TELL_OUTPUT:
            told.append([row["run_id"] for row in rows])
        return real(statement, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(queue.store, "change_many", change_many)
    queue.enqueue_many({"prompt": "x"} for _ in range(3))
    first, second, third = runner.claim_many(3)
    for claim in (first, second, third):
        claim.start()
    runner._beat()
    assert told == []
    for claim in (first, second):
        claim.note_output()
    runner._beat()
    runner._beat()
    second.note_output()
    runner._beat()
    assert told == [sorted([first.run.run_id, second.run.run_id]), [second.run.run_id]]


@pytest.mark.parametrize(
    "error", [StorageBusy("busy"), ConfigurationError("the role lacks a right")], ids=str
)
def test_what_could_not_be_told_is_told_by_the_next_beat(
    queue: Queue, runner: Runner, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It costs the runner neither its heartbeat nor its runs."""
    run = queue.enqueue("x")
    claim = start(runner)
    claim.note_output()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("runqueue.silence.tell", fail)
        assert runner._beat()
        assert runner._beat()
    assert count(queue, "run_output") == 0
    runner._beat()
    assert count(queue, "run_output") == 1
    assert not runner.is_draining
    assert not claim.stop_requested
    assert status_of(queue, run) == "running"


def test_a_former_owner_tells_nothing(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """What the agent of a lost claim says is not what the run's agent says."""
    run = queue.enqueue("x")
    former = open_runner("former")
    lost = take(former)
    queue.release(run.run_id)
    clock.advance(1)
    start(open_runner("other"))
    clock.advance(1)
    lost.note_output()
    former._tell_output(queue.now())
    assert heard(queue, run.run_id).at is None


def test_what_an_earlier_life_said_is_not_this_ones(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A run that was set back by hand has been silent since its new start."""
    run = queue.enqueue("x")
    claim = start(runner)
    clock.advance(1)
    claim.note_output()
    runner._beat()
    claim.fail("x")
    execute_sql(queue, "UPDATE runs SET status = 'pending'")
    clock.advance(1)
    start(runner)
    assert heard(queue, run.run_id).at is None


def test_it_goes_with_the_run(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """Nothing is left of a run that was deleted or pruned."""
    queue.enqueue_many({"prompt": "x"} for _ in range(2))
    for claim in runner.claim_many(2):
        claim.start()
        claim.note_output()
        runner._beat()
        claim.complete()
    clock.advance(10)
    queue.delete_session(queue.find()[0].session_id)
    assert count(queue, "run_output") == 1
    assert queue.prune(5) == 1
    assert count(queue, "run_output") == 0


def test_it_goes_with_a_run_that_another_program_deletes(
    queue: Queue, runner: Runner, program: OtherProgram
) -> None:
    """Which may have left foreign keys off."""
    run = queue.enqueue("x")
    claim = start(runner)
    claim.note_output()
    runner._beat()
    claim.complete()
    program.execute("DELETE FROM runs WHERE run_id = ?", run.run_id)
    assert count(queue, "run_output") == 0


def test_many_runs_are_asked_for_at_once(
    queue: Queue, runner: Runner, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches; also those of which nothing is known."""
    monkeypatch.setattr(silence, "BATCH", 2)
    runs = queue.enqueue_many({"prompt": "x"} for _ in range(5))
    claims = runner.claim_many(4)
    for claim in claims:
        claim.start()
    clock.advance(5)
    for claim in claims:
        claim.note_output()
    runner._beat()
    clock.advance(5)
    found = silence.of_runs(queue.store, queue.find(), now=queue.now())
    assert set(found) == {run.run_id for run in runs}
    assert sorted(str(one) for one in found.values()) == ["", *["last output 5 s ago"] * 4]
