"""Empty databases of each kind to move between, and the command in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import runqueue
from runqueue import Queue, models
from runqueue.cli import cli
from runqueue.cli.base import run
from tests import postgres


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def new_url(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Returns the URL of one more empty database of a kind."""
    numbers = itertools.count()
    made: list[str] = []

    def make(kind: str) -> str:
        name = f"move_{next(numbers)}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / name}.db"
        postgres.shared().create_database(name)
        made.append(name)
        return postgres.shared().url(name)

    yield make
    for name in made:
        postgres.shared().drop_database(name)


@pytest.fixture
def opened() -> Iterator[Callable[[str], Queue]]:
    """Opens queues that are closed after the test."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(runqueue.connect(url))


@pytest.fixture(
    params=[
        ("sqlite", "postgres"),
        ("postgres", "sqlite"),
        ("sqlite", "sqlite"),
        ("postgres", "postgres"),
    ],
    ids=" to ".join,
)
def pair(
    request: pytest.FixtureRequest,
    new_url: Callable[[str], str],
    opened: Callable[[str], Queue],
) -> tuple[Queue, Queue]:
    """The queue that is to be moved, and the empty one that it is moved to."""
    old, new = request.param
    return opened(new_url(old)), opened(new_url(new))


@pytest.fixture
def rq(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Ended]:
    """Runs a `runqueue` command line in this process."""
    settings = tmp_path / "empty.env"
    settings.touch()
    monkeypatch.setenv("RUNQUEUE_ENV_FILE", str(settings))
    monkeypatch.delenv("RUNQUEUE_DB", raising=False)

    def call(*argv: str) -> Ended:
        capsys.readouterr()
        code = run(cli, argv=list(argv))
        return Ended(code, *capsys.readouterr())

    return call


def everything(queue: Queue) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables, by the columns that every kind of database has."""
    found = {}
    for model in models.MODELS:
        table = model._meta.table_name
        columns = ", ".join(field.column_name for field in model._meta.sorted_fields)
        cursor = queue.database.execute_sql(f"SELECT {columns} FROM {table} ORDER BY 1")
        found[table] = [tuple(row) for row in cursor.fetchall()]
    queue.close()
    return found
