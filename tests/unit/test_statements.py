"""Every statement of the hot path compiles, and SQLite answers it by the index made for it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import runqueue
from runqueue import statements, statements_family
from runqueue.database import Hole, Statement, Store
from runqueue.states import ACTIVE, MOVES, TERMINAL, Status

RUN = "sqlite_autoindex_runs_1 (run_id=?)"
SESSION = "sqlite_autoindex_sessions_1 (session_id=?)"
OF_RUNNER = "idx_runs_runner_status_created (runner_id=? AND status=?)"
RUNNER = "sqlite_autoindex_runners_1 (runner_id=?)"
ATTEMPT = "sqlite_autoindex_run_attempts_1 (run_id=?)"

PLANS = {
    # statement: the first table that it touches, by which index
    "INSERT_SESSION": None,
    "INSERT_RUN": None,
    "INSERT_EVENT": None,
    "INSERT_RUNNER": None,
    "INSERT_DAEMON": None,
    "GET_RUN": RUN,
    "GET_SESSION": SESSION,
    "RUN_STATE": RUN,
    "RUN_STATUS": RUN,
    "EVENTS": "idx_run_events_run_id (run_id=?)",
    **{f"OWNER_MOVES[{name}]": RUN for name in ("start", "complete", "fail", "confirm", "release")},
    **{f"FREE_MOVES[{name}]": RUN for name in ("stop", "cancel", "release")},
    **{f"CLAIMS[{depth}]": RUN for depth in statements.CLAIMS},
    "DEMAND_TEXTS": "idx_runs_ready (waiting=?)",
    "BIND_SESSION": SESSION,
    "RESUME_SESSION": SESSION,
    "LOCK_SESSION": SESSION,
    "LOCK_SESSION_TO_DELETE": SESSION,
    "KEEP_SESSION": SESSION,
    "LOCK_RUNNER": RUNNER,
    "PENDING_OF_SESSION": "idx_runs_session_pending (session_id=?)",
    "SET_DEMANDS": RUN,
    "BEAT": RUNNER,
    "LEASE_WANTED": "daemons",
    "RUNNER_STATE": RUNNER,
    "OWNED": OF_RUNNER,
    "NOT_STARTED": OF_RUNNER,
    "KEEP_LATE": RUN,
    "INSERT_EVENTS": None,
    "TAKE_OVER": RUNNER,
    "DRAIN_RUNNER": RUNNER,
    "DELETE_RUNNER": RUNNER,
    "STUCK": "idx_runs_status_created (status=?)",
    "AHEAD_OF_TURN": "idx_runs_ready (waiting=?)",
    "UNMARK": RUN,
    "MARK": RUN,
    "BEAT_DAEMON": "sqlite_autoindex_daemons_1 (daemon_id=?)",
    "DELETE_DAEMON": "daemons",
    **{
        f"RESCUES[{name}].{part}": "idx_runs_status_created (status=?)"
        for name in ("settle", "lose", "release")
        for part in ("due", "move")
    },
    **{f"RESCUES[{name}].of_runner": OF_RUNNER for name in ("settle", "lose", "release")},
    "DUE": "idx_runs_timeout (status=? AND timeout_at<?)",
    "EXPIRE": "idx_runs_timeout (status=? AND timeout_at<?)",
    "LIVE_RUNNERS": "runners",
    "LIVE_DAEMONS": "daemons",
    "FORGET_RUNNERS": "runners",
    "OLDEST_PENDING": "idx_runs_status_created (status=?)",
    "PRUNE": RUN,
    "NTH_FINISHED": "COVERING INDEX idx_runs_status_created (status=?)",
    "START_MANY": RUN,
    "COMPLETE_MANY": RUN,
    "BIND_SESSIONS": SESSION,
    "RESUME_SESSIONS": SESSION,
    "PENDING_OF_SESSIONS": "SCAN listed VIRTUAL TABLE INDEX 1:",
    "DELETE_EMPTY_SESSION": SESSION,
    "DELETE_EMPTY_SESSIONS": SESSION,
    "DELETE_SESSION": SESSION,
    "ACTIVE_OF_SESSION": "idx_runs_one_active (session_id=?)",
    "FIRST_OF_SESSION": "idx_runs_session_pending (session_id=?)",
    "WAS_STARTED": "idx_runs_session_id (session_id=?)",
    **dict.fromkeys(
        ("STATUSES_OF_SESSION", "STATUSES_OF_SESSIONS"), "idx_runs_session_id (session_id=?)"
    ),
    "AHEAD": "idx_runs_ready (waiting=? AND <expr>=?)",
    # What follows an end, and trees.
    "ENDED": RUN,
    "ENDED_RUN": RUN,
    "UNTOLD": "idx_runs_untold (execution_mode=? AND callback_run_id=?)",
    "WAITING_CALLBACK": "idx_runs_tells (session_id=? AND tells>?)",
    "FIRST_PENDING": "idx_runs_session_pending (session_id=?)",
    "LATEST_AS_CHILD": "idx_runs_child (session_id=?)",
    "INSERT_CALLBACK": None,
    "EXTEND_CALLBACK": RUN,
    "MARK_TOLD": RUN,
    "MARK_AGAIN": RUN,
    "NOTE": RUN,
    "GET_ATTEMPT": ATTEMPT,
    "INSERT_ATTEMPT": None,
    "INSERT_NEXT": None,
    "NUMBER_ATTEMPT": RUN,
    "LINK_NEXT": ATTEMPT,
    "LINK_DUE": ATTEMPT,
    "SCHEDULE": ATTEMPT,
    "UNSCHEDULE": ATTEMPT,
    "DUE_ATTEMPTS": "idx_run_attempts_due (due_at<?)",
    "WAS_STOPPING": "idx_run_events_run_id (run_id=?)",
    "COUNT_LOST": ATTEMPT,
    "ADD_TO_ERROR": RUN,
    "PARENT_OF": SESSION,
    "SESSION_OF_RUN": RUN,
    "CHILDREN": "idx_sessions_parent (parent_session_id=?)",
    "LIVE_CHILDREN": "idx_sessions_parent (parent_session_id=?)",
    "LIMITS_OF": SESSION,
    "SET_LIMITS": SESSION,
    "COUNT_RUNS": "COVERING INDEX idx_runs_session_id (session_id=?)",
    "RUNS_OF": "idx_runs_session_id (session_id=?)",
    "SESSIONS_OF": SESSION,
    "LIVE_OF": "idx_runs_session_id (session_id=?)",
    "WAITING_ATTEMPTS": "idx_runs_session_id (session_id=?)",
    "SILENCE": "idx_runs_child (session_id=?)",
}
"""None: an INSERT has no plan of its own. A table's name: small, read whole."""

ONLY_WHERE_ROWS_ARE_LOCKED = {
    *("LOCK_SESSIONS", "LOCK_SESSIONS_TO_DELETE", "LOCK_SESSION_OF_RUN"),
    *("LOCK_SESSIONS_OF_RUNNER", "HEAL", "RIGHTS", "NEW_RUNS"),
}
"""Statements that SQLite does not know: a writer is alone there, and writes one table at a time."""

FIRST_FEW = (
    *("text", "texts", "listed", "start", "every", "some", "child"),
    *("newest_completed", "newest_failed", "newest_stopped"),
)
"""Lists that a statement is given, or that a limit within it keeps short."""
SMALL = ("runners", "daemons")
"""As many rows as there are processes; reading all of them is the cheapest."""


def _every() -> Iterator[tuple[str, Statement]]:
    for name, value in {**vars(statements), **vars(statements_family)}.items():
        if isinstance(value, Statement):
            if name not in ONLY_WHERE_ROWS_ARE_LOCKED:
                yield name, value
        elif name in ("OWNER_MOVES", "FREE_MOVES", "CLAIMS"):
            yield from ((f"{name}[{key}]", statement) for key, statement in value.items())
        elif name == "RESCUES":
            for rescue in value:
                for part in ("due", "move", "of_runner"):
                    yield f"{name}[{rescue.name}].{part}", getattr(rescue, part)


STATEMENTS = dict(_every())


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Store]:
    """One migrated empty database for all plans; none of them changes it."""
    path = tmp_path_factory.mktemp("plans") / "queue.db"
    with runqueue.connect(f"sqlite:///{path}") as queue:
        yield queue.store


def plan_of(store: Store, statement: Statement) -> list[str]:
    compiled = statement.compile(store.database)
    values: list[object] = [None] * len(compiled.template)
    rows = store.database.execute_sql(f"EXPLAIN QUERY PLAN {compiled.sql}", values).fetchall()
    return [row[3] for row in rows]


def sql_of(store: Store, name: str) -> str:
    return STATEMENTS[name].compile(store.database).sql


def test_every_statement_is_in_the_table_of_plans():
    """Whoever adds a statement says which index it is for."""
    assert set(STATEMENTS) == set(PLANS)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_compiles_and_all_its_values_are_holes(store, name):
    """Nothing that a call gives is left in the SQL of another call."""
    compiled = STATEMENTS[name].compile(store.database)
    assert compiled.sql.count("?") == len(compiled.template)
    fixed = [part for part in compiled.template if type(part) is not Hole]
    # A release clears two columns, a claim the four of an earlier life.
    assert set(fixed) <= {None}
    assert len(fixed) in (0, 1, 2, 4)


@pytest.mark.parametrize("name", [name for name, index in PLANS.items() if index])
def test_a_statement_uses_the_index_that_is_meant_for_it(store, name):
    """The first table that a statement touches is found by this index, on SQLite's planner."""
    plan = [line for line in plan_of(store, STATEMENTS[name]) if line[:4] in ("SEAR", "SCAN")]
    wanted = PLANS[name]
    if wanted in SMALL:
        # The runners and daemons are few; what else it looks at, it seeks.
        assert not [line for line in plan[1:] if line.startswith("SCAN")], plan
    else:
        assert plan[0].endswith(wanted), plan


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_reads_all_runs_sessions_or_events(store, name):
    """Cost is flat: it follows neither the finished runs nor the backlog."""
    compiled = STATEMENTS[name].compile(store.database)
    tables = dict(re.findall(r'"(\w+)" AS "(\w+)"', compiled.sql))
    aliases = {alias: table for table, alias in tables.items()}
    for line in plan_of(store, STATEMENTS[name]):
        if match := re.match(r"SCAN (\w+)", line):
            scanned = aliases.get(match[1], match[1])
            assert scanned in (*SMALL, *FIRST_FEW), line


def test_a_claim_is_one_seek_for_each_demand_text(store):
    """Of each text it finds the oldest ready run by the index, and takes the best by its key."""
    plan = plan_of(store, STATEMENTS["CLAIMS[4]"])
    on_runs = [line for line in plan if line.startswith(("SEARCH", "SCAN"))]
    assert on_runs == [
        f"SEARCH runs USING INDEX {RUN}",
        "SCAN text VIRTUAL TABLE INDEX 1:",
        "SEARCH best USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH run USING INDEX idx_runs_ready (waiting=? AND <expr>=?)",
        f"SEARCH t1 USING INDEX {RUNNER}",
    ]
    # One sort, of one candidate a text; the seek itself needs none, for the index is in order.
    assert plan.count("USE TEMP B-TREE FOR ORDER BY") == 1


def test_the_demand_texts_are_found_by_skipping_and_not_by_sorting(store):
    """As many seeks as there are different texts, however many runs wait."""
    plan = plan_of(store, STATEMENTS["DEMAND_TEXTS"])
    assert "SEARCH after USING INDEX idx_runs_ready (waiting=? AND <expr>>?)" in plan
    assert not [line for line in plan if "TEMP B-TREE" in line]


@pytest.mark.parametrize("name", ["FIRST_OF_SESSION", "EVENTS", "OLDEST_PENDING", "OWNED"])
def test_what_is_wanted_in_an_order_is_read_in_that_order(store, name):
    """No sort stands between the index and the answer."""
    assert not [line for line in plan_of(store, STATEMENTS[name]) if "TEMP B-TREE" in line]


@pytest.mark.parametrize("name", ["settle", "lose", "release"])
def test_looking_for_dead_owners_seeks_runners_and_events_by_their_keys(store, name):
    """A tick that finds nothing costs one seek for each active run."""
    plan = plan_of(store, STATEMENTS[f"RESCUES[{name}].due"])
    assert f"SEARCH t2 USING INDEX {RUNNER}" in plan
    assert not [line for line in plan if line.startswith("SCAN")]
    if name == "settle":
        assert "SEARCH t3 USING INDEX idx_run_events_run_id (run_id=?)" in plan


def test_pruning_seeks_only_runs_of_terminal_statuses_that_are_old(store):
    """A prune that finds nothing to delete reads nothing."""
    plan = plan_of(store, STATEMENTS["PRUNE"])
    assert "SEARCH old USING INDEX idx_runs_status_created (status=? AND created_at<?)" in plan


# --- the guards, in the SQL itself

MOVING = {
    **{f"OWNER_MOVES[{name}]": name for name in statements.OWNER_MOVES},
    **{f"FREE_MOVES[{name}]": name for name in statements.FREE_MOVES},
    **{
        f"RESCUES[{rescue.name}].{part}": rescue.name
        for rescue in statements.RESCUES
        for part in ("move", "of_runner")
    },
    **{f"CLAIMS[{depth}]": "claim" for depth in statements.CLAIMS},
    "EXPIRE": "expire",
    "START_MANY": "start",
    "COMPLETE_MANY": "complete",
}


def test_every_move_has_a_statement():
    """Nothing in the table is left to be done by hand."""
    assert set(MOVING.values()) == set(MOVES)


def test_only_the_statements_of_moves_assign_a_status(store):
    """Of all compiled SQL, nothing else sets runs.status."""
    setting = re.compile(r'^UPDATE "runs" SET (?:(?! WHERE ).)*"status" = ')
    assert {name for name in STATEMENTS if setting.match(sql_of(store, name))} == set(MOVING)


@pytest.mark.parametrize("name", MOVING)
def test_a_move_is_guarded_by_exactly_its_sources(store, name):
    """The compiled UPDATE names the statuses of the table, and its rows are the verdict."""
    sql = sql_of(store, name)
    move = MOVES[MOVING[name]]
    assert f""""status" = '{move.target}'""" in sql.split(" WHERE ")[0]
    sources = ", ".join(f"'{status}'" for status in Status if status in move.sources)
    where = sql.split(" WHERE ", 1)[1]
    assert f'"runs"."status" IN ({sources})' in where or f'"status" IN ({sources})' in where
    assert " OR " not in where.split(f"IN ({sources})")[0]
    assert (" RETURNING " in sql) != name.endswith("_MANY"), "or their sum is the verdict"


@pytest.mark.parametrize("name", statements.OWNER_MOVES)
def test_a_move_of_an_owner_is_fenced_by_runner_and_time_of_claim(store, name):
    """Both columns are compared, with the values of the call."""
    compiled = statements.OWNER_MOVES[name].compile(store.database)
    where = compiled.sql.split(" WHERE ", 1)[1].split(" RETURNING ")[0]
    assert where.count("?") == 3
    assert [part.name for part in compiled.template[-3:]] == ["run_id", "runner_id", "claimed_at"]
    for column in ("run_id", "runner_id", "claimed_at"):
        assert f'"{column}" = ?' in where
    assert " OR " not in where


@pytest.mark.parametrize("name", MOVING)
def test_a_move_stamps_the_column_of_the_table(store, name):
    """The time of the move is set in the same statement as the status."""
    sets = sql_of(store, name).split(" WHERE ")[0]
    stamp = MOVES[MOVING[name]].stamp
    stamps = [column for column in ("started_at", "completed_at") if f'"{column}" = ?' in sets]
    if stamp == "claimed_at":
        assert '"claimed_at" = ?' in sets
        assert '"runner_id" = ?' in sets
    else:
        assert stamps == ([stamp] if stamp else [])


@pytest.mark.parametrize("name", [name for name, move in MOVING.items() if move == "release"])
def test_a_release_clears_the_owner(store, name):
    """runner_id and claimed_at become NULL with the status."""
    compiled = STATEMENTS[name].compile(store.database)
    sets = compiled.sql.split(" WHERE ")[0]
    assert '"runner_id" = ?' in sets
    assert '"claimed_at" = ?' in sets
    assert compiled.template[:2] == (None, None)


def test_statuses_stand_in_the_sql_as_the_partial_indexes_spell_them(store):
    """Neither planner uses a partial index when its condition is a parameter."""
    active = ", ".join(f"'{status}'" for status in Status if status in ACTIVE)
    terminal = ", ".join(f"'{status}'" for status in Status if status in TERMINAL)
    assert f"IN ({active})" in sql_of(store, "OWNED")
    assert f"IN ({terminal})" in sql_of(store, "PRUNE")
    (index,) = store.database.execute_sql(
        "SELECT sql FROM sqlite_master WHERE name = 'idx_runs_one_active'"
    ).fetchone()
    assert f"IN ({active})" in index


def test_a_claim_returns_every_column_but_the_result(store):
    """A run that was released may carry nothing of a result; reading one could cost a megabyte."""
    returned = sql_of(store, "CLAIMS[4]").rpartition(" RETURNING ")[2]
    names = re.findall(r'"(\w+)"(?:,|$)', returned)
    assert "result" not in names
    assert len(names) == len(statements.CLAIM_COLUMNS)


def test_a_claim_never_takes_a_run_that_is_due_or_waits_for_its_session(store):
    """Both conditions are in the statement itself, beside the status."""
    sql = sql_of(store, "CLAIMS[4]")
    assert '"waiting" = 0' in sql
    assert re.search(r'"timeout_at" > \?\) OR \("\w+"\."timeout_at" IS NULL', sql)
