"""The wrappers of command-line agents keep a session in one conversation, whatever happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue
from tests.conftest import DATABASES
from tests.examples.conftest import EXAMPLES
from tests.processes import Process

AGENTS = {
    "claude": ("claude_code.py", "--permission-mode", "acceptEdits"),
    "codex": ("codex.py", "--sandbox", "workspace-write", "--skip-git-repo-check"),
    "aider": ("aider.py", "--model", "some"),
}


@pytest.fixture(params=AGENTS)
def agent(request: pytest.FixtureRequest, start: Callable[..., Process]) -> str:
    """A runner that executes an agent by its wrapper; the agent's name."""
    name: str = request.param
    script, *options = AGENTS[name]
    start(
        *("runqueue-runner", "--runner-id", "alpha", "--executor-type", name, "--"),
        *("python3", str(EXAMPLES / script), *options),
    )
    return name


@pytest.mark.parametrize("url", list(DATABASES), indirect=True)
def test_a_session_goes_on_with_its_conversation(
    queue: Queue, agent: str, ended: Callable[[str], Any]
) -> None:
    """Its second and third run know what was said before; another session knows nothing."""
    first = queue.enqueue("one")
    assert ended(first.run_id).result.splitlines()[-1] == "one"
    bound = queue.session(first.session_id).executor_session_id
    assert bound
    results = []
    for prompt in ("two", "three"):
        run = queue.enqueue(prompt, session_id=first.session_id)
        results.append(ended(run.run_id).result.splitlines()[-1])
        assert queue.session(first.session_id).executor_session_id == bound
    assert results == ["one | two", "one | two | three"]
    other = queue.enqueue("other")
    assert ended(other.run_id).result.splitlines()[-1] == "other"
    assert queue.session(other.session_id).executor_session_id != bound


def test_a_failure_is_the_agents_own_sentence_and_the_conversation_stays(
    queue: Queue, agent: str, ended: Callable[[str], Any]
) -> None:
    """The run fails with it, and the next one resumes what was said.

    A prompt may be anything: what looks like an option is none, and it may be long.
    """
    run = queue.enqueue("please fail")
    failed = ended(run.run_id)
    assert failed.status == "failed"
    assert "the model refused" in failed.error
    assert "Traceback" not in failed.error
    prompt = "--resume 'x' $HOME " + "y" * 300_000
    again = queue.enqueue(prompt, session_id=run.session_id)
    said = "please fail | --resume 'x' $HOME y"
    assert ended(again.run_id).result.splitlines()[-1] == said


@pytest.mark.parametrize("agent", ["claude", "codex"], indirect=True)
def test_a_conversation_that_is_gone_fails_the_run_with_the_reason(
    queue: Queue, agent: str, ended: Callable[[str], Any]
) -> None:
    """And no other one is begun in its place; once it is forgotten, the session begins anew."""
    run = queue.enqueue("one")
    ended(run.run_id)
    queue.bind_session(run.session_id, "conversation-that-is-gone")
    lost = ended(queue.enqueue("two", session_id=run.session_id).run_id)
    assert lost.status == "failed"
    assert "conversation-that-is-gone" in lost.error
    queue.bind_session(run.session_id, None)
    again = ended(queue.enqueue("three", session_id=run.session_id).run_id)
    assert again.result.splitlines()[-1] == "three"


def test_a_conversation_that_cannot_be_bound_is_not_begun(
    queue: Queue, agent: str, ended: Callable[[str], Any], environment: dict[str, str]
) -> None:
    """Nobody would find it again; the run fails with what the binding said."""
    binder = Path(environment["PATH"].split(os.pathsep)[0]) / "runqueue"
    binder.write_text("#!/bin/sh\necho 'Error: the database is busy' >&2\nexit 75\n")
    run = ended(queue.enqueue("one").run_id)
    assert run.status == "failed"
    assert run.error.startswith("exit status 75: ")
    assert "the database is busy" in run.error


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_can_be_executed_as_it_is(script: str) -> None:
    """By its first line, too."""
    assert os.access(EXAMPLES / script, os.X_OK)
    assert (EXAMPLES / script).read_text().startswith("#!/usr/bin/env python3\n")
