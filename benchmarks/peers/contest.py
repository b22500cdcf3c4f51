"""The peers side by side, each in turn in every round: enqueue, drain, pick up, idle."""

from __future__ import annotations

import importlib
import random
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any, Final

from benchmarks.figures import Bar, Section, Spread, percentile
from benchmarks.idling import share_of_core
from benchmarks.peers import Peer
from benchmarks.places import Place, Places
from benchmarks.processes import Worker, when_told
from benchmarks.sizes import Sizes

OURS: Final = ("ours:OneByOne", "ours:InBatches")
PEERS: Final = {
    "sqlite": (*OURS, "huey:Huey", "litequeue:Lite", "persistqueue:Persist", "dbos:Dbos"),
    "postgres": (
        *OURS,
        *("procrastinate:Procrastinate", "pgqueuer:PgQueuer", "dbos:Dbos", "absurd:AbsurdSdk"),
    ),
}
PICKUPS: Final = 60
"""At most, in one round: some look twice a second."""
WARM: Final = 3
AT: Final = "at "
"""How the payload begins that holds the time at which it was enqueued."""
COLUMNS: Final = ("enqueue", "bulk", "drain", "p50", "p99", "idle")
RATES: Final = COLUMNS[:3]


class Measured:
    """The figures of one queue, over all rounds."""

    def __init__(self) -> None:
        self.figures: dict[str, list[float]] = {column: [] for column in COLUMNS}
        self.waited: list[float] = []

    def cell(self, column: str) -> Spread | float | None:
        if column in ("p50", "p99"):
            return percentile(self.waited, float(column[1:]) / 100) if self.waited else None
        values = self.figures[column]
        return Spread.of(values) if values else None

    def value(self, column: str) -> float | None:
        cell = self.cell(column)
        return cell.median if isinstance(cell, Spread) else cell


def execute(pipe: Connection, spelled: str, place: Place, number: int) -> None:
    """In a worker: tell when the first and the last of `number` jobs were at work, then how
    many milliseconds each further one had waited."""
    seen = 0
    first = 0
    over = threading.Event()
    when_told(pipe, over.set)

    def handle(payload: str) -> None:
        nonlocal seen, first
        now = time.monotonic_ns()
        if payload.startswith(AT):
            pipe.send((now - int(payload.removeprefix(AT))) / 1e6)
            return
        seen += 1
        if seen == 1:
            first = now
        if seen == number:
            pipe.send((first, now))

    _peer(spelled).work(place, handle, over)


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    section = Section(
        "peers",
        kind,
        "Peers: jobs a second that do nothing, one worker process each",
        (
            *("queue", "version", "keeps claims", "enqueue/s", "bulk/s", "drain/s"),
            *("pick-up p50 ms", "p99 ms", "idle, % of a core"),
        ),
    )
    peers: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for spelled in PEERS[kind]:
        try:
            peers[spelled] = _peer(spelled)
        except ImportError as error:
            missing[spelled.partition(":")[0]] = f"not installed: {error}"
    measured = {spelled: Measured() for spelled in peers}
    for _ in range(sizes.peer_rounds):
        for spelled, peer in peers.items():
            if spelled not in measured:
                continue
            try:
                with places.empty(kind) as place:
                    _one_round(spelled, peer, place, sizes, measured[spelled])
            except Exception as error:  # noqa: BLE001 - what fails with one is said of that one
                del measured[spelled]
                missing[peer.name] = f"failed here: {type(error).__name__}: {error}"
    for spelled, one in measured.items():
        peer = peers[spelled]
        section.rows.append(
            (
                *(peer.name, metadata.version(peer.package)),
                "yes" if peer.keeps_claims else "no",
                *(one.cell(column) for column in COLUMNS),
            )
        )
        section.notes.append(f"{peer.name}: {peer.how}")
    for name, why in missing.items():
        section.rows.append((name, "-", "not measured", *[None] * len(COLUMNS)))
        section.notes.append(f"{name}: {why}")
    section.bars += _bars(peers, measured)
    yield section


def _one_round(spelled: str, peer: Peer, place: Place, sizes: Sizes, measured: Measured) -> None:
    figures = measured.figures
    jobs = [f"job {number}" for number in range(sizes.jobs)]
    peer.create(place)
    with peer.producer(place) as producer:
        figures["enqueue"].append(_rate(jobs, producer.each))
        if peer.has_bulk:
            figures["bulk"].append(_rate(jobs, producer.bulk))
        number = len(jobs) * (1 + peer.has_bulk)
        with Worker(execute, spelled, place, number) as worker:
            first, last = worker.hear()
            figures["drain"].append((number - 1) / ((last - first) / 1e9) if number > 1 else 0.0)
            waited = []
            for _ in range(WARM + min(PICKUPS, sizes.pickups)):
                time.sleep(random.uniform(0.01, 0.05))
                producer.each([f"{AT}{time.monotonic_ns()}"])
                waited.append(worker.hear())
            measured.waited += waited[WARM:]
            figures["idle"].append(share_of_core([worker], sizes.idle / 3))


def _rate(jobs: list[str], enqueue: Any) -> float:
    began = time.monotonic()
    enqueue(jobs)
    return len(jobs) / (time.monotonic() - began)


def _bars(peers: dict[str, Peer], measured: dict[str, Measured]) -> Iterator[Bar]:
    """In each column, the best of those that keep claims is not ahead of ours."""
    for column in COLUMNS:
        ours = [value for key in OURS if (value := measured[key].value(column)) is not None]
        theirs = {
            peers[key].name: value
            for key, one in measured.items()
            if key not in OURS
            and peers[key].keeps_claims
            and (value := one.value(column)) is not None
        }
        if not theirs or not ours:
            continue
        if column in RATES:
            name = max(theirs, key=lambda each: theirs[each])
            yield Bar(f"{column}: the rate of {name} to ours", theirs[name] / max(ours), 1.0)
        else:
            name = min(theirs, key=lambda each: theirs[each])
            if theirs[name] > 0:
                yield Bar(f"{column}: ours to that of {name}", min(ours) / theirs[name], 1.0)


def _peer(spelled: str) -> Peer:
    module, _, name = spelled.partition(":")
    peer: Peer = getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)()
    return peer
