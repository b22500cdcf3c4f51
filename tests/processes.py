"""Programs of ours as processes, for the tests that send them signals."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

LONG = 20.0
"""Seconds after which a process that should end is taken not to end."""
MODULES = {
    "runqueue": "runqueue",
    "runqueued": "runqueue.cli.daemon",
    "runqueue-runner": "runqueue.cli.runner",
}


class Process:
    """A command that was started, with what it says in a file."""

    def __init__(self, argv: Sequence[str], log: Path, env: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=env,
                # A group of its own, so that a signal to it is a signal to nobody else.
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = LONG) -> int:
        """Return the exit code; fails when the process does not end in time."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {timeout} s: {self.log}") from None

    def end_within(self, number: int, seconds: float) -> int:
        """Send a signal; return the exit code, if it comes in time."""
        self.send(number)
        return self.wait(seconds)

    def destroy(self) -> None:
        """End the process and whatever it started; harmless when it has ended."""
        if not self.is_alive:
            return
        family = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
