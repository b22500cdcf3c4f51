"""The order of a session's runs is the database's own: it holds whoever writes the rows."""

from __future__ import annotations

import pytest

from runqueue import Queue, Runner
from tests.conftest import OtherProgram
from tests.helpers import execute_sql, start, take

SESSION = "INSERT INTO sessions (session_id, created_at) VALUES (?, '2025-01-01T00:00:00Z')"


def insert(program: OtherProgram, run_id: str, second: int, session_id: str = "ses_a") -> None:
    program.execute(
        "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
        "VALUES (?, ?, 'RESUME_SESSION', 'test', 'pending', ?)",
        *(run_id, session_id, f"2025-01-01T00:00:{second:02d}Z"),
    )


@pytest.fixture
def other(program: OtherProgram) -> OtherProgram:
    """Another program, that has inserted run_1 to run_3 of one session, in another order."""
    program.execute(SESSION, "ses_a")
    program.execute(SESSION, "ses_b")
    for number in (2, 3, 1):
        insert(program, f"run_{number}", number)
    return program


def test_inserted_runs_of_a_session_follow_each_other(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """One at a time, the oldest first, in whatever order they were written."""
    for number in (1, 2, 3):
        claim = start(runner)
        assert claim.run.run_id == f"run_{number}"
        assert runner.claim(timeout=0) is None
        claim.complete()


def test_an_older_run_inserted_later_goes_first(runner: Runner, other: OtherProgram) -> None:
    """created_at is the age, not the time of the INSERT."""
    insert(other, "run_0", 0)
    assert take(runner).run.run_id == "run_0"


def test_a_priority_written_by_hand_is_respected(runner: Runner, other: OtherProgram) -> None:
    """The session's next run is the one that was raised."""
    other.execute("UPDATE runs SET priority = 9 WHERE run_id = 'run_3'")
    assert take(runner).run.run_id == "run_3"


def test_an_age_written_by_hand_is_respected(runner: Runner, other: OtherProgram) -> None:
    """The session's next run is the one that is the oldest now."""
    other.execute("UPDATE runs SET created_at = '2025-01-02T00:00:00Z' WHERE run_id = 'run_1'")
    assert take(runner).run.run_id == "run_2"


@pytest.mark.parametrize("status", ["completed", "failed", "stopped"])
def test_an_end_written_by_hand_lets_the_next_run_go(
    runner: Runner, other: OtherProgram, status: str
) -> None:
    """The session is free again, whether the run was pending or active."""
    other.execute("UPDATE runs SET status = ? WHERE run_id = 'run_1'", status)
    assert take(runner).run.run_id == "run_2"
    other.execute("UPDATE runs SET status = ? WHERE run_id = 'run_2'", status)
    assert take(runner).run.run_id == "run_3"


def test_a_claim_written_by_hand_keeps_the_session_busy(
    runner: Runner, other: OtherProgram
) -> None:
    """No second run of the session is claimed beside it."""
    other.execute("UPDATE runs SET status = 'running', runner_id = 'r' WHERE run_id = 'run_2'")
    assert runner.claim(timeout=0) is None


def test_a_run_set_back_by_hand_is_the_next_again(runner: Runner, other: OtherProgram) -> None:
    """Going back to pending is going back to its place."""
    take(runner)
    other.execute("UPDATE runs SET status = 'pending' WHERE run_id = 'run_1'")
    assert take(runner).run.run_id == "run_1"


@pytest.mark.parametrize("is_claimed", [False, True], ids=["pending", "active"])
def test_a_deleted_run_lets_the_next_one_go(
    runner: Runner, other: OtherProgram, is_claimed: bool
) -> None:
    """A DELETE frees the session too."""
    if is_claimed:
        take(runner)
    other.execute("DELETE FROM runs WHERE run_id = 'run_1'")
    assert take(runner).run.run_id == "run_2"


def test_a_run_moved_to_another_session_takes_its_place_there(
    runner: Runner, other: OtherProgram
) -> None:
    """Both sessions have their order: the one it left and the one it came to."""
    insert(other, "run_9", 9, "ses_b")
    other.execute("UPDATE runs SET session_id = 'ses_b' WHERE run_id = 'run_1'")
    taken = sorted(claim.run.run_id for claim in runner.claim_many(5))
    assert taken == ["run_1", "run_2"]


def test_a_second_active_run_of_a_session_is_refused_by_the_database(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """Two agents on one conversation are impossible, whoever wants them."""
    take(runner)
    for status in ("claimed", "running", "stopping"):
        assert other.is_refused("UPDATE runs SET status = ? WHERE run_id = 'run_2'", status)
    assert queue.get("run_2").status == "pending"


def test_many_runs_changed_at_once_keep_the_order(
    queue: Queue, runner: Runner, other: OtherProgram
) -> None:
    """One UPDATE over all rows leaves each session with one next run."""
    for number in range(4, 9):
        insert(other, f"run_{number}", number, "ses_b")
    other.execute("UPDATE runs SET priority = 1")
    other.execute("UPDATE runs SET status = 'stopped'")
    assert runner.claim(timeout=0) is None
    other.execute("UPDATE runs SET status = 'pending'")
    assert sorted(claim.run.run_id for claim in runner.claim_many(9)) == ["run_1", "run_4"]
    assert execute_sql(queue, "SELECT count(*) FROM runs WHERE waiting = 1") == [(6,)]
