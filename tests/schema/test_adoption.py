"""A database that another program made is taken over with everything that is in it."""

from __future__ import annotations

import re
import sqlite3
import subprocess
from contextlib import closing

import peewee
import pytest

import runqueue
from runqueue import ConfigurationError, RunqueueError, Status, schema

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

STATUSES = ("pending", "claimed", "running", "stopping", "completed", "failed", "stopped")

EVERY_STATUS = "".join(
    f"""
    INSERT INTO sessions VALUES
        ('ses_{number}', 'name {number}', 'active', '2025-01-01T00:00:0{number}.123456', '/p');
    INSERT INTO runs (run_id, session_id, type, agent_name, prompt, demands, status, runner_id,
        error, created_at, claimed_at, started_at, completed_at) VALUES
        ('run_{number}', 'ses_{number}', 'START_SESSION', 'writer', 'prompt {number}',
        '{{"tags": ["t"]}}', '{status}', 'old-runner', 'text', '2025-01-01T00:00:0{number}+00:00',
        '2025-01-01T00:01:00.5+00:00', '2025-01-01T00:02:00.123456+00:00',
        '2025-01-01T02:03:00.123456+02:00');
    """
    for number, status in enumerate(STATUSES)
)

ORPHAN = """
    INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) VALUES
        ('run_orphan', 'ses_gone', 'START_SESSION', 'hello', 'pending', '2025-01-02T00:00:00Z');
"""

TWO_ACTIVE = """
    INSERT INTO sessions VALUES ('ses_two', 'two', 'active', '2025-01-01T00:00:00', NULL);
    INSERT INTO runs (run_id, session_id, type, prompt, status, runner_id, created_at, claimed_at)
    VALUES
        ('run_earlier', 'ses_two', 'START_SESSION', 'a', 'running', 'r1',
            '2025-01-01T00:00:00+00:00', '2025-01-01T00:00:01+00:00'),
        ('run_later', 'ses_two', 'RESUME_SESSION', 'b', 'claimed', 'r2',
            '2025-01-01T00:00:00+00:00', '2025-01-01T00:00:02+00:00'),
        ('run_behind', 'ses_two', 'RESUME_SESSION', 'c', 'pending', NULL,
            '2025-01-01T00:00:03+00:00', NULL),
        ('run_behind_it', 'ses_two', 'RESUME_SESSION', 'd', 'pending', NULL,
            '2025-01-01T00:00:04+00:00', NULL);
"""

THEIR_OWN = """
    CREATE INDEX their_sessions ON sessions (session_name);
    CREATE INDEX their_runs ON runs (agent_name, created_at) WHERE error IS NULL;
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
        run_id TEXT REFERENCES runs (run_id) ON DELETE SET NULL,
        body TEXT);
    CREATE TABLE audit (what TEXT);
    CREATE VIEW open_runs AS
        SELECT r.run_id, s.session_name FROM runs r JOIN sessions s USING (session_id)
        WHERE r.status = 'pending';
    CREATE TRIGGER their_insert AFTER INSERT ON sessions
        BEGIN INSERT INTO audit VALUES ('session ' || NEW.session_id); END;
    CREATE TRIGGER their_update AFTER UPDATE OF status ON runs
        BEGIN INSERT INTO audit VALUES (NEW.run_id || ' ' || NEW.status); END;
    CREATE TRIGGER their_message AFTER INSERT ON messages
        BEGIN UPDATE sessions SET status = 'talking' WHERE session_id = NEW.session_id; END;
"""


def url(path) -> str:
    return f"sqlite:///{path}"


def rows_of(path, table: str) -> list[dict[str, object]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]


def assert_sound(path, sql) -> None:
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]
    assert sql(path, "PRAGMA foreign_key_check") == []
    assert sql(path, "SELECT name FROM sqlite_master WHERE name LIKE 'new\\_%' ESCAPE '\\'") == []


def adopt(path) -> None:
    with runqueue.connect(url(path)):
        pass


@pytest.fixture
def adopted(given, sql):
    """A used database with rows of every kind, adopted."""
    path = given(EVERY_STATUS + ORPHAN + TWO_ACTIVE + THEIR_OWN)
    sql(path, "INSERT INTO messages (session_id, run_id, body) VALUES ('ses_0', 'run_0', 'hi')")
    sql(path, "DELETE FROM audit")
    before = {table: rows_of(path, table) for table in ("runs", "sessions", "messages", "audit")}
    adopt(path)
    assert_sound(path, sql)
    return path, before


def test_every_run_is_kept_with_all_it_says(adopted):
    """Texts are untouched; only times take our form, and one of two active runs is failed."""
    path, before = adopted
    after = {row["run_id"]: row for row in rows_of(path, "runs")}
    assert set(after) == {row["run_id"] for row in before["runs"]}
    for old in before["runs"]:
        new = after[old["run_id"]]
        for column, value in old.items():
            if column.endswith("_at") or (old["run_id"] == "run_earlier" and column != "prompt"):
                continue
            assert new[column] == value, (old["run_id"], column)


def test_runs_in_every_status_keep_it(adopted):
    """Nothing is decided about them by the way."""
    path, _ = adopted
    after = {row["run_id"]: row["status"] for row in rows_of(path, "runs")}
    assert [after[f"run_{number}"] for number in range(7)] == list(STATUSES)


def test_every_session_is_kept_with_its_extra_columns(adopted):
    """session_name and status are not ours, and stay."""
    path, before = adopted
    after = {row["session_id"]: row for row in rows_of(path, "sessions")}
    assert set(after) == {row["session_id"] for row in before["sessions"]} | {"ses_gone"}
    for old in before["sessions"]:
        new = after[old["session_id"]]
        for column in ("session_name", "status", "project_dir"):
            assert new[column] == old[column]


def test_times_have_our_form_and_mean_the_same(adopted):
    """Without a zone it was UTC, another offset is converted."""
    path, _ = adopted
    for row in rows_of(path, "runs") + rows_of(path, "sessions"):
        for column, value in row.items():
            if column.endswith("_at") and value is not None:
                assert TIME.fullmatch(value), (column, value)
    runs = {row["run_id"]: row for row in rows_of(path, "runs")}
    assert runs["run_0"]["created_at"] == "2025-01-01T00:00:00.000000Z"
    assert runs["run_0"]["claimed_at"] == "2025-01-01T00:01:00.500000Z"
    assert runs["run_0"]["started_at"] == "2025-01-01T00:02:00.123456Z"
    assert runs["run_0"]["completed_at"] == "2025-01-01T00:03:00.123456Z"
    sessions = {row["session_id"]: row for row in rows_of(path, "sessions")}
    assert sessions["ses_0"]["created_at"] == "2025-01-01T00:00:00.123456Z"


def test_a_run_without_a_session_gets_one(adopted):
    """Foreign keys were off; the run is not thrown away."""
    path, _ = adopted
    sessions = {row["session_id"]: row for row in rows_of(path, "sessions")}
    assert sessions["ses_gone"]["created_at"] == "2025-01-02T00:00:00.000000Z"


def test_of_two_active_runs_of_one_session_the_later_stays_active(adopted):
    """The earlier fails with the reason, in its row and in its history."""
    path, _ = adopted
    runs = {row["run_id"]: row for row in rows_of(path, "runs")}
    assert runs["run_later"]["status"] == "claimed"
    assert runs["run_earlier"]["status"] == "failed"
    assert "only one active" in runs["run_earlier"]["error"]
    assert TIME.fullmatch(runs["run_earlier"]["completed_at"])
    (event,) = rows_of(path, "run_events")
    assert (event["run_id"], event["status"]) == ("run_earlier", "failed")


def test_pending_runs_behind_others_of_their_session_wait(adopted):
    """The order within a session holds from the first claim on."""
    path, _ = adopted
    waiting = {row["run_id"] for row in rows_of(path, "runs") if row["waiting"]}
    assert waiting == {"run_behind", "run_behind_it"}


def test_tables_indexes_views_and_triggers_of_others_are_still_there(adopted, sql):
    """And still mean the tables that they were made for."""
    path, before = adopted
    assert rows_of(path, "messages") == before["messages"]
    assert rows_of(path, "audit") == [], "adoption must not fire the triggers of others"
    names = {row[0] for row in sql(path, "SELECT name FROM sqlite_master")}
    assert names >= {"their_sessions", "their_runs", "open_runs", "their_insert", "their_update"}
    references = {row[2] for row in sql(path, "PRAGMA foreign_key_list(messages)")}
    assert references == {"sessions", "runs"}
    assert ("run_0", "name 0") in sql(path, "SELECT * FROM open_runs")
    sql(path, "UPDATE runs SET status = 'stopped' WHERE run_id = 'run_0'")
    assert rows_of(path, "audit") == [{"what": "run_0 stopped"}]
    sql(path, "INSERT INTO messages (session_id, body) VALUES ('ses_1', 'again')")
    assert sql(path, "SELECT status FROM sessions WHERE session_id = 'ses_1'") == [("talking",)]


def test_foreign_tables_still_cascade_from_sessions(adopted):
    """A program that has foreign keys on deletes a session, and its messages go."""
    path, _ = adopted
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM sessions WHERE session_id = 'ses_0'")
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)
        assert connection.execute(
            "SELECT count(*) FROM runs WHERE run_id = 'run_0'"
        ).fetchone() == (0,)


def test_the_program_that_was_there_goes_on_writing(adopted, sql):
    """Its own INSERTs, with its columns and times as isoformat() writes them, still work."""
    path, _ = adopted
    sql(
        path,
        "INSERT INTO sessions (session_id, session_name, status, created_at) VALUES (?, ?, ?, ?)",
        *("ses_theirs", "new", "active", "2025-06-01T12:00:00.5+00:00"),
    )
    sql(
        path,
        "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at, timeout_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        *("run_theirs", "ses_theirs", "START_SESSION", "hello", "pending"),
        *("2025-06-01T12:00:00.123456+00:00", "2035-06-01T12:05:00+00:00"),
    )
    sql(path, "UPDATE sessions SET status = 'done', session_name = 'x' WHERE session_id = 'ses_1'")
    (session,) = [row for row in rows_of(path, "sessions") if row["session_id"] == "ses_theirs"]
    assert session["created_at"] == "2025-06-01T12:00:00.500000Z"
    (run,) = [row for row in rows_of(path, "runs") if row["run_id"] == "run_theirs"]
    assert run["timeout_at"] == "2035-06-01T12:05:00.000000Z"


def test_a_session_written_with_a_time_without_a_zone_is_still_accepted(adopted, sql):
    """As it wrote them before: adoption took those for UTC, so a new one is UTC too."""
    path, _ = adopted
    sql(
        path,
        "INSERT INTO sessions (session_id, session_name, status, created_at) VALUES (?, ?, ?, ?)",
        *("ses_theirs", "new", "active", "2025-06-01T12:00:00.123456"),
    )
    (session,) = [row for row in rows_of(path, "sessions") if row["session_id"] == "ses_theirs"]
    assert session["created_at"] == "2025-06-01T12:00:00.123456Z"


def test_a_program_whose_sessions_had_no_created_at_goes_on_writing(given, sql):
    """A column that it never knew must not be required of it."""
    path = given(
        sessions="CREATE TABLE sessions (session_id TEXT PRIMARY KEY, status TEXT NOT NULL)"
    )
    sql(path, "INSERT INTO sessions VALUES ('ses_1', 'active')")
    adopt(path)
    sql(path, "INSERT INTO sessions (session_id, status) VALUES ('ses_2', 'active')")
    assert all(TIME.fullmatch(str(row["created_at"])) for row in rows_of(path, "sessions"))


def test_work_goes_on_in_an_adopted_database(adopted, sql):
    """Old pending runs are claimed, new ones enqueued and completed, dead owners' resolved."""
    path, _ = adopted
    with runqueue.connect(url(path)) as queue:
        resumed = queue.enqueue("and now?", session_id="ses_4")
        fresh = queue.enqueue("new")
        queue.sweep()
        with queue.runner("new-runner", tags=["t"]) as runner:
            done = []
            while claim := runner.claim(timeout=0):
                claim.start()
                claim.complete("ok")
                done.append(claim.run.run_id)
        assert set(done) >= {"run_0", "run_1", "run_orphan", resumed.run_id, fresh.run_id}
        assert done.index("run_behind") < done.index("run_behind_it")
        # Their owners never registered here, so one lease after the last sign they are dead.
        assert queue.get("run_2").status is Status.FAILED
        assert queue.get("run_3").status is Status.STOPPED
        assert {run.status for run in queue.find()} <= {
            *(Status.COMPLETED, Status.FAILED, Status.STOPPED)
        }
    assert_sound(path, sql)


def test_an_empty_pair_of_tables_is_adopted(given, sql):
    """A program that was installed and never used."""
    path = given()
    adopt(path)
    assert_sound(path, sql)
    with runqueue.connect(url(path)) as queue:
        assert queue.enqueue("first").status is Status.PENDING


def test_an_adopted_runs_table_is_that_of_a_fresh_database(given, sql, tmp_path):
    """Columns, CHECKs, indexes and triggers of ours are the same, whichever way they came."""
    adopt(given())
    fresh = tmp_path / "fresh.db"
    adopt(fresh)
    query = "SELECT type, name, {} FROM sqlite_master WHERE tbl_name = 'runs' ORDER BY 1, 2"
    text = "replace(replace(sql, '\"runs\"', 'runs'), 'new_runs', 'runs')"
    adopted = sql(tmp_path / "queue.db", query.format(text))
    assert adopted == sql(fresh, query.format(text))


def test_extra_columns_of_runs_come_after_ours_with_their_defaults_and_values(given, sql):
    """The seventeen stay the first, in order."""
    path = given(
        EVERY_STATUS
        + "ALTER TABLE runs ADD COLUMN cost REAL DEFAULT 1.5;"
        + "ALTER TABLE runs ADD COLUMN \"odd name\" TEXT NOT NULL DEFAULT 'it''s';"
        + "UPDATE runs SET cost = 2.5 WHERE run_id = 'run_1'"
    )
    adopt(path)
    columns = [row[1] for row in sql(path, "PRAGMA table_info(runs)")]
    assert columns[17:22] == ["priority", "result", "waiting", "cost", "odd name"]
    rows = {row["run_id"]: row for row in rows_of(path, "runs")}
    assert (rows["run_0"]["cost"], rows["run_1"]["cost"]) == (1.5, 2.5)
    with runqueue.connect(url(path)) as queue:
        run_id = queue.enqueue("new").run_id
    (row,) = [row for row in rows_of(path, "runs") if row["run_id"] == run_id]
    assert (row["cost"], row["odd name"]) == (1.5, "it's")


@pytest.mark.parametrize(
    "default",
    ["CURRENT_TIMESTAMP", "(datetime('now'))", "(1 + 1)", "-1", "NULL", "'text'", "(lower('A'))"],
)
def test_a_default_of_an_extra_column_is_kept_whatever_its_form(given, sql, default):
    """Also one that is an expression."""
    sessions = (
        "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, created_at TEXT NOT NULL, "
        f"extra TEXT DEFAULT {default})"
    )
    path = given("INSERT INTO sessions VALUES ('ses_1', '2025-01-01T00:00:00', 'x')", sessions)
    adopt(path)
    insert = (
        "INSERT INTO sessions (session_id, created_at) VALUES ('ses_2', '2025-01-01T00:00:00Z')"
    )
    sql(path, insert)
    rows = rows_of(path, "sessions")
    assert rows[0]["extra"] == "x"
    assert (rows[1]["extra"] is None) == (default == "NULL")


def test_a_generated_column_of_others_refuses_the_adoption(given, sql, dump):
    """Such a column has no value to be copied, and its program would miss it."""
    sessions = (
        "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, created_at TEXT NOT NULL, "
        "name TEXT, shout TEXT GENERATED ALWAYS AS (upper(name)) VIRTUAL)"
    )
    path = given("", sessions)
    sql(path, "INSERT INTO sessions (session_id, created_at, name) VALUES ('s', '2025-01-01', 'a')")
    before = dump(path)
    with pytest.raises(ConfigurationError, match="generated column shout"):
        adopt(path)
    assert dump(path) == before


def test_a_session_parent_that_does_not_exist_is_forgotten(given, sql):
    """ON DELETE SET NULL would have done it, had foreign keys been on."""
    sessions = (
        "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, created_at TEXT, "
        "parent_session_id TEXT)"
    )
    path = given(
        "INSERT INTO sessions VALUES ('ses_1', '2025-01-01', 'ses_gone'), ('ses_2', NULL, 'ses_1')",
        sessions,
    )
    adopt(path)
    parents = {row["session_id"]: row["parent_session_id"] for row in rows_of(path, "sessions")}
    assert parents == {"ses_1": None, "ses_2": "ses_1"}


# --- refusals


def run_with(**values: object) -> str:
    """An INSERT of a run that is good but for the given values."""
    row = {
        "run_id": "run_bad",
        "session_id": "ses_1",
        "type": "START_SESSION",
        "prompt": "secret prompt",
        "status": "pending",
        "created_at": "2025-01-01T00:00:00Z",
        **values,
    }
    texts = ", ".join("NULL" if value is None else f"'{value}'" for value in row.values())
    return f"INSERT INTO runs ({', '.join(row)}) VALUES ({texts})"


ONE_SESSION = "INSERT INTO sessions VALUES ('ses_1', 'a', 'x', '2025-01-01T00:00:00', NULL);"

BAD_RUNS = {
    "a time that is none": run_with(created_at="yesterday"),
    "a time as a number": run_with(created_at="1735689600"),
    "an empty time": run_with(created_at=" "),
    "a time outside the calendar": run_with(started_at="2025-02-30T00:00:00Z"),
    "a time before the first year": run_with(claimed_at="0001-01-01T00:00:00+14:00"),
    "an unknown status": run_with(status="queued"),
    "a status in capitals": run_with(status="PENDING"),
    "an unknown type": run_with(type="STOP_SESSION"),
    "an unknown mode": run_with(execution_mode="later"),
    "demands that are no JSON": run_with(demands="gpu"),
    "demands that are a list": run_with(demands='["gpu"]'),
    "demands that only Python calls JSON": run_with(demands='{"gpus": NaN}'),
}


@pytest.mark.parametrize("what", BAD_RUNS)
def test_a_bad_run_refuses_the_adoption_by_its_name_and_changes_nothing(given, dump, what):
    """One sentence that names the row; the database is as it was."""
    path = given(ONE_SESSION + BAD_RUNS[what])
    before = dump(path)
    with pytest.raises(ConfigurationError, match="run_bad") as refusal:
        adopt(path)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert dump(path) == before


@pytest.mark.parametrize(
    ("session", "named"),
    [
        ("('ses_bad', 'a', 'x', 'yesterday', NULL)", "ses_bad"),
        ("(NULL, 'a', 'x', '2025-01-01T00:00:00', NULL)", "session"),
    ],
)
def test_a_bad_session_refuses_the_adoption_too(given, dump, session, named):
    """A time that is none; a key that is NULL, which SQLite allows."""
    path = given(f"INSERT INTO sessions VALUES {session}")
    before = dump(path)
    with pytest.raises(ConfigurationError, match=named) as refusal:
        adopt(path)
    assert "\n" not in str(refusal.value)
    assert dump(path) == before


@pytest.mark.parametrize(
    ("sessions", "runs", "named"),
    [
        (None, "CREATE TABLE runs (run_id TEXT PRIMARY KEY)", "session_id"),
        ("CREATE TABLE sessions (id TEXT PRIMARY KEY)", None, "session_id"),
    ],
)
def test_tables_that_are_not_the_given_ones_are_refused(given, dump, sessions, runs, named):
    """The names alone do not make it our database."""
    path = given(**{key: value for key, value in (("sessions", sessions), ("runs", runs)) if value})
    before = dump(path)
    with pytest.raises(ConfigurationError, match=named):
        adopt(path)
    assert dump(path) == before


@pytest.mark.parametrize(
    "more",
    [
        "CREATE TABLE runners (id TEXT)",
        "CREATE TABLE run_events (id TEXT)",
        "CREATE TABLE daemons (id TEXT)",
        "CREATE TABLE other (x TEXT); CREATE INDEX idx_runs_ready ON other (x)",
        "CREATE TABLE other (x TEXT); CREATE TRIGGER sessions_delete AFTER INSERT ON other "
        "BEGIN SELECT 1; END",
        "CREATE TRIGGER runs_order_insert AFTER INSERT ON runs BEGIN SELECT 1; END",
        "CREATE VIEW daemons AS SELECT 1",
        "CREATE TABLE new_runs (x TEXT)",
    ],
)
def test_a_name_that_we_need_and_others_have_is_a_refusal_and_no_half_measure(given, dump, more):
    """One sentence; the database is as it was."""
    path = given(ONE_SESSION + more)
    before = dump(path)
    with pytest.raises(RunqueueError) as refusal:
        adopt(path)
    assert "\n" not in str(refusal.value)
    assert dump(path) == before


def test_broken_references_of_other_tables_are_a_refusal(given, dump):
    """We do not know what to do with rows that are not ours."""
    path = given(
        "CREATE TABLE messages (session_id TEXT REFERENCES sessions (session_id));"
        "INSERT INTO messages VALUES ('ses_gone')"
    )
    before = dump(path)
    with pytest.raises(ConfigurationError, match=r"1 rows? that refer"):
        adopt(path)
    assert dump(path) == before


# --- crashes


class Crash(Exception):
    """Stands for the end of the process."""


def test_an_exception_after_any_statement_leaves_the_database_as_it_was(
    given, dump, sql, monkeypatch
):
    """Every place at which an adoption can break off, one after the other."""
    path = given(EVERY_STATUS + ORPHAN + TWO_ACTIVE + THEIR_OWN)
    before = dump(path)
    real = peewee.SqliteDatabase.execute_sql
    left = 0

    def count_down(database, statement, *arguments, **keywords):
        nonlocal left
        if " = ON" not in statement and " = OFF" not in statement:
            left -= 1
            if left == 0:
                raise Crash
        return real(database, statement, *arguments, **keywords)

    monkeypatch.setattr(peewee.SqliteDatabase, "execute_sql", count_down)
    crashes = 0
    while True:
        left = crashes + 1
        try:
            adopt(path)
        except Crash:
            crashes += 1
            assert dump(path) == before, f"after statement {crashes}"
        else:
            break
    assert crashes > 60
    monkeypatch.undo()
    assert_sound(path, sql)
    assert sql(path, "PRAGMA user_version") == [(schema.VERSION,)]


KILLED = """
import os, sys
import peewee, runqueue
real, left = peewee.SqliteDatabase.execute_sql, int(sys.argv[2])
def count_down(database, *arguments, **keywords):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    return real(database, *arguments, **keywords)
peewee.SqliteDatabase.execute_sql = count_down
runqueue.connect(sys.argv[1])
"""


@pytest.mark.parametrize("after", [12, 30, 60])
def test_a_process_killed_in_the_middle_leaves_the_database_as_it_was(
    given, dump, python, sql, after
):
    """No handler runs; the next connect does the whole work."""
    path = given(EVERY_STATUS + ORPHAN + TWO_ACTIVE + THEIR_OWN)
    before = dump(path)
    child: subprocess.Popen[str] = python(KILLED, url(path), after)
    _, error = child.communicate(timeout=60)
    assert child.returncode == -9, error
    assert dump(path) == before
    adopt(path)
    assert_sound(path, sql)
