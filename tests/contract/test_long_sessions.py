"""A session with many waiting runs: they go one after the other, and hold up nobody else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from runqueue import Queue, Runner
from tests.helpers import MovableClock, execute_sql, ids, start, together

MANY = 10_000


def wait_in(queue: Queue, session_id: str, number: int, at: str) -> None:
    """Add pending runs to a busy session, as its triggers would mark them."""
    is_sqlite = queue.store.engine.name == "sqlite"
    # One after the other they would take a minute on PostgreSQL.
    without, again = (
        ("DROP TRIGGER runs_order_insert", None)
        if is_sqlite
        else ("ALTER TABLE runs DISABLE TRIGGER USER", "ALTER TABLE runs ENABLE TRIGGER USER")
    )
    with queue.database.atomic():
        execute_sql(queue, without)
        execute_sql(
            queue,
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO runs (run_id, session_id, type, prompt, created_at, waiting) "
            "SELECT 'run_w' || i, ?, 'RESUME_SESSION', 'x', ?, 1 FROM n",
            number,
            session_id,
            at,
        )
        if again:
            execute_sql(queue, again)


@pytest.fixture
def crowded_queue(queue: Queue) -> Iterator[Queue]:
    """Is emptied without the triggers of each row."""
    yield queue
    if queue.store.engine.name == "postgres":
        execute_sql(queue, "TRUNCATE runs CASCADE")


def cost_of(queue: Queue, function: Callable[[], object]) -> int:
    """How much of the runs a call reads: instructions on SQLite, rows on PostgreSQL."""
    if queue.store.engine.name == "sqlite":
        instructions = itertools.count()
        connection = queue.database.connection()
        connection.set_progress_handler(lambda: next(instructions) and None, 1)
        try:
            function()
        finally:
            connection.set_progress_handler(None, 0)
        return next(instructions)
    read = (
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'runs'"
    )
    with queue.database.atomic():
        before = execute_sql(queue, read)[0][0]
        function()
        return int(execute_sql(queue, read)[0][0] - before)


def test_ten_thousand_waiting_runs_of_one_session_do_not_slow_the_claims_of_others(
    crowded_queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A claim of another session's run reads the same with and without them."""
    queue = crowded_queue
    crowded = queue.enqueue("crowded", priority=9)
    start(runner)
    others = [queue.enqueue("other", priority=20) for _ in range(8)]
    clock.advance(1)

    def claim() -> None:
        assert runner.claim(timeout=0).run.prompt == "other"

    claim()
    alone = [cost_of(queue, claim) for _ in others[:3]]
    wait_in(queue, crowded.session_id, MANY, clock.text())
    crowd = [cost_of(queue, claim) for _ in others[:3]]
    assert max(crowd) < 2 * max(alone) + 50
    (waiting,) = execute_sql(queue, "SELECT count(*) FROM runs WHERE waiting = 1")[0]
    assert waiting == MANY


def test_the_runs_of_a_session_go_in_order_under_any_number_of_runners(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """By priority and then by age, one at a time, whoever executes them."""
    priorities = [0, 3, 0, 1, 3, 0, 2, 1, 0, 3, 2, 0]
    random.Random(7).shuffle(priorities)
    first = queue.enqueue("x", priority=priorities[0])
    runs = [first]
    for priority in priorities[1:]:
        clock.advance(1)
        runs.append(queue.enqueue("x", session_id=first.session_id, priority=priority))
    runners = [open_runner(f"r{number}") for number in range(4)]
    done: list[str] = []

    def work(runner: Runner) -> None:
        while len(done) < len(runs):
            claim = runner.claim(timeout=0.01)
            if claim is None:
                continue
            claim.start()
            done.append(claim.run.run_id)
            claim.complete()

    together(queue, [lambda r=runner: work(r) for runner in runners])
    assert done == ids(sorted(runs, key=lambda run: (-run.priority, run.created_at)))
