"""Telling the service manager how this process is: the protocol of sd_notify(3).

One datagram a message, to the socket that the manager names. Without a manager nothing is sent,
and a message that cannot be sent is lost: what a process does never depends on it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

EXTENSION: Final = 30.0
"""Seconds that the manager is asked to wait for the next word while something takes long."""
SERVICE: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY")
"""What is meant for the service's own process, and for nothing that it starts."""


class Manager:
    """The service manager of this process, or nobody."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL of an abstract address.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog = _watchdog(environ)
        """Seconds without a sign of life after which the manager ends this process, if it does."""

    @property
    def is_there(self) -> bool:
        """Whether anybody is listening."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Tell that the service, started or reloaded, does its work."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """Tell that the settings are being read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Tell that the service ends."""
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def status(self, text: str) -> None:
        """Tell what the service does, for people who ask for its status."""
        self._send(f"STATUS={_line(text)}")

    def alive(self) -> None:
        """Tell that the service has just done its work."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def expect(self, seconds: float) -> None:
        """Have the manager wait at least this long for a sign of life, if it waits for any."""
        if self.watchdog is not None and self.watchdog < seconds:
            self.watchdog = seconds
            self._send(f"WATCHDOG_USEC={int(seconds * 1e6)}")

    @contextmanager
    def patient(self, at_most: float) -> Iterator[None]:
        """Have a start, a reload or a stop take longer than the unit says, up to `at_most` s."""
        if not self.is_there:
            yield
            return
        done = threading.Event()
        until = time.monotonic() + at_most
        thread = threading.Thread(
            target=self._extend, args=(done, until), name="runqueue-patience", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _extend(self, done: threading.Event, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self._send(f"EXTEND_TIMEOUT_USEC={int(min(EXTENSION, left + 1) * 1e6)}")
            if done.wait(min(EXTENSION / 3, left)):
                return

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.settimeout(1.0)
                one.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except OSError:  # the manager is being restarted: it knows this process all the same
            return


def _watchdog(environ: MutableMapping[str, str]) -> float | None:
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or not int(microseconds):
        return None
    pid = environ.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):  # it is meant for another process
        return None
    return int(microseconds) / 1e6


def _line(text: str) -> str:
    return text.replace("\n", " ")
