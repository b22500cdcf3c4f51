"""The runner in Python works, and is as short as it is said to be."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from runqueue import Queue
from tests.conftest import DATABASES
from tests.examples.conftest import EXAMPLES
from tests.processes import Process


@pytest.mark.parametrize("url", list(DATABASES), indirect=True)
def test_it_answers_resumes_and_drains(
    queue: Queue, start: Callable[..., Process], ended: Callable[[str], Any]
) -> None:
    """Each run in the conversation of its session; SIGTERM ends it when nothing is at work."""
    process = start("python3", str(EXAMPLES / "runner.py"), "loud")
    run = queue.enqueue("hello world", demands={"tags": ["loud"]})
    conversation = f"conversation of {run.session_id}"
    assert ended(run.run_id).result == f"{conversation}: HELLO WORLD"
    assert queue.session(run.session_id).executor_session_id == conversation
    queue.bind_session(run.session_id, "another")
    again = queue.enqueue("and again", session_id=run.session_id)
    assert ended(again.run_id).result == "another: AND AGAIN"
    assert process.end_within(signal.SIGTERM, 20) == 0


def test_a_failure_ends_the_run_and_not_the_runner(
    queue: Queue, start: Callable[..., Process], ended: Callable[[str], Any]
) -> None:
    """Here the binding fails, for another session has that conversation."""
    start("python3", str(EXAMPLES / "runner.py"))
    other = queue.enqueue("x")
    ended(other.run_id)
    run = queue.enqueue("x", demands={"tags": ["later"]})
    queue.bind_session(other.session_id, f"conversation of {run.session_id}")
    start("python3", str(EXAMPLES / "runner.py"), "later")
    failed = ended(run.run_id)
    assert failed.status == "failed"
    assert failed.error.startswith("SessionConflict: ")
    assert ended(queue.enqueue("y").run_id).status == "completed"


def test_it_has_fewer_than_forty_lines() -> None:
    """All of them counted."""
    assert len((EXAMPLES / "runner.py").read_text().splitlines()) < 40
