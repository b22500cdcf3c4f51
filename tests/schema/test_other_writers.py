"""The database itself keeps its promises, whoever writes: here those who leave foreign keys off."""

from __future__ import annotations

import pytest

import runqueue

INSERT_OF_THE_CONTRACT = (
    "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) VALUES "
    "('run_test','ses_nonexistent','START_SESSION','test','pending','2025-01-01T00:00:00Z')"
)


@pytest.fixture
def queue_file(path, sql):
    """A queue with two sessions, the second a child of the first."""
    with runqueue.connect(f"sqlite:///{path}"):
        pass
    sql(
        path,
        "INSERT INTO sessions (session_id, created_at, parent_session_id) VALUES "
        "('ses_a', '2025-01-01T00:00:00Z', NULL), ('ses_b', '2025-01-01T00:00:00Z', 'ses_a')",
    )
    return path


@pytest.fixture
def write(queue_file, other_writer):
    """Write to the queue from outside and return the rows that it answers."""
    return lambda script: other_writer(queue_file, script)


@pytest.fixture
def refused(write, other_writer, dump, queue_file):
    """Whether a statement is refused, and changed nothing."""

    def is_refused(script: str) -> bool:
        before = dump(queue_file)
        try:
            write(script)
        except other_writer.Refused:
            assert dump(queue_file) == before
            return True
        return False

    return is_refused


def run(run_id: str = "run_1", session: str = "ses_a", **more: str) -> str:
    values = {
        "run_id": run_id,
        "session_id": session,
        "type": "START_SESSION",
        "prompt": "hello",
        "created_at": "2025-01-01T00:00:00Z",
        **more,
    }
    texts = ", ".join(f"'{value}'" for value in values.values())
    return f"INSERT INTO runs ({', '.join(values)}) VALUES ({texts})"


def test_foreign_keys_are_really_off_for_this_writer(write):
    """Else these tests would prove nothing."""
    assert write("PRAGMA foreign_keys") == ["0"]


def test_the_insert_of_the_contract_is_refused(refused, write):
    """Its session does not exist."""
    assert refused(INSERT_OF_THE_CONTRACT)
    assert write("SELECT count(*) FROM runs") == ["0"]


def test_the_same_insert_for_a_session_that_exists_makes_a_normal_pending_run(write, queue_file):
    """What it does not name has its default, and a runner can claim it."""
    write(INSERT_OF_THE_CONTRACT.replace("ses_nonexistent", "ses_a"))
    row = "SELECT execution_mode, status, priority, waiting, created_at FROM runs"
    assert write(row) == ["sync|pending|0|0|2025-01-01T00:00:00.000000Z"]
    with runqueue.connect(f"sqlite:///{queue_file}") as queue:
        assert queue.find(status="pending")[0].run_id == "run_test"
        with queue.runner("r") as runner:
            claim = runner.claim(timeout=0)
            assert claim is not None
            claim.start()
            claim.complete("ok")


def test_a_run_may_not_be_moved_to_a_session_that_does_not_exist(refused, write):
    """The reference holds for UPDATE as for INSERT."""
    write(run())
    assert refused("UPDATE runs SET session_id = 'ses_nonexistent'")
    assert not refused("UPDATE runs SET session_id = 'ses_b'")


def test_a_session_with_runs_may_not_change_its_id(refused, write):
    """Its runs would be left without a session; one without runs may."""
    write(run())
    assert refused("UPDATE sessions SET session_id = 'ses_new' WHERE session_id = 'ses_a'")
    assert not refused("UPDATE sessions SET session_id = 'ses_new' WHERE session_id = 'ses_b'")


def test_deleting_a_session_takes_its_runs_and_their_history(write):
    """ON DELETE CASCADE, by a trigger; ON DELETE SET NULL for the parent."""
    write(run())
    write(run("run_2", "ses_b"))
    for run_id in ("run_1", "run_2"):
        write(
            "INSERT INTO run_events (run_id, at, status, actor) VALUES "
            f"('{run_id}', '2025-01-01T00:00:00Z', 'pending', 'caller')"
        )
    write("DELETE FROM sessions WHERE session_id = 'ses_a'")
    assert write("SELECT run_id FROM runs") == ["run_2"]
    assert write("SELECT run_id FROM run_events") == ["run_2"]
    assert write("SELECT session_id, parent_session_id IS NULL FROM sessions") == ["ses_b|1"]


def test_deleting_a_run_takes_its_history(write):
    """No event is left that belongs to nothing."""
    write(run())
    write(
        "INSERT INTO run_events (run_id, at, status, actor) VALUES "
        "('run_1', '2025-01-01T00:00:00Z', 'pending', 'caller')"
    )
    write("DELETE FROM runs")
    assert write("SELECT count(*) FROM run_events") == ["0"]


GOOD_TIMES = [
    ("2025-01-01T00:00:00Z", "2025-01-01T00:00:00.000000Z"),
    ("2025-01-01T00:00:00+00:00", "2025-01-01T00:00:00.000000Z"),
    ("2025-01-01T00:00:00.5Z", "2025-01-01T00:00:00.500000Z"),
    ("2025-01-01T00:00:00.12345+00:00", "2025-01-01T00:00:00.123450Z"),
    ("2025-01-01T00:00:00.123456+00:00", "2025-01-01T00:00:00.123456Z"),
    ("2025-01-01T00:00:00.000001Z", "2025-01-01T00:00:00.000001Z"),
    ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
]

BAD_TIMES = [
    "",
    "now",
    "2025-01-01",
    "2025-01-01 00:00:00Z",
    "2025-01-01T00:00:00",
    "2025-01-01T00:00:00.123456",
    "2025-01-01T00:00:00+01:00",
    "2025-01-01T00:00:00-00:00",
    "2025-01-01T00:00:00.1234567Z",
    "2025-01-01T00:00:00.Z",
    "2025-01-01T00:00:00.+00:00",
    "2025-01-01T00:00:00ZZ",
    "2025-01-01T00:00:00.1Z2Z",
    "2025-01-01T00:00:00z",
    "2025-01-01t00:00:00Z",
    "2025-1-1T00:00:00Z",
    "12025-01-01T00:00:00Z",
    "1735689600",
    "2025-01-01T00:00:00Z ",
    "2025-01-01T00:00:00.12 Z",
]

COLUMNS = ("created_at", "claimed_at", "started_at", "completed_at", "timeout_at")


@pytest.mark.parametrize(("given", "stored"), GOOD_TIMES)
def test_a_time_of_fewer_decimals_or_another_zero_offset_is_stored_in_our_form(
    write, given, stored
):
    """By INSERT in every column, by UPDATE in those that order and expire runs."""
    write(run(**dict.fromkeys(COLUMNS, given)))
    every = f"SELECT {', '.join(COLUMNS)} FROM runs"
    assert write(every) == ["|".join([stored] * 5)]
    for column in ("created_at", "timeout_at"):
        write(f"UPDATE runs SET {column} = '2000-01-01T00:00:00Z'")
        assert write(f"SELECT {column} FROM runs") == ["2000-01-01T00:00:00.000000Z"]
        write(f"UPDATE runs SET {column} = '{given}'")
        assert write(f"SELECT {column} FROM runs") == [stored]


@pytest.mark.parametrize("time", BAD_TIMES)
def test_any_other_shape_of_time_is_refused_in_every_column(write, refused, time):
    """It would sort wrongly."""
    write(run())
    for column in COLUMNS:
        assert refused(f"UPDATE runs SET {column} = '{time}'"), column
    assert refused(run("run_2", created_at=time))


@pytest.mark.parametrize(("given", "stored"), GOOD_TIMES)
def test_times_of_a_new_session_take_our_form_too(write, given, stored):
    """Lists of sessions are ordered by them."""
    write(
        "INSERT INTO sessions (session_id, created_at, last_resumed_at) "
        f"VALUES ('ses_c', '{given}', '{given}')"
    )
    row = "SELECT created_at, last_resumed_at FROM sessions WHERE session_id = 'ses_c'"
    assert write(row) == [f"{stored}|{stored}"]


@pytest.mark.parametrize(
    "change",
    [
        "type = 'STOP_SESSION'",
        "type = 'start_session'",
        "type = NULL",
        "execution_mode = 'async'",
        "execution_mode = NULL",
        "status = 'queued'",
        "status = 'PENDING'",
        "status = ''",
        "status = NULL",
        "demands = 'gpu'",
        "demands = ''",
        "demands = '[]'",
        "demands = '\"gpu\"'",
        "demands = 'null'",
        "demands = '{\"tags\": [}'",
        "priority = 'high'",
        "priority = 1.5",
        "priority = NULL",
        "waiting = 2",
        "prompt = NULL",
        "session_id = NULL",
        "run_id = NULL",
        "created_at = NULL",
    ],
)
def test_a_value_outside_of_the_contract_is_refused(write, refused, change):
    """By the database, before any of our code sees it."""
    write(run())
    assert refused(f"UPDATE runs SET {change}")


@pytest.mark.parametrize(
    "change",
    [
        *(f"status = '{status}'" for status in ("claimed", "running", "stopping", "completed")),
        *(f"status = '{status}'" for status in ("failed", "stopped", "pending")),
        'demands = \'{"tags": ["gpu"]}\'',
        "demands = '{}'",
        "demands = NULL",
        "execution_mode = 'async_poll'",
        "execution_mode = 'async_callback'",
        "type = 'RESUME_SESSION'",
        "priority = -5",
        "priority = '7'",
        "timeout_at = NULL",
    ],
)
def test_a_value_within_the_contract_is_accepted(write, refused, change):
    """An UPDATE by hand is respected."""
    write(run())
    assert not refused(f"UPDATE runs SET {change}")


@pytest.mark.parametrize("first", ["claimed", "running", "stopping"])
@pytest.mark.parametrize("second", ["claimed", "running", "stopping"])
def test_a_session_cannot_be_given_two_active_runs(write, refused, first, second):
    """Two agents on one conversation would fork its history."""
    write(run("run_1", status=first))
    assert refused(run("run_2", status=second))
    write(run("run_2"))
    assert refused(f"UPDATE runs SET status = '{second}' WHERE run_id = 'run_2'")
    assert not refused(run("run_3", "ses_b", status=second))


def test_the_same_run_id_is_refused_twice(write, refused):
    """It is the primary key."""
    write(run())
    assert refused(run())


def test_a_waiting_run_becomes_ready_when_the_one_before_it_ends_by_hand(write):
    """An UPDATE of status by hand moves the session's next run to the front."""
    ready = "SELECT run_id FROM runs WHERE status = 'pending' AND waiting = 0"
    write(run("run_1", status="running"))
    write(run("run_2"))
    write(run("run_3", created_at="2025-01-02T00:00:00Z"))
    assert write(ready) == []
    write("UPDATE runs SET status = 'completed' WHERE run_id = 'run_1'")
    assert write(ready) == ["run_2"]
    write("UPDATE runs SET priority = 5 WHERE run_id = 'run_3'")
    assert write(ready) == ["run_3"]
    write("DELETE FROM runs WHERE run_id = 'run_3'")
    assert write(ready) == ["run_2"]
