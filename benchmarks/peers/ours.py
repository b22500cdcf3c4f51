"""runqueue itself, one run at a time and in batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

import runqueue
from benchmarks.peers import Handle, Peer, Producer
from benchmarks.places import Place

BATCH: Final = 200


class OurProducer(Producer):
    def __init__(self, queue: runqueue.Queue) -> None:
        self._queue = queue

    def each(self, payloads: list[str]) -> None:
        for payload in payloads:
            self._queue.enqueue(payload)

    def bulk(self, payloads: list[str]) -> None:
        self._queue.enqueue_many({"prompt": payload} for payload in payloads)


class OneByOne(Peer):
    name: ClassVar[str] = "runqueue, one at a time"
    package: ClassVar[str] = "runqueue"
    keeps_claims: ClassVar[bool] = True
    how: ClassVar[str] = "claimed, started and completed in three commits"

    def create(self, place: Place) -> None:
        runqueue.connect(place.url).close()

    @contextmanager
    def producer(self, place: Place) -> Iterator[Producer]:
        with runqueue.connect(place.url) as queue:
            yield OurProducer(queue)

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        with runqueue.connect(place.url) as queue, queue.runner("worker") as runner:
            _drain_when(over, runner)
            for claim in runner:
                with claim as run:
                    handle(run.prompt)


class InBatches(OneByOne):
    name: ClassVar[str] = "runqueue, batches"
    how: ClassVar[str] = f"claim_many({BATCH}), finish_many: two commits a batch"

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        with runqueue.connect(place.url) as queue, queue.runner("worker") as runner:
            _drain_when(over, runner)
            while not runner.is_draining:
                claims = runner.claim_many(BATCH, timeout=5.0)
                for claim in claims:
                    handle(claim.run.prompt)
                runner.finish_many([(claim, None) for claim in claims])


def _drain_when(over: threading.Event, runner: runqueue.Runner) -> None:
    def wait() -> None:
        over.wait()
        runner.drain()

    threading.Thread(target=wait, daemon=True).start()
