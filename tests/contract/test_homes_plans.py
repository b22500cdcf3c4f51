"""The statements about homes and silence seek their rows, on both databases."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import runqueue
from runqueue import Queue, statements, statements_homes
from runqueue.database import Statement, Store
from tests.contract.test_postgres_plans import fill
from tests.contract.test_postgres_plans import plan_of as postgres_plan
from tests.helpers import execute_sql
from tests.unit.test_statements import plan_of as sqlite_plan

SESSION = "sqlite_autoindex_sessions_1 (session_id=?)"
RUN = "sqlite_autoindex_runs_1 (run_id=?)"
PLANS = {
    "SET_HOME": [SESSION],
    "WAITING_IN_SESSION": ["idx_runs_session_pending (session_id=?)"],
    "ENDED_IN_SESSION": ["idx_runs_session_id (session_id=?)"],
    "FOLLOW_HOME": [RUN],
    "HOMES": [SESSION, "1:"],  # of the listed
    "HAS_FOLLOWED": ["idx_run_events_run_id (run_id=?)"],
    "BIND_EXECUTOR": [SESSION, "idx_sessions_executor (executor_session_id=?)"],
    "WHO_HAS_EXECUTOR": [SESSION, "idx_sessions_executor (executor_session_id=?)"],
    "EXECUTOR_OF": [SESSION],
    "TELL_OUTPUT": [RUN],
    "OUTPUT_OF": ["sqlite_autoindex_run_output_1 (run_id=?)"],
}
STATEMENTS = {
    name: value
    for name, value in vars(statements_homes).items()
    if isinstance(value, Statement) and name != "LOCK_EXECUTOR"
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An empty SQLite database, of which no plan depends on what is in it."""
    path = tmp_path_factory.mktemp("plans") / "queue.db"
    with runqueue.connect(f"sqlite:///{path}") as queue:
        yield queue.store


def test_every_statement_is_in_the_table_of_plans() -> None:
    """Whoever adds a statement says which index it is for."""
    assert set(STATEMENTS) == set(PLANS)


@pytest.mark.parametrize("name", PLANS)
def test_sqlite_finds_each_row_by_its_index(store: Store, name: str) -> None:
    """And reads no table as a whole."""
    plan = sqlite_plan(store, STATEMENTS[name])
    used = [line.partition(" INDEX ")[2] for line in plan if line.startswith(("SEARCH", "SCAN"))]
    assert used == PLANS[name]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("state", ["empty", "never analysed", "analysed", "analysed when empty"])
def test_postgres_reads_no_table_as_a_whole(queue: Queue, state: str) -> None:
    """Whatever it last heard of them."""
    if state == "analysed when empty":
        execute_sql(queue, "ANALYZE")
    if state != "empty":
        fill(queue, pending=500, ended=500)
    if state == "analysed":
        execute_sql(queue, "ANALYZE")
    for name, statement in STATEMENTS.items():
        plan = " ".join(postgres_plan(queue, statement))
        assert not re.search(r"Seq Scan", plan), (name, plan)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_claim_asks_for_the_demands_of_what_it_has_locked(queue: Queue) -> None:
    """A run's demands may change between the look and the lock, when its session is moved."""
    for claim in statements.CLAIMS.values():
        sql = claim.compile(queue.database).sql
        locking = sql.rpartition(' AS "candidate" ')[2].partition("FOR NO KEY UPDATE")[0]
        assert re.search(r"""\|\| ''\) = "candidate"."text"\)""", locking), locking
