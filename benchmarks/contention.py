"""Contention: runners that claim flat out, and somebody who enqueues beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Final

import runqueue
from benchmarks.figures import Bar, Section, percentile
from benchmarks.places import Place, Places
from benchmarks.plot import Line, chart
from benchmarks.processes import Worker
from benchmarks.sizes import Sizes
from runqueue import StorageBusy

RATE: Final = 3_000
"""Runs for each second that wait at the beginning: more than are executed."""
BATCH: Final = 500
PAUSE: Final = 0.01
"""Seconds between two runs of the enqueuer."""
SLOWEST: Final = 20.0
"""Milliseconds that an enqueue may take, but for one in a hundred."""


def flat_out(pipe: Connection, url: str, name: str) -> None:
    """In a worker: execute runs that do nothing until told; tell how many, and the lock errors."""
    done = refused = 0
    with runqueue.connect(url) as queue, queue.runner(name) as runner:
        pipe.send("ready")
        pipe.recv()
        while not pipe.poll():
            try:
                claim = runner.claim(timeout=0.05)
                if claim is not None:
                    claim.start()
                    claim.complete()
                    done += 1
            except StorageBusy:
                refused += 1
        pipe.send((done, refused))


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    section = Section(
        "contention",
        kind,
        "Contention: runners flat out, and an enqueuer",
        (
            *("runners", "runs/s", "least share/greatest"),
            *("enqueue p50 ms", "enqueue p99 ms", "lock errors"),
        ),
    )
    rates: list[tuple[float, float]] = []
    for number in sizes.runners:
        with places.empty(kind) as place:
            done, waits, refused, left = _with(place, number, sizes)
        half, most = percentile(waits, 0.5), percentile(waits, 0.99)
        rate = sum(done) / sizes.contention
        fairness = min(done) / max(done) if max(done) else 0.0
        rates.append((number, rate))
        section.rows.append((str(number), rate, fairness, half, most, refused))
        section.bars.append(Bar(f"enqueue p99 beside {number} runners, ms", most, SLOWEST))
        section.bars.append(Bar(f"lock errors of {number} runners", refused, 0))
        if not left:
            section.notes.append(f"{number} runners ran out of runs: their rate is too low")
    section.charts["throughput"] = chart(
        f"Runs executed by several runners ({kind})",
        [Line("runs/s", rates)],
        x_label="runners",
        y_label="runs a second",
        log_x=False,
        log_y=False,
    )
    yield section


def _with(place: Place, number: int, sizes: Sizes) -> tuple[list[int], list[float], int, int]:
    waits: list[float] = []
    refused = 0
    with runqueue.connect(place.url) as queue, ExitStack() as stack:
        left = max(1, int(RATE * sizes.contention))
        for _ in range(-(-left // BATCH)):
            queue.enqueue_many({"prompt": "nothing to do"} for _ in range(BATCH))
        workers = [
            stack.enter_context(Worker(flat_out, place.url, f"busy-{index}"))
            for index in range(number)
        ]
        for worker in workers:
            worker.hear()
        for worker in workers:
            worker.tell("go")
        end = time.monotonic() + sizes.contention
        while (began := time.monotonic()) < end:
            try:
                queue.enqueue("nothing to do")
            except StorageBusy:
                refused += 1
            waits.append((time.monotonic() - began) * 1000)
            time.sleep(PAUSE)
        for worker in workers:
            worker.tell("end")
        told = [worker.hear() for worker in workers]
        pending = len(queue.find(status="pending", limit=1))
    return [done for done, _ in told], waits, refused + sum(busy for _, busy in told), pending
