"""`runqueue-runner --max-runtime`: a run that takes too long is ended, and says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue, slots
from runqueue.cli.runner import runner as command
from runqueue.executor import Outcome
from runqueue.slots import Slots
from tests.helpers import in_background

REASON = "runner alpha ended it after the maximum runtime of 0.3 s"


def test_a_run_that_takes_too_long_is_ended_and_fails(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    users: Callable[[str], list[Any]],
    token: str,
) -> None:
    """Its processes are gone, also those that are deaf to SIGTERM; the next run is served."""
    process = start_runner("alpha", "--max-runtime", "0.3", "--stop-grace", "0.3")
    run_id = queue.enqueue(f"echo half; trap '' TERM; sleep {token}; sleep {token}").run_id
    run = has_status(run_id, "failed")
    assert (run.error, run.result) == (REASON, None)
    assert users(token) == []
    assert "maximum runtime" in process.log
    assert has_status(queue.enqueue("echo fine").run_id, "completed").result == "fine\n"
    events = [(event.status, event.actor) for event in queue.timeline(run_id)]
    assert events[-1] == ("failed", "runner")


def test_an_agent_is_asked_to_end_before_it_is_killed(
    queue: Queue, start_runner: Callable[..., Any], has_status: Callable[..., Any], tmp_path: Path
) -> None:
    """It may tidy up; that it then exits with 0 does not make the run complete."""
    tidied = tmp_path / "tidied"
    start_runner("alpha", "--max-runtime", "0.3")
    script = f"trap 'touch {tidied}; exit 0' TERM; while :; do sleep 0.02; done"
    assert has_status(queue.enqueue(script).run_id, "failed").error == REASON
    assert tidied.exists()


def test_the_limit_can_be_given_by_its_variable(
    queue: Queue, start: Callable[..., Any], has_status: Callable[..., Any]
) -> None:
    """As every option."""
    env = {"RUNQUEUE_MAX_RUNTIME": "0.3"}
    start("runqueue-runner", "--runner-id", "alpha", "--", "sh", env=env)
    assert has_status(queue.enqueue("sleep 600").run_id, "failed").error == REASON


def test_there_is_no_limit_unless_it_is_asked_for() -> None:
    """How long an agent may work is not ours to know."""
    context = command.make_context("runqueue-runner", ["sh"])
    assert context.params["max_runtime"] is None


def test_a_stop_that_comes_while_the_run_is_being_ended_wins(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Somebody asked for it to be stopped, and it is."""
    start_runner("alpha", "--max-runtime", "0.3", "--stop-grace", "20")
    asked, go = tmp_path / "asked", tmp_path / "go"
    script = (
        f"trap 'touch {asked}' TERM; while [ ! -e {go} ]; do sleep 0.02; done; trap '' TERM; exit 0"
    )
    run_id = queue.enqueue(script).run_id
    until(asked.exists)
    queue.stop(run_id, reason="no longer wanted")
    go.touch()
    run = has_status(run_id, "stopped")
    assert run.error is None


def test_a_run_that_ended_in_the_same_instant_is_what_it_was(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end came before it was asked to end, and was only seen too late."""
    asked = threading.Event()

    class Late:
        """An execution that has ended by itself when it is asked to end."""

        def __init__(self, *_: object, **options: object) -> None:
            assert options["prompt"] == "x"

        def stop(self) -> None:
            asked.set()

        def wait(self, timeout: float | None = None) -> Outcome | None:
            return Outcome("completed", "the result", None, 0) if asked.is_set() else None

    monkeypatch.setattr(slots, "Execution", Late)
    run_id = queue.enqueue("x").run_id
    with queue.runner("alpha") as runner:
        work = Slots(
            *(queue.store, runner, ["sh"]), slots=1, stop_grace=1, drain=60, max_runtime=0.3
        )
        with in_background(work.serve, queue):
            run = queue.wait(run_id, timeout=20)
            work.shut_down()
    assert asked.is_set()
    assert (run.status, run.result) == ("completed", "the result")
