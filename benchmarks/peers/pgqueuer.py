"""PgQueuer, on asyncpg."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import asyncpg
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from benchmarks.peers import Handle, Peer, Producer
from benchmarks.places import Place

BATCH: Final = 200


class PgQueuerProducer(Producer):
    def __init__(self, runner: asyncio.AbstractEventLoop, queries: Any) -> None:
        self._loop = runner
        self._queries = queries

    def each(self, payloads: list[str]) -> None:
        async def enqueue() -> None:
            for payload in payloads:
                await self._queries.enqueue("job", payload.encode())

        self._loop.run_until_complete(enqueue())

    def bulk(self, payloads: list[str]) -> None:
        number = len(payloads)
        self._loop.run_until_complete(
            self._queries.enqueue(
                ["job"] * number, [payload.encode() for payload in payloads], [0] * number
            )
        )


class PgQueuer(Peer):
    name: ClassVar[str] = "PgQueuer"
    package: ClassVar[str] = "pgqueuer"
    keeps_claims: ClassVar[bool] = True
    how: ClassVar[str] = (
        f"asyncpg, batch_size {BATCH}; completions are buffered, and lost in a crash"
    )

    def create(self, place: Place) -> None:
        async def install() -> None:
            connection = await asyncpg.connect(place.url)
            await Queries(AsyncpgDriver(connection)).install()
            await connection.close()

        asyncio.run(install())

    @contextmanager
    def producer(self, place: Place) -> Iterator[Producer]:
        loop = asyncio.new_event_loop()
        connection = loop.run_until_complete(asyncpg.connect(place.url))
        yield PgQueuerProducer(loop, Queries(AsyncpgDriver(connection)))
        loop.run_until_complete(connection.close())
        loop.close()

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        asyncio.run(_work(place, handle, over))


async def _work(place: Place, handle: Handle, over: threading.Event) -> None:
    connection = await asyncpg.connect(place.url)
    manager = QueueManager(Queries(AsyncpgDriver(connection)))

    @manager.entrypoint("job")
    async def job(job: Job) -> None:
        assert job.payload is not None
        handle(job.payload.decode())

    working = asyncio.create_task(manager.run(batch_size=BATCH))
    working.add_done_callback(lambda _: over.set())
    await asyncio.to_thread(over.wait)
    manager.shutdown.set()
    await working
