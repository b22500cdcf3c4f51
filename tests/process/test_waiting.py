"""`wait` and `enqueue --wait` as processes: woken by the end, and interrupted."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue
from tests.processes import Process

# The slow poll is the net under the wake, and would hide that it is torn.
WITHOUT_A_NET = (
    "import sys, runqueue.queue as queue; queue.LOOK_AGAIN = 1e5; "
    "from runqueue.cli import main; main()"
)


@pytest.fixture
def command(tmp_path: Path, environment: dict[str, str], url: str) -> Iterator[Callable[..., Any]]:
    """Starts a `runqueue` command that never looks again unless it is woken."""
    started: list[Process] = []

    def begin(*argv: str) -> Process:
        log = tmp_path / f"command-{len(started)}.log"
        argv = (sys.executable, "-c", WITHOUT_A_NET, *argv)
        process = Process(argv, log, {**environment, "RUNQUEUE_DB": url})
        started.append(process)
        return process

    yield begin
    for process in started:
        process.destroy()


@pytest.fixture
def waits_for(queue: Queue, until: Callable[..., None]) -> Callable[[Process], str]:
    """Returns the id of the run that a command has added and waits for."""

    def find(process: Process) -> str:
        until(lambda: re.search(r"run_[0-9a-f]{12}\n", process.log))
        return process.log.split()[0]

    return find


def work(queue: Queue, act: str, text: str | None = None) -> str:
    """Execute the next run as another process would; return its id."""
    with queue.runner("alpha") as runner:
        claim = runner.claim(timeout=20)
        assert claim is not None
        claim.start()
        if act == "stop":
            queue.stop(claim.run.run_id)
            claim.confirm_stop()
        else:
            getattr(claim, act)(text)
        return claim.run.run_id


def test_enqueue_wait_returns_with_the_result_when_the_run_ends(
    queue: Queue, command: Callable[..., Process], waits_for: Callable[[Process], str]
) -> None:
    """Woken by another process, exit code 0."""
    process = command("enqueue", "x", "--wait")
    run_id = waits_for(process)
    work(queue, "complete", "the answer\n")
    assert process.wait() == 0
    assert process.log == f"{run_id}\nthe answer\n"


@pytest.mark.parametrize(
    ("act", "said"), [("fail", "failed: it broke"), ("stop", "stopped")], ids=["fail", "stop"]
)
def test_a_run_that_did_not_complete_is_exit_code_5(
    queue: Queue,
    command: Callable[..., Process],
    waits_for: Callable[[Process], str],
    act: str,
    said: str,
) -> None:
    """With the error."""
    process = command("enqueue", "x", "--wait")
    run_id = waits_for(process)
    work(queue, act, "it broke")
    assert process.wait() == 5
    assert process.log == f"{run_id}\nrun {run_id} {said}\n"


def test_wait_is_woken_by_the_end_in_another_process(
    queue: Queue, command: Callable[..., Process]
) -> None:
    """As JSON it gives the whole run."""
    run_id = queue.enqueue("x").run_id
    process = command("wait", run_id, "-o", "json")
    work(queue, "complete", "the answer")
    assert process.wait() == 0
    assert json.loads(process.log)["result"] == "the answer"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_an_interrupted_wait_leaves_the_run_alone(
    queue: Queue,
    command: Callable[..., Process],
    waits_for: Callable[[Process], str],
    number: signal.Signals,
) -> None:
    """Exit code 130, or death by the signal; the run goes on, and completes."""
    process = command("enqueue", "x", "--wait")
    run_id = waits_for(process)
    code = process.end_within(number, 20)
    assert code == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert queue.get(run_id).status == "pending"
    work(queue, "complete", "r")
    assert queue.get(run_id).status == "completed"
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["INT", "TERM", "HUP"]
)
@pytest.mark.parametrize("is_running", [False, True], ids=["pending", "running"])
def test_an_interrupted_wait_stops_the_run_when_that_is_wanted(
    queue: Queue,
    command: Callable[..., Process],
    waits_for: Callable[[Process], str],
    number: signal.Signals,
    is_running: bool,
) -> None:
    """A run at work is stopping, one that nobody owns is stopped; exit code 130."""
    process = command("enqueue", "x", "--wait", "--stop-on-interrupt")
    run_id = waits_for(process)
    with queue.runner("alpha") as runner:
        if is_running:
            claim = runner.claim(timeout=20)
            assert claim is not None
            claim.start()
        assert process.end_within(number, 20) == 130
        wanted = "stopping" if is_running else "stopped"
        assert queue.get(run_id).status == wanted
        assert process.log.split() == [run_id, run_id, wanted]
        assert queue.timeline(run_id)[-1].detail == "the wait was interrupted"
        if is_running:
            claim.confirm_stop()
