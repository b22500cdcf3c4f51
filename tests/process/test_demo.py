"""The demonstration keeps its word, and says so when it cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def demo(path: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RUNQUEUE_")}
    return subprocess.run(
        [sys.executable, "-m", "runqueue", "demo"],
        env={**environment, "PATH": path, "TMPDIR": str(tmp_path), "RUNQUEUE_ENV_FILE": os.devnull},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_the_demonstration_shows_five_promises_and_leaves_nothing(tmp_path: Path) -> None:
    """Each of its promises is judged ok, with real processes, and its files are gone."""
    ended = demo(os.environ["PATH"], tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(re.findall(r"^ok  ", ended.stdout, re.MULTILINE)) == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tool", ["wc"])
def test_the_demonstration_fails_when_a_promise_was_not_kept(tmp_path: Path, tool: str) -> None:
    """Without the tool that its work needs, the run that shows routing does not complete."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "sleep", "setsid", "tail", "sort", "head", "cat"):
        found = next(
            candidate
            for directory in os.environ["PATH"].split(":")
            if (candidate := Path(directory) / name).exists()
        )
        (tools / name).symlink_to(found.resolve())
    assert not (tools / tool).exists()
    ended = demo(str(tools), tmp_path)
    assert ended.returncode == 1
    assert "this did not happen: routed by its demands, and completed" in ended.stderr
