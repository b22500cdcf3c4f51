"""Fixtures of the tests of the commands: in this process, as a process, and on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import runqueue
from runqueue import Queue
from runqueue.cli import cli
from runqueue.cli import daemon as daemon_command
from runqueue.cli import runner as runner_command
from runqueue.cli.base import run

ROOT = Path(runqueue.__file__).resolve().parent.parent
LONG = 20.0
"""Seconds after which something that should happen is taken not to happen."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Take the tester's own settings away; what a command adds to the environment goes too."""
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("RUNQUEUE_")]:
        del os.environ[name]
    nothing = tmp_path / "empty.env"
    nothing.touch()
    os.environ["RUNQUEUE_ENV_FILE"] = str(nothing)
    os.environ["HOME"] = str(tmp_path / "home")
    os.environ["XDG_STATE_HOME"] = str(tmp_path / "state")
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PYTHONUNBUFFERED"] = "1"
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is, or is to be."""
    return tmp_path / "queue.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    """The queue that the commands of the test look at, with the time of the host."""
    with runqueue.connect(url) as queue:
        yield queue


@pytest.fixture
def other(queue: Queue, path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection to the database, which commits each statement."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def rq(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """Runs a `runqueue` command line in this process, on the test's database."""

    def call(*argv: str, stdin: str | bytes = b"", db: str | None = url) -> Ended:
        capsys.readouterr()
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        before = dict(os.environ)
        try:
            code = run(cli, argv=[*(["--db", db] if db else []), *argv])
        finally:
            os.environ.clear()
            os.environ.update(before)
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def spawn(url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command as a process, which is ended after the test by its pid."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *argv: str, module: str = "runqueue", db: str | None = url, **options: Any
    ) -> subprocess.Popen[str]:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options}
        process = subprocess.Popen(
            [sys.executable, "-m", module, *(["--db", db] if db else []), *argv],
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def execute(spawn: Callable[..., subprocess.Popen[str]]) -> Callable[..., Ended]:
    """Runs a command as a process to its end."""

    def call(*argv: str, **options: Any) -> Ended:
        process = spawn(*argv, **options)
        out, err = process.communicate(timeout=LONG)
        return Ended(process.returncode, out, err)

    return call


@pytest.fixture
def on_terminal(url: str) -> Callable[..., Ended]:
    """Runs a `runqueue` command on a real terminal of 100 columns, which changes no character."""

    def call(*argv: str) -> Ended:
        ours, theirs = pty.openpty()
        try:
            modes = termios.tcgetattr(theirs)
            modes[1] &= ~termios.OPOST  # the terminal adds no carriage returns of its own
            termios.tcsetattr(theirs, termios.TCSANOW, modes)
            process = subprocess.Popen(
                [sys.executable, "-m", "runqueue", "--db", url, *argv],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
            )
        finally:
            os.close(theirs)
        try:
            said = _read_all(ours)
            return Ended(process.wait(LONG), said.decode(), "")
        finally:
            os.close(ours)
            if process.poll() is None:
                process.kill()
                process.wait()

    return call


def _read_all(terminal: int) -> bytes:
    said = b""
    deadline = time.monotonic() + LONG
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            return said
        if not data:
            return said
        said += data
    raise AssertionError("the command did not end in time")


@pytest.fixture
def until() -> Callable[..., None]:
    """Returns when a condition holds; fails when it does not in time."""

    def wait(condition: Callable[[], object], timeout: float = LONG) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)

    return wait


@pytest.fixture
def work(queue: Queue) -> Callable[..., Any]:
    """Claims the next run and takes it to a status; the runner then ends."""

    def act(status: str, text: str | None = None, runner_id: str = "worker") -> Any:
        with queue.runner(runner_id) as runner:
            claim = runner.claim(timeout=5)
            assert claim is not None
            claim.start()
            if status == "completed":
                claim.complete(text)
            elif status == "failed":
                claim.fail(text or "it failed")
            elif status == "stopped":
                queue.stop(claim.run.run_id)
                claim.confirm_stop()
            return queue.get(claim.run.run_id)

    return act


@pytest.fixture
def set_status(other: sqlite3.Connection) -> Callable[..., None]:
    """Writes a status and its owner by hand."""

    def write(run_id: str, status: str, runner_id: str | None = "worker") -> None:
        now = "2026-01-01T00:00:00.000000Z"
        other.execute(
            "UPDATE runs SET status = ?, runner_id = ?, claimed_at = ? WHERE run_id = ?",
            (status, runner_id, now, run_id),
        )

    return write


@pytest.fixture
def rows(other: sqlite3.Connection) -> Callable[[], list[Any]]:
    """Everything that the database holds, to show that nothing was changed."""

    def read() -> list[Any]:
        tables = ("sessions", "runs", "runners", "run_events")
        return [other.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables]

    return read


@pytest.fixture
def commands() -> dict[str, click.Command]:
    """Every command and group of the three programs, by what a user types."""
    found: dict[str, click.Command] = {
        "runqueue": cli,
        "runqueued": daemon_command.daemon,
        "runqueue-runner": runner_command.runner,
    }

    def walk(name: str, command: click.Command) -> None:
        found[name] = command
        if isinstance(command, click.Group):
            for sub, child in command.commands.items():
                walk(f"{name} {sub}", child)

    walk("runqueue", cli)
    return found
