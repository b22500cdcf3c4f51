"""Fixtures of all tests: a fresh database of each kind, a movable clock, and no leaks."""

from __future__ import annotations

import functools
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import runqueue
from runqueue import Queue, Runner, wake
from runqueue.settings import Settings
from tests import postgres
from tests.helpers import LONG, MovableClock, wait_until


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("runqueue")
    group.addoption(
        "--long", action="store_true", help="chaos tests and simulations in full, none skipped"
    )
    group.addoption("--orders", type=int, help="try so many orders of each pair of callers")
    group.addoption("--seed", type=int, help="replay the simulation of this one seed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes of waiting, unless the long form is wanted."""
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A fault that is skipped in the long form is a promise that nobody looked at."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    is_fault = any(item.get_closest_marker(name) for name in ("chaos", "long", "systemd"))
    if report.skipped and item.config.getoption("--long") and is_fault:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped: {report.longrepr[2]}"


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether the chaos tests are to be executed in full."""
    return bool(request.config.getoption("--long"))


class OtherProgram:
    """A connection as any program opens it: the plain driver, with the driver's settings."""

    def __init__(self, connection: Any, error: type[Exception], mark: str) -> None:
        self._connection = connection
        self._error = error
        self._mark = mark

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute portable SQL, with `?` for each parameter, and commit it."""
        cursor = self._connection.execute(sql.replace("?", self._mark), parameters)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

    def is_refused(self, sql: str, *parameters: Any) -> bool:
        """Whether the database itself refuses a statement."""
        try:
            self.execute(sql, *parameters)
        except self._error:
            return True
        return False

    def close(self) -> None:
        self._connection.close()


def _sqlite_url(directory: Path) -> Iterator[str]:
    yield f"sqlite:///{directory / 'queue.db'}"


def _sqlite_program(url: str) -> OtherProgram:
    path = url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, isolation_level=None)
    return OtherProgram(connection, sqlite3.IntegrityError, "?")


def _postgres_url(directory: Path) -> Iterator[str]:
    server = postgres.shared()
    name = _migrated(server)
    yield server.url(name)
    _empty(server, name)


@functools.cache
def _migrated(server: postgres.Server) -> str:
    """A database with the schema, which all tests use in turn: making one takes 0.3 s."""
    server.create_database("contract")
    runqueue.connect(server.url("contract")).close()
    return "contract"


def _empty(server: postgres.Server, name: str) -> None:
    """Delete whatever a test left: rows, tables of its own, and connections that went astray."""
    import psycopg

    known = (
        *("run_output", "run_attempts", "run_events", "runs", "sessions", "runners", "daemons"),
        "runqueue_migrations",
    )
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in tables.fetchall():
            if table not in known:
                connection.execute(f'DROP TABLE "{table}"')
        connection.execute(";".join(f"DELETE FROM {table}" for table in known[:-1]))


def _postgres_program(url: str) -> OtherProgram:
    import psycopg

    return OtherProgram(psycopg.connect(url, autocommit=True), psycopg.Error, "%s")


# A further database is one more entry in each: a generator of the URL of an empty database, that
# removes it when it is continued, and the plain driver's connection to it.
DATABASES: dict[str, Callable[[Path], Iterator[str]]] = {
    "sqlite": _sqlite_url,
    "postgres": _postgres_url,
}
PROGRAMS: dict[str, Callable[[str], OtherProgram]] = {
    "sqlite": _sqlite_program,
    "postgresql": _postgres_program,
}


@pytest.fixture(params=list(DATABASES))
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, of each kind."""
    yield from DATABASES[request.param](tmp_path)


@pytest.fixture
def clock() -> MovableClock:
    """The time of the queue, which stands still until it is moved."""
    return MovableClock()


@pytest.fixture
def connect(database_url: str, clock: MovableClock) -> Iterator[Callable[..., Queue]]:
    """Opens more queues on the database, as other processes do, with settings of their own."""
    with ExitStack() as stack:

        def open_queue(**settings: float) -> Queue:
            queue = runqueue.connect(database_url, settings=Settings(**settings), clock=clock)
            return stack.enter_context(queue)

        yield open_queue


@pytest.fixture
def queue(connect: Callable[..., Queue]) -> Queue:
    """A queue on a fresh database."""
    return connect()


@pytest.fixture
def program(queue: Queue, database_url: str) -> Iterator[OtherProgram]:
    """Another program that writes to the tables, whose database has been created."""
    scheme = database_url.partition(":")[0]
    other = PROGRAMS[scheme](database_url)
    yield other
    other.close()


@pytest.fixture
def open_runner(queue: Queue) -> Iterator[Callable[..., Runner]]:
    """Opens runners, on `queue` unless told, that are closed after the test."""
    with ExitStack() as stack:

        def open_one(runner_id: str = "worker", on: Queue = queue, **capabilities: Any) -> Runner:
            return stack.enter_context(on.runner(runner_id, **capabilities))

        yield open_one


@pytest.fixture
def runner(open_runner: Callable[..., Runner]) -> Runner:
    """A registered runner that serves every run without demands."""
    return open_runner()


@pytest.fixture
def parked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set once a call waits for the database to change; only a wake ends the wait then."""
    event = threading.Event()
    real = wake.Watch.wait

    def wait(watch: wake.Watch, timeout: float) -> bool:
        if threading.current_thread().name.startswith("test-"):
            event.set()
        return real(watch, timeout)

    monkeypatch.setattr(wake.Watch, "wait", wait)
    # The slow poll is the net under the wake, and would hide that it is torn.
    monkeypatch.setattr("runqueue.queue.LOOK_AGAIN", 1.5 * LONG)
    monkeypatch.setattr("runqueue.runner.LOOK_AGAIN", 1.5 * LONG)
    return event


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a thread of its own or of ours, or an open runner, behind."""
    opened: weakref.WeakSet[Runner] = weakref.WeakSet()
    real = Runner.open

    def remember(runner: Runner) -> None:
        opened.add(runner)
        real(runner)

    monkeypatch.setattr(Runner, "open", remember)
    before = set(threading.enumerate())
    yield
    assert not [one.runner_id for one in opened if one.is_open], "a runner was left open"
    # A thread that has done its work may still be on its way out.
    wait_until(lambda: not _left(before), timeout=2)


def _left(before: set[threading.Thread]) -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before
        and (not thread.daemon or thread.name.startswith(("runqueue-", "test-")))
    ]
