"""Fixtures of the tests of lost servers: a server that may be killed, and programs that use it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

import runqueue
from runqueue import Queue
from tests import postgres
from tests.helpers import LONG, wait_until
from tests.outage.processes import Ledger, Programs

DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}


class Server(postgres.Server):
    """A server that can also be a standby, which recovers until it is promoted."""

    _is_deaf = False

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def become_standby(self, kind: Literal["hot", "starting up"]) -> None:
        """Restart as a standby that can be read, or as one that refuses every connection."""
        self.stop()
        (self.data / "standby.signal").touch()
        self._is_deaf = kind != "hot"
        hot = {"hot_standby": "off" if self._is_deaf else "on"}
        self.options |= hot
        self.start()

    def promote(self) -> None:
        """End the recovery: the server takes writes from now on."""
        assert self.pid is not None
        (self.data / "promote").touch()
        os.kill(self.pid, signal.SIGUSR1)
        self._is_deaf = False
        wait_until(lambda: not (self.data / "standby.signal").exists(), timeout=3 * LONG)
        wait_until(self._is_ready, timeout=3 * LONG)

    def reset(self) -> None:
        """Be up, and a primary that takes writes, whatever a test did."""
        if self._lock is None:
            self.start()  # anew, after a start that failed
        if self.pid is not None and (self.data / "standby.signal").exists():
            self.stop("immediate")
        (self.data / "standby.signal").unlink(missing_ok=True)
        (self.data / "promote").unlink(missing_ok=True)
        (self.data / "postgresql.auto.conf").write_text("")
        self._is_deaf = False
        if self.pid is None:
            self.start()
        else:
            self.execute("SELECT pg_reload_conf()")

    def _is_ready(self) -> bool:
        if self._is_deaf:
            with contextlib.suppress(FileNotFoundError):
                return "standby" in (self.data / "postmaster.pid").read_text()
            return False
        return super()._is_ready()

    def end_connections(self, database: str) -> int:
        """Have the server end every connection to a database; return how many there were."""
        rows = self.execute(
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )
        return len(rows)

    def backends(self, database: str) -> list[int]:
        """Return the processes that serve the connections to a database."""
        rows = self.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}'")
        return [pid for (pid,) in rows]


@pytest.fixture(scope="session")
def durable_server() -> Iterator[Server]:
    """A server of these tests' own, which loses nothing when it is killed."""
    with Server(listen=True, options=DURABLE) as server:
        yield server


@pytest.fixture
def server(durable_server: Server) -> Iterator[Server]:
    """The server; what a test makes of it is undone after the test."""
    yield durable_server
    durable_server.reset()


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The name of a fresh database."""
    server.create_database("outage")
    yield "outage"
    server.reset()
    server.drop_database("outage")


@pytest.fixture
def url(server: Server, database: str) -> str:
    """The URL of a fresh database, by TCP."""
    return server.url(database)


@pytest.fixture
def programs(tmp_path: Path, server: Server) -> Iterator[Programs]:
    """Starts programs, which are all ended after the test."""
    programs = Programs(tmp_path)
    yield programs
    programs.close()


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    """A queue on the database of the test."""
    with runqueue.connect(url) as queue:
        yield queue


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """What the agents of the test did."""
    return Ledger(tmp_path / "ledger")
