"""A process is frozen while it holds the write lock: others say so, live on, and go on after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import runqueue
from runqueue import Queue, StorageBusy, reading
from tests.helpers import ROOT, in_background, start, wait_until
from tests.outage.processes import Programs

pytestmark = pytest.mark.chaos

SLOW = 30.0
PATIENCE = 0.3
"""Seconds that the queue of the test waits for other writers."""

HOLD = """
import os, signal, sys
import runqueue

queue = runqueue.connect(sys.argv[1])
with queue.store.transaction():
    queue.enqueue("by one that is frozen", run_id="run_00000000f0f0")
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'queue.db'}"


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    """A queue that does not wait for long."""
    with runqueue.connect(url, busy_timeout=PATIENCE) as queue:
        yield queue


@pytest.fixture
def freeze(queue: Queue, url: str) -> Iterator[Callable[[], psutil.Popen]]:
    """Starts a process that writes, and returns when it is frozen in its transaction."""
    started: list[psutil.Popen] = []

    def begin() -> psutil.Popen:
        process = psutil.Popen(
            [sys.executable, "-c", HOLD, url],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
        )
        started.append(process)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, timeout=SLOW)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()


def test_every_verb_that_writes_is_busy_until_the_writer_is_gone(
    queue: Queue, freeze: Callable[[], psutil.Popen]
) -> None:
    """A typed error that a retry may help, while what is there can be read; then all is fine, and
    what the frozen one had begun never was."""
    with queue.runner("worker") as runner:
        at_work = queue.enqueue("x")
        claim = start(runner)
        waiting = queue.enqueue("y")
        queue.enqueue("due", timeout=0.001, priority=-1)
        verbs = {
            "enqueue": lambda: queue.enqueue("z"),
            "stop": lambda: queue.stop(waiting.run_id),
            "claim": lambda: runner.claim(timeout=0),
            "complete": lambda: claim.complete("done"),
            "sweep": queue.sweep,
        }
        writer = freeze()
        for name, verb in verbs.items():
            with in_background(verb, queue) as answer:
                error = answer.exception(timeout=SLOW)
            assert isinstance(error, StorageBusy), name
            assert error.retryable
            assert "try again" in str(error)
        assert len(queue.find()) == 3
        assert queue.why(waiting.run_id).summary
        writer.kill()
        writer.wait()
        for verb in verbs.values():
            verb()
        assert queue.get(at_work.run_id).status == "completed"
    assert [run.prompt for run in queue.find(status="failed")] == ["due"]
    assert len(queue.find()) == 4
    assert reading.problems(queue.store) == []


def test_a_thread_that_waits_keeps_no_other_from_reading(
    queue: Queue, freeze: Callable[[], psutil.Popen]
) -> None:
    """Writers of one process take turns; readers need none."""
    run = queue.enqueue("x")
    queue.database.busy_timeout = SLOW
    writer = freeze()
    begun = threading.Event()

    def enqueue() -> str:
        begun.set()
        return queue.enqueue("y").run_id

    with in_background(enqueue, queue) as first, in_background(enqueue, queue) as second:
        assert begun.wait(SLOW)
        assert queue.get(run.run_id).status == "pending"
        assert not first.done()
        assert not second.done()
        writer.kill()
        writer.wait()
        run_ids = {run.run_id, first.result(SLOW), second.result(SLOW)}
    assert {run.run_id for run in queue.find()} == run_ids


def test_the_daemon_and_the_runner_live_on(
    queue: Queue, url: str, programs: Programs, freeze: Callable[[], psutil.Popen], tmp_path: Path
) -> None:
    """The daemon says once what is in its way, and what is due is done once the writer is gone."""
    gate = tmp_path / "gate"
    agent = ("sh", "-c", f"while ! [ -e {gate} ]; do sleep 0.05; done; echo the result")
    daemon = programs.daemon(url)
    runner = programs.runner(url, "worker", command=agent)
    at_work = queue.enqueue("x").run_id
    wait_until(lambda: queue.get(at_work).status == "running", timeout=SLOW)
    os.kill(daemon.pid, signal.SIGSTOP)  # else it might be done before the writer is frozen
    due = queue.enqueue("due", timeout=0.001, demands={"tags": ["none"]}).run_id
    writer = freeze()
    os.kill(daemon.pid, signal.SIGCONT)
    gate.touch()
    daemon.says("StorageBusy: another process is writing to the database")
    assert daemon.is_alive
    assert runner.is_alive
    assert queue.get(at_work).status == "running"
    assert queue.get(due).status == "pending"
    writer.kill()
    writer.wait()
    wait_until(lambda: queue.get(due).status == "failed", timeout=SLOW)
    wait_until(lambda: queue.get(at_work).status == "completed", timeout=SLOW)
    daemon.says("the sweep works again after ")
    assert daemon.log.count("the sweep failed") == 1
    for process in (daemon, runner):
        assert process.end(SLOW) == 0
        assert "Traceback" not in process.log
    assert len(queue.find()) == 2
    assert reading.problems(queue.store) == []
