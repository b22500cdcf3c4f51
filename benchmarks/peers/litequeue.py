"""litequeue: a table, and an UPDATE .. RETURNING."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from litequeue import LiteQueue

from benchmarks.peers import Handle, Peer, Producer
from benchmarks.places import Place

POLL: Final = 0.005


class LiteProducer(Producer):
    def __init__(self, queue: LiteQueue) -> None:
        self._queue = queue

    def each(self, payloads: list[str]) -> None:
        for payload in payloads:
            self._queue.put(payload)

    def bulk(self, payloads: list[str]) -> None:
        with self._queue.transaction():
            self.each(payloads)


class Lite(Peer):
    name: ClassVar[str] = "litequeue"
    package: ClassVar[str] = "litequeue"
    keeps_claims: ClassVar[bool] = True
    how: ClassVar[str] = "synchronous set to FULL, pop and done, 5 ms poll; bulk in its transaction"

    def create(self, place: Place) -> None:
        _open(place).close()

    @contextmanager
    def producer(self, place: Place) -> Iterator[Producer]:
        queue = _open(place)
        yield LiteProducer(queue)
        queue.close()

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        queue = _open(place)
        while not over.is_set():
            message = queue.pop()
            if message is None:
                time.sleep(POLL)
                continue
            handle(message.data)
            queue.done(message.message_id)
        queue.close()


def _open(place: Place) -> LiteQueue:
    queue = LiteQueue(str(place.path), timeout=10)
    queue.conn.execute("PRAGMA synchronous = FULL")
    return queue
