"""The step that adds when agents were last heard of."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import runqueue
from runqueue import ConfigurationError, Queue, schema
from tests import postgres
from tests.helpers import execute_sql


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database that has no schema yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'queue.db'}"
        return
    server = postgres.shared()
    server.create_database("upgraded")
    yield server.url("upgraded")
    server.drop_database("upgraded")


@pytest.fixture
def at_version(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Queue]:
    """Opens the database as the program did that knew the steps up to this one."""

    def open_queue(version: int) -> Queue:
        steps = tmp_path / f"steps-{version}"
        for kind in ("sqlite", "postgres"):
            (steps / kind).mkdir(parents=True, exist_ok=True)
            for step in (Path(schema.__file__).parent / "migrations" / kind).glob("[0-9]*.py"):
                if int(step.name[:4]) <= version:
                    shutil.copy(step, steps / kind)
        with monkeypatch.context() as patch:
            patch.setattr(schema, "_MIGRATIONS", steps)
            patch.setattr(schema, "VERSION", version)
            return runqueue.connect(empty_url)

    return open_queue


def test_a_table_of_somebody_else_is_not_taken_for_ours(
    at_version: Callable[[int], Queue], empty_url: str
) -> None:
    """One sentence; the database stays as it was."""
    with at_version(1) as old:
        execute_sql(old, "CREATE TABLE run_output (x TEXT)")
    with pytest.raises(ConfigurationError, match="run_output that is not runqueue's"):
        runqueue.connect(empty_url)
    with at_version(1) as old:
        assert execute_sql(old, "SELECT count(*) FROM runqueue_migrations") == [(1,)]
        old.enqueue("x")


@pytest.mark.parametrize("empty_url", ["postgres"], indirect=True)
def test_the_rights_that_roles_had_go_on_working(
    at_version: Callable[[int], Queue], empty_url: str
) -> None:
    """A runner's role reads what a start asks for; an operator's sees when agents were heard of."""
    server = postgres.shared()
    asked = (
        "SELECT has_column_privilege('old_runner', 'sessions', 'executor_session_id', 'SELECT'), "
        "has_table_privilege('old_runner', 'run_output', 'SELECT'), "
        "has_table_privilege('old_operator', 'run_output', 'UPDATE')"
    )
    try:
        with at_version(1) as old:
            for sql in (
                *("CREATE ROLE old_runner", "CREATE ROLE old_operator"),
                "GRANT SELECT (session_id, hostname) ON sessions TO old_runner",
                "GRANT SELECT, INSERT ON runs TO old_operator",
            ):
                execute_sql(old, sql)
        with runqueue.connect(empty_url) as queue:
            assert execute_sql(queue, asked) == [(True, False, True)]
    finally:
        server.drop_database("upgraded")
        server.create_database("upgraded")  # for the fixture, which drops it
        for role in ("old_runner", "old_operator"):
            server.execute(f"DROP ROLE IF EXISTS {role}")
