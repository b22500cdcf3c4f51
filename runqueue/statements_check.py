"""The statements of a check of the whole database: what must be so of runs that belong together.

They are compiled as those of `statements` are. Each returns at most `limit` rows, in the order of
a key that the next page begins after, and may read a whole table: nobody waits for a check.
"""

from __future__ import annotations

from typing import Any, Final

from peewee import SQL, fn

from runqueue.database import Statement
from runqueue.models import Attempt, Run, Session
from runqueue.statements import _exists, _is_pending, hole, is_listed, literal
from runqueue.statements_family import LIVE, NOBODY, _has_now, parent
from runqueue.states import TERMINAL, Status


def _wrongly_told() -> Any:
    """Children whose mark names a run that is there, and is no callback of their parent."""
    by = Run.alias("by")
    return (
        Run.select(Run.run_id, by.run_id)
        .join(by, on=(by.run_id == Run.callback_run_id))
        .where(
            Run.run_id > hole("after"),
            by.tells.is_null() | (by.session != fn.COALESCE(Run.parent_session_id, SQL("''"))),
        )
        .order_by(Run.run_id)
        .limit(hole("limit"))
    )


WRONGLY_TOLD: Final = Statement(_wrongly_told)
TOLD_EARLY: Final = Statement(
    lambda: (
        Run.select(Run.run_id, Run.status, Run.callback_run_id)
        .where(
            Run.run_id > hole("after"),
            _has_now(Run, LIVE),
            Run.callback_run_id != literal(NOBODY),
        )
        .order_by(Run.run_id)
        .limit(hole("limit"))
    )
)
"""Runs that have not ended, though their marks name who told of the end."""
WAITING_CALLBACKS: Final = Statement(
    lambda: (
        Run.select(Run.run_id)
        .where(Run.run_id > hole("after"), _is_pending(Run), Run.tells > SQL("0"))
        .order_by(Run.run_id)
        .limit(hole("limit"))
    )
)
PROMPT: Final = Statement(lambda: Run.select(Run.prompt).where(Run.run_id == hole("run_id")))
MARKS: Final = Statement(
    lambda: Run.select(Run.run_id, Run.callback_run_id).where(
        is_listed(Run.run_id, "run_ids"), _has_now(Run, TERMINAL)
    )
)
"""Of the runs listed in `run_ids` that have ended: which run told of it."""


def _marked() -> Any:
    """Children with the callback that their mark names, where it still waits."""
    by = Run.alias("by")
    # Found by its key: from all that wait there is no index to their children.
    waits = by.select(SQL("1")).where(
        by.run_id == Run.callback_run_id, _has_now(by, (Status.PENDING,)), by.tells > SQL("0")
    )
    return (
        Run.select(Run.run_id, Run.callback_run_id)
        .where(Run.run_id > hole("after"), Run.callback_run_id.is_null(False), _exists(waits))
        .order_by(Run.run_id)
        .limit(hole("limit"))
    )


MARKED: Final = Statement(_marked)


WRONGLY_DUE: Final = Statement(
    lambda: (
        Attempt.select(Attempt.run, Run.status, Attempt.next_run_id)
        .join(Run, on=(Run.run_id == Attempt.run))
        .where(
            Attempt.run > hole("after"),
            Attempt.due_at.is_null(False),
            _has_now(Run, LIVE) | Attempt.next_run_id.is_null(False),
        )
        .order_by(Attempt.run)
        .limit(hole("limit"))
    )
)
"""Attempts that are waited for though the run has not ended, or the next one is there."""


PARENTS: Final = Statement(
    lambda: (
        Session.select(Session.session_id, parent())
        .where(Session.session_id > hole("after"))
        .order_by(Session.session_id)
        .limit(hole("limit"))
    )
)
"""Sessions, each with its parent."""
PARENTS_OF: Final = Statement(
    lambda: Session.select(Session.session_id, parent()).where(
        is_listed(Session.session_id, "session_ids")
    )
)
