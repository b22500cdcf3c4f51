"""The statements about where sessions live, and about when agents were last heard of.

None of them assigns a status, and no claim of a run that the queue added executes them; see
`statements` for the form.
"""

from __future__ import annotations

from typing import Any, Final

from peewee import SQL, Select, fn

from runqueue import statements
from runqueue.database import Statement
from runqueue.models import Event, Output, Run, Session
from runqueue.statements import hole
from runqueue.states import ACTIVE, TERMINAL, Status


def _set_home() -> Any:
    values = {
        Session.hostname: hole("hostname"),
        Session.home_dir: hole("home_dir"),
        Session.executor_type: hole("executor_type"),
        Session.project_dir: hole("project_dir"),
        Session.executor_session_id: hole("executor_session_id"),
    }
    return Session.update(values).where(Session.session_id == hole("session_id"))


SET_HOME: Final = Statement(_set_home)
WAITING_IN_SESSION: Final = Statement(
    lambda: Run.select(Run.run_id, Run.demands, Run.project_dir).where(
        Run.session == hole("session_id"), statements._is_pending(Run, statements._OF_SESSION)
    )
)
ENDED_IN_SESSION: Final = Statement(
    lambda: Run.select(Run.run_id, Run.demands, Run.project_dir).where(
        Run.session == hole("session_id"),
        statements.hidden(Run.status).in_(statements._spelled(TERMINAL)),
    )
)
FOLLOW_HOME: Final = Statement(
    lambda: Run.update({Run.demands: hole("demands"), Run.project_dir: hole("project_dir")}).where(
        Run.run_id == hole("run_id"), statements._is_still(Run, (Status.PENDING, *TERMINAL))
    )
)
HOME_COLUMNS: Final = ("session_id", "hostname", "home_dir", "executor_type")
HOMES: Final = Statement(
    lambda: Session.select(*(getattr(Session, name) for name in HOME_COLUMNS)).where(
        statements.is_listed(Session.session_id), Session.hostname.is_null(False)
    )
)
FOLLOWED: Final = "follows its session, whose home was changed"
"""The event of a run that was rewritten so: it demands another place than was asked for."""
HAS_FOLLOWED: Final = Statement(
    lambda: (
        Event.select(SQL("1"))
        .where(Event.run == hole("run_id"), statements.hidden(Event.detail) == hole("detail"))
        .limit(SQL("1"))
    )
)


def _has_the_id(other: Any) -> Any:
    """Whether another session of the same place has the executor session id that is given.

    One without a home is of every place: its first start will not ask.
    """
    same_host, same_type = (
        fn.COALESCE(getattr(other, name), SQL("''")) == fn.COALESCE(column, SQL("''"))
        for name, column in (
            ("hostname", Session.hostname),
            ("executor_type", Session.executor_type),
        )
    )
    homeless, is_homeless = (
        fn.COALESCE(column, SQL("''")) == SQL("''") for column in (other.hostname, Session.hostname)
    )
    return (
        (other.executor_session_id == hole("executor_session_id"))
        & (other.session_id != hole("session_id"))
        & (homeless | is_homeless | (same_host & same_type))
    )


def _bind_executor() -> Any:
    other = Session.alias("other")
    taken = other.select(SQL("1")).where(_has_the_id(other))
    return Session.update({Session.executor_session_id: hole("executor_session_id")}).where(
        Session.session_id == hole("session_id"), ~statements._exists(taken)
    )


BIND_EXECUTOR: Final = Statement(_bind_executor)
"""Unless another session of the same place has the id."""


def _who_has_executor() -> Any:
    other = Session.alias("other")
    return (
        Session.select(other.session_id)
        .join(other, on=_has_the_id(other))
        .where(Session.session_id == hole("session_id"))
        .order_by(other.session_id)
        .limit(SQL("1"))
    )


WHO_HAS_EXECUTOR: Final = Statement(_who_has_executor)
"""The session for whose sake another one cannot have the id where it lives."""
EXECUTOR_OF: Final = Statement(
    lambda: Session.select(Session.executor_session_id).where(
        Session.session_id == hole("session_id")
    )
)
LOCK_EXECUTOR: Final = Statement(
    lambda: Select(
        columns=(
            fn.pg_advisory_xact_lock(
                fn.hashtextextended(hole("executor_session_id"), SQL("7136"))
            ).alias("locked"),
        )
    )
)
"""For `Store.lock`: who binds an id sees what others who bind it have done."""


def _tell_output() -> Any:
    """Note when the agent of one's own run was last heard of; of a run that was taken, nothing."""
    owned = Run.select(Run.run_id, hole("output_at")).where(
        Run.run_id == hole("run_id"), statements._is_still(Run, ACTIVE), statements._fence()
    )
    return Output.insert_from(owned, [Output.run, Output.output_at]).on_conflict(
        conflict_target=[Output.run], preserve=[Output.output_at]
    )


TELL_OUTPUT: Final = Statement(_tell_output)
OUTPUT_OF: Final = Statement(
    lambda: Output.select(Output.output_at).where(Output.run == hole("run_id"))
)
