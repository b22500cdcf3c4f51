"""The statements of lists: the newest runs or sessions, by whatever they are filtered.

A list in the order of time reads from the newest on, for each status by itself, and learns when
the last one that it shows was added; then it reads from there on. So it reads as much as it
shows, whatever else there is. Each combination of filters is compiled once, like all statements.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

from peewee import SQL, Case, NodeList, Select, fn

from runqueue.clock import FOREVER
from runqueue.database import Statement
from runqueue.engines.base import Either
from runqueue.models import COLUMNS, Run, Runner, Session
from runqueue.statements import hidden, hole, literal
from runqueue.states import ACTIVE, TERMINAL, Status

COUNTED: Final = 100_000
"""Runs of one terminal status up to which they are counted, unless all are wanted."""


class Filters(NamedTuple):
    """What a list of runs is filtered by; the values are the holes of these names."""

    statuses: tuple[Status, ...] = tuple(Status)
    session_id: bool = False
    runner_id: bool = False
    agent_name: bool = False


@cache
def runs(filters: Filters, columns: tuple[str, ...], is_limited: bool) -> Statement:
    """SELECT the newest runs, the newest first; up to `limit` (1 or more) if it is limited."""
    return Statement(lambda: _runs(filters, columns, is_limited))


def _runs(filters: Filters, columns: tuple[str, ...], is_limited: bool) -> Any:
    query = Run.select(*(getattr(Run, name) for name in columns))
    query = query.where(*_conditions(Run, filters, filters.statuses))
    query = query.order_by(Run.created_at.desc(), Run.run_id.desc())
    if not is_limited:
        return query
    query = query.limit(hole("limit"))
    # A session has few runs, and they are sorted.
    return query if filters.session_id else query.where(_is_among_newest(filters))


def _conditions(run: Any, filters: Filters, statuses: tuple[Status, ...]) -> list[Any]:
    """The conditions, of which an index answers the first that is given and the status."""
    given = [
        column
        for column, is_given in (
            (run.session, filters.session_id),
            (run.runner_id, filters.runner_id),
            (run.agent_name, filters.agent_name),
        )
        if is_given
    ]
    if not given:
        return [run.status.in_(_spelled(statuses))]
    first, *others = given
    rest = [_is_also(column, hole(column.column_name)) for column in others]
    if filters.session_id:  # by the index of its runs, which are few
        return [first == hole("session_id"), *rest, _kept_off(run.status).in_(_spelled(statuses))]
    return [_is_by(run, first, hole(first.column_name), statuses), *rest]


def _is_by(run: Any, column: Any, value: Any, statuses: tuple[Status, ...]) -> Any:
    """Of one agent or runner and one of the statuses, as the index of both has it."""
    spelled = _spelled(statuses)
    start = fn.LEFT(column, SQL("200"))
    entry = start.concat(SQL("'/'")).concat(run.status)
    wanted = fn.LEFT(value, SQL("200")).concat(SQL("'/'"))
    return Either(
        sqlite=(column == value) & run.status.in_(spelled),
        postgres=entry.in_([wanted.concat(one) for one in spelled]) & _is_also(column, value),
    )


def _spelled(statuses: tuple[Status, ...]) -> list[Any]:
    return [literal(one) for one in statuses]


def _is_also(column: Any, value: Any) -> Any:
    """Equal, in a form for which the planner takes no index.

    And of which PostgreSQL expects it for half of the rows, not for a few: then it reads the newest
    first and stops early, instead of finding all and sorting them.
    """
    postgres = Case(None, [(column == value, SQL("true"))], SQL("false"))
    return Either(sqlite=_kept_off(column) == value, postgres=postgres)


def _kept_off(column: Any) -> Any:
    """The column, in a form for which the planner takes no index."""
    return Either(sqlite=NodeList((SQL("+"), column), glue=""), postgres=hidden(column))


def _time_of(run: Any, filters: Filters) -> Any:
    """The time, as it stands in the index that answers the list."""
    if filters.runner_id:
        return Either(sqlite=run.created_at, postgres=hidden(run.created_at))
    if filters.agent_name:
        postgres = NodeList((SQL("'' ||"), run.created_at), parens=True)
        return Either(sqlite=run.created_at, postgres=postgres)
    return run.created_at


def _is_among_newest(filters: Filters) -> Any:
    """Added no earlier than the last run that is shown."""

    def newest(status: Status) -> Any:
        run = Run.alias(status.value)
        first = (
            run.select(_time_of(run, filters).alias("created_at"))
            .where(*_conditions(run, filters, (status,)))
            .order_by(_time_of(run, filters).desc())
            .limit(hole("limit"))
            .alias(f"newest_{status.value}")
        )
        return Select((first,), (first.c.created_at,))

    first, *others = (newest(status) for status in filters.statuses)
    for other in others:
        first = first.union_all(other)
    every = first.alias("every")
    times = Select((every,), (every.c.created_at,)).order_by(every.c.created_at.desc())
    return _is_since(_time_of(Run, filters), times)


def _is_since(time: Any, newest: Any) -> Any:
    """Since the last of the `limit` newest times, or at any time if there are fewer."""
    last = newest.limit(SQL("1")).offset(hole("limit") - SQL("1"))
    # With one bound only, PostgreSQL would expect a third of all rows, and read them otherwise.
    return time.between(fn.COALESCE(last, SQL("''")), literal(FOREVER))


@cache
def sessions(is_limited: bool) -> Statement:
    """SELECT the newest sessions, the newest first; up to `limit` (1 or more) if it is limited."""

    def build() -> Any:
        query = Session.select(*(getattr(Session, name) for name in COLUMNS[Session]))
        query = query.order_by(Session.created_at.desc(), Session.session_id.desc())
        if not is_limited:
            return query
        one = Session.alias("one")
        newest = one.select(one.created_at).order_by(one.created_at.desc())
        return query.where(_is_since(Session.created_at, newest)).limit(hole("limit"))

    return Statement(build)


def _counts() -> Any:
    def count(status: Status) -> Any:
        run = Run.alias(status.value)
        some = run.select(SQL("1")).where(run.status == literal(status))
        if status in TERMINAL:
            some = some.limit(hole("most"))
        found = some.alias(f"some_{status.value}")
        return Select((found,), (literal(status), fn.COUNT(SQL("*"))))

    first, *others = (count(status) for status in Status)
    for other in others:
        first = first.union_all(other)
    return first


COUNTS: Final = Statement(_counts)
"""How many runs have each status, the terminal ones counted up to `most`."""


WAITING_COLUMNS: Final = ("run_id", "agent_name", "demands", "created_at", "waiting")
WAITING: Final = Statement(
    lambda: (
        Run.select(*(getattr(Run, name) for name in WAITING_COLUMNS))
        .where(Run.status == literal(Status.PENDING))
        .order_by(Run.created_at, Run.run_id)
        .limit(hole("limit"))
    )
)
"""The pending runs that were added first, the oldest first."""


@cache
def runners(is_one: bool) -> Statement:
    """SELECT all runners, or that of `runner_id`, each with how many active runs it has."""

    def build() -> Any:
        run = Run.alias("run")
        active = run.select(fn.COUNT(SQL("*"))).where(
            _is_by(run, run.runner_id, Runner.runner_id, tuple(s for s in Status if s in ACTIVE))
        )
        columns = (getattr(Runner, name) for name in COLUMNS[Runner])
        query = Runner.select(*columns, active).order_by(Runner.runner_id)
        return query.where(Runner.runner_id == hole("runner_id")) if is_one else query

    return Statement(build)
