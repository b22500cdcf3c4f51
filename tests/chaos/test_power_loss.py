"""The power goes at any moment: what was acknowledged by then is there when it is back."""

from __future__ import annotations

import os
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import runqueue
from runqueue import RunqueueError, reading
from tests.chaos import places, power, strace
from tests.helpers import execute_sql

pytestmark = pytest.mark.chaos

# Now and then the log is written back to the database, as SQLite does by itself when it has grown,
# and once it is removed, as by whoever closes the queue last.
CODE = """
import os, sys, time
import runqueue
from runqueue.engines import sqlite_turns

url, rounds, synchronous = sys.argv[1:]
if synchronous != "as shipped":
    sqlite_turns._PRAGMAS["synchronous"] = synchronous


def acknowledge(run_id, status):
    os.write(1, f"ACK {run_id} {status}\\n".encode())


for number in range(int(rounds)):
    with runqueue.connect(url) as queue, queue.runner("worker") as runner:
        for size in (100, 5000, 20000, 300):
            acknowledge(queue.enqueue("x" * size).run_id, "pending")
        for run in queue.enqueue_many([{"prompt": "y"}] * 3):
            acknowledge(run.run_id, "pending")
        while claim := runner.claim(timeout=0):
            run_id = claim.run.run_id
            acknowledge(run_id, "claimed")
            if claim.run.prompt == "x" * 100:
                queue.stop(run_id)
                acknowledge(run_id, "stopping")
                claim.confirm_stop()
                acknowledge(run_id, "stopped")
                continue
            claim.start()
            acknowledge(run_id, "running")
            claim.complete("the result " * 100)
            acknowledge(run_id, "completed")
        queue.database.execute_sql("PRAGMA wal_checkpoint").fetchall()
    if number == 0:
        deadline = time.monotonic() + 10
        while os.path.exists(url.removeprefix("sqlite:///") + "-wal"):
            assert time.monotonic() < deadline, "the log is still there"
            time.sleep(0.01)
"""
SETTINGS = "as shipped"


class Damage(Exception):
    """The image cannot be used, or is not sound."""


def lost_of(image: power.Image, directory: Path) -> list[str]:
    """Open an image with the product; return what was acknowledged and is not in it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    image.write(directory)
    try:
        with runqueue.connect(f"sqlite:///{directory / 'queue.db'}") as queue:
            if problems := reading.problems(queue.store):
                raise Damage(f"{problems[0]} {image.at}")
            events = execute_sql(queue, "SELECT run_id, status FROM run_events ORDER BY event_id")
            statuses = dict(execute_sql(queue, "SELECT run_id, status FROM runs"))
            if statuses != dict(events):
                raise Damage(f"the history tells something else than the runs {image.at}")
    except RunqueueError as error:
        raise Damage(f"{error} {image.at}") from error
    histories: dict[str, list[str]] = defaultdict(list)
    for run_id, status in events:
        histories[run_id].append(status)
    missing = []
    for said in image.said:
        run_id, status = said.split()
        if status not in histories[run_id]:
            missing.append(f"{said} {image.at}")
    return missing


def traced(place: Path, rounds: int, synchronous: str) -> list[power.Act]:
    """What a process does to its files that enqueues, claims and completes in some rounds."""
    strace.require()
    (place / "run").mkdir()
    url = f"sqlite:///{place / 'run' / 'queue.db'}"
    trace = place / "trace"
    strace.execute(power.OPTIONS, trace, CODE, url, str(rounds), synchronous)
    acts = power.acts_of(trace)
    trace.unlink()
    done = {(act.kind, os.path.basename(act.path)) for act in acts}
    assert {("sync", "queue.db-wal"), ("sync", "queue.db"), ("unlink", "queue.db-wal")} <= done
    return acts


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: what a disk would have is worked out from what it was told to do."""
    with places.in_memory() as directory:
        yield directory


def test_no_power_cut_loses_what_was_acknowledged(place: Path, is_long: bool) -> None:
    """With the settings as they are: nothing is lost, and nothing damaged."""
    rounds, count, seeds = (12, 200, (1, 2, 3)) if is_long else (2, 60, (1,))
    acts = traced(place, rounds, SETTINGS)
    opened = 0
    for seed in seeds:
        for image in power.images(acts, place / "run", count, random.Random(seed)):
            assert lost_of(image, place / "image") == [], f"seed {seed}"
            opened += 1
    assert opened == count * len(seeds)
    print(f"{opened} images of {len(acts)} acts, seeds {seeds}")


def test_the_method_finds_what_a_weaker_setting_loses(place: Path) -> None:
    """With `synchronous = NORMAL` commits wait for no disk, and the same look finds it."""
    acts = traced(place, 2, "normal")
    images = power.images(acts, place / "run", 60, random.Random(1))
    lost = [missing for image in images if (missing := lost_of(image, place / "image"))]
    assert len(lost) > 10
