"""Pick-up: from the call of enqueue in one process to the handler's first line in another."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Final

import runqueue
from benchmarks.figures import Bar, Section, Spread, percentile
from benchmarks.idling import share_of_core
from benchmarks.places import Place, Places
from benchmarks.processes import Worker, when_told
from benchmarks.sizes import Sizes

BARS: Final = {"sqlite": 1.5, "postgres": 3.0}
"""Milliseconds, for the half of the runs."""
IDLE: Final = 0.5
"""Percent of a core, for each runner."""
WARM: Final = 5
"""Runs that are not counted: each process compiles its statements and opens its connections."""
PAUSES: Final = (0.01, 0.03)
"""Shortest and longest pause between two runs, in which the runners go back to waiting."""


def wait_for_runs(pipe: Connection, url: str, name: str) -> None:
    """In a worker: tell of each run how many milliseconds after its enqueue it is at work."""
    with runqueue.connect(url) as queue, queue.runner(name) as runner:
        when_told(pipe, runner.drain)
        pipe.send("ready")
        for claim in runner:
            with claim as run:
                now = time.monotonic_ns()
                waited = (now - int(run.prompt)) / 1e6
            pipe.send(waited)


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    section = Section(
        "pick-up",
        kind,
        "Pick-up: milliseconds from enqueue to the handler's first line",
        ("waiting runners", "p50", "p99", "all", "idle, % of a core each"),
    )
    for number in sizes.waiting:
        with places.empty(kind) as place:
            waited, idle = _with(place, number, sizes)
        half, most = percentile(waited, 0.5), percentile(waited, 0.99)
        section.rows.append((str(number), half, most, Spread.of(waited), idle))
        section.bars.append(Bar(f"p50 with {number} waiting, ms", half, BARS[kind]))
        section.bars.append(Bar(f"idle with {number} waiting, % of a core each", idle, IDLE))
    section.notes.append("three commits lie in between: of the run, of its claim and of its start")
    yield section


def _with(place: Place, number: int, sizes: Sizes) -> tuple[list[float], float]:
    waited: list[float] = []
    with runqueue.connect(place.url) as queue, ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(wait_for_runs, place.url, f"waiting-{index}"))
            for index in range(number)
        ]
        for worker in workers:
            worker.hear()
        idle = share_of_core(workers, sizes.idle)
        for _ in range(WARM + sizes.pickups):
            queue.enqueue(str(time.monotonic_ns()))
            waited.append(Worker.first(workers).hear())
            time.sleep(random.uniform(*PAUSES))
    return waited[WARM:], idle
