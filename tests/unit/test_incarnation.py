"""Whether a process is dead is said only where it can be seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runqueue import incarnation


def incarnation_of(pid: int) -> str:
    began = incarnation._began(pid)
    return f"{incarnation._machine()}/{pid}/{began}/0123abcd"


def test_a_process_that_has_ended_is_dead() -> None:
    """A successor with its id need not wait for the lease."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        one = incarnation_of(process.pid)
        assert not incarnation.is_dead(one)
        process.communicate(b"\n")
    assert incarnation.is_dead(one)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_process_that_is_hidden_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc` may show nobody else's processes (hidepid); a live runner would be replaced."""
    one = incarnation.current()

    def hidden(path: Path, **options: Any) -> str:
        if path.name == "stat":
            raise FileNotFoundError(path)
        return real(path, **options)

    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", hidden)
    assert not incarnation.is_dead(one)
