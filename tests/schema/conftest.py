"""Databases as other programs leave them, and ways to look at one without runqueue."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

GIVEN_RUNS = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    type TEXT NOT NULL,
    agent_name TEXT,
    prompt TEXT NOT NULL,
    project_dir TEXT,
    parent_session_id TEXT,
    execution_mode TEXT NOT NULL DEFAULT 'sync',
    demands TEXT,
    status TEXT NOT NULL DEFAULT 'pending',
    runner_id TEXT,
    error TEXT,
    created_at TEXT NOT NULL,
    claimed_at TEXT,
    started_at TEXT,
    completed_at TEXT,
    timeout_at TEXT,
    FOREIGN KEY (session_id) REFERENCES sessions (session_id) ON DELETE CASCADE
);
CREATE INDEX idx_runs_session_id ON runs (session_id);
CREATE INDEX idx_runs_status ON runs (status);
CREATE INDEX idx_runs_runner_id ON runs (runner_id);
CREATE INDEX idx_runs_status_created ON runs (status, created_at);
"""

GIVEN_SESSIONS = """
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY,
    session_name TEXT,
    status TEXT NOT NULL,
    created_at TEXT NOT NULL,
    project_dir TEXT
);
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is, or will be."""
    return tmp_path / "queue.db"


@pytest.fixture
def sql() -> Callable[..., list[tuple[object, ...]]]:
    """Execute SQL by Python's own driver, as any other program would: foreign keys are off."""

    def execute(path: Path, script: str, *values: object) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            if values or ";" not in script.strip().rstrip(";"):
                return connection.execute(script, values).fetchall()
            connection.executescript(script)
            return []

    return execute


@pytest.fixture
def dump() -> Callable[[Path], list[str]]:
    """Everything a database says: schema, rows, and the two numbers of its header."""

    def everything(path: Path) -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            numbers = [
                f"{name} = {connection.execute(f'PRAGMA {name}').fetchone()[0]}"
                for name in ("application_id", "user_version")
            ]
            tables = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY 1, 2")
            said = numbers + [repr(row) for row in tables.fetchall()]
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (name,) in names.fetchall():
                rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()
                said += [f"{name}: {row!r}" for row in rows]
            return said

    return everything


@pytest.fixture
def given(path: Path, sql: Callable[..., object]) -> Callable[..., Path]:
    """Make the database of the program before us: its runs beside its sessions."""

    def make(more: str = "", sessions: str = GIVEN_SESSIONS, runs: str = GIVEN_RUNS) -> Path:
        sql(path, f"{sessions}; {runs}; {more}")
        return path

    return make


@pytest.fixture
def python() -> Callable[..., subprocess.Popen[str]]:
    """Start another Python with the package at hand."""

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


class Refused(Exception):
    """The database did not accept a statement of another program."""


@pytest.fixture(params=["shell", "driver"])
def other_writer(request: pytest.FixtureRequest) -> Iterator[Callable[..., list[str]]]:
    """Execute SQL by a writer that leaves foreign keys off: the stock shell, or the driver.

    Returns rows as the shell prints them. Raises the fixture's `Refused`.
    """

    def by_shell(path: Path, script: str) -> list[str]:
        done = subprocess.run(
            ["sqlite3", "-batch", "-bail", "-init", os.devnull, str(path)],
            input=script,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout.splitlines()

    def by_driver(path: Path, script: str) -> list[str]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            rows: list[tuple[object, ...]] = []
            try:
                for statement in script.split(";"):
                    rows += connection.execute(statement).fetchall()
            except sqlite3.DatabaseError as error:
                raise Refused(str(error)) from error
        return ["|".join("" if value is None else str(value) for value in row) for row in rows]

    if request.param == "shell" and shutil.which("sqlite3") is None:
        pytest.skip("the stock sqlite3 shell is not installed")
    execute = by_shell if request.param == "shell" else by_driver
    execute.Refused = Refused  # type: ignore[attr-defined]
    return execute
