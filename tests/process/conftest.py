"""Fixtures of the tests of real processes; every one of them is ended after its test."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import runqueue
from runqueue import Queue
from tests.conftest import DATABASES
from tests.processes import LONG, MODULES, Process

ROOT = Path(runqueue.__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Returns when a condition holds; fails when it does not in time."""

    def wait(condition: Callable[[], object], timeout: float = LONG) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)

    return wait


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for the database alone."""
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


@pytest.fixture
def path(place: Path) -> Path:
    return place / "queue.db"


@pytest.fixture(params=list(DATABASES))
def url(request: pytest.FixtureRequest, place: Path) -> Iterator[str]:
    """The URL of an empty database, of each kind."""
    yield from DATABASES[request.param](place)


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    """The queue on the database of the test, with the time of the host."""
    with runqueue.connect(url) as queue:
        yield queue


class Other:
    """Another program's connection to the database, which commits each statement."""

    def __init__(self, url: str) -> None:
        self._mark = "?"
        if url.startswith("sqlite"):
            path = url.removeprefix("sqlite:///")
            self._connection: Any = sqlite3.connect(path, isolation_level=None)
        else:
            import psycopg

            self._mark = "%s"
            self._connection = psycopg.connect(url, autocommit=True)

    def execute(self, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
        """Execute portable SQL, with `?` for each parameter; return the cursor."""
        return self._connection.execute(sql.replace("?", self._mark), parameters)

    def keep_writers_out(self) -> None:
        """Begin a transaction that lets nobody write."""
        if self._mark == "?":
            self._connection.execute("BEGIN IMMEDIATE")
        else:
            self._connection.execute("BEGIN")
            self._connection.execute("LOCK TABLE runs, sessions, runners, daemons IN SHARE MODE")

    def let_writers_in(self) -> None:
        """End it."""
        self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def other(queue: Queue, url: str) -> Iterator[Other]:
    """Another program's connection, to the database as it was made."""
    with contextlib.closing(Other(url)) as connection:
        yield connection


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What processes are started with: none of the tester's own settings."""
    nothing = tmp_path / "empty.env"
    nothing.touch()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUNQUEUE_")}
    return {**env, "RUNQUEUE_ENV_FILE": str(nothing), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str], url: str) -> Iterator[Callable[..., Any]]:
    """Starts one of the three programs."""
    started: list[Process] = []

    def begin(
        program: str, *argv: str, env: dict[str, str] | None = None, db: str = url
    ) -> Process:
        command = [sys.executable, "-m", MODULES[program]]
        log = tmp_path / f"{len(started)}-{program}.log"
        process = Process([*command, "--db", db, *argv], log, {**environment, **(env or {})})
        started.append(process)
        return process

    yield begin
    for process in started:
        process.destroy()


@pytest.fixture
def start_daemon(
    start: Callable[..., Process], until: Callable[..., None]
) -> Callable[..., Process]:
    """Starts a daemon and returns when it sweeps."""

    def begin(*options: str) -> Process:
        process = start("runqueued", *options)
        until(lambda: " sweeps " in process.log)
        return process

    return begin


@pytest.fixture
def start_runner(
    start: Callable[..., Process], other: Other, until: Callable[..., None]
) -> Callable[..., Process]:
    """Starts a runner with an id and returns when it is registered."""

    def begin(runner_id: str, *options: str, command: tuple[str, ...] = ("sh",)) -> Process:
        process = start("runqueue-runner", "--runner-id", runner_id, *options, "--", *command)

        def is_registered() -> bool:
            assert process.is_alive, process.log
            sql = "SELECT 1 FROM runners WHERE runner_id = ?"
            return bool(other.execute(sql, (runner_id,)).fetchall())

        until(is_registered)
        return process

    return begin


@pytest.fixture
def has_status(queue: Queue, until: Callable[..., None]) -> Callable[..., Any]:
    """Waits until a run has a status, and returns the run."""

    def wait(run_id: str, status: str, timeout: float = LONG) -> Any:
        until(lambda: queue.get(run_id).status == status, timeout)
        return queue.get(run_id)

    return wait


@pytest.fixture
def users() -> Callable[[str], list[psutil.Process]]:
    """The live processes that have a token as an argument of their own."""

    def find(token: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if token in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    return find


@pytest.fixture
def token(users: Callable[[str], list[psutil.Process]]) -> Iterator[str]:
    """Seconds to sleep that no other process sleeps; whoever still does is ended by its pid."""
    seconds = f"60{os.getpid() % 10000:04d}.{time.monotonic_ns() % 10**9:09d}"
    yield seconds
    for process in users(seconds):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
