"""Bad rows are refused by the database itself, whatever program and settings they come from."""

from __future__ import annotations

import pytest

from runqueue import Queue, Run, Runner
from tests.conftest import OtherProgram
from tests.helpers import count, events_of, execute_sql, is_empty, row_of, start

ISSUE = (
    "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) VALUES "
    "('run_test','ses_nonexistent','START_SESSION','test','pending','2025-01-01T00:00:00Z')"
)
TIMES = ("created_at", "claimed_at", "started_at", "completed_at", "timeout_at")
BAD_TIMES = {
    "empty": "",
    "word": "now",
    "date": "2025-01-01",
    "no-zone": "2025-01-01T00:00:00",
    "space": "2025-01-01 00:00:00Z",
    "east": "2025-01-01T00:00:00+02:00",
    "west": "2025-01-01T00:00:00-00:30",
    "short-offset": "2025-01-01T00:00:00+00",
    "both": "2025-01-01T00:00:00Z+00:00",
    "lower": "2025-01-01t00:00:00z",
    "seven-decimals": "2025-01-01T00:00:00.1234567Z",
    "point-only": "2025-01-01T00:00:00.Z",
    "comma": "2025-01-01T00:00:00,5Z",
    "letter-decimal": "2025-01-01T00:00:00.5xZ",
    "five-digit-year": "12025-01-01T00:00:00Z",
    "newline": "2025-01-01T00:00:00Z\n",
    "epoch": "1735689600",
}
IMPOSSIBLE = {
    "month": "2025-13-01T00:00:00Z",
    "day": "2025-02-30T00:00:00Z",
    "day-zero": "2025-01-00T00:00:00Z",
    "hour": "2025-01-01T24:00:00Z",
}
BAD_VALUES = {
    "status": ["done", "PENDING", "", "pending "],
    "type": ["start_session", "", "RESUME"],
    "execution_mode": ["SYNC", "", "later"],
    "demands": [
        *("", "gpu", "{", b"{}", "[]", '["gpu"]', '"gpu"', "1", "null", "{'tags': []}"),
        '{"a":1}x',
    ],
    "priority": ["high"],
}
REQUIRED = ("run_id", "session_id", "type", "prompt", "execution_mode", "status", "created_at")


@pytest.fixture
def run(queue: Queue, program: OtherProgram) -> Run:
    """A run that other programs try to spoil."""
    return queue.enqueue("x")


def insert_with(column: str) -> str:
    columns = {
        "run_id": "'run_test'",
        "session_id": "?",
        "type": "'START_SESSION'",
        "prompt": "'test'",
        "created_at": "'2025-01-01T00:00:00Z'",
        column: "?",
    }
    return f"INSERT INTO runs ({', '.join(columns)}) VALUES ({', '.join(columns.values())})"


def is_refused_both_ways(program: OtherProgram, run: Run, column: str, value: object) -> bool:
    """Whether a value is refused by an UPDATE and by an INSERT."""
    update = program.is_refused(f"UPDATE runs SET {column} = ?", value)
    insert = program.is_refused(insert_with(column), run.session_id, value)
    return update and insert


@pytest.mark.parametrize(
    ("column", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values]
)
def test_a_value_that_the_contract_does_not_list_is_refused(
    queue: Queue, program: OtherProgram, run: Run, column: str, value: str
) -> None:
    """Status, type, mode, demands and priority are what they are said to be."""
    before = row_of(queue, run)
    assert is_refused_both_ways(program, run, column, value)
    assert row_of(queue, run) == before
    assert count(queue, "runs") == 1


@pytest.mark.parametrize("column", TIMES)
@pytest.mark.parametrize("value", BAD_TIMES.values(), ids=BAD_TIMES.keys())
def test_a_time_that_would_sort_wrongly_is_refused(
    queue: Queue, program: OtherProgram, run: Run, column: str, value: str
) -> None:
    """Any offset but UTC's and any other shape is no time."""
    assert is_refused_both_ways(program, run, column, value)


@pytest.mark.parametrize("value", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_time_that_is_on_no_calendar_is_refused(
    queue: Queue, program: OtherProgram, run: Run, value: str
) -> None:
    """What has the shape of a time and is none could be neither compared nor shown."""
    assert is_refused_both_ways(program, run, "timeout_at", value)


@pytest.mark.parametrize("column", REQUIRED)
def test_a_required_column_is_never_null(program: OtherProgram, run: Run, column: str) -> None:
    """Seven of the given columns have a value in every row."""
    assert program.is_refused(f"UPDATE runs SET {column} = NULL")


def test_null_demands_are_no_demands(program: OtherProgram, runner: Runner, run: Run) -> None:
    """NULL and {} are accepted, and demand nothing."""
    for value in ("{}", None):
        program.execute("UPDATE runs SET demands = ?", value)
    start(runner)


def test_a_run_of_a_session_that_does_not_exist_is_refused(
    queue: Queue, program: OtherProgram
) -> None:
    """The foreign key holds for a program that never asked for foreign keys."""
    assert program.is_refused(ISSUE)
    assert is_empty(queue)


def test_a_run_cannot_be_moved_to_a_session_that_does_not_exist(
    program: OtherProgram, run: Run
) -> None:
    """Nor by an UPDATE."""
    assert program.is_refused("UPDATE runs SET session_id = 'ses_nonexistent'")


def test_a_session_deleted_by_another_program_takes_its_runs_along(
    queue: Queue, program: OtherProgram, run: Run
) -> None:
    """The cascade holds for every writer: runs and their history go, children stay."""
    child = queue.enqueue("child", parent_session_id=run.session_id)
    program.execute("DELETE FROM sessions WHERE session_id = ?", run.session_id)
    assert [one.run_id for one in queue.find()] == [child.run_id]
    assert events_of(queue, run) == []
    assert queue.session(child.session_id).parent_session_id is None


def test_a_run_deleted_by_another_program_takes_its_history_along(
    queue: Queue, program: OtherProgram, run: Run
) -> None:
    """No event is left that tells of nothing."""
    program.execute("DELETE FROM runs")
    assert count(queue, "run_events") == 0
    assert count(queue, "sessions") == 1


@pytest.mark.parametrize("column", ["session_id", "run_id"])
def test_a_session_with_runs_cannot_be_renamed_away(
    queue: Queue, program: OtherProgram, run: Run, column: str
) -> None:
    """No run is left without its session, and no event without its run."""
    table = "sessions" if column == "session_id" else "runs"
    program.is_refused(f"UPDATE {table} SET {column} = 'renamed'")
    orphans = execute_sql(
        queue,
        "SELECT run_id FROM runs WHERE session_id NOT IN (SELECT session_id FROM sessions) "
        "UNION ALL SELECT run_id FROM run_events WHERE run_id NOT IN (SELECT run_id FROM runs)",
    )
    assert orphans == []


def test_a_duplicate_run_id_is_refused(program: OtherProgram, run: Run) -> None:
    """The id of a run is its primary key."""
    assert program.is_refused(
        "INSERT INTO runs (run_id, session_id, type, prompt, created_at) "
        "VALUES (?, ?, 'START_SESSION', 'test', '2025-01-01T00:00:00Z')",
        *(run.run_id, run.session_id),
    )
