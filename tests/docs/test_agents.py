"""What docs/agents.md tells is so: the story is executed as it stands, with stand-in agents."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue
from runqueue.cli import cli
from tests.conftest import DATABASES
from tests.examples.conftest import ROOT, ended, environment, queue, start, url
from tests.helpers import wait_until
from tests.processes import LONG, Process

__all__ = ["ended", "environment", "queue", "start", "url"]  # fixtures

PAGE = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
STORY, THEN = PAGE.partition("## A story")[2].split("### The children end")
PROMISED = THEN.partition("has the sum:\n\n")[2]
PROGRAMS = ("runqueued", "runqueue-runner")
has_callbacks = pytest.mark.skipif(
    "tree" not in cli.commands, reason="this version resumes no parents"
)


def commands_of(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def execute(lines: list[str], environment: dict[str, str]) -> str:
    script = "\n".join(lines)
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3 * LONG,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Told:
    """The story, up to where the orchestrator has asked its children."""

    def __init__(
        self,
        queue: Queue,
        start: Callable[..., Process],
        environment: dict[str, str],
        place: Path,
    ) -> None:
        self.queue = queue
        environment["TMPDIR"] = str(place)  # where the orchestrator keeps its memory
        lines = commands_of(STORY)
        programs = [line for line in lines if line.split()[0] in PROGRAMS]
        for line in programs:
            start(*shlex.split(line))
        self.environment = environment
        self.foreground = [line for line in lines if line not in programs]
        self.out = execute(self.foreground, environment)
        self.session_id = re.findall(r"session_id +(ses_\w+)", self.out)[0]

    def children(self) -> list[Any]:
        runs = self.queue.find()
        return [run for run in runs if run.parent_session_id == self.session_id]

    def results(self) -> list[str]:
        """What the orchestrator's runs have said, the first one first."""
        runs = self.queue.find(session_id=self.session_id)
        return [(run.result or "").strip() for run in reversed(runs)]


@pytest.mark.parametrize("url", list(DATABASES), indirect=True)
def test_the_orchestrator_asks_three_children_who_work_on_two_hosts(
    queue: Queue, start: Callable[..., Process], environment: dict[str, str], tmp_path: Path
) -> None:
    """Its session is at home on alpha; each child lives where it could be served."""
    story = Told(queue, start, environment, tmp_path)
    assert "asked 3 children" in story.out
    assert "hostname=alpha executor_type=orchestrator" in story.out
    wait_until(lambda: all(run.is_terminal for run in story.children()), LONG)
    found = {
        run.prompt: (queue.session(run.session_id).hostname, run.result.strip())
        for run in story.children()
    }
    assert found == {
        "Review the parser": ("alpha", "Review the parser"),
        "Review the printer": ("alpha", "Review the printer"),
        "Profile the kernels": ("beta", "Profile the kernels"),
    }
    assert {run.execution_mode for run in story.children()} == {"async_callback"}


@has_callbacks
@pytest.mark.parametrize("url", list(DATABASES), indirect=True)
def test_the_orchestrator_is_resumed_at_home_and_hears_of_each_child_once(
    queue: Queue, start: Callable[..., Process], environment: dict[str, str], tmp_path: Path
) -> None:
    """By one to three runs, of which the last one has the sum that the page shows."""
    story = Told(queue, start, environment, tmp_path)
    wait_until(lambda: "all have ended" in story.results()[-1], 2 * LONG)
    first, *resumed = story.results()
    assert first == "asked 3 children"
    assert 1 <= len(resumed) <= 3
    shown = [line.strip() for line in PROMISED.splitlines() if line.strip()]
    assert resumed[-1].splitlines() == shown
    runs = queue.find(session_id=story.session_id)
    assert {run.type for run in runs[:-1]} == {"RESUME_SESSION"}
    prompts = "\n".join(run.prompt for run in runs[:-1])
    for child in story.children():
        assert prompts.count(child.run_id) == 1
        assert prompts.count(child.session_id) == 1
    session = queue.session(story.session_id)
    assert session.hostname == "alpha"
    lines = [f"session={story.session_id}", *commands_of(THEN)]
    out = execute(lines, environment)
    assert all(child.session_id in out or child.run_id in out for child in story.children())


def test_every_agent_of_the_page_is_an_example() -> None:
    """And each example is told of."""
    named = set(re.findall(r"examples/(\w+\.py)", PAGE))
    assert named == {path.name for path in (ROOT / "examples").glob("*.py")}
