"""Storage: what a finished run takes on the disk, how fast it is pruned, and who waits for that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Final

import runqueue
from benchmarks.figures import Bar, Section, percentile
from benchmarks.filling import FILLERS, ended
from benchmarks.places import Place, Places
from benchmarks.processes import Worker
from benchmarks.sizes import Sizes
from runqueue import retention

SLOWEST: Final = 20.0
"""Milliseconds that a claim may take beside a prune."""
PAUSE: Final = 0.005
LONG: Final = 3600.0


def prune(pipe: Connection, url: str, before: str) -> None:
    """In a worker: prune what has ended before a time; tell how many, and in how many seconds."""
    with runqueue.connect(url) as queue:
        pipe.send("ready")
        pipe.recv()
        began = time.monotonic()
        pruned = retention.prune(queue.store, before)
        pipe.send((pruned, time.monotonic() - began))


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    section = Section("storage", kind, "Storage and pruning", ("what", "figure"))
    with places.empty(kind) as place:
        runqueue.connect(place.url).close()
        empty = _size(places, place)
        finished = max(sizes.finished)
        FILLERS[kind](place).finished(finished)
        size = (_size(places, place) - empty) / finished
        before = ended(min(sizes.executed, finished))
        (pruned, seconds), waits = _prune_beside_claims(place, before)
    greatest = max(waits)
    section.rows += [
        ("bytes a finished run, with session, event and indexes", size),
        (f"runs/s pruned, {pruned:,} of {finished:,}, beside claims", pruned / seconds),
        ("a claim beside it, p50 ms", percentile(waits, 0.5)),
        ("a claim beside it, p99 ms", percentile(waits, 0.99)),
        ("a claim beside it, greatest ms", greatest),
    ]
    section.bars.append(Bar("the slowest claim beside a prune, ms", greatest, SLOWEST))
    yield section


def _prune_beside_claims(place: Place, before: str) -> tuple[tuple[int, float], list[float]]:
    waits: list[float] = []
    with ExitStack() as stack:
        queue = stack.enter_context(runqueue.connect(place.url))
        runner = stack.enter_context(queue.runner("beside"))
        worker = stack.enter_context(Worker(prune, place.url, before))
        worker.hear()
        worker.tell("go")
        while not waits or not worker.has_told():
            queue.enqueue("nothing to do")
            began = time.monotonic()
            claim = runner.claim(timeout=0)
            waits.append((time.monotonic() - began) * 1000)
            assert claim is not None
            runner.finish_many([(claim, None)])
            time.sleep(PAUSE)
        told = worker.hear(LONG)
    return told, waits


def _size(places: Places, place: Place) -> int:
    if place.kind == "sqlite":
        return place.path.stat().st_size
    name = place.url.partition("?")[0].rpartition("/")[2]
    return int(places.server.execute(f"SELECT pg_database_size('{name}')")[0][0])
