"""Runners of the examples, with stand-ins for the agents that they execute."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runqueue
from runqueue import Queue
from tests.conftest import DATABASES
from tests.helpers import wait_until
from tests.processes import LONG, MODULES, Process

ROOT = Path(runqueue.__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
STANDINS = Path(__file__).resolve().parent / "standins"


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database: of SQLite, unless a test is parametrised with others."""
    place = tmp_path / "place"
    place.mkdir()
    yield from DATABASES[getattr(request, "param", "sqlite")](place)


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    """The queue on the database of the test, with the time of the host."""
    with runqueue.connect(url) as queue:
        yield queue


@pytest.fixture
def environment(tmp_path: Path, url: str) -> dict[str, str]:
    """What processes are started with: our commands and the stand-ins come first."""
    commands = tmp_path / "bin"
    commands.mkdir()
    programs = {name: f"-m {module}" for name, module in MODULES.items()}
    for name, what in {**programs, "python3": ""}.items():
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {what} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    nothing = tmp_path / "empty.env"
    nothing.touch()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUNQUEUE_")}
    path = f"{commands}{os.pathsep}{STANDINS}{os.pathsep}{env.get('PATH', os.defpath)}"
    return {
        **env,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "STANDIN_HOME": str(tmp_path / "agents"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "RUNQUEUE_ENV_FILE": str(nothing),
        "RUNQUEUE_DB": url,
    }


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Process]]:
    """Starts a command line as a process, in the root of the repository."""
    started: list[Process] = []

    def begin(*argv: str) -> Process:
        log = tmp_path / f"{len(started)}.log"
        process = Process(["env", "-C", str(ROOT), *argv], log, environment)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.destroy()


@pytest.fixture
def ended(queue: Queue) -> Callable[[str], Any]:
    """Waits until a run has ended and returns it."""

    def wait(run_id: str) -> Any:
        wait_until(lambda: queue.get(run_id).is_terminal, LONG)
        return queue.get(run_id)

    return wait
