"""What a process tells its service manager, by being one: the socket, and what comes over it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runqueue.systemd.notify import Manager
from tests.helpers import LONG


class Listener:
    """The end of the socket at which a service manager listens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(LONG)

    def message(self) -> dict[str, str]:
        """The next message, by its names."""
        lines = self._socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def is_silent(self) -> bool:
        """Whether nothing was said."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    one = Listener(tmp_path / "notify")
    yield one
    one.close()


def manager(listener: Listener, **environ: str) -> Manager:
    return Manager({"NOTIFY_SOCKET": str(listener.path), **environ})


def test_without_a_manager_nothing_is_said() -> None:
    """And nothing fails: a process in the foreground has none."""
    nobody = Manager({})
    assert not nobody.is_there
    assert nobody.watchdog is None
    for say in (nobody.ready, nobody.status, nobody.stopping):
        say("x")
    nobody.reloading()
    nobody.alive()
    nobody.expect(60)
    with nobody.patient(60):
        assert [one.name for one in threading.enumerate()].count("runqueue-patience") == 0


def test_a_manager_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    """systemd may be starting itself anew just now."""
    Manager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


def test_ready_comes_with_a_status_of_one_line(listener: Listener) -> None:
    """A line feed would begin another assignment, which is not ours to make."""
    manager(listener).ready("2 pending\nERRNO=5")
    assert listener.message() == {"READY": "1", "STATUS": "2 pending ERRNO=5"}


def test_an_abstract_address_is_understood() -> None:
    """`@` stands for the byte that begins one."""
    name = f"runqueue-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{name}")
        heard.settimeout(LONG)
        Manager({"NOTIFY_SOCKET": f"@{name}"}).stopping("bye")
        assert heard.recv(100) == b"STOPPING=1\nSTATUS=bye"


def test_signs_of_life_are_sent_where_a_watchdog_waits(listener: Listener) -> None:
    """And only there: without a watchdog they would be noise."""
    manager(listener).alive()
    assert listener.is_silent()
    watched = manager(listener, WATCHDOG_USEC="2000000", WATCHDOG_PID=str(os.getpid()))
    assert watched.watchdog == 2.0
    watched.alive()
    assert listener.message() == {"WATCHDOG": "1"}


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
    ],
)
def test_a_watchdog_of_somebody_else_is_none(environ: dict[str, str]) -> None:
    """The variables are inherited by what a service starts."""
    assert Manager(environ).watchdog is None


def test_a_watchdog_is_only_ever_made_more_patient(listener: Listener) -> None:
    """What the unit says is the least; what the daemon needs is asked for once."""
    watched = manager(listener, WATCHDOG_USEC="60000000")
    watched.expect(30)
    assert listener.is_silent()
    watched.expect(90)
    assert listener.message() == {"WATCHDOG_USEC": "90000000"}
    watched.expect(90)
    assert listener.is_silent()


def test_more_time_is_asked_for_at_once_and_not_without_end(listener: Listener) -> None:
    """At the beginning of what may take long; a short limit is not passed."""
    with manager(listener).patient(5):
        asked = int(listener.message()["EXTEND_TIMEOUT_USEC"])
    assert 5e6 <= asked <= 6e6


def test_a_reload_says_when_it_began(listener: Listener) -> None:
    """By the clock that systemd compares it with."""
    manager(listener).reloading()
    told = listener.message()
    assert told["RELOADING"] == "1"
    assert int(told["MONOTONIC_USEC"]) > 0
