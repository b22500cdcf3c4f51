"""Letting go of what is over: pruning finished runs, deleting sessions and runners."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from runqueue import clock, statements, sweeper
from runqueue.database import Store, again
from runqueue.errors import IllegalMove, RunnerConflict, RunnerNotFound, SessionNotFound
from runqueue.models import Runner
from runqueue.states import Actor, Wake

BATCH: Final = 50
"""Runs deleted in the first transaction; the next ones follow from how long that took."""
BATCHES: Final = (10, 400)
"""Fewest and most runs deleted in one transaction."""
HOLD: Final = 0.004
"""Seconds that a transaction may keep who claims waiting, with its commit where that does."""
RESTS: Final = (0.001, 0.1)
"""Least and most seconds between two transactions, where one writes at a time."""


class Bounds(NamedTuple):
    """Which finished runs go; the same whoever deletes them, and however often."""

    ended_before: str | None
    """What ended before this time; None: nothing for that reason."""
    created_before: str | None
    """What was added before this time; likewise."""


def bounds(store: Store, *, ended_before: str | None = None, keep: int | None = None) -> Bounds:
    """Return what is to go so that `keep` finished runs stay, those that were added last."""
    if keep is None:
        return Bounds(ended_before, None)
    if keep == 0:
        return Bounds(ended_before, clock.FOREVER)
    rows = store.run(statements.NTH_FINISHED, newer=keep - 1)
    return Bounds(ended_before, rows[0][0] if rows else None)


def prune_for(store: Store, goes: Bounds, seconds: float) -> tuple[int, bool]:
    """Delete what goes, but no longer than this; return how many and whether all.

    Batch by batch: between two of them whoever waits may write.
    """
    until = time.monotonic() + seconds
    pruned = 0
    for ended_before, created_before in (
        (goes.ended_before, goes.ended_before),
        (clock.FOREVER, goes.created_before),
    ):
        if ended_before is None or created_before is None:
            continue
        for batch in _batches(store, ended_before, created_before):
            pruned += batch
            if time.monotonic() >= until:
                return pruned, False
    return pruned, _give_back(store, until)


def _give_back(store: Store, until: float) -> bool:
    """Return the room of deleted rows to the system, until this moment; whether all of it."""
    began = time.monotonic()
    while not store.give_back():
        ended = time.monotonic()
        if ended >= until:
            return False
        time.sleep(rest_after(ended - began))
        began = time.monotonic()
    return True


def prune(store: Store, before: str) -> int:
    """Delete all runs that ended before a time, batch by batch; return how many."""
    return sum(_batches(store, before, before))


def _batches(store: Store, ended_before: str, created_before: str) -> Iterator[int]:
    """Delete batch after batch, each as large as may be; yield how many each had."""
    limit = BATCH
    while True:
        pruned, took = _prune_batch(store, ended_before, created_before, limit)
        if not pruned:
            return
        yield pruned
        limit = next_limit(limit, took)
        if store.database.in_transaction():  # the caller's: whoever waits, waits for its end
            continue
        # Here, where nobody waits for it: else a claim's commit would write back what was deleted.
        store.trim_log()
        if not store.engine.locks_rows:
            time.sleep(rest_after(took))


def rest_after(took: float) -> float:
    """Return for how long others write alone, after a batch that kept them waiting so long.

    As long again: on a slow disk, too, a prune takes half of what it can do at most.
    """
    least, most = RESTS
    return max(least, min(took, most))


def next_limit(limit: int, took: float) -> int:
    """Return how many runs are deleted next, after so many took so many seconds."""
    wanted = int(limit * HOLD / took) if took > 0 else 2 * limit
    least, most = BATCHES
    return max(least, min(wanted, 2 * limit, most))


@again
def _prune_batch(
    store: Store, ended_before: str, created_before: str, limit: int
) -> tuple[int, float]:
    """Delete up to `limit` runs; return how many, and for how many seconds others waited."""
    with store.transaction():
        began = time.monotonic()  # once others let it write
        rows = store.run(
            statements.PRUNE,
            ended_before=ended_before,
            created_before=created_before,
            limit=limit,
        )
        # A parent without runs of its own is kept for its children's.
        session_ids = sorted({one for row in rows for one in row if one})
        if store.engine.locks_rows:
            # Whether a session is empty is asked once nobody can add to it any more: the run
            # that somebody is adding would be deleted with it.
            listed = store.engine.as_list(session_ids)
            idle = store.lock(statements.LOCK_SESSIONS_TO_DELETE, session_ids=listed)
            session_ids = [row[0] for row in idle]
        if session_ids:
            listed = store.engine.as_list(session_ids)
            store.change(statements.DELETE_EMPTY_SESSIONS, session_ids=listed)
        ended = time.monotonic()
    if not store.engine.locks_rows:
        # Deleted rows are all over the file: to log their pages takes longer than to change them.
        ended = time.monotonic()
    return len(rows), ended - began


@again
def delete_session(store: Store, session_id: str, *, force: bool) -> int:
    """Delete a session with its runs. Raises SessionNotFound or IllegalMove."""
    with store.transaction():
        if not store.run(statements.LOCK_SESSION_TO_DELETE, session_id=session_id):
            raise SessionNotFound(f"session {session_id[:40]} does not exist")
        for run_id, status, _ in store.run(statements.ACTIVE_OF_SESSION, session_id=session_id):
            if not force:
                raise IllegalMove(
                    f"session {session_id} has a run that is {status}, {run_id}; stop it first"
                )
        counts = store.run(statements.STATUSES_OF_SESSION, session_id=session_id)
        store.change(statements.DELETE_SESSION, session_id=session_id)
        store.wake(Wake)
        return int(sum(row[1] for row in counts))


def drain_runner(store: Store, runner_id: str) -> None:
    """Ask a runner to claim nothing more and end when its runs have. Raises RunnerNotFound."""
    with store.transaction():
        if not store.change(statements.DRAIN_RUNNER, runner_id=runner_id):
            raise RunnerNotFound(f"runner {runner_id[:128]} is not registered")


@again
def remove_runner(store: Store, runner_id: str, *, now: str, force: bool) -> sweeper.Sweep:
    """Forget a runner and resolve its runs.

    Raises RunnerNotFound, or RunnerConflict for one that is alive unless `force` is given; such
    a runner learns of it by its next heartbeat, and ends its agents.
    """
    with store.transaction():
        rows = store.run(statements.LOCK_RUNNER, runner_id=runner_id)
        if not rows:
            raise RunnerNotFound(f"runner {runner_id[:128]} is not registered")
        runner = Runner.from_row(rows[0])
        if runner.lease_until > now and not force:
            raise RunnerConflict(f"runner {runner_id} is alive; drain it first")
        resolved = sweeper.rescue_runner(
            store,
            runner_id,
            now=now,
            actor=Actor.OPERATOR,
            reason=f"runner {runner_id} was removed",
        )
        store.change(statements.DELETE_RUNNER, runner_id=runner_id, incarnation=runner.incarnation)
        return resolved
