"""`runqueue demo`: the queue's promises, shown with real processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.skipif(shutil.which("setsid") is None, reason="the demonstration needs setsid")
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_demonstration_shows_that_every_promise_was_kept(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    """Exit code 0 within 30 s, five times ok, and nothing left but the database asked for."""
    kept, temporary = tmp_path / "kept.db", tmp_path / "temporary"
    temporary.mkdir()
    process = start("runqueue", "demo", "--keep", str(kept), env={"TMPDIR": str(temporary)})
    assert process.wait(30) == 0, process.log
    lines = process.log.splitlines()
    table = lines[next(number for number, line in enumerate(lines) if "OUTCOME" in line) + 1 :]
    assert sum(line.startswith("ok ") for line in table) == 5
    assert not any(line.startswith("NO ") for line in table)
    assert "Traceback" not in process.log
    assert kept.exists()
    assert list(temporary.iterdir()) == []


def test_the_demonstration_fails_when_nothing_works(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Without `sh` no runner starts: exit code 1, and what did not happen is named."""
    program = "import sys; from runqueue import demo; demo.LIMIT = 3; sys.exit(demo.main())"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 1
    assert "NO " in ended.stdout
    assert "this did not happen: routed by its demands" in ended.stderr
    assert "Traceback" not in ended.stderr
