"""Daemon and runner under a service manager that is played by the test, which takes no root."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue
from tests.process.conftest import Other
from tests.processes import LONG

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


class Manager:
    """Hears what a process tells."""

    def __init__(self, path: Path) -> None:
        self.env = {"NOTIFY_SOCKET": str(path)}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(LONG)

    def hears(self, words: str) -> str:
        """Wait until a message has these words; return it."""
        while words not in (told := self._socket.recv(4096).decode()):
            pass
        return told

    def forget(self) -> None:
        """Take no notice of what was told until now."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(4096):
                pass
        except BlockingIOError:
            self._socket.settimeout(LONG)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    one = Manager(tmp_path / "notify")
    yield one
    one.close()


def test_a_daemon_tells_how_it_is_from_start_to_end(
    queue: Queue, start: Callable[..., Any], manager: Manager
) -> None:
    """Ready after a sweep, a sign of life with each, and that it stops."""
    env = {**manager.env, "WATCHDOG_USEC": "60000000"}
    process = start("runqueued", "--interval", "0.1", env=env)
    assert "last sweep" in manager.hears("READY=1")
    manager.hears("WATCHDOG=1")
    manager.hears("WATCHDOG=1")
    process.send(signal.SIGTERM)
    manager.hears("STOPPING=1")
    assert process.wait() == 0


def test_a_daemon_that_cannot_sweep_gives_no_sign_of_life(
    queue: Queue, start: Callable[..., Any], manager: Manager, place: Path
) -> None:
    """Though it lives, and says why it fails; it does again as soon as it can."""
    env = {**manager.env, "WATCHDOG_USEC": "60000000"}
    process = start("runqueued", "--interval", "0.1", env=env)
    manager.hears("READY=1")
    queue.close()
    away = place.with_name("away")
    place.rename(away)
    told = manager.hears("it fails: StorageLost")
    manager.forget()
    assert "WATCHDOG" not in told
    assert "WATCHDOG" not in manager.hears("it fails: StorageLost")
    away.rename(place)
    manager.hears("WATCHDOG=1")
    assert process.end_within(signal.SIGTERM, LONG) == 0


def test_a_daemon_without_patience_left_ends_with_75(
    queue: Queue, start_daemon: Callable[..., Any], other: Other
) -> None:
    """When no sweep has succeeded for so long; one sentence says why."""
    process = start_daemon("--interval", "0.1", "--patience", "0.5")
    queue.enqueue("x", timeout=1.0)  # what it will have to write about
    other.keep_writers_out()
    try:
        assert process.wait() == 75
    finally:
        other.let_writers_in()
    assert process.log.splitlines()[-1].startswith("Error: another process is writing")
    assert "Traceback" not in process.log


def test_a_runner_waits_for_its_database_with_its_patience(
    queue: Queue,
    start: Callable[..., Any],
    other: Other,
    until: Callable[..., None],
    has_status: Callable[..., Any],
) -> None:
    """It is registered as soon as it can be, and works."""
    other.keep_writers_out()
    process = start("runqueue-runner", "--patience", str(LONG), "--", "sh")
    until(lambda: "the runner waits for its database" in process.log)
    other.let_writers_in()
    assert has_status(queue.enqueue("echo on").run_id, "completed").result == "on\n"
    assert process.end_within(signal.SIGTERM, LONG) == 0


def test_a_runner_that_waits_for_its_database_ends_when_it_is_told_to(
    queue: Queue, start: Callable[..., Any], other: Other, until: Callable[..., None]
) -> None:
    """It is registered nowhere, so there is nothing to be sorry for."""
    other.keep_writers_out()
    process = start("runqueue-runner", "--patience", str(LONG), "--", "sh")
    until(lambda: "the runner waits for its database" in process.log)
    try:
        assert process.end_within(signal.SIGTERM, LONG) == 0
    finally:
        other.let_writers_in()
    assert other.execute("SELECT runner_id FROM runners").fetchall() == []


def test_a_runner_without_patience_left_ends_with_75(
    queue: Queue, start: Callable[..., Any], manager: Manager, place: Path
) -> None:
    """While nothing is at work; one sentence says why."""
    argv = ("runqueue-runner", "--patience", "0.2", "--lease", "1", "--", "sh")
    process = start(*argv, env=manager.env)
    manager.hears("READY=1")
    queue.close()
    place.rename(place.with_name("away"))
    assert process.wait() == 75
    assert process.log.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in process.log


def test_a_runner_without_patience_left_does_not_give_up_what_is_at_work(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    until: Callable[..., None],
    place: Path,
    tmp_path: Path,
) -> None:
    """An agent that outlasts the outage has its run reported by the runner that started it."""
    process = start_runner("alpha", "--patience", "0", "--lease", "12")
    gate = tmp_path / "gate"
    run_id = queue.enqueue(f"while ! test -e '{gate}'; do sleep 0.05; done; echo done").run_id
    has_status(run_id, "running")
    queue.close()
    away = place.with_name("away")
    place.rename(away)
    until(lambda: process.log.count("waits on for its database; runs at work: 1"))
    away.rename(place)
    gate.touch()
    assert has_status(run_id, "completed").result == "done\n"
    assert process.end_within(signal.SIGTERM, LONG) == 0


def test_a_hang_up_has_a_daemon_go_by_its_settings_as_they_are(
    queue: Queue, start: Callable[..., Any], manager: Manager, tmp_path: Path, other: Other
) -> None:
    """It says that it reloads, and when it is done; the lease that it wants is the new one."""
    settings = tmp_path / "service.env"
    settings.write_text("RUNQUEUE_LEASE=30\n")
    env = {**manager.env, "RUNQUEUE_LEASE": "30", "RUNQUEUE_SERVICE_FILES": str(settings)}
    process = start("runqueued", "--interval", "0.1", env=env)
    manager.hears("READY=1")
    settings.write_text("RUNQUEUE_LEASE=11\n")
    process.send(signal.SIGHUP)
    manager.hears("RELOADING=1")
    manager.hears("READY=1")
    assert "reloaded; changed: RUNQUEUE_LEASE" in process.log
    sql = "SELECT lease FROM daemons"
    while other.execute(sql).fetchall() != [(11.0,)]:
        assert process.is_alive
    assert process.end_within(signal.SIGTERM, LONG) == 0


def test_a_hang_up_has_a_runner_begin_anew(
    queue: Queue, start: Callable[..., Any], manager: Manager, has_status: Callable[..., Any]
) -> None:
    """In the same process, under the same id, and it works on."""
    process = start("runqueue-runner", "--runner-id", "alpha", "--", "sh", env=manager.env)
    manager.hears("READY=1")
    process.send(signal.SIGHUP)
    manager.hears("RELOADING=1")
    manager.hears("READY=1")
    assert process.log.count("runner alpha of version") == 2
    has_status(queue.enqueue("echo on").run_id, "completed")
    process.send(signal.SIGTERM)
    manager.hears("STOPPING=1")
    assert process.wait() == 0


def test_without_a_manager_a_hang_up_is_the_end(
    queue: Queue, start_daemon: Callable[..., Any]
) -> None:
    """Of the terminal, and of what was started on it."""
    process = start_daemon()
    assert process.end_within(signal.SIGHUP, LONG) == -signal.SIGHUP
