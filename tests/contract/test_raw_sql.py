"""Rows written by other programs, which know the given columns and nothing else of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from runqueue import Queue, Runner, RunType, Status, Sweep
from tests.conftest import OtherProgram
from tests.helpers import LONG, MovableClock, in_background, start, status_of, take

SESSION = "INSERT INTO sessions (session_id, created_at) VALUES (?, '2025-01-01T00:00:00Z')"
MINIMAL = (
    "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
    "VALUES (?, ?, 'START_SESSION', 'test', 'pending', ?)"
)
GIVEN = (
    "INSERT INTO runs (run_id, session_id, type, agent_name, prompt, project_dir, "
    "parent_session_id, execution_mode, demands, status, runner_id, error, created_at, "
    "claimed_at, started_at, completed_at, timeout_at) "
    "VALUES (?, ?, 'RESUME_SESSION', 'writer', 'test', '/srv', NULL, 'async_poll', ?, 'pending', "
    "NULL, NULL, ?, NULL, NULL, NULL, ?)"
)
YEAR = "2025-01-01T00:00:00Z"


@pytest.fixture
def other(program: OtherProgram) -> OtherProgram:
    """Another program, that has created two sessions."""
    program.execute(SESSION, "ses_a")
    program.execute(SESSION, "ses_b")
    return program


def test_a_run_inserted_with_the_least_columns_is_a_normal_run(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """It is pending, it is claimed, executed and completed like any other."""
    other.execute(MINIMAL, "run_test", "ses_a", YEAR)
    run = queue.get("run_test")
    assert (run.status, run.type) == (Status.PENDING, RunType.START_SESSION)
    assert (run.execution_mode, run.priority) == ("sync", 0)
    start(runner).complete("r")
    assert queue.get("run_test").result == "r"


def test_a_run_inserted_without_a_status_is_pending(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """The defaults are the database's own."""
    other.execute(
        "INSERT INTO runs (run_id, session_id, type, prompt, created_at) "
        "VALUES ('run_test', 'ses_a', 'START_SESSION', 'test', '2025-01-01T00:00:00Z')"
    )
    assert take(runner).run.run_id == "run_test"


def test_a_run_inserted_with_all_given_columns_is_matched_by_its_demands(
    queue: Queue, open_runner: Callable[..., Runner], other: OtherProgram
) -> None:
    """The demands that others wrote count, and their times too."""
    other.execute(GIVEN, "run_test", "ses_a", '{"tags": ["gpu"]}', YEAR, "2099-01-01T00:00:00Z")
    assert open_runner("plain").claim(timeout=0) is None
    claim = take(open_runner("gpu", tags=["gpu"]))
    assert (claim.run.agent_name, claim.run.execution_mode) == ("writer", "async_poll")


@pytest.mark.parametrize("zone", ["Z", "+00:00"])
@pytest.mark.parametrize("decimals", ["", ".6", ".678901"], ids=["none", "one", "six"])
def test_a_time_in_any_accepted_form_expires_its_run_on_the_microsecond(
    queue: Queue, other: OtherProgram, zone: str, decimals: str
) -> None:
    """Fewer decimals and +00:00 mean what they say, and are compared as what they mean."""
    other.execute(GIVEN, "run_test", "ses_a", None, YEAR, f"2025-06-01T00:00:05{decimals}{zone}")
    whole = f"2025-06-01T00:00:05.{decimals[1:]:0<6}Z"
    before = (
        f"2025-06-01T00:00:05.{int(decimals[1:].ljust(6, '0')) - 1:06d}Z"
        if decimals
        else "2025-06-01T00:00:04.999999Z"
    )
    assert queue.sweep(before) == Sweep()
    assert queue.sweep(whole) == Sweep(expired=1)


def test_times_in_different_forms_are_ordered_as_times(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """Text order is time order whoever wrote it: Z sorts behind every digit and point."""
    other.execute(MINIMAL, "run_2", "ses_b", "2025-01-01T00:00:00.5+00:00")
    other.execute(MINIMAL, "run_1", "ses_a", "2025-01-01T00:00:00Z")
    assert [take(runner).run.run_id for _ in range(2)] == ["run_1", "run_2"]


def test_an_inserted_run_with_a_claim_is_rescued(
    queue: Queue, clock: MovableClock, other: OtherProgram
) -> None:
    """A run that another program claimed, and left, is resolved like any other."""
    other.execute(MINIMAL, "run_test", "ses_a", clock.text())
    other.execute("UPDATE runs SET status = 'running', runner_id = 'theirs'")
    clock.advance(30)
    assert queue.sweep() == Sweep(lost=1)


def test_an_inserted_stopping_run_is_settled(queue: Queue, other: OtherProgram) -> None:
    """No stop was recorded, so the next tick settles it."""
    other.execute(MINIMAL.replace("'pending'", "'stopping'"), "run_test", "ses_a", YEAR)
    assert queue.sweep() == Sweep(settled=1)


@pytest.mark.parametrize("status", ["claimed", "completed", "failed", "stopped"])
def test_a_status_written_by_hand_keeps_the_run_from_being_claimed(
    queue: Queue, runner: Runner, other: OtherProgram, status: str
) -> None:
    """Whoever writes a status means it."""
    run = queue.enqueue("x")
    other.execute("UPDATE runs SET status = ?", status)
    assert runner.claim(timeout=0) is None
    assert status_of(queue, run) == status


def test_a_run_set_back_to_pending_by_hand_is_claimed_again(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """Also a run that had ended, with all that was written of its first life."""
    run = queue.enqueue("x")
    start(runner).complete("r")
    other.execute("UPDATE runs SET status = 'pending'")
    assert take(runner).run.run_id == run.run_id


def test_a_stop_written_by_hand_reaches_the_owner(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """UPDATE .. SET status = 'stopping' is a stop like any other for who executes the run."""
    queue.enqueue("x")
    claim = start(runner)
    other.execute("UPDATE runs SET status = 'stopping'")
    assert claim.stop_requested
    claim.confirm_stop()


def test_the_end_of_a_run_written_by_hand_ends_a_wait(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """Who waits for the run has it, though nothing was reported."""
    run = queue.enqueue("x")
    start(runner)
    other.execute("UPDATE runs SET status = 'completed', result = 'by hand'")
    assert queue.wait(run.run_id, timeout=5).result == "by hand"


def test_a_waiting_claim_is_woken_by_an_inserted_run(
    queue: Queue, runner: Runner, other: OtherProgram, parked: threading.Event
) -> None:
    """A runner need not be told by us that there is work."""
    with in_background(lambda: runner.claim(timeout=LONG), queue) as claimed:
        assert parked.wait(LONG)
        other.execute(MINIMAL, "run_test", "ses_a", YEAR)
        assert claimed.result(LONG).run.run_id == "run_test"
