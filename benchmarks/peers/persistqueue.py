"""persist-queue's queue with acknowledgements, in SQLite."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import ClassVar, Final

from persistqueue import SQLiteAckQueue
from persistqueue.exceptions import Empty

from benchmarks.peers import Handle, Peer, Producer
from benchmarks.places import Place

POLL: Final = 0.005


class PersistProducer(Producer):
    def __init__(self, queue: SQLiteAckQueue) -> None:
        self._queue = queue

    def each(self, payloads: list[str]) -> None:
        for payload in payloads:
            self._queue.put(payload)


class Persist(Peer):
    name: ClassVar[str] = "persist-queue"
    package: ClassVar[str] = "persist-queue"
    keeps_claims: ClassVar[bool] = True
    how: ClassVar[str] = "SQLiteAckQueue, WAL and FULL as it sets them, get and ack, 5 ms poll"
    has_bulk: ClassVar[bool] = False

    def create(self, place: Place) -> None:
        _open(place).close()

    @contextmanager
    def producer(self, place: Place) -> Iterator[Producer]:
        with closing(_open(place)) as queue:
            yield PersistProducer(queue)

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        with closing(_open(place)) as queue:
            while not over.is_set():
                try:
                    # Its waiting get hears nothing of other processes.
                    item = queue.get(block=False, raw=True)
                except Empty:
                    time.sleep(POLL)
                    continue
                handle(item["data"])
                queue.ack(item)


def _open(place: Place) -> SQLiteAckQueue:
    return SQLiteAckQueue(str(place.path.parent), multithreading=True, auto_commit=True)
