"""Whatever anybody writes, each session offers at most one run, and the right one.

The triggers keep `waiting`; here every kind of write happens in every order, and after each one
the whole table is compared with the rule. Foreign keys are off, as in the stock shell.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runqueue

ACTIVE = ("claimed", "running", "stopping")
STATUSES = ("pending", "pending", *ACTIVE, "completed", "failed", "stopped")

RUNS = st.sampled_from([f"run_{number}" for number in range(4)])
SESSIONS = st.sampled_from(["ses_a", "ses_a", "ses_b"])
TIMES = st.sampled_from(
    [
        "2025-01-01T00:00:00.000000Z",
        "2025-01-01T00:00:00.500000Z",
        "2025-01-01T00:00:01.000000Z",
        "2025-01-01T00:00:00Z",
        "2025-01-01T00:00:00.5+00:00",
    ]
)
TIME = "2025-01-01T00:00:00.000000Z"
PRIORITIES = st.sampled_from([0, 0, 1, -1])

INSERT = (
    "INTO runs (run_id, session_id, type, prompt, status, created_at, priority)"
    " VALUES (?, ?, 'START_SESSION', 'x', ?, ?, ?)"
)
ROW = st.tuples(RUNS, SESSIONS, st.sampled_from(STATUSES), TIMES, PRIORITIES)

STEPS = st.one_of(
    ROW.map(lambda row: (f"INSERT {INSERT}", row)),
    ROW.map(lambda row: (f"INSERT {INSERT}", (*row[:2], "pending", *row[3:]))),
    ROW.map(lambda row: (f"INSERT OR IGNORE {INSERT}", row)),
    st.tuples(st.sampled_from(STATUSES), RUNS).map(
        lambda values: ("UPDATE runs SET status = ? WHERE run_id = ?", values)
    ),
    st.tuples(PRIORITIES, RUNS).map(
        lambda values: ("UPDATE runs SET priority = ? WHERE run_id = ?", values)
    ),
    st.tuples(TIMES, RUNS).map(
        lambda values: ("UPDATE runs SET created_at = ? WHERE run_id = ?", values)
    ),
    st.tuples(st.sampled_from(STATUSES), PRIORITIES, TIMES, RUNS).map(
        lambda values: (
            "UPDATE runs SET status = ?, priority = ?, created_at = ? WHERE run_id = ?",
            values,
        )
    ),
    st.tuples(SESSIONS, RUNS).map(
        lambda values: ("UPDATE runs SET session_id = ? WHERE run_id = ?", values)
    ),
    st.tuples(st.sampled_from(STATUSES), SESSIONS, RUNS).map(
        lambda values: ("UPDATE runs SET status = ?, session_id = ? WHERE run_id = ?", values)
    ),
    st.tuples(st.sampled_from(STATUSES), SESSIONS).map(
        lambda values: ("UPDATE runs SET status = ? WHERE session_id = ?", values)
    ),
    st.tuples(PRIORITIES).map(lambda values: ("UPDATE runs SET priority = ?", values)),
    RUNS.map(lambda run: ("DELETE FROM runs WHERE run_id = ?", (run,))),
    st.sampled_from(STATUSES).map(lambda status: ("DELETE FROM runs WHERE status = ?", (status,))),
)

examples = settings(
    derandomize=True,
    deadline=None,
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A migrated database with two sessions, to be copied for each example."""
    path = tmp_path_factory.mktemp("order") / "queue.db"
    with runqueue.connect(f"sqlite:///{path}"):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for session in ("ses_a", "ses_b"):
            connection.execute(
                "INSERT INTO sessions (session_id, created_at) VALUES (?, '2025-01-01T00:00:00Z')",
                (session,),
            )
        yield connection


def offered(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """The runs of each session that may be claimed, by the mark."""
    found: dict[str, list[str]] = {"ses_a": [], "ses_b": []}
    for session, run in connection.execute(
        "SELECT session_id, run_id FROM runs WHERE status = 'pending' AND waiting = 0"
    ):
        found[session].append(run)
    return found


def to_be_offered(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """The same, by the rule: the first pending run of a session that has no active one."""
    rows = connection.execute(
        "SELECT session_id, run_id, status, priority, created_at FROM runs"
    ).fetchall()
    found = {}
    for session in ("ses_a", "ses_b"):
        own = [row for row in rows if row[0] == session]
        pending = [row for row in own if row[2] == "pending"]
        busy = any(row[2] in ACTIVE for row in own)
        pending.sort(key=lambda row: (-row[3], row[4], row[1]))
        found[session] = [] if busy or not pending else [pending[0][1]]
    return found


def follow(template: sqlite3.Connection, steps: list[tuple[str, tuple[object, ...]]]) -> int:
    """Execute the steps and check the rule after each; return how many were accepted."""
    accepted = 0
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        template.backup(connection)
        for sql, values in steps:
            try:
                connection.execute(sql, values)
                accepted += 1
            except sqlite3.IntegrityError:
                pass  # a second active run, or an id that exists: refused as a whole
            assert offered(connection) == to_be_offered(connection), (sql, values)
            assert connection.execute(
                "SELECT count(*) FROM runs WHERE length(created_at) <> 27"
            ).fetchone() == (0,)
    return accepted


# A session of three pending runs, run_0 the first: most of what can go wrong needs some waiting.
FULL = [(f"INSERT {INSERT}", (f"run_{number}", "ses_a", "pending", TIME, 0)) for number in range(3)]


@pytest.mark.parametrize("status", ["pending", "running"])
@pytest.mark.parametrize(
    "step",
    [
        "DELETE FROM runs WHERE run_id = 'run_0'",
        "DELETE FROM runs WHERE run_id = 'run_1'",
        "DELETE FROM runs WHERE run_id <> 'run_2'",
        "UPDATE runs SET session_id = 'ses_b' WHERE run_id = 'run_0'",
        "UPDATE runs SET session_id = 'ses_b' WHERE run_id = 'run_1'",
        "UPDATE runs SET session_id = 'ses_b'",
        "UPDATE runs SET status = 'completed' WHERE run_id = 'run_0'",
        "UPDATE runs SET status = 'running' WHERE run_id = 'run_1'",
        "UPDATE runs SET status = 'failed' WHERE run_id = 'run_1'",
        "UPDATE runs SET status = 'pending'",
        "UPDATE runs SET status = 'stopped'",
        "UPDATE runs SET priority = 5 WHERE run_id = 'run_2'",
        "UPDATE runs SET priority = -5 WHERE run_id = 'run_0'",
        "UPDATE runs SET created_at = '2024-01-01T00:00:00.000000Z' WHERE run_id = 'run_2'",
        "UPDATE runs SET created_at = '2026-01-01T00:00:00.000000Z' WHERE run_id = 'run_0'",
        "UPDATE runs SET created_at = '2026-01-01T00:00:00Z' WHERE run_id = 'run_0'",
        "UPDATE runs SET status = 'claimed', session_id = 'ses_b' WHERE run_id = 'run_0'",
        "UPDATE runs SET status = 'pending', session_id = 'ses_b' WHERE run_id = 'run_0'",
    ],
)
def test_one_write_to_a_full_session_offers_what_is_now_first(template, step, status):
    """Three runs wait, or two behind an active one; then somebody does this."""
    busy = ("UPDATE runs SET status = ? WHERE run_id = 'run_0'", (status,))
    assert follow(template, [*FULL, busy, (step, ())]) >= 4


@examples
@given(steps=st.lists(STEPS, min_size=2, max_size=14))
def test_a_session_offers_its_first_pending_run_and_only_when_it_has_no_active_one(template, steps):
    """After every INSERT, UPDATE or DELETE, of one row or many, by anybody."""
    follow(template, [*FULL, *steps])


# A replaced run that changes its session leaves no trace of the old one, so it is not tried here.
IN_ONE_SESSION = st.one_of(
    STEPS.filter(lambda step: "ses_b" not in step[1]),
    ROW.map(lambda row: (f"INSERT OR REPLACE {INSERT}", (row[0], "ses_a", *row[2:]))),
)


@examples
@given(steps=st.lists(IN_ONE_SESSION, min_size=2, max_size=14))
def test_the_order_holds_also_for_programs_that_save_by_insert_or_replace(template, steps):
    """The replaced row vanishes without a trigger; what is inserted must put things right."""
    follow(template, [*FULL, *steps])


@pytest.mark.parametrize("status", ["completed", "failed", "stopped", "pending", "running"])
def test_saving_a_run_by_insert_or_replace_keeps_the_order_of_its_session(template, status):
    """As programs do that know no UPDATE; SQLite fires no DELETE trigger for what is replaced."""
    follow(
        template,
        [
            (f"INSERT {INSERT}", ("run_0", "ses_a", "running", TIME, 0)),
            (f"INSERT {INSERT}", ("run_1", "ses_a", "pending", TIME, 0)),
            (f"INSERT OR REPLACE {INSERT}", ("run_0", "ses_a", status, TIME, 0)),
            (f"INSERT OR REPLACE {INSERT}", ("run_1", "ses_a", "pending", TIME, 1)),
        ],
    )


def test_saving_the_first_pending_run_as_ended_offers_the_next(template):
    """The one behind it must not wait for ever."""
    follow(
        template,
        [
            (f"INSERT {INSERT}", ("run_0", "ses_a", "pending", TIME, 0)),
            (f"INSERT {INSERT}", ("run_1", "ses_a", "pending", TIME, 0)),
            (f"INSERT OR REPLACE {INSERT}", ("run_0", "ses_a", "stopped", TIME, 0)),
        ],
    )


def test_a_long_queue_of_one_session_is_offered_in_order(template):
    """Two hundred runs, each ended by hand as soon as it is offered."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        template.backup(connection)
        for number in range(200):
            connection.execute(
                f"INSERT {INSERT}",
                (
                    f"run_{number:03}",
                    "ses_a",
                    "pending",
                    f"2025-01-01T00:{number * 7 % 60:02}:00Z",
                    number * 3 % 5,
                ),
            )
        order = []
        while run := offered(connection)["ses_a"]:
            assert run == to_be_offered(connection)["ses_a"]
            order += run
            connection.execute("UPDATE runs SET status = 'completed' WHERE run_id = ?", run)
        assert len(order) == 200
