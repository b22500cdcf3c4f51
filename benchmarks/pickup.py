"""Pick-up: from the call of enqueue in one process to the handler's first line in another."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection
from typing import Final

import runqueue
from benchmarks.figures import Bar, Section, Spread, percentile
from benchmarks.idling import share_of_core
from benchmarks.limit import BY_HAND
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


def wait_by_hand(pipe: Connection, place: Place) -> None:
    """In a worker: the same in plain SQL, told of each run by the pipe when it is committed."""
    contender = BY_HAND[place.kind](place)
    with suppress(EOFError), closing(contender):
        pipe.send("ready")
        while True:
            began = pipe.recv()
            claim = contender.claim()
            contender.start(claim)
            waited = (time.monotonic_ns() - began) / 1e6
            contender.complete(claim, "done")
            pipe.send(waited)


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    section = Section(
        "pick-up",
        kind,
        "Pick-up: milliseconds from enqueue to the handler's first line",
        ("waiting runners", "p50", "p99", "all", "by hand", "ratio", "idle, % of a core each"),
    )
    for number in sizes.waiting:
        with places.empty(kind) as place, places.empty(kind) as other:
            waited, by_hand, idle = _with(place, other, number, sizes)
        half, most = percentile(waited, 0.5), percentile(waited, 0.99)
        hand = Spread.of(by_hand)
        section.rows.append(
            (str(number), half, most, Spread.of(waited), hand, half / hand.median, idle)
        )
        section.bars.append(Bar(f"p50 with {number} waiting, ms", half, BARS[kind]))
        section.bars.append(Bar(f"idle with {number} waiting, % of a core each", idle, IDLE))
    section.notes.append("three commits lie in between: of the run, of its claim and of its start")
    section.notes.append(
        "by hand: the same three in plain SQL, in turns, one process that a pipe tells of each run"
    )
    yield section


def _with(
    place: Place, other: Place, number: int, sizes: Sizes
) -> tuple[list[float], list[float], float]:
    waited: list[float] = []
    by_hand: list[float] = []
    runqueue.connect(other.url).close()
    with runqueue.connect(place.url) as queue, ExitStack() as stack:
        hand = stack.enter_context(closing(BY_HAND[place.kind](other)))
        waiting = stack.enter_context(Worker(wait_by_hand, other))
        waiting.hear()
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
            began = time.monotonic_ns()
            hand.enqueue(str(began))
            waiting.tell(began)
            by_hand.append(waiting.hear())
            time.sleep(random.uniform(*PAUSES))
    return waited[WARM:], by_hand[WARM:], idle
