"""Fixtures of the tests of several machines: a server's, two runners', and a daemon's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import runqueue
from runqueue import Queue
from tests import postgres
from tests.machines.network import NETWORK, Network, reason_to_skip
from tests.outage.processes import Ledger, Process, Programs

HOUR = 3600.0
CLOCKS = {"alpha": -HOUR, "beta": HOUR, "gamma": 0.0}
"""How wrong the clocks of the machines are; gamma is the daemon's."""
LEASE = 3.0


class Server(postgres.Server):
    """A server that answers on its machine's address."""

    def _create(self) -> None:
        super()._create()
        with (self.directory / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK}.0.0/16 scram-sha-256\n")


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Four machines on a switch."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with Network() as network:
        for name in ("server", *CLOCKS):
            network.add(name)
        yield network


@pytest.fixture(scope="session")
def server(network: Network) -> Iterator[Server]:
    """A server on the machine of that name; by its socket it is asked from here, too."""
    server = Server(options={"listen_addresses": "*", "fsync": "on"})
    with network.on("server"):
        server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def local_url(server: Server) -> Iterator[str]:
    """The URL of a fresh database, for an operator who sits at the server."""
    server.create_database("machines")
    yield server.url("machines")
    server.drop_database("machines")


@pytest.fixture
def url(server: Server, network: Network, local_url: str) -> str:
    """The URL of the same database for the other machines."""
    host = network.address("server")
    return f"postgresql://postgres:{postgres.PASSWORD}@{host}:{server.port}/machines"


@pytest.fixture
def programs(tmp_path: Path, network: Network) -> Iterator[Programs]:
    """Starts programs, which are all ended after the test."""
    programs = Programs(tmp_path)
    yield programs
    programs.close()


@pytest.fixture
def queue(local_url: str) -> Iterator[Queue]:
    """The operator's queue."""
    with runqueue.connect(local_url) as queue:
        yield queue


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """What the agents of the test did; the one thing that the machines share."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def start_runner(
    programs: Programs, network: Network, url: str, ledger: Ledger
) -> Callable[..., Process]:
    """Starts a runner on a machine, with the machine's clock; it has the machine's name."""

    def start(machine: str, *options: str, command: Sequence[str] = ()) -> Process:
        return programs.runner(
            url,
            machine,
            *("--lease", str(LEASE), "--stop-grace", "1", *options),
            command=command or ledger.agent,
            prefix=network.prefix(machine, CLOCKS[machine]),
        )

    return start


@pytest.fixture
def start_daemon(programs: Programs, network: Network, url: str) -> Callable[..., Process]:
    """Starts the daemon on its machine, with a clock that is as wrong as told."""

    def start(clock: float = 0.0) -> Process:
        prefix = network.prefix("gamma", clock)
        return programs.daemon(url, "--lease", str(LEASE), prefix=prefix)

    return start
