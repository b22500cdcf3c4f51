"""Fixtures of the chaos tests: real time, real processes, and dice that can be thrown again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import runqueue
from runqueue import Queue
from runqueue.testing import Ledger
from tests.chaos.nursery import Nursery
from tests.outage.processes import Programs


@pytest.fixture
def url(database_url: str) -> str:
    """The URL of an empty database, of each kind."""
    return database_url


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    """The queue on the database of the test, with the time of the host."""
    with runqueue.connect(url) as queue:
        yield queue


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """What processes say that they did."""
    with Ledger(tmp_path / "ledger") as ledger:
        yield ledger


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Chance; a test that fails shows the seed, with which its choices, if not its luck, recur."""
    seed = request.config.getoption("--seed")
    seed = random.randrange(10**9) if seed is None else seed
    print(f"--seed {seed}")
    return random.Random(seed)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts the commands; they are all ended after the test."""
    programs = Programs(tmp_path)
    yield programs
    programs.close()


@pytest.fixture(scope="session")
def shared_nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


@pytest.fixture
def nursery(shared_nursery: Nursery, tmp_path: Path) -> Iterator[Nursery]:
    """Starts programs of `tests.chaos.programs` within a millisecond; all are ended afterwards."""
    shared_nursery.place = tmp_path
    yield shared_nursery
    shared_nursery.end_all()
