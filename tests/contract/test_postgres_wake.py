"""How processes on PostgreSQL hear of each other: after the commit, many changes at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import runqueue
from runqueue import Queue, Runner
from tests.conftest import OtherProgram
from tests.helpers import LONG, in_another_process, in_background, start, wait_until

pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


class Listener:
    """A program that listens and does nothing else."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("LISTEN runqueue")

    def heard(self, timeout: float) -> list[str]:
        """Return the payloads that come until there was none for `timeout` seconds."""
        payloads: list[str] = []
        while more := [
            one.payload for one in self._connection.notifies(timeout=timeout, stop_after=1)
        ]:
            payloads += more
        return payloads

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def listener(queue: Queue, database_url: str) -> Iterator[Listener]:
    """Hears what everybody tells."""
    listener = Listener(database_url)
    yield listener
    listener.close()


def kinds(payloads: list[str]) -> set[str]:
    return {kind for payload in payloads for kind in payload.split()}


def test_many_changes_are_told_at_once(queue: Queue, listener: Listener) -> None:
    """A NOTIFY for each would make all writers of the server wait for one another."""
    for _ in range(200):
        queue.enqueue("x")
    payloads = listener.heard(0.3)
    assert kinds(payloads) == {"work"}
    assert len(payloads) < 150


def test_a_change_is_told_when_it_is_committed_and_not_before(
    queue: Queue, listener: Listener
) -> None:
    """Whoever was told sooner would look and not find it."""
    with queue.database.atomic() as transaction:
        queue.enqueue("x")
        assert listener.heard(0.1) == []
        transaction.rollback()
    assert listener.heard(0.1) == []
    with queue.database.atomic():
        queue.enqueue("x")
        assert listener.heard(0.1) == []
    assert kinds(listener.heard(0.3)) == {"work"}


def test_each_move_tells_those_whom_it_concerns(
    queue: Queue, runner: Runner, listener: Listener
) -> None:
    """An owner's claims and starts concern nobody; a stop concerns the owner alone."""
    run = queue.enqueue("x")
    assert kinds(listener.heard(0.2)) == {"work"}
    claim = start(runner)
    assert listener.heard(0.2) == []
    queue.stop(run.run_id)
    assert kinds(listener.heard(0.2)) == {"stop"}
    claim.confirm_stop()
    assert kinds(listener.heard(0.2)) == {"work", "end"}


def test_what_another_program_writes_is_told_too(
    queue: Queue, program: OtherProgram, listener: Listener
) -> None:
    """It knows of no doorbell, so its transaction tells."""
    run = queue.enqueue("x")
    listener.heard(0.2)
    program.execute("UPDATE runs SET status = 'stopped' WHERE run_id = ?", run.run_id)
    assert kinds(listener.heard(0.3)) == {"work", "end", "stop"}


def test_a_process_that_ends_at_once_has_told_before(
    queue: Queue, database_url: str, listener: Listener
) -> None:
    """As a command does, which enqueues and is gone."""
    in_another_process(database_url, "queue.enqueue('x'); queue.close()")
    assert kinds(listener.heard(0.5)) == {"work"}


def test_a_runner_claims_what_another_process_or_program_enqueues_without_polling(
    queue: Queue,
    database_url: str,
    open_runner: Callable[..., Runner],
    program: OtherProgram,
    parked: threading.Event,
) -> None:
    """The slow poll is out of reach here."""
    runner = open_runner()
    for write in (
        lambda: in_another_process(database_url, "queue.enqueue('x'); queue.close()"),
        lambda: (
            program.execute(
                "INSERT INTO sessions (session_id, created_at) VALUES ('ses_h', ?)", queue.now()
            )
            or program.execute(
                "INSERT INTO runs (run_id, session_id, type, prompt, created_at) "
                "VALUES ('run_h', 'ses_h', 'START_SESSION', 'x', ?)",
                queue.now(),
            )
        ),
    ):
        parked.clear()
        with in_background(lambda: runner.claim(timeout=3 * LONG), queue) as claimed:
            assert parked.wait(LONG)
            write()
            assert claimed.result(LONG) is not None


def test_the_doorbell_is_there_only_as_long_as_it_is_needed(
    queue: Queue, database_url: str
) -> None:
    """Neither a thread nor a connection is left when nobody listens and nothing is to be told."""

    def connections() -> list[Any]:
        with psycopg.connect(database_url) as other:
            return other.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid()"
            ).fetchall()

    def is_there() -> bool:
        return any(one.name == "runqueue-doorbell" for one in threading.enumerate())

    queue.enqueue("x")
    assert is_there()
    queue.close()
    wait_until(lambda: not is_there() and connections() == [])
    queue.enqueue("x")  # it begins again
    assert is_there()


def test_the_doorbell_begins_again_when_its_connection_is_cut(
    queue: Queue, database_url: str, open_runner: Callable[..., Runner], parked: threading.Event
) -> None:
    """And what was told meanwhile is looked for."""
    runner = open_runner()
    with in_background(lambda: runner.claim(timeout=3 * LONG), queue) as claimed:
        assert parked.wait(LONG)
        with psycopg.connect(database_url, autocommit=True) as other:
            listening = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            wait_until(lambda: other.execute(listening).fetchall())
            for (pid,) in other.execute(listening).fetchall():
                other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with runqueue.connect(database_url) as second:
            second.enqueue("x")
        assert claimed.result(LONG) is not None
