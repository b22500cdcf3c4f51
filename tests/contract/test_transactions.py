"""The caller's own transaction on the queue's database, which every verb joins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from playhouse import db_url

import runqueue
from runqueue import Queue, Runner, RunNotFound, SessionNotFound, Status
from tests.helpers import (
    LONG,
    count,
    events_of,
    execute_sql,
    in_background,
    is_empty,
    row_of,
    start,
    status_of,
    take,
)


class Rollback(Exception):
    """Raised in a transaction to undo it."""


def test_enqueue_joins_the_callers_transaction_and_is_rolled_back_with_it(queue: Queue) -> None:
    """A run that was enqueued in a transaction that failed never existed, nor its session."""
    with pytest.raises(Rollback), queue.database.atomic():  # noqa: PT012
        run = queue.enqueue("x")
        assert queue.get(run.run_id).prompt == "x"
        raise Rollback
    assert is_empty(queue)
    with pytest.raises(RunNotFound):
        queue.get(run.run_id)


def test_enqueue_joins_the_callers_transaction_and_is_committed_with_it(
    queue: Queue, connect: Callable[..., Queue]
) -> None:
    """Others see the run when the caller commits, not before."""
    other = connect()
    with queue.database.atomic():
        run = queue.enqueue("x")
        assert other.find() == []
    assert other.get(run.run_id).prompt == "x"


def test_a_run_and_the_callers_own_row_are_one(queue: Queue) -> None:
    """What the caller writes beside the run is there with it, or neither is."""
    execute_sql(queue, "CREATE TABLE orders (run_id TEXT)")
    for is_good in (False, True):
        try:
            with queue.database.atomic():
                run = queue.enqueue("x")
                execute_sql(queue, "INSERT INTO orders VALUES (?)", run.run_id)
                if not is_good:
                    raise Rollback
        except Rollback:
            pass
        assert count(queue, "orders") == count(queue, "runs") == int(is_good)


def test_a_refused_enqueue_leaves_the_callers_transaction_usable(queue: Queue) -> None:
    """A caller may catch a refusal and commit the rest."""
    with queue.database.atomic():
        queue.enqueue("good")
        with pytest.raises(SessionNotFound):
            queue.enqueue_many([{"prompt": "x"}, {"prompt": "y", "session_id": "ses_missing"}])
        queue.enqueue("good too")
    assert [run.prompt for run in queue.find()].count("x") == 0
    assert count(queue, "runs") == count(queue, "sessions") == 2


def test_a_waiting_runner_gets_the_run_when_the_caller_commits(
    queue: Queue, runner: Runner, parked: threading.Event
) -> None:
    """The runner is woken by the commit: before it there is nothing to claim."""
    with in_background(lambda: runner.claim(timeout=LONG), queue) as claimed:
        assert parked.wait(LONG)
        with queue.database.atomic():
            run = queue.enqueue("x")
            assert not claimed.done()
        assert claimed.result(LONG).run.run_id == run.run_id


@pytest.mark.parametrize("verb", ["stop", "release", "sweep", "retry", "delete"])
def test_every_verb_is_rolled_back_with_the_caller(queue: Queue, runner: Runner, verb: str) -> None:
    """Not only enqueue: what is rolled back has not happened, nor is it recorded."""
    run = queue.enqueue("x", timeout=0 if verb == "sweep" else None)
    if verb == "release":
        take(runner)
    if verb == "retry":
        start(runner).complete()
    before, events, runs = row_of(queue, run), events_of(queue, run), count(queue, "runs")
    calls = {
        "stop": lambda: queue.stop(run.run_id),
        "release": lambda: queue.release(run.run_id),
        "sweep": lambda: queue.sweep(),
        "retry": lambda: queue.retry(run.run_id),
        "delete": lambda: queue.delete_session(run.session_id),
    }
    with pytest.raises(Rollback), queue.database.atomic():  # noqa: PT012
        calls[verb]()
        raise Rollback
    assert row_of(queue, run) == before
    assert events_of(queue, run) == events
    assert count(queue, "runs") == runs


def test_a_report_that_was_rolled_back_can_be_made_again(queue: Queue, runner: Runner) -> None:
    """The owner still owns the run: what it reported has not happened."""
    queue.enqueue("x")
    claim = start(runner)
    with pytest.raises(Rollback), queue.database.atomic():  # noqa: PT012
        claim.complete("first")
        raise Rollback
    assert queue.get(claim.run.run_id).status == "running"
    claim.complete("second")
    assert queue.get(claim.run.run_id).result == "second"


@pytest.fixture
def own(database_url: str) -> Iterator[Queue]:
    """A queue on a Peewee database that the caller opened, with the caller's settings."""
    database = db_url.connect(database_url)
    with runqueue.connect(database) as queue:
        yield queue
    database.close()


def test_a_queue_works_on_the_callers_own_database(own: Queue) -> None:
    """Every step of a run's life on a database object that is not ours."""
    own.enqueue("x", demands={"tags": ["gpu"]})
    with own.runner("worker", tags=["gpu"]) as runner:
        claim = start(runner)
        claim.complete("r")
    assert own.wait(claim.run.run_id, timeout=0).result == "r"


def test_enqueue_joins_a_transaction_on_the_callers_own_database(own: Queue) -> None:
    """The run is rolled back with what the application itself wrote."""
    with pytest.raises(Rollback), own.database.atomic():  # noqa: PT012
        own.enqueue("x")
        raise Rollback
    assert is_empty(own)


def test_the_foreign_key_holds_on_the_callers_own_database(own: Queue) -> None:
    """A deleted session takes its runs along, whatever the caller's settings are."""
    run = own.enqueue("x")
    own.delete_session(run.session_id)
    assert is_empty(own)


def test_a_report_that_is_rolled_back_leaves_the_claim_held(queue: Queue, runner: Runner) -> None:
    """The runner still owns the run, hears of its stop, and may report it again."""
    queue.enqueue("x")
    claim = start(runner)
    with queue.database.atomic() as transaction:
        claim.complete("lost")
        transaction.rollback()
    assert status_of(queue, claim.run) == Status.RUNNING
    assert runner.held == [claim]
    assert not claim.is_over
    claim.complete("kept")
    assert queue.get(claim.run.run_id).result == "kept"
    assert runner.held == []


def test_a_report_within_a_transaction_is_not_repeated_by_its_with_block(
    queue: Queue, runner: Runner
) -> None:
    """What was reported stays, also where the commit is still to come."""
    queue.enqueue("x")
    claim = take(runner)
    with queue.database.atomic(), claim:
        claim.complete("kept")
    assert queue.get(claim.run.run_id).result == "kept"
    assert claim.is_over
