"""What the daemon lets go of: finished runs, by age and by number, a little at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue, Runner, retention
from runqueue.daemon import Daemon
from runqueue.engines.sqlite import STEP
from runqueue.retention import (
    BATCH,
    BATCHES,
    HOLD,
    RESTS,
    bounds,
    next_limit,
    prune_for,
    rest_after,
)
from tests.helpers import LONG, MovableClock, count, execute_sql, ids, in_background, start, take

LONG_ENOUGH = 60.0


def finish(queue: Queue, runner: Runner, clock: MovableClock, number: int) -> list[str]:
    """Add runs that end in different ways, the last added first; return their ids by age."""
    runs = []
    for _ in range(number):
        clock.advance(1)
        runs.append(queue.enqueue("x"))
    for place, claim in enumerate(reversed(runner.claim_many(number))):
        if place % 3 == 0:
            claim.fail("why")
        else:
            claim.start()
            claim.complete("r")
    return ids(runs)


def prune(queue: Queue, seconds: float = LONG_ENOUGH, **goes: Any) -> tuple[int, bool]:
    return prune_for(queue.store, bounds(queue.store, **goes), seconds)


def test_the_runs_that_were_added_last_are_kept(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """So many of all that have ended, however they did and whenever."""
    finished = finish(queue, runner, clock, 9)
    assert prune(queue, keep=4) == (5, True)
    assert sorted(ids(queue.find())) == sorted(finished[-4:])
    assert prune(queue, keep=4) == (0, True)
    assert prune(queue, keep=0) == (4, True)


def test_what_has_not_ended_is_not_counted(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Pending, claimed and running runs are older here, and stay."""
    queue.enqueue_many([{"prompt": "x"}] * 3)
    start(runner), take(runner), take(runner).release()
    finish(queue, runner, clock, 2)
    assert prune(queue, keep=1)[0] == 1
    statuses = sorted(run.status for run in queue.find())
    assert [str(status) for status in statuses if status not in ("completed", "failed")] == [
        "claimed",
        "pending",
        "running",
    ]


def test_age_and_number_are_both_limits(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """Whichever is reached first."""
    old = finish(queue, runner, clock, 3)
    clock.advance(100)
    recent = finish(queue, runner, clock, 3)
    before = clock.text(-50)
    assert prune(queue, ended_before=before, keep=5) == (3, True)
    assert not set(ids(queue.find())) & set(old)
    assert prune(queue, ended_before=before, keep=2) == (1, True)
    assert sorted(ids(queue.find())) == sorted(recent[-2:])


@pytest.mark.parametrize("by", ["age", "number"])
def test_only_so_much_is_pruned_in_one_go(queue: Queue, clock: MovableClock, by: str) -> None:
    """Between two batches others may write, and between two rounds the daemon sweeps."""
    queue.enqueue_many([{"prompt": "x"}] * (2 * BATCH + 1))
    execute_sql(queue, "UPDATE runs SET status = 'stopped'")
    clock.advance(10)
    goes = bounds(queue.store, ended_before=clock.text() if by == "age" else None, keep=0)
    assert prune_for(queue.store, goes, 0) == (BATCH, False)
    assert count(queue, "runs") == BATCH + 1
    assert prune_for(queue.store, goes, LONG_ENOUGH) == (BATCH + 1, True)
    assert count(queue, "sessions") == 0


def test_a_batch_is_as_large_as_may_be_for_the_time_that_it_takes() -> None:
    """Whoever claims waits for one of them, on a slow disk, too."""
    assert next_limit(100, HOLD) == 100
    assert next_limit(100, 2 * HOLD) == 50
    assert next_limit(100, HOLD / 1.5) == 150
    assert next_limit(100, HOLD / 1000) == 200  # one that was quick by chance says little
    assert next_limit(100, 0.0) == 200
    least, most = BATCHES
    assert next_limit(100, 1000 * HOLD) == least
    assert next_limit(most, HOLD / 2) == most


class SlowDisk:
    """Stands in for the module `time`: only a commit and a rest take any."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.rests: list[float] = []

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.passed += seconds


def test_a_slow_commit_counts_where_it_keeps_others_waiting(
    queue: Queue, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches get small, and between two of them others have the database as long again."""
    queue.enqueue_many([{"prompt": "x"}] * (2 * BATCH))
    execute_sql(queue, "UPDATE runs SET status = 'stopped'")
    clock.advance(1)
    disk, took, commit = SlowDisk(), 8 * HOLD, type(queue.database).commit
    left: list[int] = []

    def commit_slowly(database: Any) -> Any:
        disk.passed += took
        return commit(database)

    monkeypatch.setattr("runqueue.retention.time", disk)
    monkeypatch.setattr(type(queue.database), "commit", commit_slowly)
    for pruned in retention._batches(queue.store, clock.text(), clock.text()):
        left.append(pruned)
    least, _ = BATCHES
    if queue.store.engine.locks_rows:
        assert (left, disk.rests) == ([BATCH, BATCH], [])
    else:
        assert left == [BATCH, *[least] * (BATCH // least)]
        assert disk.rests == pytest.approx([took] * len(left))


def test_giving_back_room_rests_as_pruning_does(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To move the pages of a file is a transaction, too, for which others wait."""
    disk, took, steps = SlowDisk(), 8 * HOLD, iter([False, False, True])

    def give_back() -> bool:
        disk.passed += took
        return next(steps)

    monkeypatch.setattr("runqueue.retention.time", disk)
    monkeypatch.setattr(queue.store.engine, "give_back", give_back)
    assert prune_for(queue.store, bounds(queue.store), LONG_ENOUGH) == (0, True)
    assert disk.rests == pytest.approx([took] * 2)


def test_a_prune_rests_as_long_as_it_kept_others_waiting() -> None:
    """But never for the hour in which its process was stopped."""
    least, most = RESTS
    assert rest_after(0.0) == least
    assert rest_after((least + most) / 2) == (least + most) / 2
    assert rest_after(3600.0) == most


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_prune_in_a_callers_transaction_leaves_the_log_alone(
    queue: Queue, clock: MovableClock
) -> None:
    """However long the log is: it cannot be written back before that transaction ends."""
    queue.enqueue_many([{"prompt": "x" * 50_000}] * 250)
    execute_sql(queue, "UPDATE runs SET status = 'stopped'")
    clock.advance(1)
    with queue.database.atomic("IMMEDIATE"):
        assert queue.prune(0) == 250
    assert count(queue, "runs") == 0


def test_two_who_prune_keep_what_one_would(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """What goes is found once, and does not grow by what somebody else has deleted."""
    finished = finish(queue, runner, clock, 9)
    first, second = (bounds(queue.store, keep=4) for _ in range(2))
    assert prune_for(queue.store, first, LONG_ENOUGH) == (5, True)
    queue.delete_session(queue.get(finished[-1]).session_id)
    assert prune_for(queue.store, second, LONG_ENOUGH) == (0, True)
    assert sorted(ids(queue.find())) == sorted(finished[-4:-1])


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_run_that_somebody_refers_to_is_left_for_later(
    queue: Queue, runner: Runner, clock: MovableClock, connect: Callable[..., Queue]
) -> None:
    """Nobody is waited for: an open transaction may last."""
    finished = finish(queue, runner, clock, 3)
    with queue.database.atomic():
        execute_sql(
            queue,
            "INSERT INTO run_events (run_id, at, status, actor) VALUES (?, ?, 'failed', 'runner')",
            *(finished[0], clock.text()),
        )
        other = connect()
        with in_background(lambda: prune(other, keep=0), other) as pruned:
            assert pruned.result(LONG) == (2, True)
    assert prune(queue, keep=0) == (1, True)


def test_the_daemon_heals_while_there_is_much_to_prune(
    queue: Queue, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million runs are pruned for many minutes."""
    healed: list[object] = []
    monkeypatch.setattr("runqueue.sweeper.heal", lambda store: healed.append(store) or 0)
    monkeypatch.setattr("runqueue.daemon.TIDY_EVERY", 0.0)
    queue.enqueue_many([{"prompt": "x"}] * (3 * BATCH))
    execute_sql(queue, "UPDATE runs SET status = 'stopped'")
    daemon = Daemon(queue, interval=1e-9, keep=None, keep_runs=1)
    for _ in range(3):
        daemon.tick()
    assert len(healed) == 3


def test_the_daemon_prunes_round_by_round(queue: Queue, clock: MovableClock) -> None:
    """A tick prunes for a share of its interval only, and the next one goes on."""
    queue.enqueue_many([{"prompt": "x"}] * (2 * BATCH + 1))
    execute_sql(queue, "UPDATE runs SET status = 'stopped'")
    daemon = Daemon(queue, interval=1e-9, keep=None, keep_runs=1)
    left = []
    for _ in range(3):
        daemon.tick()
        left.append(count(queue, "runs"))
    assert left == [BATCH + 1, 1, 1]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_file_gives_back_the_room_of_what_was_pruned(queue: Queue, database_url: str) -> None:
    """But for a part that is soon needed again."""
    path = Path(database_url.removeprefix("sqlite:///"))

    def size() -> int:
        execute_sql(queue, "PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    queue.enqueue_many([{"prompt": "x" * 20_000}] * 400)
    full = size()
    execute_sql(queue, "UPDATE runs SET status = 'stopped'")
    assert prune(queue, 0, keep=40) == (BATCH, False)
    assert prune(queue, keep=40) == (360 - BATCH, True)
    assert size() < full / 3
    assert queue.store.damage() == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_step_gives_back_all_the_pages_that_it_is_to(queue: Queue) -> None:
    """Page by page, each with a commit of its own, a large file would take hours."""
    queue.enqueue_many([{"prompt": "x" * 20_000}] * 200)
    execute_sql(queue, "UPDATE runs SET status = 'stopped'")
    execute_sql(queue, "DELETE FROM runs")

    def pages() -> int:
        return int(queue.database.execute_sql("PRAGMA page_count").fetchone()[0])

    before = pages()
    assert queue.store.give_back() is False
    assert pages() <= before - STEP
