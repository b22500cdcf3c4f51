"""The disk fails at one call, whichever: nothing is acknowledged that is not there afterwards."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import runqueue
from runqueue import reading
from tests.chaos import histories, places, strace
from tests.helpers import execute_sql

pytestmark = pytest.mark.chaos

BURST = 5
TRIES = BURST + 1
"""How often a verb is repeated: past a burst, each has succeeded."""

# strace counts the calls of each process, so that one forks another for each call that is to fail.
CODE = """
import os, sys, traceback
from runqueue import StorageError, connect  # loads what the forked ones need

call, last, tries, place, *points = sys.argv[1:]


def say(*words):
    os.write(1, (" ".join(map(str, (point, *words))) + "\\n").encode())


def insist(verb, *told):
    # Acknowledge what is told once the verb has returned, and repeat it when the disk failed.
    for _ in range(int(tries)):
        try:
            answer = verb()
        except StorageError as error:
            say("REFUSED", type(error).__name__, error.retryable)
            if queue is not None:
                queue.find()  # what is there can still be read
        else:
            for run_id, status in told:
                say("ACK", run_id, status)
            return True if answer is None else answer
    return None


def enqueue(run_id, **options):
    return insist(lambda: queue.enqueue("x" * 3000, run_id=run_id, **options), (run_id, "pending"))


def claim(limit=1):
    claims = insist(lambda: runner.claim_many(limit)) or []
    for one in claims:
        say("ACK", one.fence.run_id, "claimed")
    return claims


def work():
    a, b, c, d, due, unwanted = (f"run_{number:012x}" for number in range(6))
    if enqueue(unwanted):
        insist(lambda: queue.stop(unwanted), (unwanted, "stopped"))
    enqueue(due, timeout=0.001)
    enqueue(a)
    insist(runner.open)
    for one in claim():
        if insist(one.start, (a, "running")):
            insist(lambda: one.complete("done"), (a, "completed"))
    enqueue(b)
    for one in claim():
        b = one.fence.run_id  # whichever it is, when the disk fails for ever
        if insist(one.start, (b, "running")) and insist(lambda: queue.stop(b), (b, "stopping")):
            insist(one.confirm_stop, (b, "stopped"))
    requests = [{"prompt": "y" * 3000, "run_id": run_id} for run_id in (c, d)]
    insist(lambda: queue.enqueue_many(requests), (c, "pending"), (d, "pending"))
    if claims := claim(2):
        told = [(one.fence.run_id, status) for one in claims for status in ("running", "completed")]
        insist(lambda: runner.finish_many([(one, "done") for one in claims]), *told)
    if (swept := insist(queue.sweep)) and swept.expired:
        say("ACK", due, "failed")
    insist(runner.close)


for point in points:
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        say("END", status)
        continue
    status = 1
    try:
        elsewhere = os.open(f"{place}/{point}/elsewhere", os.O_RDWR | os.O_CREAT)
        for _ in range(int(last) - int(point)):
            os.fdatasync(elsewhere) if call == "fdatasync" else os.pwrite(elsewhere, b"x", 0)
        queue = None
        queue = insist(lambda: connect(f"sqlite:///{place}/{point}/queue.db"))
        if queue is not None:
            runner = queue.runner("worker")
            work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # as it is: nothing is closed, and no checkpoint mends anything
"""
ALL = {
    *((0, status) for status in ("pending", "claimed", "running", "completed")),
    *((1, status) for status in ("pending", "claimed", "running", "stopping", "stopped")),
    *((2, status) for status in ("pending", "claimed", "running", "completed")),
    *((3, status) for status in ("pending", "claimed", "running", "completed")),
    *((4, status) for status in ("pending", "failed")),
    *((5, status) for status in ("pending", "stopped")),
}
"""The run's number and the status entered, of every move that a process makes in the end."""


class Fault(NamedTuple):
    """A system call that fails, how, and what the product makes of it."""

    call: str
    error: str
    becomes: str


SYNC = Fault("fdatasync", "EIO", "StorageLost")
WRITE = Fault("pwrite64", "EIO", "StorageLost")
FULL = Fault("pwrite64", "ENOSPC", "StorageFull")


def points_of(fault: Fault, is_long: bool) -> list[int]:
    """Which calls fail: a commit has one fdatasync and some twenty pwrite64."""
    if fault == SYNC:
        return list(range(1, 25)) if is_long else [1, 5, 14]
    # SQLite makes the index of its log anew with the first eight, and does not say what failed.
    return list(range(9, 300, 7)) if is_long else [9, 77, 201]


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: the disk's failures are made up, so it need not be a disk."""
    with places.in_memory() as directory:
        yield directory


@pytest.fixture
def template(place: Path) -> Path:
    """A queue with its schema, in which every call that is counted is one of a verb."""
    path = place / "template.db"
    runqueue.connect(f"sqlite:///{path}").close()
    return path


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        *((SYNC, times) for times in ("once", "for a while", "for ever")),
        *((WRITE, times) for times in ("once", "for ever")),
        *((FULL, times) for times in ("for a while", "for ever")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.error} of {value.call}",
)
def test_nothing_is_acknowledged_that_the_disk_refused(
    place: Path, template: Path, is_long: bool, fault: Fault, times: str
) -> None:
    """Every refusal is typed, every acknowledged move is in the file, and once the disk is well
    again the same process does all that it was asked."""
    strace.require()
    points = [str(point) for point in points_of(fault, is_long)]
    for point in points:
        (place / point).mkdir()
        shutil.copy(template, place / point / "queue.db")
    # The one that fails is the same for all; each process makes some elsewhere first.
    last = int(points[-1])
    until = {"once": "", "for a while": f"..{last + BURST - 1}", "for ever": "+"}[times]
    inject = f"inject={fault.call}:error={fault.error}:when={last}{until}"
    tries = 2 if times == "for ever" else TRIES
    lines = strace.execute(
        ["-e", f"trace={fault.call}", "-e", inject],
        place / "trace",
        CODE,
        *(fault.call, str(last), str(tries), str(place), *points),
    )
    said: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for line in lines:
        point, *words = line.split()
        said[point].append(tuple(words))
    assert {words for told in said.values() for words in told if words[0] == "REFUSED"} == {
        ("REFUSED", fault.becomes, "True")
    }
    for point in points:
        assert said[point][-1] == ("END", "0"), point
        acknowledged = [words[1:] for words in said[point] if words[0] == "ACK"]
        check(place / point / "queue.db", acknowledged)
        if times != "for ever":
            assert set(acknowledged) == {(f"run_{run:012x}", status) for run, status in ALL}, point


def check(path: Path, acknowledged: list[tuple[str, ...]]) -> None:
    """The file is sound, holds what was acknowledged, and tells of each move once."""
    with runqueue.connect(f"sqlite:///{path}") as queue:
        assert reading.problems(queue.store) == [], path
        found = execute_sql(queue, "SELECT run_id, status FROM run_events ORDER BY event_id")
        assert dict(found) == dict(execute_sql(queue, "SELECT run_id, status FROM runs")), path
        queue.enqueue("and it goes on")
    assert set(acknowledged) <= set(found), path
    by_run: dict[str, list[str]] = defaultdict(list)
    for run_id, status in found:
        by_run[run_id].append(status)
    for history in by_run.values():
        assert histories.is_legal(history), (path, history)
