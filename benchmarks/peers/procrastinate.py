"""Procrastinate, on psycopg."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from benchmarks.peers import Handle, Peer, Producer
from benchmarks.places import Place

CONCURRENCY: Final = 10


class ProcrastinateProducer(Producer):
    def __init__(self, job: Any) -> None:
        self._job = job

    def each(self, payloads: list[str]) -> None:
        for payload in payloads:
            self._job.defer(payload=payload)

    def bulk(self, payloads: list[str]) -> None:
        self._job.batch_defer(*({"payload": payload} for payload in payloads))


class Procrastinate(Peer):
    name: ClassVar[str] = "Procrastinate"
    package: ClassVar[str] = "procrastinate"
    keeps_claims: ClassVar[bool] = True
    how: ClassVar[str] = f"psycopg, concurrency {CONCURRENCY}, listen_notify"

    def create(self, place: Place) -> None:
        app = App(connector=SyncPsycopgConnector(conninfo=place.url))
        with app.open():
            app.schema_manager.apply_schema()

    @contextmanager
    def producer(self, place: Place) -> Iterator[Producer]:
        app = App(connector=SyncPsycopgConnector(conninfo=place.url))
        with app.open():
            yield ProcrastinateProducer(_job(app, _nothing))

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        asyncio.run(_work(place, handle, over))


async def _work(place: Place, handle: Handle, over: threading.Event) -> None:
    app = App(connector=PsycopgConnector(conninfo=place.url))
    _job(app, handle)
    async with app.open_async():
        worker = asyncio.create_task(
            app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)
        )
        worker.add_done_callback(lambda _: over.set())
        await asyncio.to_thread(over.wait)
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker


def _nothing(payload: str) -> None:
    """What the producer's side of the job would do."""


def _job(app: App, handle: Handle) -> Any:
    async def job(payload: str) -> None:
        handle(payload)

    return app.task(job, name="job")
