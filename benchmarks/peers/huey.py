"""Huey with its storage in SQLite."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from huey import SqliteHuey
from huey.consumer import Consumer

from benchmarks.peers import Handle, Peer, Producer
from benchmarks.places import Place


class HueyProducer(Producer):
    def __init__(self, job: Any) -> None:
        self._job = job

    def each(self, payloads: list[str]) -> None:
        for payload in payloads:
            self._job(payload)


class Huey(Peer):
    name: ClassVar[str] = "Huey"
    package: ClassVar[str] = "huey"
    keeps_claims: ClassVar[bool] = False
    how: ClassVar[str] = "SqliteHuey, fsync=True, one thread, 5 ms poll; dequeue deletes the row"
    has_bulk: ClassVar[bool] = False

    def create(self, place: Place) -> None:
        _job(place, _nothing)

    @contextmanager
    def producer(self, place: Place) -> Iterator[Producer]:
        yield HueyProducer(_job(place, _nothing)[1])

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        huey, _ = _job(place, handle)
        consumer = Consumer(huey, workers=1, periodic=False, initial_delay=0.005, max_delay=0.005)
        consumer.start()
        over.wait()
        consumer.stop()


def _nothing(payload: str) -> None:
    """What the producer's side of the job would do."""


def _job(place: Place, handle: Handle) -> tuple[Any, Any]:
    huey = SqliteHuey(filename=str(place.path), fsync=True, results=False, timeout=10)

    def job(payload: str) -> None:
        handle(payload)

    return huey, huey.task()(job)
