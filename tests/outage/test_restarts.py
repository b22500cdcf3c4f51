"""The server crashes and comes back while everybody is at work."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

import runqueue
from runqueue import Queue, StorageError
from tests.helpers import in_background, wait_until
from tests.outage.conftest import Server
from tests.outage.processes import SLOW, Ledger, Process, Programs, check_history

LOOP = """
import os, sys, runqueue
url, name, path = sys.argv[1:]
ledger = os.open(path, os.O_WRONLY | os.O_APPEND)
def note(word, *rest):
    os.write(ledger, " ".join([word, *rest]).encode() + b"\\n")
queue = runqueue.connect(url)
with queue.runner(name) as runner, runner.draining_on_signals():
    print("it serves all", flush=True)
    for claim in runner:
        note("CLAIM", claim.run.run_id, str(claim.run.claimed_at))
        try:
            with claim as run:
                note("START", run.run_id)
                note("DONE", run.run_id)
                claim.complete(result=run.prompt)
        except runqueue.StaleClaim:
            pass  # it was not started within the deadline
queue.close()
"""
"""The loop of the README, which notes what it does and goes on when it was too late."""


class Load:
    """An enqueuer that knows which of its runs were acknowledged."""

    def __init__(self, url: str) -> None:
        self._queue = runqueue.connect(url)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="test-load", daemon=True)
        self.acknowledged: list[str] = []
        self.refusals: list[StorageError] = []
        self.error: BaseException | None = None
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._ended.wait(0.01):
                run_id = f"run_{len(self.acknowledged):012x}"
                try:
                    self._queue.enqueue("true", run_id=run_id)
                except StorageError as error:
                    self.refusals.append(error)
                else:
                    self.acknowledged.append(run_id)
        except BaseException as error:  # noqa: BLE001 - told when it ends
            self.error = error
        finally:
            self._queue.close()

    def end(self) -> list[str]:
        """Enqueue no more; return the ids of the runs that were acknowledged."""
        self._ended.set()
        self._thread.join(SLOW)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.acknowledged


@pytest.fixture
def load(queue: Queue, url: str) -> Iterator[Load]:
    """An enqueuer at work."""
    load = Load(url)
    yield load
    load.end()


def _crash_thrice(server: Server, daemon: Process, is_done: Callable[[int], bool]) -> None:
    for crash in range(1, 4):
        wait_until(partial(is_done, 10 * crash), timeout=SLOW)
        failures = daemon.log.count("the sweep failed")
        server.stop("immediate")
        daemon.says("the sweep failed", failures + 1)
        server.start()
        daemon.says("the sweep works again", crash)


@pytest.mark.parametrize("kind", ["command", "loop"])
def test_three_crashes_under_load_lose_and_double_nothing(
    kind: str,
    server: Server,
    url: str,
    queue: Queue,
    programs: Programs,
    ledger: Ledger,
    load: Load,
) -> None:
    """Three runners execute each acknowledged run once; no process dies of it."""
    daemon = programs.daemon(url, "--start-deadline", "8")
    names = ["one", "two", "three"]
    if kind == "command":
        runners = [programs.runner(url, name, command=ledger.agent) for name in names]
    else:
        argv = [sys.executable, "-c", LOOP, url]
        runners = [programs.execute([*argv, name, str(ledger.path)]) for name in names]
        for runner in runners:
            runner.says("serves all")
    begun = len(ledger.lines("DONE"))
    _crash_thrice(
        server,
        daemon,
        lambda count: (
            len(ledger.lines("DONE")) - begun >= count or not all(one.is_alive for one in runners)
        ),
    )
    acknowledged = load.end()
    queue.close()

    def are_over() -> bool:
        return not queue.find(status=("pending", "claimed", "running", "stopping"), limit=1)

    wait_until(are_over, timeout=2 * SLOW)
    for process in (daemon, *runners):
        assert process.is_alive, process.log
        assert "Traceback" not in process.log, process.log
    assert load.refusals, "the crashes went unnoticed"
    assert {type(error).__name__ for error in load.refusals} == {"StorageLost"}
    assert set(acknowledged) <= {run.run_id for run in queue.find()}
    check_history(queue, [run.run_id for run in queue.find()], ledger)
    claims = Counter(ledger.lines("CLAIM"))
    assert not [claim for claim, times in claims.items() if times > 1]
    for process in (daemon, *runners):
        assert process.end(5) == 0, process.log


def test_a_run_at_work_is_reported_once_the_server_is_back(
    server: Server, url: str, queue: Queue, programs: Programs, ledger: Ledger
) -> None:
    """It ends while the server is away; its runner keeps the result and reports it."""
    programs.daemon(url)
    runner = programs.runner(
        url, "one", command=("sh", "-c", 'sh; echo "DONE x" >> ' + str(ledger.path))
    )
    gate = ledger.path.with_name("gate")
    begun = ledger.path.with_name("begun")
    run = queue.enqueue(f": >{begun}; while [ ! -e {gate} ]; do sleep 0.02; done; echo the result")
    # Not the status: the runner, too, must have heard that it was started, to begin.
    wait_until(begun.exists)
    server.stop("immediate")
    gate.touch()
    wait_until(lambda: ledger.has("DONE", "x"))
    runner.says("its report waits")
    server.start()
    with runqueue.connect(url) as other:
        assert other.wait(run.run_id, timeout=SLOW).result == "the result\n"
        events = [event.status.value for event in other.timeline(run.run_id)]
    assert events == ["pending", "claimed", "running", "completed"]
    assert runner.is_alive


def test_waits_survive_a_crash(server: Server, url: str, queue: Queue, programs: Programs) -> None:
    """`queue.wait` and `runqueue wait` return the result of a run that ends after it."""
    run = queue.enqueue("work")
    command = programs.start("runqueue", url, "wait", run.run_id)
    with in_background(lambda: queue.wait(run.run_id, timeout=2 * SLOW), queue) as waited:
        # Both have asked once, and listen.
        wait_until(lambda: len(server.backends("outage")) >= 4, timeout=SLOW)
        server.stop("immediate")
        command.says("goes on")
        server.start()
        with queue.runner("late") as runner:
            for claim in runner:
                with claim:
                    claim.complete("the result")
                runner.drain()
        assert waited.result(SLOW).result == "the result"
    assert command.wait() == 0
    assert command.log.splitlines()[-1] == "the result"


def test_the_loop_of_a_runner_goes_on_while_the_server_is_away(
    server: Server, url: str, queue: Queue
) -> None:
    """A server that is lost between the claim and the start is waited for, in the loop."""
    run = queue.enqueue("work")
    with queue.runner("one") as runner:
        real = runner.claim

        def claim_and_lose_the_server(timeout: float) -> object:
            claim = real(timeout)
            server.stop("immediate")
            return claim

        runner.claim = claim_and_lose_the_server  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            _start_when_asked(server, patch)
            for claim in runner:
                with claim:
                    claim.complete("the result")
                runner.drain()
    assert queue.get(run.run_id).result == "the result"


def test_a_result_is_kept_while_the_server_is_away(server: Server, queue: Queue) -> None:
    """`claim.complete` in a `with` block: the run is completed, and not failed for the outage."""
    run = queue.enqueue("work")
    with queue.runner("one") as runner:
        for claim in runner:
            with pytest.MonkeyPatch.context() as patch:
                with claim:
                    server.stop("immediate")
                    _start_when_asked(server, patch)
                    claim.complete("the result")
            runner.drain()
    ended = queue.get(run.run_id)
    assert (ended.status, ended.result, ended.error) == ("completed", "the result", None)


def _start_when_asked(server: Server, patch: pytest.MonkeyPatch) -> None:
    """Start the server, in this thread, before the second pause of whoever waits for it."""
    tries: list[int] = []

    def pauses() -> Iterator[float]:
        while True:
            tries.append(len(tries))
            if len(tries) == 2:
                server.start()
            yield 0.01

    patch.setattr("runqueue.claims.pauses", pauses)
