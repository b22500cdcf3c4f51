"""A database of an older runqueue is upgraded when it is opened, with all that it holds."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runqueue
from runqueue import Queue, schema
from runqueue.models import MODELS
from tests import postgres
from tests.helpers import execute_sql, ids, start

STEPS = {
    kind: sorted(
        one.stem for one in (Path(schema.__file__).parent / "migrations" / kind).glob("0*")
    )
    for kind in ("sqlite", "postgres")
}


@pytest.fixture(params=["sqlite", "postgres"])
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Makes URLs of databases that nobody has opened yet."""
    numbers, made = itertools.count(), []

    def make() -> str:
        name = f"upgraded{next(numbers)}"
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path / name}.db"
        postgres.shared().create_database(name)
        made.append(name)
        return postgres.shared().url(name)

    yield make
    for name in made:
        postgres.shared().drop_database(name)


def opened_by(version: int, url: str, tmp_path: Path) -> Queue:
    """The queue as a runqueue makes it that knows only so many steps."""
    with pytest.MonkeyPatch.context() as patch:
        kind = url.partition("://")[0].replace("postgresql", "postgres")
        for step in STEPS[kind][:version]:
            directory = tmp_path / "steps" / kind
            directory.mkdir(parents=True, exist_ok=True)
            shutil.copy(
                Path(schema.__file__).parent / "migrations" / kind / f"{step}.py", directory
            )
        patch.setattr(schema, "_MIGRATIONS", tmp_path / "steps")
        patch.setattr(schema, "VERSION", version)
        return runqueue.connect(url)


def schema_of(queue: Queue) -> list[tuple[Any, ...]]:
    """All indexes, triggers and functions of a database."""
    if queue.store.engine.name == "sqlite":
        return sorted(execute_sql(queue, "SELECT type, name, sql FROM sqlite_master"), key=str)
    return [
        *execute_sql(queue, "SELECT indexname, indexdef FROM pg_indexes ORDER BY 1"),
        *execute_sql(
            queue,
            "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal "
            "ORDER BY 1",
        ),
        *execute_sql(
            queue, "SELECT proname, prosrc FROM pg_proc WHERE proname LIKE 'runqueue%%' ORDER BY 1"
        ),
    ]


AT = "2026-01-01T00:00:00.000000Z"
GIVEN = "run_id, session_id, type, prompt, agent_name, status, created_at, completed_at, result"


def add(queue: Queue, name: str, status: str, session: str | None = None) -> None:
    """A run with its history, as an older version has left it."""
    session_id = f"ses_{session or name}"
    if session is None:
        add_session = "INSERT INTO sessions (session_id, created_at) VALUES (?, ?)"
        execute_sql(queue, add_session, session_id, AT)
    ended = (AT, "the result") if status == "completed" else (None, None)
    execute_sql(
        queue,
        f"INSERT INTO runs ({GIVEN}) VALUES (?, ?, 'START_SESSION', 'x', 'writer', ?, ?, ?, ?)",
        *(f"run_{name}", session_id, status, AT, *ended),
    )
    execute_sql(
        queue,
        "INSERT INTO run_events (run_id, at, status, actor) VALUES (?, ?, ?, 'caller')",
        *(f"run_{name}", AT, status),
    )


@pytest.mark.parametrize("version", range(1, schema.VERSION))
def test_an_older_database_is_upgraded_with_all_its_rows(
    new_place: Callable[[], str], tmp_path: Path, version: int
) -> None:
    """And is then like a new one, down to the last index and trigger."""
    place = new_place()
    with opened_by(version, place, tmp_path) as old:
        add(old, "ended", "completed")
        add(old, "first", "pending")
        add(old, "second", "pending", "first")
        runs = execute_sql(old, f"SELECT {GIVEN} FROM runs ORDER BY run_id")
        events = execute_sql(old, "SELECT * FROM run_events ORDER BY event_id")
        assert schema.version_of(old.store) == version
    with runqueue.connect(place) as queue, queue.runner("worker") as runner:
        assert schema.version_of(queue.store) == schema.VERSION
        assert execute_sql(queue, f"SELECT {GIVEN} FROM runs ORDER BY run_id") == runs
        assert execute_sql(queue, "SELECT * FROM run_events ORDER BY event_id") == events
        assert {model._meta.table_name for model in MODELS} <= set(queue.database.get_tables())
        found = queue.find(agent_name="writer", limit=5)
        assert set(ids(found)) == {"run_first", "run_second", "run_ended"}
        for run_id in ("run_first", "run_second"):
            claim = start(runner)
            assert claim.run.run_id == run_id
            assert runner.claim(timeout=0) is None  # its session has one at a time
            claim.complete("r")
        with runqueue.connect(new_place()) as new:
            assert schema_of(queue) == schema_of(new)


@pytest.mark.parametrize("new_place", ["postgres"], indirect=True)
def test_a_runners_role_of_an_older_database_may_record_what_it_does(
    new_place: Callable[[], str], tmp_path: Path
) -> None:
    """Its policy asked for the status before the statement that makes the move and records it."""
    place = new_place()
    with opened_by(1, place, tmp_path) as old:
        execute_sql(old, "ALTER TABLE run_events ENABLE ROW LEVEL SECURITY")
        execute_sql(
            old,
            "CREATE POLICY \"odd %% name\" ON run_events FOR INSERT WITH CHECK (actor = 'runner' "
            "AND (SELECT true FROM runs WHERE runs.run_id = run_events.run_id "
            "AND runs.status = run_events.status LIMIT 1))",
        )
    with runqueue.connect(place) as queue:
        [(policy,)] = execute_sql(queue, "SELECT with_check FROM pg_policies")
        assert "runqueue_is_so(run_id, status)" in policy
        assert "'runner'" in policy
