"""The ledger of `runqueue.testing`: whole lines of many writers, whenever they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from runqueue.testing import Entry, Ledger, MovableClock, Note, temporary_queue
from tests.helpers import ROOT

WRITER = """
import sys
from types import SimpleNamespace
from runqueue.testing import Ledger
ledger = Ledger(sys.argv[1])
number = 0
while number < int(sys.argv[3]):
    ledger.opened(SimpleNamespace(runner_id=f"{sys.argv[2]}-{number}"))
    number += 1
"""


def writer(path: Path, name: str, notes: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", WRITER, str(path), name, str(notes)]
    return subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_note_says_who_says_it_of_what(tmp_path: Path) -> None:
    """Everything that names the claim, and the process."""
    with temporary_queue(MovableClock()) as queue, Ledger(tmp_path / "ledger") as ledger:
        run = queue.enqueue("a secret")
        ledger.acknowledged(run)
        with queue.runner("worker") as runner:
            ledger.opened(runner)
            (claim,) = runner.claim_many(1)
            ledger.claimed(claim)
            claim.release()
            ledger.reported(claim, "pending")
        entries, torn = ledger.read()
        text = ledger.path.read_text()
    claimed = {"run_id": run.run_id, "runner_id": "worker", "claimed_at": claim.run.claimed_at}
    assert entries == [
        Entry(Note.ACKNOWLEDGED, os.getpid(), run.run_id),
        Entry(Note.OPENED, os.getpid(), runner_id="worker"),
        Entry(Note.CLAIMED, os.getpid(), **claimed),
        Entry(Note.REPORTED, os.getpid(), **claimed, status="pending"),
    ]
    assert torn == 0
    assert "secret" not in text


def test_many_writers_lose_no_note(tmp_path: Path) -> None:
    """Four processes at once: every line is whole, and each one's are in their order."""
    path = tmp_path / "ledger"
    writers = [writer(path, name, 500) for name in "abcd"]
    assert [one.wait(30) for one in writers] == [0] * 4
    with Ledger(path) as ledger:
        entries, torn = ledger.read()
    assert torn == 0
    for name, one in zip("abcd", writers, strict=True):
        mine = [entry.runner_id for entry in entries if entry.pid == one.pid]
        assert mine == [f"{name}-{number}" for number in range(500)]


def test_a_killed_writer_takes_no_note_of_another_along(tmp_path: Path) -> None:
    """Killed while it writes; a later process goes on in the same file."""
    path = tmp_path / "ledger"
    path.touch()
    victim = writer(path, "victim", 10**9)
    try:
        while path.stat().st_size < 10_000:
            assert victim.poll() is None
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert writer(path, "next", 1).wait(30) == 0
    with Ledger(path) as ledger:
        entries, torn = ledger.read()
    assert torn <= 1
    assert entries[-1].runner_id == "next-0"


@pytest.mark.parametrize("length", range(1, 30, 4))
def test_a_torn_note_is_counted_and_the_next_one_is_whole(tmp_path: Path, length: int) -> None:
    """As a full disk tears it, wherever."""
    path = tmp_path / "ledger"
    with Ledger(path) as ledger, temporary_queue() as queue:
        ledger.acknowledged(queue.enqueue("x"))
        whole = path.read_bytes()
        with path.open("ab") as file:
            file.write(whole[: 1 + length])
        ledger.acknowledged(queue.enqueue("y"))
        entries, torn = ledger.read()
    assert (len(entries), torn) == (2, 1)


@pytest.mark.parametrize("line", ["hello", "[]", '{"other": 1}', "SQLite format 3"])
def test_a_file_of_something_else_is_no_ledger(tmp_path: Path, line: str) -> None:
    """Nothing is found in order that was never looked at."""
    path = tmp_path / "ledger"
    path.write_text(f"{line}\n")
    with Ledger(path) as ledger, pytest.raises(ValueError, match=r"line 1 of .* is no note"):
        ledger.read()


def test_a_clock_without_a_time_zone_is_refused() -> None:
    """At once, and not by the first verb that asks it."""
    with pytest.raises(ValueError, match="time zone"):
        MovableClock(datetime(2026, 1, 1))


def test_a_temporary_queue_leaves_nothing_behind() -> None:
    """The file goes with its directory, and with SQLite's own files."""
    with temporary_queue() as queue:
        queue.enqueue("x")
        place = Path(queue.store.url.removeprefix("sqlite:///")).parent
        assert place.is_dir()
    assert not place.exists()
