"""PostgreSQL answers every statement by an index, whatever it last heard of the tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from runqueue import Queue, statements, statements_family
from runqueue.database import Statement
from tests.helpers import execute_sql, explained

SMALL = ("runners", "daemons")


pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


def every_statement() -> Iterator[tuple[str, Statement]]:
    for name, value in {**vars(statements), **vars(statements_family)}.items():
        if isinstance(value, Statement):
            yield name, value
        elif isinstance(value, dict):
            yield from (
                (f"{name}[{key}]", one) for key, one in value.items() if isinstance(one, Statement)
            )
        elif name == "RESCUES":
            for rescue in value:
                for part in ("due", "move", "of_runner"):
                    yield f"{name}[{rescue.name}].{part}", getattr(rescue, part)


STATEMENTS = {name: one for name, one in every_statement() if not name.startswith("INSERT_")}
BY_KEY = (
    *("GET_RUN", "RUN_STATE", "RUN_STATUS", "KEEP_LATE", "SET_DEMANDS", "SESSION_OF_RUN"),
    *("ENDED", "ENDED_RUN", "NOTE", "NUMBER_ATTEMPT", "ADD_TO_ERROR"),
    *("MARK_TOLD", "MARK_AGAIN", "EXTEND_CALLBACK"),
)
OF_ATTEMPT = ("GET_ATTEMPT", "COUNT_LOST", "LINK_NEXT", "LINK_DUE", "SCHEDULE", "UNSCHEDULE")
OF_SESSION = (
    *("BIND_SESSION", "RESUME_SESSION", "BIND_SESSIONS", "RESUME_SESSIONS"),
    *("LOCK_SESSION", "LOCK_SESSION_TO_DELETE", "LIMITS_OF", "SET_LIMITS", "SESSIONS_OF"),
)
OF_RUNNER = ("BEAT", "RUNNER_STATE", "TAKE_OVER", "LOCK_RUNNER", "DRAIN_RUNNER", "DELETE_RUNNER")
OF_STATUS = "idx_runs_status(_created)?"
"""Where a status is all that is asked for, either index will do."""

PLANS = {
    # statement: all indexes that it is answered by, as regular expressions
    **dict.fromkeys(BY_KEY, "runs_pkey"),
    **dict.fromkeys((*OF_SESSION, "GET_SESSION", "KEEP_SESSION"), "sessions_pkey"),
    **dict.fromkeys(("LOCK_SESSIONS", "LOCK_SESSIONS_TO_DELETE"), "sessions_pkey"),
    **dict.fromkeys(OF_RUNNER, "runners_pkey"),
    **{f"OWNER_MOVES[{name}]": "runs_pkey sessions_pkey" for name in statements.OWNER_MOVES},
    **{f"FREE_MOVES[{name}]": "runs_pkey" for name in statements.FREE_MOVES},
    **{
        f"CLAIMS[{depth}]": "idx_runs_ready runners_pkey runs_pkey sessions_pkey"
        for depth in statements.CLAIMS
    },
    **{f"LONE_MOVES[{name}]": "runs_pkey sessions_pkey" for name in statements.LONE_MOVES},
    "LONE_MOVES[start]": "idx_runs_session_pending runs_pkey sessions_pkey",
    "START_MANY": "runs_pkey",
    "COMPLETE_MANY": "runs_pkey",
    "EVENTS": "idx_run_events_run_id",
    "DEMAND_TEXTS": "idx_runs_ready",
    "LOCK_SESSION_OF_RUN": "runs_pkey sessions_pkey",
    "LOCK_SESSIONS_OF_RUNNER": "idx_runs_owner sessions_pkey",
    "PENDING_OF_SESSION": "idx_runs_session_pending",
    "PENDING_OF_SESSIONS": "idx_runs_session_(id|pending)",
    "OWNED": "idx_runs_owner",
    "NOT_STARTED": "idx_runs_owner",
    "FORGET_RUNNERS": "idx_runs_owner",
    "RESCUES[settle].due": f"idx_run_events_run_id {OF_STATUS} runners_pkey",
    "RESCUES[settle].move": f"idx_run_events_run_id {OF_STATUS} runners_pkey runs_pkey "
    "sessions_pkey",
    **{
        f"RESCUES[{name}].{part}": f"{OF_STATUS} runners_pkey{more}"
        for name in ("lose", "release")
        for part, more in (("due", ""), ("move", " runs_pkey sessions_pkey"))
    },
    **{f"RESCUES[{rescue.name}].of_runner": "idx_runs_owner" for rescue in statements.RESCUES},
    "DUE": "idx_runs_timeout",
    "EXPIRE": "idx_runs_timeout( runs_pkey)? sessions_pkey",
    "OLDEST_PENDING": "idx_runs_status_created",
    "PRUNE": f"{OF_STATUS} run_attempts_pkey runs_pkey",
    "NTH_FINISHED": "(idx_runs_status )?idx_runs_status_created|idx_runs_status",
    **dict.fromkeys(
        ("DELETE_EMPTY_SESSION", "DELETE_EMPTY_SESSIONS"),
        "idx_runs_(parent|child) idx_runs_session_id run_attempts_pkey sessions_pkey",
    ),
    "DELETE_SESSION": "sessions_pkey",
    "ACTIVE_OF_SESSION": "idx_runs_one_active",
    "FIRST_OF_SESSION": "idx_runs_session_pending",
    "WAS_STARTED": "idx_runs_session_id",
    **dict.fromkeys(("STATUSES_OF_SESSION", "STATUSES_OF_SESSIONS"), "idx_runs_session_id"),
    "AHEAD": "idx_runs_ready",
    **dict.fromkeys(OF_ATTEMPT, "run_attempts_pkey"),
    **dict.fromkeys(("COUNT_RUNS", "RUNS_OF", "LIVE_OF"), "idx_runs_session_id"),
    "FIRST_PENDING": "idx_runs_session_pending",
    "WAITING_CALLBACK": "idx_runs_tells",
    "WAS_STOPPING": "idx_run_events_run_id",
    "DUE_ATTEMPTS": "idx_run_attempts_due",
    "WAITING_ATTEMPTS": "(idx_run_attempts_due )?idx_runs_session_id( run_attempts_pkey)?",
    "UNTOLD": "idx_runs_untold",
    "LATEST_AS_CHILD": "idx_runs_child",
    "PARENT_OF": "idx_runs_child sessions_pkey",
    "CHILDREN": "idx_runs_(parent|child) idx_sessions_parent",
    "LIVE_CHILDREN": "idx_runs_(child )?(idx_runs_)?one_active( idx_runs_parent)? "
    "idx_runs_session_pending idx_sessions_parent",
    "SILENCE": "idx_runs_(child|parent)( idx_runs_session_id)?",
}
OTHERS = {
    # tables of as many rows as there are processes
    *("LEASE_WANTED", "BEAT_DAEMON", "DELETE_DAEMON", "LIVE_RUNNERS", "LIVE_DAEMONS"),
    # they read nothing but what they are given
    *("NEW_RUNS", "RIGHTS"),
    # read by a function of the database, or by `db check`, which reads everything
    *("HEAL", "STUCK", "AHEAD_OF_TURN", "UNMARK", "MARK"),
}
WITHOUT_CONDITION = {
    # it reads the first entry of an index, and seeks the next texts from there
    "DEMAND_TEXTS",
    # an index that holds only what is to be found
    "UNTOLD",
    # of what is rare: while there is next to none, reading all of it is as cheap as seeking
    *("CHILDREN", "LIVE_CHILDREN", "SILENCE", "WAITING_ATTEMPTS"),
    *("DELETE_EMPTY_SESSION", "DELETE_EMPTY_SESSIONS"),
}
"""Statements that may read an index from its beginning."""


STATES = ("empty", "vacuumed when empty", "never analysed", "analysed", "analysed when empty")
"""What the planner may know; of what was vacuumed when empty, how the rows were, and that there
is not one page."""


def plan_of(queue: Queue, statement: Statement) -> list[str]:
    return [line.strip() for line in explained(queue, statement.compile(queue.database))]


def vacuum(queue: Queue) -> None:
    """As the server does now and then by itself, here of a queue of which all was pruned."""
    fill(queue, pending=200, ended=200)
    execute_sql(
        queue,
        "INSERT INTO run_events (run_id, at, status, actor) "
        "SELECT run_id, created_at, status, 'caller' FROM runs",
    )
    execute_sql(queue, "ANALYZE")
    execute_sql(queue, "DELETE FROM sessions")
    queue.database.execute_sql("VACUUM")


def fill(queue: Queue, pending: int, ended: int) -> None:
    """Runs of as many sessions, some of them ended."""
    execute_sql(
        queue,
        "INSERT INTO sessions (session_id, created_at) SELECT 'ses_' || n, "
        "'2026-01-01T00:00:00.000000Z' FROM generate_series(1, ?) AS n",
        pending + ended,
    )
    execute_sql(
        queue,
        "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at, completed_at) "
        "SELECT 'run_' || n, 'ses_' || n, 'START_SESSION', 'x', "
        "CASE WHEN n > ? THEN 'pending' ELSE 'completed' END, "
        "'2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z' "
        "FROM generate_series(1, ?) AS n",
        ended,
        pending + ended,
    )


@pytest.mark.parametrize("state", STATES)
def test_no_statement_reads_a_whole_table(queue: Queue, state: str) -> None:
    """A plan that is made once is kept, so it must not depend on what was there at the time."""
    if state == "analysed when empty":
        execute_sql(queue, "ANALYZE")
    if state == "vacuumed when empty":
        vacuum(queue)
    if state != "empty":
        fill(queue, pending=500, ended=500)
    if state == "analysed":
        execute_sql(queue, "ANALYZE")
    for name, statement in STATEMENTS.items():
        for line in plan_of(queue, statement):
            scanned = re.search(r"Seq Scan on (\w+)", line)
            assert not scanned or scanned[1] in SMALL, (name, line)


def indexes_of(plan: list[str], name: str) -> set[str]:
    """The indexes of a plan, each of them sought in by a condition."""
    used = set()
    for number, line in enumerate(plan):
        if match := re.search(r"Scan (?:Backward )?(?:using|on) (idx_\w+|\w+_pkey)", line):
            used.add(match[1])
            is_sought = "Index Cond" in " ".join(plan[number + 1 : number + 2])
            assert is_sought or name in WITHOUT_CONDITION, (name, plan)
    return used


def test_every_statement_is_in_the_table_of_plans(queue: Queue) -> None:
    """Whoever adds a statement says which indexes it is for."""
    assert set(STATEMENTS) == set(PLANS) | OTHERS


@pytest.mark.parametrize("state", STATES)
def test_a_statement_is_answered_by_the_indexes_that_are_meant_for_it(
    queue: Queue, state: str
) -> None:
    """Whatever the planner believes; an index that is read from end to end answers nothing."""
    if state == "analysed when empty":
        # Not only new, but with the room of what was deleted: the planner expects nothing there.
        fill(queue, pending=500, ended=500)
        execute_sql(queue, "DELETE FROM sessions")
        execute_sql(queue, "ANALYZE")
    if state == "vacuumed when empty":
        vacuum(queue)
    if state != "empty":
        fill(queue, pending=1000, ended=1000)
    if state == "analysed":
        execute_sql(queue, "ANALYZE")
    for name, wanted in PLANS.items():
        used = indexes_of(plan_of(queue, STATEMENTS[name]), name)
        assert re.fullmatch(wanted, " ".join(sorted(used))), (name, used)


@pytest.mark.parametrize("state", ["never analysed", "analysed", "analysed when empty"])
def test_a_claim_seeks_ready_runs_and_the_rest_by_their_keys(queue: Queue, state: str) -> None:
    """Not by the index of statuses, in which all pending runs are one."""
    if state == "analysed when empty":
        execute_sql(queue, "ANALYZE")
    fill(queue, pending=2000, ended=10)
    if state == "analysed":
        execute_sql(queue, "ANALYZE")
    for statement in statements.CLAIMS.values():
        plan = plan_of(queue, statement)
        used = []
        for number, line in enumerate(plan):
            if match := re.search(r"Scan (?:using|on) (idx_\w+|\w+_pkey)", line):
                used.append(match[1])
                # Without a condition it would read the index from one end to the other.
                assert plan[number + 1].startswith("Index Cond"), plan
        keys = {"runs_pkey", "sessions_pkey", "runners_pkey"}
        assert set(used) == {"idx_runs_ready", *keys}, used


OWNERS = [name for name in STATEMENTS if name.startswith("OWNER_") or name.endswith("_MANY")]


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("state", STATES)
def test_an_owners_move_finds_its_run_by_its_key(queue: Queue, state: str, name: str) -> None:
    """And not among all that its runner has ever executed."""
    if state == "analysed when empty":
        execute_sql(queue, "ANALYZE")
    if state == "vacuumed when empty":
        vacuum(queue)
    if state != "empty":
        fill(queue, pending=500, ended=500)
        execute_sql(queue, "UPDATE runs SET runner_id = 'worker' WHERE status = 'completed'")
    if state == "analysed":
        execute_sql(queue, "ANALYZE")
    plan = " ".join(plan_of(queue, STATEMENTS[name]))
    assert "runs_pkey" in plan
    assert "idx_runs" not in plan, plan


@pytest.mark.parametrize("name", ["FIRST_OF_SESSION", "PENDING_OF_SESSION"])
def test_the_runs_of_a_session_are_found_by_its_own_index(queue: Queue, name: str) -> None:
    """However many pending runs other sessions have."""
    execute_sql(queue, "ANALYZE")
    fill(queue, pending=1000, ended=0)
    assert "idx_runs_session_pending" in " ".join(plan_of(queue, STATEMENTS[name]))
