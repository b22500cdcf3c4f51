"""PostgreSQL answers every statement by an index, whatever it last heard of the tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from runqueue import Queue, statements, statements_family
from runqueue.database import Hole, Statement
from tests.helpers import execute_sql

WHOLE = {"COUNTS"}
"""Statements about all runs."""
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
VALUES = {
    "texts": [""],
    "session_ids": ["ses_a"],
    "run_ids": ["run_a"],
    "attempt": 1,
    "tells": 1,
    "lost": 1,
    "limit": 10,
    "newer": 10,
    "priority": 0,
    "waiting": 0,
    "lease": 1.0,
}


def plan_of(queue: Queue, statement: Statement) -> list[str]:
    compiled = statement.compile(queue.database)
    values = [
        VALUES.get(part.name, "2026-01-01T00:00:00.000000Z") if isinstance(part, Hole) else part
        for part in compiled.template
    ]
    with queue.database.connection_context():
        rows = queue.database.execute_sql(f"EXPLAIN {compiled.sql}", values).fetchall()
    return [row[0].strip() for row in rows]


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


@pytest.mark.parametrize("state", ["empty", "never analysed", "analysed", "analysed when empty"])
def test_no_statement_reads_a_whole_table(queue: Queue, state: str) -> None:
    """A plan that is made once is kept, so it must not depend on what was there at the time."""
    if state == "analysed when empty":
        execute_sql(queue, "ANALYZE")
    if state != "empty":
        fill(queue, pending=500, ended=500)
    if state == "analysed":
        execute_sql(queue, "ANALYZE")
    for name, statement in STATEMENTS.items():
        for line in plan_of(queue, statement):
            scanned = re.search(r"Seq Scan on (\w+)", line)
            assert not scanned or scanned[1] in SMALL or name in WHOLE, (name, line)


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
        assert set(used) == {"idx_runs_ready", "runs_pkey", "sessions_pkey"}, used


OWNERS = [name for name in STATEMENTS if name.startswith("OWNER_") or name.endswith("_MANY")]


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("state", ["empty", "never analysed", "analysed", "analysed when empty"])
def test_an_owners_move_finds_its_run_by_its_key(queue: Queue, state: str, name: str) -> None:
    """And not among all that its runner has ever executed."""
    if state == "analysed when empty":
        execute_sql(queue, "ANALYZE")
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
