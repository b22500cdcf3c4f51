"""Making one move of one run: the guarded update, its event, and the typed refusal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from runqueue import follow, statements
from runqueue.database import Statement, Store, again
from runqueue.errors import IllegalMove, RunNotFound, RunqueueError, StaleClaim
from runqueue.states import LATE, MOVES, TERMINAL, Actor, ExecutionMode, Status, Wake

log = logging.getLogger("runqueue.runner")

ENQUEUE: Final = "enqueue"
"""What `record` calls a run's first event, which is no move."""

_PARTICIPLES: Final = {"stop": "stopped", "cancel": "cancelled", "confirm": "confirmed stopped"}


class Fence(NamedTuple):
    """What proves that a caller owns a run: this claim of it, not an earlier or later one."""

    run_id: str
    runner_id: str
    claimed_at: str


def record(
    store: Store,
    name: str,
    run_id: str,
    *,
    now: str,
    actor: Actor,
    detail: str | None = None,
    follows: bool = False,
    retry: bool = False,
) -> None:
    """Add a move, or ENQUEUE, to a run's history, and tell of it when it is committed.

    Belongs in the transaction of the move, which also does what follows an end: `follows`
    is what the statement of the move said of that, `retry` what its owner said.
    """
    move = MOVES.get(name)
    store.change(
        statements.INSERT_EVENT,
        run_id=run_id,
        at=now,
        status=(move.target if move else Status.PENDING).value,
        actor=actor.value,
        detail=detail,
    )
    store.wake(move.wakes if move else (Wake.WORK,))
    if follows:
        follow.after(store, name, [run_id], now=now, actor=actor, retry=retry)


def record_many(
    store: Store,
    name: str,
    run_ids: Sequence[str],
    *,
    now: str,
    actor: Actor,
    detail: str | None = None,
    followed: Sequence[str] = (),
) -> None:
    """Add the same move of several runs to their histories, in one statement.

    `followed` are those whose ends something may follow.
    """
    if len(run_ids) < 2:
        for run_id in run_ids:
            record(
                *(store, name, run_id),
                now=now,
                actor=actor,
                detail=detail,
                follows=run_id in followed,
            )
        return
    move = MOVES[name]
    store.change(
        statements.INSERT_EVENTS,
        run_ids=store.engine.as_list(run_ids),
        at=now,
        status=move.target.value,
        actor=actor.value,
        detail=detail,
    )
    store.wake(move.wakes)
    follow.after(store, name, followed, now=now, actor=actor)


def is_followed(row: Sequence[Any]) -> bool:
    """Whether something may follow an end, by what its statement returned last."""
    if len(row) < 5:  # it was no end
        return False
    mode, parent_id, attempt, told_by = row[-4:]
    is_child = mode == ExecutionMode.ASYNC_CALLBACK.value and parent_id
    return told_by is None and bool(is_child or attempt is not None)


def tell_owned(
    store: Store,
    name: str,
    run_ids: Sequence[str],
    *,
    now: str,
    detail: str | None = None,
    followed: Sequence[str] = (),
    retry: bool = False,
) -> None:
    """Record what owners have done unless its statement did, and tell of it when committed.

    And do what follows an end.
    """
    if store.engine.writes_in_one:
        store.wake(MOVES[name].wakes)
    else:
        record_many(store, name, run_ids, now=now, actor=Actor.RUNNER, detail=detail)
    follow.after(store, name, followed, now=now, actor=Actor.RUNNER, retry=retry)


@again
def make_owned(
    store: Store, name: str, fence: Fence, *, now: str, **values: Any
) -> tuple[Any, ...]:
    """Make an owner's move; return the session's id, and what else its statement does.

    A move that this very claim has made already is repeated without effect, for its first
    answer may have been lost. Raises RunNotFound, StaleClaim or IllegalMove.
    """
    if made := make_alone(store, name, fence, now=now, **values):
        return made
    with store.transaction():
        made = _owned(store, name, fence, {"now": now, **values}, statements.OWNER_MOVES)
        return made or (_repeated_or_refused(store, name, fence, values),)


def make_alone(store: Store, name: str, fence: Fence, **values: Any) -> tuple[Any, ...]:
    """Likewise, by a statement that is all of the transaction; nothing where that cannot be.

    A server is asked once then, and not four times.
    """
    if not store.stands_alone:
        return ()
    return _owned(store, name, fence, values, statements.LONE_MOVES)


def _owned(
    store: Store, name: str, fence: Fence, given: dict[str, Any], ways: dict[str, Statement]
) -> tuple[Any, ...]:
    """What an owner's move returns, recorded; nothing if it is refused."""
    rows = store.run(ways[name], **fence._asdict(), **given)
    if not rows:
        return ()
    followed = [fence.run_id] if is_followed(rows[0]) else []
    retry = given.get("retry", False)
    tell_owned(store, name, [fence.run_id], now=given["now"], followed=followed, retry=retry)
    return rows[0]


def keep_late(store: Store, fence: Fence, report: str, text: str | None, *, now: str) -> None:
    """Keep a report that was refused, because the run was resolved meanwhile, as its event.

    The event has the status that the run has, and enters none. An owner whose answer was lost
    may keep it twice. What is another role's by now cannot be told of; then a warning says so.
    """
    detail = f"{LATE}{report} of runner {fence.runner_id}"
    told = f"{detail}: {text}" if text else detail
    with store.transaction():
        kept = store.change(statements.KEEP_LATE, run_id=fence.run_id, at=now, detail=told)
    if not kept:
        log.warning("run %s: the %s cannot be kept", fence.run_id, detail)


def _repeated_or_refused(store: Store, name: str, fence: Fence, values: dict[str, Any]) -> str:
    rows = store.run(statements.RUN_STATE, run_id=fence.run_id)
    if not rows:
        raise RunNotFound(f"run {fence.run_id} does not exist any more")
    status, runner_id, claimed_at, result, error, session_id = rows[0]
    is_owner = (runner_id, claimed_at) == (fence.runner_id, fence.claimed_at)
    # The daemon's verdicts carry another error than the owner's, so they are not mistaken.
    reported = (values.get("result"), values.get("error"))
    if is_owner and status == MOVES[name].target.value and (result, error) == reported:
        return str(session_id)
    if not is_owner or status in {Status.PENDING.value} | {terminal.value for terminal in TERMINAL}:
        raise StaleClaim(
            f"runner {fence.runner_id} no longer owns run {fence.run_id}, which is {status}; "
            "stop working on it"
        )
    raise _illegal(name, fence.run_id, status)


@again
def make_free(
    store: Store, name: str, run_id: str, *, now: str, actor: Actor, detail: str | None = None
) -> None:
    """Make a move that needs no claim. Raises RunNotFound or IllegalMove."""
    with store.transaction():
        store.lock(statements.LOCK_SESSION_OF_RUN, run_id=run_id)
        if rows := store.run(statements.FREE_MOVES[name], run_id=run_id, now=now):
            record(
                *(store, name, run_id),
                now=now,
                actor=actor,
                detail=detail,
                follows=is_followed(rows[0]),
            )
            return
        raise _refused(store, name, run_id)


@again
def stop_or_cancel(
    store: Store, run_id: str, *, now: str, actor: Actor, reason: str | None = None
) -> None:
    """Ask the owner of a run to stop it, or cancel it if nobody owns it yet.

    Asking again is harmless. Raises RunNotFound, or IllegalMove for a run that has ended.
    """
    with store.transaction():
        # A statement sees what was committed before it began: without the lock, a run that is
        # claimed between the two would be neither claimed for the first nor pending for the other.
        store.lock(statements.LOCK_SESSION_OF_RUN, run_id=run_id)
        for name in ("stop", "cancel"):
            if rows := store.run(statements.FREE_MOVES[name], run_id=run_id, now=now):
                record(
                    *(store, name, run_id),
                    now=now,
                    actor=actor,
                    detail=reason,
                    follows=is_followed(rows[0]),
                )
                return
        rows = store.run(statements.RUN_STATE, run_id=run_id)
        if not rows or rows[0][0] != Status.STOPPING.value:
            raise _refused(store, "stop", run_id)


def _refused(store: Store, name: str, run_id: str) -> RunqueueError:
    rows = store.run(statements.RUN_STATE, run_id=run_id)
    if not rows:
        return RunNotFound(f"run {run_id} does not exist")
    return _illegal(name, run_id, rows[0][0])


def _illegal(name: str, run_id: str, status: str) -> IllegalMove:
    if status in {terminal.value for terminal in TERMINAL}:
        return IllegalMove(f"run {run_id} has ended already: it is {status}")
    sources = " or ".join(source.value for source in Status if source in MOVES[name].sources)
    done = _PARTICIPLES.get(name, name.rstrip("e") + "ed")
    return IllegalMove(f"run {run_id} is {status}; only one that is {sources} can be {done}")
