"""Absurd: durable tasks in functions of the database; its schema comes with its own command."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import psycopg
from absurd_sdk import Absurd
from absurdctl import BUNDLED_SCHEMA_SQL

from benchmarks.peers import Handle, Peer, Producer
from benchmarks.places import Place

BATCH: Final = 200
POLL: Final = 0.01


class AbsurdProducer(Producer):
    def __init__(self, client: Absurd) -> None:
        self._client = client

    def each(self, payloads: list[str]) -> None:
        for payload in payloads:
            self._client.spawn("job", payload, queue="default")


class AbsurdSdk(Peer):
    name: ClassVar[str] = "absurd-sdk"
    package: ClassVar[str] = "absurd-sdk"
    keeps_claims: ClassVar[bool] = True
    how: ClassVar[str] = (
        f"a task without steps, claimed {BATCH} at a time, polled every {1000 * POLL:.0f} ms"
    )
    has_bulk: ClassVar[bool] = False

    def create(self, place: Place) -> None:
        with psycopg.connect(place.url) as connection:
            connection.execute(BUNDLED_SCHEMA_SQL)
        client = Absurd(place.url)
        client.create_queue()
        client.close()

    @contextmanager
    def producer(self, place: Place) -> Iterator[Producer]:
        client = Absurd(place.url)
        yield AbsurdProducer(client)
        client.close()

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        client = Absurd(place.url)

        @client.register_task(name="job")
        def job(params: Any, _: Any) -> None:
            handle(params)

        def stop() -> None:
            over.wait()
            client.stop_worker()

        waiting = threading.Thread(target=stop)
        waiting.start()
        client.start_worker(batch_size=BATCH, poll_interval=POLL)
        waiting.join()
        client.close()
