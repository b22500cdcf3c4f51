"""Rows that the stock `sqlite3` shell writes while runners and a daemon are at work."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue

pytestmark = [
    pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 shell is missing"),
    pytest.mark.parametrize("url", ["sqlite"], indirect=True),
]

SESSION = """
    INSERT INTO sessions (session_id, created_at) VALUES ('{0}', '2025-01-01T00:00:00Z');
"""
RUN = """
    INSERT INTO runs (run_id, session_id, type, prompt, status, created_at)
    VALUES ('{0}', '{1}', 'START_SESSION', '{2}', 'pending', '2025-01-01T00:00:00Z');
"""


@pytest.fixture
def shell(path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Executes SQL with the shell as it is."""

    def execute(sql: str) -> subprocess.CompletedProcess[str]:
        argv = ["sqlite3", "-bail", "-cmd", ".timeout 5000", str(path), sql]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20)

    return execute


def test_runs_of_the_shell_are_executed(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    shell: Callable[[str], Any],
) -> None:
    """An INSERT that names only the given columns makes a normal run, also for a live runner."""
    start_runner("alpha")
    sql = SESSION.format("ses_hand") + RUN.format("run_hand", "ses_hand", "echo by hand")
    assert shell(sql).returncode == 0
    run = has_status("run_hand", "completed")
    assert run.result == "by hand\n"
    assert (run.execution_mode, run.priority, run.runner_id) == ("sync", 0, "alpha")
    assert len(run.completed_at) == 27
    assert [event.status.value for event in queue.timeline("run_hand")] == [
        *("pending", "claimed", "running", "completed")
    ]


def test_runs_of_the_shell_are_expired(
    queue: Queue,
    start_daemon: Callable[..., Any],
    has_status: Callable[..., Any],
    shell: Callable[[str], Any],
) -> None:
    """A timeout_at that is written by hand is respected, in each of the shapes that are taken."""
    start_daemon("--interval", "0.1")
    assert shell(SESSION.format("ses_hand")).returncode == 0
    for run_id, moment in (("run_a", "2025-01-01T00:00:09Z"), ("run_b", "2025-01-01T00:00:09.5Z")):
        sql = RUN.format(run_id, "ses_hand", "echo x")
        sql += f"UPDATE runs SET timeout_at = '{moment}' WHERE run_id = '{run_id}';"
        assert shell("BEGIN;" + sql + "COMMIT;").returncode == 0
        assert has_status(run_id, "failed").error.startswith("expired: ")


def test_a_stop_written_by_hand_is_obeyed_by_the_runner(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    users: Callable[[str], list[Any]],
    token: str,
    until: Callable[..., None],
    shell: Callable[[str], Any],
) -> None:
    """An UPDATE of the status to stopping ends the agent, and is confirmed."""
    start_runner("alpha", "--stop-grace", "0.2")
    run_id = queue.enqueue(f"sleep {token}").run_id
    until(lambda: users(token))
    sql = f"UPDATE runs SET status = 'stopping' WHERE run_id = '{run_id}'"
    assert shell(sql).returncode == 0
    assert has_status(run_id, "stopped").error is None
    assert users(token) == []


def test_a_stopping_run_without_an_owner_is_settled(
    queue: Queue,
    start_daemon: Callable[..., Any],
    has_status: Callable[..., Any],
    shell: Callable[[str], Any],
) -> None:
    """At the next tick: nobody recorded when the stop was asked for."""
    start_daemon("--interval", "0.1")
    run_id = queue.enqueue("x").run_id
    sql = f"UPDATE runs SET status = 'stopping' WHERE run_id = '{run_id}'"
    assert shell(sql).returncode == 0
    run = has_status(run_id, "stopped", timeout=2)
    assert run.error == "stop presumed, not confirmed by runner unknown"


def test_a_status_written_by_hand_is_the_last_word(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    users: Callable[[str], list[Any]],
    token: str,
    until: Callable[..., None],
    shell: Callable[[str], Any],
) -> None:
    """A run that somebody declared failed is ended, its report refused, and the runner works on."""
    process = start_runner("alpha", "--stop-grace", "0.2")
    run_id = queue.enqueue(f"sleep {token}").run_id
    until(lambda: users(token))
    sql = f"UPDATE runs SET status = 'failed', error = 'by hand' WHERE run_id = '{run_id}'"
    assert shell(sql).returncode == 0
    until(lambda: users(token) == [])
    until(lambda: "report refused" in process.log)
    assert queue.get(run_id).error == "by hand"
    has_status(queue.enqueue("echo x").run_id, "completed")


def test_the_shell_cannot_write_a_run_without_a_session(
    queue: Queue, shell: Callable[[str], Any]
) -> None:
    """The contract's own example fails, though the shell leaves foreign keys off."""
    refused = shell(
        "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) VALUES "
        "('run_test','ses_nonexistent','START_SESSION','test','pending','2025-01-01T00:00:00Z')"
    )
    assert refused.returncode != 0
    assert "FOREIGN KEY" in refused.stderr
    assert queue.find() == []
