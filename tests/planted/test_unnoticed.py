"""What no other test noticed when its bug was planted."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import runqueue
from runqueue import Claim, InvalidRun, Queue, Runner, RunqueueError, Status, statements
from tests.helpers import (
    LONG,
    OWNERS_VERBS,
    MovableClock,
    count,
    events_of,
    execute_sql,
    explained,
    in_background,
    row_of,
    start,
    take,
    wait_until,
)

CANARY = "canary-93d2"
LEASE = "SELECT lease_until FROM runners"


def test_every_connection_checks_references(tmp_path: Path) -> None:
    """SQLite checks none unless each connection is told to; only the first one migrates."""
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    runqueue.connect(url).close()

    def checks(queue: Queue) -> bool:
        return queue.database.execute_sql("PRAGMA foreign_keys").fetchone() == (1,)

    with runqueue.connect(url) as queue:
        assert checks(queue)
        with in_background(lambda: checks(queue), queue) as answer:
            assert answer.result()


def claim_of(queue: Queue, runner: Runner, verb: str) -> Claim:
    """A claim on which this verb is the next report."""
    queue.enqueue("x")
    claim = start(runner) if verb in ("complete", "confirm") else take(runner)
    if verb == "confirm":
        queue.stop(claim.run.run_id)
    return claim


REFUSE = (
    "CREATE TRIGGER no_events BEFORE INSERT ON run_events "
    "BEGIN SELECT RAISE(ABORT, 'nothing is recorded'); END"
)
REFUSE_ON_POSTGRES = (
    "CREATE OR REPLACE FUNCTION no_events() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN RAISE ''nothing is recorded''; END'; "
    "CREATE TRIGGER no_events BEFORE INSERT ON run_events "
    "FOR EACH ROW EXECUTE FUNCTION no_events()"
)


@contextmanager
def nothing_is_recorded(queue: Queue) -> Iterator[None]:
    """The database refuses every event."""
    is_postgres = queue.store.engine.locks_rows
    execute_sql(queue, REFUSE_ON_POSTGRES if is_postgres else REFUSE)
    try:
        with pytest.raises(RunqueueError, match="nothing is recorded"):
            yield
    finally:
        execute_sql(queue, "DROP TRIGGER no_events" + " ON run_events" * is_postgres)


@pytest.mark.parametrize("verb", OWNERS_VERBS)
def test_a_report_that_cannot_be_recorded_is_not_made(
    queue: Queue, runner: Runner, verb: str
) -> None:
    """The row and its history are one transaction."""
    claim = claim_of(queue, runner, verb)
    before, events = row_of(queue, claim.run), events_of(queue, claim.run)
    with nothing_is_recorded(queue):
        OWNERS_VERBS[verb](claim)
    assert row_of(queue, claim.run) == before
    assert events_of(queue, claim.run) == events


@pytest.mark.parametrize("verb", ["claim", "stop", "cancel", "expire"])
def test_a_move_that_cannot_be_recorded_is_not_made(
    queue: Queue, runner: Runner, verb: str
) -> None:
    """Whoever makes it."""
    run = queue.enqueue("x", timeout=0 if verb == "expire" else None)
    if verb == "stop":
        take(runner)
    before, events = row_of(queue, run), events_of(queue, run)
    calls = {
        "claim": lambda: runner.claim(timeout=0),
        "stop": lambda: queue.stop(run.run_id),
        "cancel": lambda: queue.cancel(run.run_id),
        "expire": queue.sweep,
    }
    with nothing_is_recorded(queue):
        calls[verb]()
    assert row_of(queue, run) == before
    assert events_of(queue, run) == events


def test_a_run_that_cannot_be_recorded_is_not_enqueued(queue: Queue) -> None:
    """Nor is its session there."""
    with nothing_is_recorded(queue):
        queue.enqueue("x")
    assert count(queue, "runs") == count(queue, "sessions") == 0


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_claim_does_not_wait_for_a_run_that_others_hold(
    queue: Queue, database_url: str, clock: MovableClock
) -> None:
    """It takes the next one; else all claimers of a server would stand in one line."""
    held, free = queue.enqueue_many([{"prompt": "x"}, {"prompt": "y"}])
    hurried = runqueue.connect(database_url, clock=clock, busy_timeout=0.2)
    lock = "SELECT 1 FROM runs WHERE run_id = %s FOR UPDATE"
    with psycopg.connect(database_url) as other, hurried, hurried.runner("worker") as runner:
        other.execute(lock, (held.run_id,))
        assert take(runner).run.run_id == free.run_id


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_stop_misses_no_claim_between_its_two_looks(
    queue: Queue, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for an owner, then for a run that has none: nobody may become it meanwhile."""
    run = queue.enqueue("x")
    real = queue.store.run
    claims = []

    def claim_after_the_first(statement: Any, **values: Any) -> list[tuple[Any, ...]]:
        rows = real(statement, **values)
        if statement is statements.FREE_MOVES["stop"]:
            with in_background(lambda: runner.claim(timeout=0), queue) as claimed:
                claims.append(claimed.result(LONG))
        return rows

    monkeypatch.setattr(queue.store, "run", claim_after_the_first)
    assert queue.stop(run.run_id).status == Status.STOPPED
    assert claims == [None]


CHOOSING = {
    **{f"claim {depth} deep": statement for depth, statement in statements.CLAIMS.items()},
    **{rescue.name: rescue.move for rescue in statements.RESCUES},
    "expire": statements.EXPIRE,
    "prune": statements.PRUNE,
}
"""The statements that change rows which a query with SKIP LOCKED chooses for them."""


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("name", CHOOSING)
def test_the_rows_of_a_change_are_chosen_once(queue: Queue, name: str) -> None:
    """In an InitPlan; a join may choose again for each row, and other rows each time.

    Whether it does is up to what the planner last heard of the table, so tests of what is
    claimed see it only now and then.
    """
    [plans] = explained(queue, CHOOSING[name].compile(queue.database), "JSON")
    found = list(locking(plans[0]["Plan"]))
    assert found == [True]


def locking(node: dict[str, Any], is_once: bool = False) -> Iterator[bool]:
    """Of each node that locks rows: whether it is executed once."""
    is_once |= node.get("Parent Relationship") == "InitPlan"
    if node["Node Type"] == "LockRows":
        yield is_once
    for child in node.get("Plans", ()):
        yield from locking(child, is_once)


def test_a_draining_runner_beats_again_and_again(
    connect: Callable[..., Queue], open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """Not only by the beat that was under way when it was told to drain."""
    queue = connect(lease=0.06)
    queue.enqueue("x")
    runner = open_runner(on=queue)
    claim = start(runner)
    runner.drain()
    for _ in range(3):
        clock.advance(0.05)
        until = clock.text(0.06)
        wait_until(lambda until=until: execute_sql(queue, LEASE)[0][0] == until, timeout=LONG / 2)
    claim.complete()


def test_no_refusal_of_a_row_shows_the_row(queue: Queue) -> None:
    """PostgreSQL's own words are `Failing row contains (..)`, and that holds the prompt."""
    session_id = queue.enqueue("x").session_id
    values = {
        **dict.fromkeys(("agent_name", "project_dir", "parent_session_id", "demands")),
        "timeout_at": None,
        "run_id": "run_0123456789ab",
        "session_id": session_id,
        "type": "NO_SUCH_TYPE",
        "prompt": CANARY,
        "execution_mode": "sync",
        "created_at": queue.now(),
        "priority": 0,
    }
    with pytest.raises(InvalidRun) as refusal:
        queue.store.change(statements.INSERT_RUN, **values)
    assert CANARY not in str(refusal.value)
    told = traceback.format_exception(type(refusal.value), refusal.value, refusal.tb)
    assert CANARY not in "".join(told)
