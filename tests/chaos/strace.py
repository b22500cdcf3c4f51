"""Running a program under strace: with some of its system calls failing, or with all recorded."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import ROOT

LONG = 240.0
"""Seconds after which a program under strace is taken to hang."""


@functools.cache
def _obstacle() -> str:
    if shutil.which("strace") is None:
        return "there is no strace here"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True)
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr[:200]!r}"


def require() -> None:
    """Skip the test where no program can be traced."""
    if obstacle := _obstacle():
        pytest.skip(obstacle)


def execute(options: Sequence[str], trace: Path, code: str, *arguments: str) -> list[str]:
    """Execute Python code under strace, with these arguments; return the lines that it prints.

    It must end with 0, and say nothing on standard error: what it expects, it prints.
    """
    program = [sys.executable, "-c", code, *arguments]
    env = {name: value for name, value in os.environ.items() if name[:9] != "RUNQUEUE_"}
    done = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-o", str(trace), *options, "--", *program],
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-4000:]
    return done.stdout.splitlines()
