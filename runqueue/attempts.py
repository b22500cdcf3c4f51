"""Attempts: a run that failed is executed again where that was asked for.

Each attempt is a run of its own in the same session, linked with the others in `run_attempts`.
The next one is made in the transaction that ends the former, or by a sweep when its delay is
over; a guarded statement decides who makes it, so that nobody makes it twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from runqueue import clock, demands, family, ids, statements, statements_family
from runqueue.database import Statement, Store
from runqueue.errors import InvalidRun, RunNotFound
from runqueue.models import COLUMNS, Attempt, Run, Session, seconds_between
from runqueue.states import Actor, RunType, Status, Wake

MOST: Final = 100
"""Retries that may be asked for."""
LOST_AT_MOST: Final = 2
"""Runners that a run may take down with it: it is given to no other."""


@dataclass(frozen=True)
class Terms:
    """What was asked for, for the case that a run fails."""

    retries: int = 0
    """How many more attempts there may be."""
    delay: float = 0.0
    """Seconds between the end of an attempt and the next."""
    on_lost: bool = False
    """Whether the loss of its runner is an end that may be retried."""


NO_TERMS: Final = Terms()


def check_terms(retries: object, delay: object, on_lost: object) -> Terms:
    """Return the terms. Raises InvalidRun, in one sentence."""
    if type(retries) is int and not retries and delay == 0 and on_lost is False:
        return NO_TERMS
    if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= MOST:
        raise InvalidRun(f"the retries must be a whole number from 0 to {MOST}")
    if not clock.is_duration(delay):
        raise InvalidRun("the retry delay must be a number of seconds that is not negative")
    if not isinstance(on_lost, bool):
        raise InvalidRun("whether to retry a run that was lost must be true or false")
    if (delay or on_lost) and not retries:
        raise InvalidRun("a retry delay or a retry of lost runs needs a number of retries")
    return Terms(retries, float(delay), on_lost)  # type: ignore[arg-type]


def of(store: Store, run_id: str) -> Attempt | None:
    """Return how a run is linked to its other attempts; None when it has none."""
    rows = store.run(statements_family.GET_ATTEMPT, key=run_id)
    return Attempt.from_row(rows[0]) if rows else None


def chain(store: Store, run_id: str) -> list[str]:
    """Return the ids of all attempts that a run is one of, the oldest first."""
    found = [run_id]
    seen = {run_id}
    one = of(store, run_id)
    while one is not None and one.former_run_id and one.former_run_id not in seen:
        seen.add(one.former_run_id)
        found.insert(0, one.former_run_id)
        one = of(store, one.former_run_id)
    one = of(store, run_id)
    while one is not None and one.next_run_id and one.next_run_id not in seen:
        seen.add(one.next_run_id)
        found.append(one.next_run_id)
        one = of(store, one.next_run_id)
    return found


def begin(store: Store, run_id: str, terms: Terms) -> None:
    """Note the terms of a run that was just added, in the transaction that added it."""
    _note_terms(store, run_id, former=None, terms=terms, lost=0)
    store.change(statements_family.NUMBER_ATTEMPT, run_id=run_id, attempt=1)


def _note_terms(store: Store, run_id: str, *, former: str | None, terms: Terms, lost: int) -> None:
    store.change(
        statements_family.INSERT_ATTEMPT,
        run_id=run_id,
        former_run_id=former,
        next_run_id=None,
        retries=terms.retries,
        delay=terms.delay,
        on_lost=int(terms.on_lost),
        lost=lost,
    )


def go_on(store: Store, run: Run, move: str | None, *, now: str, actor: Actor, retry: bool) -> bool:
    """Whether another attempt follows a run that has ended; makes or schedules it.

    `move` is how it ended, None when that was some time ago; `retry` whether its owner said that
    it may be retried. Belongs in the transaction of the move.
    """
    one = of(store, run.run_id)
    if one is None:
        return False
    if one.next_run_id or one.due_at:
        return True
    if not _may_go_on(store, run, one, move, retry) or was_stopped(store, run):
        return False
    if one.delay:
        due_at = clock.shift(now, one.delay)
        store.change(statements_family.SCHEDULE, run_id=run.run_id, due_at=due_at)
        detail = f"attempt {(run.attempt or 1) + 1} is due at {due_at}"
        family.note(store, [run.run_id], detail, now=now)
    else:
        make_next(store, run, one, now=now, actor=actor)
    return True


def ask(store: Store, run: Run, move: str | None, *, now: str, retry: bool) -> None:
    """Have a sweep make the next attempt, for whoever may not add runs."""
    one = of(store, run.run_id)
    if one is not None and _may_go_on(store, run, one, move, retry):
        due_at = clock.shift(now, one.delay)
        store.change(statements_family.SCHEDULE, run_id=run.run_id, due_at=due_at)


def _may_go_on(store: Store, run: Run, one: Attempt, move: str | None, retry: bool) -> bool:
    """Whether this end is one that may be retried, and an attempt is left."""
    if move == "lose":
        one.lost += 1
        store.change(statements_family.COUNT_LOST, run_id=run.run_id, lost=one.lost)
        if not one.on_lost or one.retries < 1:
            return False
        if one.lost >= LOST_AT_MOST:
            more = f"; it took {one.lost} runners down with it, so it is given to no other"
            store.change(statements_family.ADD_TO_ERROR, run_id=run.run_id, more=more)
            return False
        return True
    return move == "fail" and retry and one.retries > 0


def was_stopped(store: Store, run: Run) -> bool:
    """Whether somebody had asked for a stop of a run: then it is not retried."""
    return bool(store.run(statements_family.WAS_STOPPING, run_id=run.run_id))


def make_next(store: Store, run: Run, one: Attempt, *, now: str, actor: Actor) -> Run | None:
    """Add the attempt after this one; None when somebody else has added it, or given it up."""
    terms = Terms(max(0, one.retries - 1), one.delay, bool(one.on_lost))
    # What was read of it may have changed before its session was locked.
    link = statements_family.LINK_DUE if one.due_at else statements_family.LINK_NEXT
    return _add_after(store, run, terms, one.lost, link, now=now, actor=actor)


def make_by_hand(store: Store, run: Run, *, now: str, actor: Actor) -> Run:
    """Add another attempt because somebody asks for it now, whatever the terms were.

    An attempt that was waited for comes at once; any other is not retried by itself.
    """
    one = of(store, run.run_id)
    if one is not None and one.due_at:
        added = make_next(store, run, one, now=now, actor=actor)
        if added is not None:
            return added
    if one is None:
        _note_terms(store, run.run_id, former=None, terms=NO_TERMS, lost=0)
    link = statements_family.LINK_NEXT
    added = _add_after(store, run, NO_TERMS, 0, link, now=now, actor=actor, by_hand=True)
    assert added is not None
    return added


def _add_after(
    store: Store,
    old: Run,
    terms: Terms,
    lost: int,
    link: Statement,
    *,
    now: str,
    actor: Actor,
    by_hand: bool = False,
) -> Run | None:
    rows = store.run(statements.LOCK_SESSION, session_id=old.session_id)
    if not rows:
        raise RunNotFound(f"run {old.run_id} does not exist any more")
    # Its session may have moved before it was locked, and what is retried has moved along.
    again = store.run(statements.GET_RUN, key=old.run_id)
    if not again:
        raise RunNotFound(f"run {old.run_id} does not exist any more")
    values = _values_after(store, Run.from_row(again[0]), Session.from_row(rows[0]), now)
    linked = store.change(link, run_id=old.run_id, next_run_id=values["run_id"])
    if not linked and not by_hand:  # by hand it may be retried as often as somebody likes
        return None
    store.change(statements_family.INSERT_NEXT, **values)
    _note_terms(store, values["run_id"], former=old.run_id, terms=terms, lost=lost)
    number = values["attempt"]
    store.change(
        statements.INSERT_EVENT,
        run_id=values["run_id"],
        at=now,
        status=Status.PENDING.value,
        actor=actor.value,
        detail=f"retry of {old.run_id}, attempt {number}",
    )
    detail = f"attempt {number} is run {values['run_id']}"
    family.note(store, [old.run_id], detail, now=now)
    store.wake((Wake.WORK,))
    row = {**values, "session": values["session_id"], "status": Status.PENDING}
    return Run.from_row([row.get(name) for name in _KNOWN], _KNOWN)


# `waiting` is the triggers' to decide and is not known here.
_KNOWN: Final = tuple(name for name in COLUMNS[Run] if name != "waiting")


def _values_after(store: Store, old: Run, session: Session, now: str) -> dict[str, Any]:
    """The row of a run with the content of another."""
    # A session that no runner ever started has nothing to resume.
    was_started = store.run(statements.WAS_STARTED, session_id=old.session_id)
    kind = RunType.RESUME_SESSION if was_started else RunType.START_SESSION
    timeout = seconds_between(old.created_at, old.timeout_at) if old.timeout_at else None
    run_id = ids.new_run_id()
    while store.run(statements.RUN_STATUS, run_id=run_id):
        run_id = ids.new_run_id()
    return {
        "run_id": run_id,
        "session_id": old.session_id,
        "type": kind.value,
        "agent_name": old.agent_name or session.agent_name,
        "prompt": old.prompt,
        "project_dir": old.project_dir or session.project_dir,
        "parent_session_id": old.parent_session_id,
        "execution_mode": old.execution_mode,
        "demands": _demands_after(old, session),
        "created_at": now,
        "timeout_at": None if timeout is None else clock.shift(now, timeout),
        "priority": old.priority,
        "attempt": (old.attempt or 1) + 1,
    }


def _demands_after(old: Run, session: Session) -> str | None:
    """What it demands and its session's home: whoever moves that takes it out of ended runs."""
    try:
        wanted = demands.both(session.home(), demands.parse(old.demands))
    except ValueError:  # malformed by hand: nobody claims it, and `why` says so
        return old.demands
    text = demands.canonical(wanted)
    if len(text.encode()) > demands.MAX_MERGED:  # written by hand, too
        return old.demands
    return text if wanted else None
