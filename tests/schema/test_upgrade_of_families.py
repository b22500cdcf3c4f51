"""A database of the first schema is upgraded with all that is in it, on every database."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runqueue
from runqueue import schema
from runqueue.errors import ConfigurationError
from tests import postgres
from tests.conftest import PROGRAMS, OtherProgram
from tests.helpers import MovableClock, execute_sql, start

AT = "2026-01-01T00:00:00.000000Z"


@pytest.fixture(params=["sqlite", "postgres"])
def old_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A database with the first step only."""
    steps = tmp_path / "steps"
    for kind in ("sqlite", "postgres"):
        (steps / kind).mkdir(parents=True)
        first = schema._MIGRATIONS / kind / "0001_initial.py"
        shutil.copy(first, steps / kind)
    server = postgres.shared() if request.param == "postgres" else None
    if server is not None:
        server.create_database("old")
    url = server.url("old") if server else f"sqlite:///{tmp_path / 'old.db'}"
    try:
        with monkeypatch.context() as patched:
            patched.setattr(schema, "VERSION", 1)
            patched.setattr(schema, "_MIGRATIONS", steps)
            store = runqueue.queue.open_store(url, busy_timeout=5)
            schema.upgrade(store)
            store.close()
            store.engine.close()
        yield url
    finally:
        if server is not None:
            server.drop_database("old")


@pytest.fixture
def program(old_url: str) -> Iterator[OtherProgram]:
    other = PROGRAMS[old_url.partition(":")[0]](old_url)
    yield other
    other.close()


def add(program: OtherProgram, run_id: str, status: str, mode: str = "async_callback") -> None:
    program.execute(f"INSERT INTO sessions (session_id, created_at) VALUES ('ses_{run_id}', ?)", AT)
    program.execute(
        "INSERT INTO runs (run_id, session_id, type, prompt, parent_session_id, execution_mode, "
        "status, created_at) VALUES (?, ?, 'START_SESSION', 'x', 'ses_parent', ?, ?, ?)",
        *(run_id, f"ses_{run_id}", mode, status, AT),
    )


def test_what_was_there_is_there_and_nobody_is_told_of_what_ended_long_ago(
    old_url: str, program: OtherProgram
) -> None:
    """Only what ends from now on is followed by a callback."""
    program.execute("INSERT INTO sessions (session_id, created_at) VALUES ('ses_parent', ?)", AT)
    for status in ("completed", "failed", "stopped", "pending"):
        add(program, status, status)
    add(program, "waits", "pending", "sync")
    before = program.execute("SELECT run_id, session_id, status, prompt FROM runs ORDER BY 1")
    with runqueue.connect(old_url, clock=MovableClock()) as queue:
        after = execute_sql(queue, "SELECT run_id, session_id, status, prompt FROM runs ORDER BY 1")
        assert after == before
        assert not queue.sweep()
        with queue.runner("worker") as runner:
            for _ in range(2):
                start(runner).complete("x")
        (callback,) = queue.find(session_id="ses_parent")
        assert callback.tells == 1
        assert "pending" in callback.prompt


def test_a_second_connect_upgrades_nothing(old_url: str) -> None:
    """The steps are applied once."""
    for wanted in (schema.VERSION - 1, 0):
        store = runqueue.queue.open_store(old_url, busy_timeout=5)
        assert len(schema.upgrade(store)) == wanted
        store.close()
        store.engine.close()


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("ALTER TABLE runs ADD COLUMN attempt TEXT", "column"),
        ("ALTER TABLE sessions ADD COLUMN tree_limits TEXT", "column"),
        ("CREATE TABLE run_attempts (x TEXT)", "run_attempts"),
    ],
)
def test_names_that_somebody_else_uses_are_a_refusal(
    old_url: str, program: OtherProgram, sql: str, named: str
) -> None:
    """In one sentence; the database stays as it was."""
    program.execute(sql)
    with pytest.raises(ConfigurationError, match=named):
        runqueue.connect(old_url)
    rows: list[Any] = program.execute("SELECT name FROM runqueue_migrations")
    assert len(rows) == 1


def test_the_rights_that_were_given_before_go_on_working(
    old_url: str, program: OtherProgram, request: pytest.FixtureRequest
) -> None:
    """A runner's role sees the new columns, an operator's role the new table."""
    if old_url.startswith("sqlite"):
        return  # it has no roles
    server = postgres.shared()
    roles: dict[str, str] = {"runner": "old_runner", "operator": "old_operator"}
    grant: Callable[[str], object] = program.execute
    try:
        for role in roles.values():
            grant(f"CREATE ROLE {role} LOGIN")
            grant(f"GRANT SELECT ON runqueue_migrations TO {role}")
        grant("GRANT SELECT (run_id, status, waiting) ON runs TO old_runner")
        grant("GRANT SELECT, INSERT ON runs TO old_operator")
        runqueue.connect(old_url).close()
        told = program.execute(
            "SELECT has_column_privilege('old_runner', 'runs', 'attempt', 'SELECT'), "
            "has_table_privilege('old_runner', 'run_attempts', 'SELECT'), "
            "has_table_privilege('old_operator', 'run_attempts', 'DELETE')"
        )
        assert told == [(True, False, True)]
    finally:
        program.close()
        server.drop_database("old")
        for role in roles.values():
            server.execute(f"DROP ROLE IF EXISTS {role}")
