"""DBOS: durable workflows, started through a queue; on either database."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from dbos import DBOS, DBOSClient, DBOSConfig

from benchmarks.peers import Handle, Peer, Producer
from benchmarks.places import Place

QUEUE: Final = "bench"
POLL: Final = 0.01


class DbosProducer(Producer):
    def __init__(self, client: DBOSClient) -> None:
        self._client = client

    def each(self, payloads: list[str]) -> None:
        options: Any = {"queue_name": QUEUE, "workflow_name": "job", "app_version": "1"}
        for payload in payloads:
            self._client.enqueue(options, payload)


class Dbos(Peer):
    name: ClassVar[str] = "DBOS"
    package: ClassVar[str] = "dbos"
    keeps_claims: ClassVar[bool] = True
    how: ClassVar[str] = f"a workflow without steps, queue polled every {1000 * POLL:.0f} ms"
    has_bulk: ClassVar[bool] = False

    def create(self, place: Place) -> None:
        _launch(place)
        DBOS.destroy()

    @contextmanager
    def producer(self, place: Place) -> Iterator[Producer]:
        client = DBOSClient(system_database_url=_url(place))
        yield DbosProducer(client)
        client.destroy()

    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        def job(payload: str) -> None:
            handle(payload)

        _launch(place, lambda: DBOS.workflow(name="job")(job))
        over.wait()
        DBOS.destroy()


def _launch(place: Place, define: Callable[[], Any] | None = None) -> None:
    logging.getLogger("dbos").setLevel(logging.ERROR)
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": _url(place),
        "run_admin_server": False,
        "log_level": "ERROR",
        "application_version": "1",
    }
    DBOS(config=config)
    if define is not None:
        define()
    DBOS.launch()
    DBOS.register_queue(QUEUE, polling_interval_sec=POLL)


def _url(place: Place) -> str:
    if place.kind == "sqlite":
        return place.url
    return place.url.replace("postgresql://", "postgresql+psycopg://", 1)
