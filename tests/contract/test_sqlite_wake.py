"""How processes on SQLite hear of each other: the kernel tells of the write-ahead log."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import runqueue
from runqueue import Queue, Runner
from runqueue.bell import ALL
from runqueue.engines import sqlite_doorbell
from runqueue.states import Wake
from runqueue.wake import Watch
from tests.conftest import OtherProgram
from tests.helpers import LONG, in_another_process, in_background, start, wait_until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def no_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the doorbell look only when the kernel tells it something."""
    monkeypatch.setattr(sqlite_doorbell, "NET", 2 * LONG)


def has_doorbell() -> bool:
    return any(one.name == "runqueue-doorbell" for one in threading.enumerate())


@contextmanager
def listening(queue: Queue, kinds: Collection[Wake] = ALL) -> Iterator[Watch]:
    """A watch whose doorbell has begun to listen, and that has seen all there was to see."""
    bell = queue.store.engine.bell
    rung = bell.count()
    with Watch(queue.store, kinds) as watch:
        wait_until(lambda: bell.count() > rung)
        while watch.wait(0.1):
            pass
        yield watch


def insert(program: OtherProgram, run_id: str) -> None:
    program.execute(
        "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
        "SELECT ?, session_id, 'RESUME_SESSION', 'by hand', 'pending', "
        "'2026-01-01T00:00:00Z' FROM sessions",
        run_id,
    )


def test_a_runner_claims_what_another_process_or_program_enqueues_without_polling(
    queue: Queue,
    runner: Runner,
    program: OtherProgram,
    database_url: str,
    parked: threading.Event,
    no_net: None,
) -> None:
    """The log of the database grows, and that is enough; whoever wrote to it."""
    code = "import sys, runqueue; runqueue.connect(sys.argv[1]).enqueue('x')"
    with in_background(lambda: runner.claim(timeout=3 * LONG), queue) as claimed:
        assert parked.wait(LONG)
        in_another_process(database_url, code)
        claim = claimed.result(LONG)
        claim.start()
        claim.complete()
    parked.clear()
    with in_background(lambda: runner.claim(timeout=3 * LONG), queue) as claimed:
        assert parked.wait(LONG)
        insert(program, "run_00000000000a")
        assert claimed.result(LONG).run.prompt == "by hand"


def test_a_stop_of_another_process_reaches_the_owner_without_polling(
    queue: Queue, runner: Runner, database_url: str, parked: threading.Event, no_net: None
) -> None:
    """As soon as the log grows."""
    run = queue.enqueue("x")
    claim = start(runner)
    told = threading.Event()
    claim.on_stop(told.set)
    wait_until(has_doorbell)
    in_another_process(
        database_url,
        "import sys, runqueue; runqueue.connect(sys.argv[1]).stop(sys.argv[2])",
        run.run_id,
    )
    assert told.wait(LONG)


def test_a_commit_is_seen_where_the_kernel_tells_nothing(
    queue: Queue, program: OtherProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user may have no more inotify instances, or the system none at all: then it looks."""
    monkeypatch.setattr(sqlite_doorbell, "INotify", None)
    queue.enqueue("x")
    with listening(queue) as watch:
        insert(program, "run_00000000000a")
        assert watch.wait(LONG)


def test_a_commit_that_the_kernel_did_not_tell_of_is_seen_by_the_net(
    queue: Queue, program: OtherProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that another machine or container writes to."""
    real = sqlite_doorbell._Log
    monkeypatch.setattr(sqlite_doorbell, "_Log", lambda path: real(__file__))
    monkeypatch.setattr(sqlite_doorbell, "NET", 0.05)
    queue.enqueue("x")
    with listening(queue) as watch:
        insert(program, "run_00000000000a")
        assert watch.wait(LONG)


def test_nobody_in_haste_is_told_soon_and_not_by_the_kernel(
    queue: Queue, program: OtherProgram, monkeypatch: pytest.MonkeyPatch, no_net: None
) -> None:
    """A runner at work waits for stops alone: that it is told costs every writer something."""
    asked = []
    real = sqlite_doorbell._Log.listen

    def listen(log: object, is_wanted: bool) -> bool:
        asked.append(is_wanted)
        return real(log, is_wanted)

    monkeypatch.setattr(sqlite_doorbell._Log, "listen", listen)
    queue.enqueue("x")
    with listening(queue, (Wake.STOP,)) as calm:
        insert(program, "run_00000000000a")
        assert calm.wait(LONG)
        assert set(asked) == {False}
        with Watch(queue.store) as hasty:
            wait_until(lambda: asked[-1])
            insert(program, "run_00000000000b")
            assert hasty.wait(LONG)
        wait_until(lambda: not asked[-1])


def test_only_what_was_committed_wakes(queue: Queue, program: OtherProgram, no_net: None) -> None:
    """Reading and rolling back change nothing."""
    queue.enqueue("x")
    with listening(queue, (Wake.END,)) as watch:
        program.execute("BEGIN IMMEDIATE")
        insert(program, "run_00000000000a")
        program.execute("ROLLBACK")
        program.execute("SELECT * FROM runs")
        assert not watch.wait(0.05)


def test_the_doorbell_is_there_only_as_long_as_it_is_needed(queue: Queue) -> None:
    """Its thread and connection end soon after the last who waited, and begin again."""
    assert not has_doorbell()
    for _ in range(2):
        with listening(queue):
            assert has_doorbell()
        wait_until(lambda: not has_doorbell())


def test_a_file_that_was_replaced_wakes_whoever_waits(
    queue: Queue, database_url: str, tmp_path: Path
) -> None:
    """They look for themselves, and meet what is wrong."""
    with listening(queue) as watch:
        Path(database_url.removeprefix("sqlite:///") + "-wal").rename(tmp_path / "elsewhere")
        assert watch.wait(LONG)


def test_a_queue_that_waited_and_is_closed_leaves_no_log(database_url: str) -> None:
    """The doorbell's connection is closed too: whoever is the last takes the log over."""
    with runqueue.connect(database_url) as queue:
        queue.enqueue("x")
        with listening(queue):
            pass
    assert not Path(database_url.removeprefix("sqlite:///") + "-wal").exists()


def test_of_two_quick_commits_the_second_is_heard_too(
    queue: Queue, program: OtherProgram, no_net: None
) -> None:
    """The kernel tells of its writing before it is there: that must not be taken for the first."""
    queue.enqueue("x")
    with listening(queue) as watch:
        for number in range(40):
            insert(program, f"run_0000000{number:05}")
            insert(program, f"run_1000000{number:05}")
            last = f"run_1000000{number:05}"
            while not queue.find(status="pending", limit=1000):
                pass
            heard = watch.wait(LONG)
            while not any(run.run_id == last for run in queue.find(limit=1000)):
                heard = watch.wait(LONG)
            assert heard
