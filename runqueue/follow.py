"""What follows the end of a run: another attempt, or a callback to its parent's session.

Moves call `after` in the transaction that ends a run, and only for a run of which its row says
that something may follow. Whatever that transaction could not do, a sweep does: runs that were
ended by hand, or by a role that may add no runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Final, NamedTuple

from runqueue import attempts, callbacks, family, statements_family
from runqueue.database import Store, again
from runqueue.models import Run
from runqueue.states import Actor, Status, Wake

BATCH: Final = 50
"""Runs followed up in one transaction of a sweep: each may have a result of a megabyte."""


class Rights(NamedTuple):
    """What the role of this process may do."""

    add_runs: bool
    ask_for_attempts: bool


_rights: weakref.WeakKeyDictionary[Store, Rights] = weakref.WeakKeyDictionary()


def after(
    store: Store,
    move: str | None,
    run_ids: Sequence[str],
    *,
    now: str,
    actor: Actor,
    retry: bool = False,
) -> int:
    """Do what follows the ends of these runs; return of how many parents were told, or never will.

    `move` is how they ended, None when that was some time ago. Belongs in the transaction of
    the move, as its last part.
    """
    if not run_ids:
        return 0
    listed = store.engine.as_list(list(run_ids))
    ended = Run.from_rows(store.run(statements_family.ENDED, run_ids=listed))
    rights = _rights_of(store)
    if not rights.add_runs:
        for run in ended:
            if run.attempt is not None and rights.ask_for_attempts:
                attempts.ask(store, run, move, now=now, retry=retry)
        return 0
    last: list[Run] = []
    going_on: list[Run] = []
    for run in ended:
        goes_on = run.attempt is not None and attempts.go_on(
            store, run, move, now=now, actor=actor, retry=retry
        )
        (going_on if goes_on else last).append(run)
    # Its parent hears of the last attempt.
    children = [run.run_id for run in going_on if callbacks.wants(run)]
    silenced = callbacks.silence(store, children) if children else 0
    return callbacks.tell(store, last, now=now, actor=actor) + silenced


def _rights_of(store: Store) -> Rights:
    if not store.engine.locks_rows:
        return Rights(True, True)
    if store not in _rights:
        _rights[store] = Rights(*store.run(statements_family.RIGHTS)[0])
    return _rights[store]


class Followed(NamedTuple):
    """What one sweep did."""

    told: int
    """Ends that parents were told of."""
    retried: int
    """Attempts whose time had come."""


def catch_up(store: Store, *, now: str) -> Followed:
    """Tell of the ends that nobody has told of, and make the attempts that are due."""
    told = retried = 0
    # Attempts first: a parent hears of the last one.
    while due := _next_attempts(store, now):
        retried += due
    while some := _tell_some(store, now):
        told += some
    return Followed(told, retried)


@again
def _next_attempts(store: Store, now: str) -> int:
    # Looked for outside of the transaction: a tick that finds nothing takes no write lock.
    rows = store.run(statements_family.DUE_ATTEMPTS, now=now, limit=BATCH)
    return sum(_next_attempt(store, run_id, now) for (run_id,) in rows)


@again
def _next_attempt(store: Store, run_id: str, now: str) -> int:
    with store.transaction():
        found = store.run(statements_family.ENDED_RUN, run_id=run_id)
        one = attempts.of(store, run_id)
        if one is None or not one.due_at:
            return 0
        if not found:  # somebody set the run back by hand, and it has not ended
            listed = store.engine.as_list([run_id])
            store.change(statements_family.UNSCHEDULE, run_ids=listed)
            store.change(statements_family.MARK_AGAIN, run_id=run_id)
            return 0
        run = Run.from_row(found[0])
        has_failed = run.status == Status.FAILED  # else somebody ended it otherwise, by hand
        # Whoever asked for it could not see the first; both may have been written by hand.
        if not has_failed or attempts.was_stopped(store, run) or one.retries < 1:
            return int(give_up(store, run_id, now=now, actor=Actor.DAEMON))
        added = attempts.make_next(store, run, one, now=now, actor=Actor.DAEMON)
        if added is not None and callbacks.wants(run) and run.callback_run_id is None:
            callbacks.silence(store, [run_id])
        return int(added is not None)


@again
def _tell_some(store: Store, now: str) -> int:
    rows = store.run(statements_family.UNTOLD, limit=BATCH)
    if not rows:
        return 0
    with store.transaction():
        return after(store, None, [row[0] for row in rows], now=now, actor=Actor.DAEMON)


@again
def give_up(store: Store, run_id: str, *, now: str, actor: Actor) -> bool:
    """Make no other attempt of a run that waits for one; return whether it did wait.

    Its parent is told of the end that it had.
    """
    with store.transaction():
        listed = store.engine.as_list([run_id])
        if not store.change(statements_family.UNSCHEDULE, run_ids=listed):
            return False
        family.note(store, [run_id], "no other attempt is made", now=now)
        store.wake((Wake.END,))  # for whoever waits for the last attempt
        store.change(statements_family.MARK_AGAIN, run_id=run_id)
        after(store, None, [run_id], now=now, actor=actor)
        return True
