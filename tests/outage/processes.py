"""Real processes on a PostgreSQL database, and what is told of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from runqueue import Queue
from tests import processes
from tests.helpers import ROOT, wait_until

SLOW = 30.0
"""Seconds for what takes an interpreter's start or several, on a machine that is busy."""
AGENT = """
read -r what rest
echo "START $RUNQUEUE_RUN_ID" >> {ledger}
$what $rest
echo "DONE $RUNQUEUE_RUN_ID" >> {ledger}
"""
"""An agent that notes when it begins and ends, and does what the prompt says in between."""


class Process(processes.Process):
    """A program that says what it does."""

    def end(self, seconds: float) -> int:
        """Ask it to end; return the exit code, if it comes in time."""
        return self.end_within(signal.SIGTERM, seconds)

    def says(self, text: str, times: int = 1) -> None:
        """Return when the process has said this so often."""
        try:
            wait_until(lambda: self.log.count(text) >= times or not self.is_alive, timeout=SLOW)
        finally:
            assert self.log.count(text) >= times, self.log


class Programs:
    """Starts programs with none of the tester's own settings, and ends them all."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._started: list[Process] = []
        (place / "empty.env").touch()
        env = {name: value for name, value in os.environ.items() if name[:9] != "RUNQUEUE_"}
        env |= {"RUNQUEUE_ENV_FILE": str(place / "empty.env"), "PYTHONPATH": str(ROOT)}
        self._env = {**env, "PYTHONUNBUFFERED": "1"}

    def execute(self, argv: Sequence[str]) -> Process:
        log = self._place / f"process-{len(self._started)}.log"
        process = Process(argv, log, self._env)
        self._started.append(process)
        return process

    def start(self, program: str, url: str, *argv: str, prefix: Sequence[str] = ()) -> Process:
        """Start one of the three programs; a prefix is a command that executes it."""
        python = prefix or [sys.executable, "-m"]
        return self.execute([*python, processes.MODULES[program], "--db", url, *argv])

    def daemon(self, url: str, *argv: str, prefix: Sequence[str] = ()) -> Process:
        """Start a daemon and return when it sweeps."""
        process = self.start("runqueued", url, "--interval", "0.2", *argv, prefix=prefix)
        process.says(" sweeps ")
        return process

    def runner(
        self,
        url: str,
        runner_id: str,
        *argv: str,
        command: Sequence[str] = ("sh",),
        prefix: Sequence[str] = (),
    ) -> Process:
        """Start a runner and return when it is registered."""
        argv = ("--runner-id", runner_id, *argv, "--", *command)
        process = self.start("runqueue-runner", url, *argv, prefix=prefix)
        process.says(" serves ")
        return process

    def close(self) -> None:
        for process in self._started:
            process.destroy()


class Ledger:
    """What agents did, in a file to which each appends its lines, whatever the database holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def agent(self) -> tuple[str, ...]:
        return ("sh", "-c", AGENT.format(ledger=self.path))

    def lines(self, word: str) -> list[str]:
        """Return what follows a word at the beginning of a line."""
        lines = self.path.read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == word]

    def has(self, word: str, run_id: str) -> bool:
        return run_id in self.lines(word)


def check_history(queue: Queue, run_ids: Iterable[str], ledger: Ledger) -> None:
    """Assert that every run was executed once, and claimed only when it was free to be."""
    starts, ends = Counter(ledger.lines("START")), Counter(ledger.lines("DONE"))
    for run_id in run_ids:
        events = [event.status.value for event in queue.timeline(run_id)]
        told = f"{run_id}: {events} {queue.get(run_id).error}"
        assert events[-1] == "completed", told
        assert events[-2] == "running", told
        # Each claim but the last was given back: that it was made was lost with the server.
        assert events[:-2] == ["pending", "claimed"] * (len(events[:-2]) // 2), told
        assert (starts[run_id], ends[run_id]) == (1, 1), told


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process and its descendants: they neither answer nor refuse, and go on afterwards."""
    stopped: list[int] = []

    def stop(pid: int) -> None:
        # A server's child may just be ending; that must not leave the others stopped for ever.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

    try:
        stop(pid)  # first, so that it has no more children than are listed now
        for child in family(pid)[1:]:
            stop(child)
        yield
    finally:
        for each in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


def family(pid: int) -> list[int]:
    """Return the pids of a process and of its descendants, the process first."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def agents(process: Process) -> list[int]:
    """The agents of a runner that sleep for long."""
    found = []
    for pid in family(process.pid):
        try:
            if psutil.Process(pid).cmdline()[:2] == ["sleep", "600"]:
                found.append(pid)
        except psutil.Error:
            pass
    return found
