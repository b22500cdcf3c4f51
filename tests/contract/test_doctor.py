"""The doctor says whether an installation is right, on every database, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import runqueue
from runqueue import Queue, doctor, errors, reading, retention, schema
from runqueue.daemon import Daemon
from runqueue.doctor import Line
from runqueue.engines.base import MOVED_TO, Closing
from tests.conftest import OtherProgram

OF_THE_MACHINE = {"file system", "room", "durability"}
"""What depends on where the tests are executed."""
LONG_AGO = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
def queue(database_url: str) -> Iterator[Queue]:
    """A queue with the true time, which is also the doctor's."""
    with runqueue.connect(database_url) as queue:
        yield queue


def examined(url: str) -> dict[str, Line]:
    lines = list(doctor.examine(url))
    assert len({line.check for line in lines}) == len(lines)
    return {line.check: line for line in lines}


def sweep(queue: Queue) -> None:
    """Make a queue look as a daemon leaves it."""
    Daemon(queue, interval=1.0, keep=None).tick()


def test_a_right_installation_has_nothing_to_complain_of(queue: Queue, database_url: str) -> None:
    """With a daemon and a runner alive and something to do, each line is ok and has no advice."""
    sweep(queue)
    queue.enqueue("x")
    with queue.runner("worker"):
        found = examined(database_url)
    wrong = [line for line in found.values() if line.level != "ok" or line.advice or line.exit_code]
    assert [line for line in wrong if line.check not in OF_THE_MACHINE] == []
    assert found["database"].seen == queue.store.url
    assert found["runs"].seen.startswith("1 pending")
    assert found["runners"].seen.startswith("1 alive")
    assert found["daemon"].seen.startswith("1 alive")


def test_without_a_daemon_the_installation_is_wrong(queue: Queue, database_url: str) -> None:
    """With the sentence that `status --check` has for it, and how to start one."""
    found = examined(database_url)["daemon"]
    assert (found.level, found.seen) == ("fail", reading.NO_DAEMON)
    assert "runqueued" in found.advice


def test_a_daemon_whose_sweeps_fail_is_told_of(
    queue: Queue, database_url: str, program: OtherProgram
) -> None:
    """It counts as alive for a while, and has not told of a sweep for too long."""
    sweep(queue)
    program.execute("UPDATE daemons SET tick_at = ?", LONG_AGO)
    found = examined(database_url)["daemon"]
    assert found.level == "warn"
    assert "sweeps fail" in found.seen


def test_an_older_schema_is_told_of_and_left_as_it_is(
    queue: Queue, database_url: str, program: OtherProgram
) -> None:
    """Looking does not upgrade, and what needs this version's tables is not looked at."""
    is_sqlite = database_url.startswith("sqlite")
    newest = program.execute("SELECT max(name) FROM runqueue_migrations")[0][0]
    older = f"PRAGMA user_version = {schema.VERSION - 1}"
    newer = f"PRAGMA user_version = {schema.VERSION}"
    try:
        if is_sqlite:
            program.execute(older)
        else:
            program.execute("UPDATE runqueue_migrations SET name = '0000' WHERE name = ?", newest)
        found = examined(database_url)
        assert schema.version_of(queue.store) == schema.VERSION - 1
    finally:
        if is_sqlite:
            program.execute(newer)
        else:
            program.execute("UPDATE runqueue_migrations SET name = ? WHERE name = '0000'", newest)
    assert found["schema"].level == "fail"
    assert "db upgrade" in found["schema"].advice
    assert "runs" not in found


def test_a_database_that_was_moved_names_the_new_place(queue: Queue, database_url: str) -> None:
    """It can be read, and takes no change."""
    place = "sqlite:////srv/new.db"
    transfer = queue.store.engine.transfer
    with queue.store.transaction():
        transfer.close_to_changes(("runs",), Closing(f"{MOVED_TO}{place}", place, "token"))
    try:
        found = examined(database_url)["moves"]
    finally:
        with queue.store.transaction():
            transfer.open_to_changes(("runs",))
    assert found.level == "fail"
    assert place in found.advice


def test_a_run_pending_past_its_timeout_is_named(
    queue: Queue, database_url: str, program: OtherProgram
) -> None:
    """It should have failed within a second."""
    run = queue.enqueue("x", timeout=3600)
    assert examined(database_url)["timeouts"].level == "ok"
    program.execute("UPDATE runs SET timeout_at = ?", LONG_AGO)
    found = examined(database_url)["timeouts"]
    assert found.level == "fail"
    assert run.run_id in found.seen


def test_a_runner_past_its_lease_with_active_runs_is_named(
    queue: Queue, database_url: str, program: OtherProgram
) -> None:
    """Nobody has resolved what it holds; one that holds nothing is only history."""
    queue.enqueue("x")
    with queue.runner("lost") as runner, queue.runner("idle"):
        claim = runner.claim(timeout=5)
        assert claim is not None
        claim.start()
        # The lease of the others goes on: their threads beat every ten seconds.
        program.execute("UPDATE runners SET lease_until = ?", LONG_AGO)
        found = examined(database_url)["runners"]
        program.execute("UPDATE runners SET lease_until = '9999-01-01T00:00:00.000000Z'")
        claim.complete(None)
    assert found.level == "warn"
    assert "lost (1)" in found.seen
    assert "idle" not in found.seen
    assert "runners remove" in found.advice


def test_runs_that_nobody_can_serve_are_counted(queue: Queue, database_url: str) -> None:
    """By their demands, and with the reason that `why` gives; those behind another are not."""
    queue.enqueue("x")
    for priority in (0, -(2**31) + 1):
        queue.enqueue("y", demands={"tags": ["gpu"]}, priority=priority)
    with queue.runner("plain"):
        found = examined(database_url)["demands"]
    assert found.level == "warn"
    assert found.seen.startswith("2 pending runs")
    assert 'tags ["gpu"]' in found.seen
    with queue.runner("plain"), queue.runner("strong", tags=("gpu",)):
        assert examined(database_url)["demands"].level == "ok"


def test_a_draining_runner_serves_nobody(queue: Queue, database_url: str) -> None:
    """It is alive and will claim nothing more."""
    queue.enqueue("x")
    with queue.runner("going"):
        retention.drain_runner(queue.store, "going")
        found = examined(database_url)
    assert "draining" in found["runners"].seen
    assert found["demands"].level == "warn"


def test_an_error_within_a_check_is_its_finding(
    queue: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are made all the same."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("it is odd")

    monkeypatch.setattr(reading, "overview", broken)
    found = examined(database_url)
    assert (found["runs"].level, "it is odd" in found["runs"].seen) == ("fail", True)
    assert list(found)[-1] == "demands"


def test_a_database_that_goes_away_meanwhile_ends_the_looking(
    queue: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further look would wait for it once more."""

    def away(*_: object, **__: object) -> None:
        raise errors.StorageLost("the server is away")

    monkeypatch.setattr(reading, "overview", away)
    found = examined(database_url)
    assert list(found)[-1] == "runs"
    assert (found["runs"].level, found["runs"].exit_code) == ("fail", 75)
    assert found["runs"].advice
