"""The statements of what follows the end of a run, and of trees of sessions.

They are compiled as those of `statements` are, and keep the same rules. None of them is on the
path of a run that has no parent and is not to be retried.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from peewee import SQL, Select, fn

from runqueue.database import Statement
from runqueue.models import Attempt, Event, Run, Session
from runqueue.statements import (
    _OF_ALL,
    _OF_SESSION,
    _exists,
    _for_index,
    _is_active,
    _is_one_of,
    _is_pending,
    _is_still,
    _spelled,
    get,
    hidden,
    hole,
    insert,
    is_listed,
    literal,
)
from runqueue.states import ACTIVE, TERMINAL, Actor, Status

LIVE: Final = frozenset({Status.PENDING}) | ACTIVE
"""Statuses of a run that something may still come of."""
NOBODY: Final = "none"
"""The `callback_run_id` of a run whose parent is not to be told of its end."""


def _has_now(run: Any, statuses: Iterable[Status]) -> Any:
    """Whether a run, which is found by other means, has one of these statuses; no index fits."""
    return hidden(run.status).in_(_spelled(statuses))


# --- what follows an end

RIGHTS: Final = Statement(
    lambda: Select(
        columns=(
            fn.has_table_privilege(literal("runs"), literal("INSERT")),
            fn.has_column_privilege(literal("run_attempts"), literal("due_at"), literal("UPDATE")),
        )
    )
)
"""Where rows are locked: whether this role may add runs, and ask for another attempt."""

ENDED: Final = Statement(
    lambda: (
        Run.select()
        .where(
            is_listed(Run.run_id, "run_ids"),
            _has_now(Run, TERMINAL),
            Run.callback_run_id.is_null(),
        )
        .order_by(Run.completed_at, Run.run_id)
    )
)
"""Those of the runs listed in `run_ids` that have ended and told nobody."""
ENDED_RUN: Final = Statement(
    lambda: Run.select().where(Run.run_id == hole("run_id"), _is_still(Run, TERMINAL))
)
UNTOLD: Final = Statement(
    lambda: (
        Run.select(Run.run_id)
        .where(
            _for_index(_is_one_of(Run, TERMINAL), _OF_ALL),
            Run.execution_mode == literal("async_callback"),
            Run.parent_session_id.is_null(False),
            Run.parent_session_id != SQL("''"),  # which somebody wrote by hand
            Run.callback_run_id.is_null(),
        )
        .limit(hole("limit"))
    )
)
"""Runs that were ended by hand, or by a role that may add no run: nobody has told their parents."""
WAITING_CALLBACK: Final = Statement(
    lambda: (
        Run.select(Run.run_id, Run.prompt)
        .where(
            Run.session == hole("session_id"),
            _is_pending(Run),
            Run.tells > SQL("0"),
        )
        .order_by(Run.created_at.desc())
        .limit(SQL("1"))
    )
)
FIRST_PENDING: Final = Statement(
    lambda: (
        Run.select(Run.run_id, Run.priority)
        .where(Run.session == hole("session_id"), _is_pending(Run, _OF_SESSION))
        .order_by(Run.priority.desc(), Run.created_at, Run.run_id)
        .limit(SQL("1"))
    )
)
INSERT_CALLBACK: Final = insert(
    Run,
    *("run_id", "session", "type", "agent_name", "prompt", "project_dir", "parent_session_id"),
    *("execution_mode", "demands", "created_at", "priority", "tells"),
)
EXTEND_CALLBACK: Final = Statement(
    lambda: Run.update(
        {Run.prompt: hole("prompt"), Run.tells: hole("tells"), Run.priority: hole("priority")}
    ).where(Run.run_id == hole("run_id"), _is_still(Run, (Status.PENDING,)))
)
MARK_TOLD: Final = Statement(
    lambda: Run.update({Run.callback_run_id: hole("callback_run_id")}).where(
        is_listed(Run.run_id, "run_ids"), _has_now(Run, TERMINAL), Run.callback_run_id.is_null()
    )
)
"""Its row count decides who tells the parents: nobody does so twice."""
MARK_AGAIN: Final = Statement(
    lambda: Run.update({Run.callback_run_id: None}).where(
        Run.run_id == hole("run_id"), Run.callback_run_id == literal("none")
    )
)
"""Have the parent told after all, of the end that there was or of the next."""

LATEST_AS_CHILD: Final = Statement(
    lambda: (
        Run.select(Run.parent_session_id, Run.execution_mode)
        .where(Run.session == hole("session_id"), Run.parent_session_id.is_null(False))
        .order_by(Run.created_at.desc())
        .limit(SQL("1"))
    )
)


def _note() -> Any:
    """Add an event to runs that enters no status: each keeps the one that it has."""
    noted = Run.select(
        Run.run_id, hole("at"), Run.status, literal(Actor.QUEUE), hole("detail")
    ).where(is_listed(Run.run_id, "run_ids"))
    columns = [Event.run, Event.at, Event.status, Event.actor, Event.detail]
    return Event.insert_from(noted, columns)


NOTE: Final = Statement(_note)

# --- attempts

GET_ATTEMPT: Final = get(Attempt)
INSERT_ATTEMPT: Final = insert(
    Attempt, "run", "former_run_id", "next_run_id", "retries", "delay", "on_lost", "lost"
)
INSERT_NEXT: Final = insert(
    Run,
    *("run_id", "session", "type", "agent_name", "prompt", "project_dir", "parent_session_id"),
    *("execution_mode", "demands", "created_at", "timeout_at", "priority", "attempt"),
)
NUMBER_ATTEMPT: Final = Statement(
    lambda: Run.update({Run.attempt: hole("attempt")}).where(Run.run_id == hole("run_id"))
)
LINK_NEXT: Final = Statement(
    lambda: Attempt.update({Attempt.next_run_id: hole("next_run_id"), Attempt.due_at: None}).where(
        Attempt.run == hole("run_id"), Attempt.next_run_id.is_null()
    )
)
"""Its row count decides who makes the next attempt."""
LINK_DUE: Final = Statement(
    lambda: Attempt.update({Attempt.next_run_id: hole("next_run_id"), Attempt.due_at: None}).where(
        Attempt.run == hole("run_id"),
        Attempt.next_run_id.is_null(),
        Attempt.due_at.is_null(False),
    )
)
"""Likewise, of one that was waited for, and is unless somebody has given it up meanwhile."""
SCHEDULE: Final = Statement(
    lambda: Attempt.update({Attempt.due_at: hole("due_at")}).where(
        Attempt.run == hole("run_id"), Attempt.next_run_id.is_null(), Attempt.due_at.is_null()
    )
)
UNSCHEDULE: Final = Statement(
    lambda: Attempt.update({Attempt.due_at: None}).where(
        is_listed(Attempt.run, "run_ids"),
        # Hidden from the index of what is due: a planner that knows nothing of the table would
        # read all that waits, for one run.
        hidden(Attempt.due_at).is_null(False),
    )
)
DUE_ATTEMPTS: Final = Statement(
    lambda: (
        Attempt.select(Attempt.run)
        .where(Attempt.due_at <= hole("now"))
        .order_by(Attempt.due_at)
        .limit(hole("limit"))
    )
)
WAS_STOPPING: Final = Statement(
    lambda: (
        Event.select(SQL("1"))
        .where(
            Event.run == hole("run_id"),
            Event.status == literal(Status.STOPPING),
            # The late report of a former owner enters no status.
            Event.actor != literal(Actor.RUNNER),
        )
        .limit(SQL("1"))
    )
)
COUNT_LOST: Final = Statement(
    lambda: Attempt.update({Attempt.lost: hole("lost")}).where(Attempt.run == hole("run_id"))
)
ADD_TO_ERROR: Final = Statement(
    lambda: Run.update({Run.error: Run.error.concat(hole("more"))}).where(
        Run.run_id == hole("run_id"), _is_still(Run, (Status.FAILED,))
    )
)

# --- trees


def parent() -> Any:
    """A session's own parent, else the one that its first run with a parent names."""
    child = Run.alias("child")
    named = (
        child.select(child.parent_session_id)
        .where(child.session == Session.session_id, child.parent_session_id.is_null(False))
        .order_by(child.created_at)
        .limit(SQL("1"))
    )
    return fn.COALESCE(Session.parent_session, named)


PARENT_OF: Final = Statement(
    lambda: Session.select(parent()).where(Session.session_id == hole("session_id"))
)
SESSION_OF_RUN: Final = Statement(
    lambda: Run.select(Run.session).where(Run.run_id == hole("run_id"))
)


def _children() -> Any:
    """The sessions whose parent is listed in `session_ids`, or that have a run whose parent is."""
    by_session = Session.select(Session.session_id, Session.parent_session).where(
        is_listed(Session.parent_session, "session_ids")
    )
    by_run = Run.select(Run.session, Run.parent_session_id).where(
        is_listed(Run.parent_session_id, "session_ids")
    )
    return by_session.union(by_run)


CHILDREN: Final = Statement(_children)


def _live_children() -> Any:
    """The children of a session that have a run which is pending or active."""
    pending, active = Run.alias("pending"), Run.alias("active")
    by_session = Session.select(Session.session_id.alias("session_id")).where(
        Session.parent_session == hole("session_id")
    )
    by_run = Run.select(Run.session).where(Run.parent_session_id == hole("session_id"))
    child = by_session.union(by_run).alias("child")
    its_own = child.c.session_id
    waits = pending.select(SQL("1")).where(
        pending.session == its_own, _is_pending(pending, _OF_SESSION)
    )
    works = active.select(SQL("1")).where(
        active.session == its_own, _is_active(active, _OF_SESSION)
    )
    return Select((child,), (its_own,)).where(_exists(waits) | _exists(works))


LIVE_CHILDREN: Final = Statement(_live_children)
LIMITS_OF: Final = Statement(
    lambda: Session.select(Session.session_id, Session.tree_limits).where(
        is_listed(Session.session_id, "session_ids")
    )
)
SET_LIMITS: Final = Statement(
    lambda: Session.update({Session.tree_limits: hole("tree_limits")}).where(
        Session.session_id == hole("session_id")
    )
)


def _count_runs() -> Any:
    """How many runs the sessions listed in `session_ids` have, counted up to `limit`."""
    some = Run.select(SQL("1").alias("one")).where(is_listed(Run.session, "session_ids"))
    return Select((some.limit(hole("limit")).alias("some"),), (fn.COUNT(SQL("*")),))


COUNT_RUNS: Final = Statement(_count_runs)
SUMMARY: Final = (
    *("run_id", "session", "type", "agent_name", "status", "execution_mode", "runner_id"),
    *("created_at", "started_at", "completed_at", "attempt", "tells", "callback_run_id"),
)
"""What a tree shows of a run."""
RUNS_OF: Final = Statement(
    lambda: (
        Run.select(*(getattr(Run, name) for name in SUMMARY))
        .where(is_listed(Run.session, "session_ids"))
        .order_by(Run.created_at, Run.run_id)
    )
)
SESSIONS_OF: Final = Statement(
    lambda: Session.select().where(is_listed(Session.session_id, "session_ids"))
)
LIVE_OF: Final = Statement(
    lambda: (
        Run.select(Run.run_id, Run.status)
        .where(is_listed(Run.session, "session_ids"), _has_now(Run, LIVE))
        .order_by(Run.created_at, Run.run_id)
    )
)
"""The runs of the sessions listed in `session_ids` that have not ended."""
WAITING_ATTEMPTS: Final = Statement(
    lambda: Run.select(Run.run_id, Run.parent_session_id).where(
        is_listed(Run.session, "session_ids"),
        _exists(
            Attempt.select(SQL("1")).where(Attempt.run == Run.run_id, Attempt.due_at.is_null(False))
        ),
    )
)
"""Their runs that have ended and wait for another attempt."""
SILENCE: Final = Statement(
    lambda: Run.update({Run.callback_run_id: literal("none")}).where(
        is_listed(Run.session, "session_ids"),
        is_listed(Run.parent_session_id, "session_ids"),
        _has_now(Run, LIVE),
        Run.callback_run_id.is_null(),
    )
)
"""Have their ends tell no parent that is itself one of these sessions."""
