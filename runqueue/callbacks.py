"""Telling a parent session that runs of its children have ended: once each, whatever ended them.

A run's `callback_run_id` names the run that told of it, and is set once, in the transaction that
adds that run or extends it. Whoever sets it holds the parent's session, so that callbacks which
wait for one parent meet in one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from runqueue import (
    callback_prompt,
    demands,
    family,
    ids,
    settings,
    statements,
    statements_family,
)
from runqueue.callback_prompt import ChildEnd
from runqueue.database import Store
from runqueue.engines.base import Conflict
from runqueue.models import Run, Session
from runqueue.states import Actor, ExecutionMode, RunType, Status, Wake

HIGHEST: Final = 2**31 - 1
"""The highest priority that a run can have."""


def wants(run: Run) -> bool:
    """Whether the parent of a run is to be told of its end."""
    return run.execution_mode == ExecutionMode.ASYNC_CALLBACK.value and bool(run.parent_session_id)


def tell(store: Store, ended: Sequence[Run], *, now: str, actor: Actor) -> int:
    """Tell the parents of runs that have ended and told nobody yet; return of how many.

    Belongs in a transaction, of which it is the last: it locks the parents' sessions.
    """
    by_parent: dict[str, list[str]] = {}
    for run in ended:
        if wants(run):
            by_parent.setdefault(str(run.parent_session_id), []).append(run.run_id)
    told = 0
    for parent_id in sorted(by_parent):
        told += _tell_parent(store, parent_id, by_parent[parent_id], now, actor)
    return told


def silence(store: Store, run_ids: Sequence[str]) -> int:
    """Have nobody told of the ends of these runs; return of how many."""
    return _mark(store, run_ids, statements_family.NOBODY)


def _mark(store: Store, run_ids: Sequence[str], by: str) -> int:
    listed = store.engine.as_list(list(run_ids))
    return store.change(statements_family.MARK_TOLD, run_ids=listed, callback_run_id=by)


def _tell_parent(store: Store, parent_id: str, run_ids: list[str], now: str, actor: Actor) -> int:
    rows = store.run(statements.LOCK_SESSION, session_id=parent_id)
    # Again, for another may have told of them before it gave up the lock.
    listed = store.engine.as_list(run_ids)
    runs = Run.from_rows(store.run(statements_family.ENDED, run_ids=listed))
    if not rows:
        return _tell_nobody(store, runs, f"parent session {parent_id} was deleted", now)
    line = family.line_of(store, parent_id)
    if line.is_circle:
        why = f"the parents of session {parent_id} are in a circle"
        return _tell_nobody(store, runs, why, now)
    below = [run for run in runs if run.session_id in line.session_ids]
    why = f"parent session {parent_id} is the run's own, or below it"
    count = _tell_nobody(store, below, why, now)
    if others := [run for run in runs if run not in below]:
        count += _tell_session(store, Session.from_row(rows[0]), others, now, actor)
    return count


def _tell_nobody(store: Store, runs: list[Run], why: str, now: str) -> int:
    run_ids = [run.run_id for run in runs]
    if run_ids and silence(store, run_ids) != len(run_ids):
        raise Conflict("another process told of the same runs; try again")
    family.note(store, run_ids, f"nobody is told of this end: {why}", now=now)
    return len(run_ids)


def _tell_session(store: Store, parent: Session, runs: list[Run], now: str, actor: Actor) -> int:
    waiting_id, told = _waiting(store, parent.session_id)
    ended = [_child(run) for run in runs]
    for page in callback_prompt.pack(told, ended, settings.MAX_PROMPT):
        if new := page[len(told) :]:
            callback_id = waiting_id
            if callback_id is None or not _extend(store, parent, callback_id, page, now, new):
                callback_id = _add(store, parent, new, now, actor)
            _mark_told(store, [child.run_id for child in new], parent, callback_id, now)
        waiting_id, told = None, []  # it has no room for what follows
    store.wake((Wake.WORK,))
    return len(runs)


def _waiting(store: Store, session_id: str) -> tuple[str | None, list[ChildEnd]]:
    """Return the callback that still waits in a session, and whose ends it tells of."""
    for run_id, prompt in store.run(statements_family.WAITING_CALLBACK, session_id=session_id):
        told = callback_prompt.parse_callback(prompt)
        if told is not None:  # else somebody wrote another prompt by hand
            return run_id, told
    return None, []


def _mark_told(
    store: Store, run_ids: list[str], parent: Session, callback_id: str, now: str
) -> None:
    if _mark(store, run_ids, callback_id) != len(run_ids):
        raise Conflict("another process told of the same runs; try again")
    detail = f"session {parent.session_id} is told of this end by run {callback_id}"
    family.note(store, run_ids, detail, now=now)


def _child(run: Run) -> ChildEnd:
    has_completed = run.status == Status.COMPLETED
    return ChildEnd(
        run_id=run.run_id,
        session_id=run.session_id,
        agent_name=run.agent_name,
        outcome=str(run.status),
        result=(run.result or "") if has_completed else None,
        error=None if has_completed else (run.error or ""),
        finished_at=run.completed_at,
    )


def _add(store: Store, parent: Session, children: list[ChildEnd], now: str, actor: Actor) -> str:
    values: dict[str, Any] = {
        "session_id": parent.session_id,
        "type": RunType.RESUME_SESSION.value,
        "agent_name": parent.agent_name,
        "prompt": callback_prompt.render(parent.session_id, children),
        "project_dir": parent.project_dir,
        **_line_above(store, parent),
        "demands": demands.canonical(parent.home()) if parent.home() else None,
        "created_at": now,
        "priority": _next_priority(store, parent.session_id, None),
        "tells": len(children),
    }
    run_id = ids.new_run_id()
    while not store.change(statements_family.INSERT_CALLBACK, run_id=run_id, **values):
        run_id = ids.new_run_id()
    store.change(
        statements.INSERT_EVENT,
        run_id=run_id,
        at=now,
        status=Status.PENDING.value,
        actor=actor.value,
        detail=f"callback of {', '.join(child.run_id for child in children[:16])}"
        + (" and more" if len(children) > 16 else ""),
    )
    return run_id


def _line_above(store: Store, parent: Session) -> dict[str, Any]:
    """Who is told of the end of the callback: whoever is of the parent's other runs."""
    rows = store.run(statements_family.LATEST_AS_CHILD, session_id=parent.session_id)
    above, mode = rows[0] if rows else (parent.parent_session_id, parent.execution_mode)
    return {"parent_session_id": above, "execution_mode": mode}


def _extend(
    store: Store, parent: Session, run_id: str, page: list[ChildEnd], now: str, new: list[ChildEnd]
) -> bool:
    """Add to a callback that still waits; return whether it did."""
    extended = store.change(
        statements_family.EXTEND_CALLBACK,
        run_id=run_id,
        prompt=callback_prompt.render(parent.session_id, page),
        tells=len(page),
        priority=_next_priority(store, parent.session_id, run_id),
    )
    if extended:
        more = ", ".join(child.run_id for child in new[:16])
        family.note(store, [run_id], f"tells also of {more}", now=now)
    return bool(extended)


def _next_priority(store: Store, session_id: str, run_id: str | None) -> int:
    """The priority with which a run goes before all others that wait in its session."""
    rows = store.run(statements_family.FIRST_PENDING, session_id=session_id)
    if not rows:
        return 0
    first, priority = rows[0]
    return int(priority) if first == run_id else min(int(priority) + 1, HIGHEST)
