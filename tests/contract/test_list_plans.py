"""A list reads what it shows: every combination of filters has its index, on every database."""

from __future__ import annotations

import itertools
import re

import pytest

from runqueue import Queue, Status, listing
from runqueue.database import Statement
from tests.helpers import execute_sql, explained

STATUSES = (tuple(Status), (Status.PENDING,), (Status.COMPLETED, Status.FAILED))
FILTERS = [
    listing.Filters(statuses, *given)
    for statuses in STATUSES
    for given in itertools.product((False, True), repeat=3)
]
MANY = 700
"""Runs of each of the larger statuses."""


def index_for(filters: listing.Filters) -> str:
    if filters.session_id:
        return "idx_runs_session_id"
    if filters.runner_id:
        return "idx_runs_runner_status_created"
    return "idx_runs_agent_status_created" if filters.agent_name else "idx_runs_status_created"


def fill(queue: Queue) -> None:
    """Runs of two runners and two agents, most of them ended."""
    counted = "WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted"
    # In integers, for a percent sign would be the driver's, and not every SQLite has mod().
    at = "'2026-01-01T00:00:' || (10 + n - n / 50 * 50) || '.000000Z'"
    kind, half = "n - n / 3 * 3", "(n - n / 2 * 2)"
    execute_sql(
        queue,
        "INSERT INTO sessions (session_id, created_at) "
        f"{counted} WHERE n < ?) SELECT 'ses_' || n, {at} FROM counted",
        3 * MANY,
    )
    execute_sql(
        queue,
        "INSERT INTO runs (run_id, session_id, type, prompt, status, runner_id, agent_name, "
        f"created_at) {counted} WHERE n < ?) SELECT 'run_' || n, 'ses_' || n, 'START_SESSION', "
        f"'x', CASE {kind} WHEN 0 THEN 'pending' WHEN 1 THEN 'completed' ELSE 'failed' END, "
        f"CASE {kind} WHEN 0 THEN NULL ELSE 'runner' || {half} END, 'agent' || {half}, "
        f"{at} FROM counted",
        3 * MANY,
    )


def forget_statistics(queue: Queue) -> None:
    """The planner knows nothing: earlier tests have analysed the same tables."""
    if queue.store.engine.name == "postgres":
        execute_sql(queue, "TRUNCATE sessions CASCADE")
        execute_sql(
            queue,
            "DELETE FROM pg_statistic WHERE starelid IN ('runs'::regclass, 'sessions'::regclass)",
        )


def indexes_of(queue: Queue, statement: Statement) -> set[str]:
    """The indexes by which a statement is answered, each of them sought in by a condition."""
    compiled = statement.compile(queue.database)
    is_sqlite = queue.store.engine.name == "sqlite"
    if is_sqlite:
        parameters = [None] * len(compiled.template)
        with queue.database.connection_context():
            shown = queue.database.execute_sql(f"EXPLAIN QUERY PLAN {compiled.sql}", parameters)
            lines = [row[3] for row in shown.fetchall()]
    else:
        lines = [line.strip() for line in explained(queue, compiled)]
    used = set()
    for line, following in itertools.pairwise([*lines, ""]):
        if is_sqlite:
            if match := re.match(r"(SEARCH|SCAN) \w+ USING (?:COVERING )?INDEX (\w+)", line):
                used.add(match[2])
                assert match[1] == "SEARCH" or match[2] == "idx_sessions_created", lines
            assert not re.match(r"SCAN (runs|sessions|t1)$", line), lines
        elif match := re.search(r"Scan .*(?:using|on) (idx_\w+|\w+_pkey)", line):
            used.add(match[1])
            is_first = match[1] == "idx_sessions_created"  # of which the newest entries are read
            assert "Index Cond" in following or is_first, lines
        else:
            assert "Seq Scan" not in line, lines
    return used


@pytest.mark.parametrize("state", ["empty", "filled", "analysed"])
def test_a_list_is_answered_by_the_index_of_what_it_is_filtered_by(
    queue: Queue, state: str
) -> None:
    """And sorts only what it shows."""
    forget_statistics(queue)
    if state != "empty":
        fill(queue)
    if state == "analysed":
        execute_sql(queue, "ANALYZE")
    for filters in FILTERS:
        used = indexes_of(queue, listing.runs(filters, ("run_id", "status"), True))
        if state == "analysed":  # of a status that no run has, another index may find nothing
            used -= {"idx_runs_status"}
        assert used == {index_for(filters)}, filters


def test_a_list_without_a_limit_reads_only_what_matches(queue: Queue) -> None:
    """By the same index."""
    forget_statistics(queue)
    fill(queue)
    for filters in FILTERS:
        if any(filters[1:]):
            used = indexes_of(queue, listing.runs(filters, ("run_id",), False))
            assert used == {index_for(filters)}, filters


@pytest.mark.parametrize("state", ["empty", "filled", "analysed"])
def test_sessions_runners_and_counts_are_answered_by_indexes(queue: Queue, state: str) -> None:
    """The newest sessions, the active runs of a runner, up to so many of a status, the oldest."""
    forget_statistics(queue)
    if state != "empty":
        fill(queue)
    if state == "analysed":
        execute_sql(queue, "ANALYZE")
    assert indexes_of(queue, listing.sessions(True)) == {"idx_sessions_created"}
    key = {"runners_pkey", "sqlite_autoindex_runners_1"}
    active = indexes_of(queue, listing.runners(True)) - key
    assert active == {"idx_runs_runner_status_created"}
    assert indexes_of(queue, listing.COUNTS) <= {"idx_runs_status", "idx_runs_status_created"}
    assert indexes_of(queue, listing.WAITING) == {"idx_runs_status_created"}
