"""Letting go of what is over: pruning finished runs, deleting sessions and runners."""

from __future__ import annotations

from typing import Final

from runqueue import statements, sweeper
from runqueue.database import Store, again
from runqueue.errors import IllegalMove, RunnerConflict, RunnerNotFound, SessionNotFound
from runqueue.models import Runner
from runqueue.states import Actor, Wake

BATCH: Final = 200
"""Rows deleted in one transaction, some 3 ms: a claim never waits longer for a prune."""


@again
def prune_batch(store: Store, before: str, limit: int = BATCH) -> int:
    """Delete up to `limit` runs that ended before a time; return how many."""
    with store.transaction():
        rows = store.run(statements.PRUNE, before=before, limit=limit)
        session_ids = {row[0] for row in rows}
        if store.engine.locks_rows:
            # Whether a session is empty is asked once nobody can add to it any more: the run
            # that somebody is adding would be deleted with it.
            listed = store.engine.as_list(sorted(session_ids))
            idle = store.lock(statements.LOCK_SESSIONS_TO_DELETE, session_ids=listed)
            session_ids &= {row[0] for row in idle}
        for session_id in session_ids:
            store.change(statements.DELETE_EMPTY_SESSION, session_id=session_id)
        return len(rows)


def prune(store: Store, before: str) -> int:
    """Delete all runs that ended before a time, batch by batch; return how many."""
    pruned = 0
    while (batch := prune_batch(store, before)) > 0:
        pruned += batch
    return pruned


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
