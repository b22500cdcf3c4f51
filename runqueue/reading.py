"""Looking at runs, sessions and runners without changing anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from runqueue import listing, soundness, statements
from runqueue.database import Store
from runqueue.errors import InvalidRun, RunNotFound
from runqueue.models import COLUMNS, Event, Run, Runner, Session, seconds_between
from runqueue.states import ACTIVE, TERMINAL, Status

SUMMARY = tuple(
    name for name in COLUMNS[Run] if name not in ("prompt", "result", "error", "waiting")
)
"""What a list shows: reading a prompt of 200 kB costs more than all the rest."""


NO_DAEMON: Final = "no daemon is alive: nothing expires, and no dead runner's run is rescued"
MANY: Final = 2**62
"""More rows than there are, and no more than an integer of SQLite's can be."""
AT_ONCE: Final = 500
"""Sessions whose runs are counted by one statement."""


class Current(NamedTuple):
    """A run's status, cheaply read."""

    status: str
    is_terminal: bool


def status(store: Store, run_id: str) -> Current:
    """Return a run's status. Raises RunNotFound."""
    rows = store.run(statements.RUN_STATUS, run_id=run_id)
    if not rows:
        raise RunNotFound(f"run {run_id[:40]} does not exist")
    value = rows[0][0]
    return Current(value, value in {terminal.value for terminal in TERMINAL})


def find(
    store: Store,
    *,
    status: str | Status | Iterable[str] | None = None,
    session_id: str | None = None,
    runner_id: str | None = None,
    agent_name: str | None = None,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
) -> list[Run]:
    """Return the runs that match all that is given, the newest first.

    Raises InvalidRun for a status that does not exist.
    """
    names = tuple(columns or COLUMNS[Run])
    statuses = tuple(Status) if status is None else _statuses(status)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise InvalidRun("the limit must be a whole number that is not negative")
    if limit == 0 or not statuses:
        return []
    given = {"session_id": session_id, "runner_id": runner_id, "agent_name": agent_name}
    filters = listing.Filters(statuses, **{name: v is not None for name, v in given.items()})
    statement = listing.runs(filters, names, limit is not None)
    rows = store.run(statement, limit=min(limit or 0, MANY), **given)
    return [Run.from_row(row, names) for row in rows]


def ids_beginning(store: Store, prefix: str, limit: int = 2) -> list[str]:
    """Return up to `limit` run ids that begin with these characters."""
    # A range and not LIKE: % and _ are characters like any other, and the key's index serves.
    query = Run.select(Run.run_id).where(Run.run_id >= prefix, Run.run_id < prefix + "\U0010ffff")
    return [row[0] for row in store.query(query.order_by(Run.run_id).limit(limit))]


def problems(store: Store) -> list[str]:
    """Return what is wrong with the database, one sentence each; an empty list when it is sound.

    Reads the whole database.
    """
    found = store.damage()
    if found:
        return found
    for run_id, session_id in store.run(statements.AHEAD_OF_TURN):
        found.append(f"run {run_id} may be claimed though others of session {session_id} go first")
    for run_id, session_id in store.run(statements.STUCK):
        found.append(f"run {run_id} waits though no other run of session {session_id} goes first")
    found += soundness.problems(store)
    return found


def _statuses(status: str | Status | Iterable[str]) -> tuple[Status, ...]:
    given = [status] if isinstance(status, str) else list(status)
    known = {known.value for known in Status}
    for one in given:
        if str(one) not in known:
            raise InvalidRun(
                f"unknown status {str(one)[:40]!r}; use {', '.join(s.value for s in Status)}"
            )
    wanted = {Status(one) for one in given}
    return tuple(one for one in Status if one in wanted)


def timeline(store: Store, run: Run) -> list[Event]:
    """Return a run's events, completed with what others wrote without recording it.

    What only the row knows has the actor `sql`, and no time when the row has none.
    """
    events = Event.from_rows(store.run(statements.EVENTS, run_id=run.run_id))
    if not events or events[0].status != Status.PENDING:
        events.insert(0, _unrecorded(run, Status.PENDING, run.created_at))
    last = max(place for place, event in enumerate(events) if not event.is_note)
    if events[last].status != run.status:
        at = run.completed_at if run.is_terminal else None
        events.insert(last + 1, _unrecorded(run, run.status, at))
    return events


def _unrecorded(run: Run, status: Status, at: str | None) -> Event:
    columns = ("run", "at", "status", "actor", "detail")
    return Event.from_row((run.run_id, at, status, "sql", None), columns)


def session_status(store: Store, session_id: str) -> str:
    """Return the active run's status, else pending, else how the latest run ended."""
    return _status_by(store.run(statements.STATUSES_OF_SESSION, session_id=session_id))


def _status_by(rows: list[tuple[Any, ...]]) -> str:
    found = {
        Status(status): latest
        for status, _, latest in rows
        if status in {known.value for known in Status}
    }
    for status in found:
        if status in ACTIVE:
            return status.value
    if Status.PENDING in found:
        return Status.PENDING.value
    return max(found, key=lambda status: (found[status], status)).value if found else "empty"


class SessionSummary(NamedTuple):
    """A session, its status, and how many runs it has."""

    session: Session
    status: str
    runs: int


def sessions(store: Store, limit: int | None = None) -> list[SessionSummary]:
    """Return sessions, the newest first."""
    if limit == 0:
        return []
    rows = store.run(listing.sessions(limit is not None), limit=min(limit or 0, MANY))
    found = [Session.from_row(row) for row in rows]
    pages = (found[at : at + AT_ONCE] for at in range(0, len(found), AT_ONCE))
    return [summary for page in pages for summary in _summaries(store, page)]


def _summaries(store: Store, found: list[Session]) -> list[SessionSummary]:
    """By one statement for all, for each is a trip to a server."""
    listed = store.engine.as_list([session.session_id for session in found])
    statuses: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for session_id, *row in store.run(statements.STATUSES_OF_SESSIONS, session_ids=listed):
        statuses[session_id].append(tuple(row))
    of_each = ((session, statuses[session.session_id]) for session in found)
    return [
        SessionSummary(session, _status_by(rows), sum(row[1] for row in rows))
        for session, rows in of_each
    ]


def summary_of(store: Store, session: Session) -> SessionSummary:
    """Return a session with what its runs say about it."""
    return _summaries(store, [session])[0]


class RunnerSummary(NamedTuple):
    """A runner, whether it is alive, and how many runs it owns."""

    runner: Runner
    is_alive: bool
    active: int


def runners(store: Store, *, now: str, runner_id: str | None = None) -> list[RunnerSummary]:
    """Return all registered runners, or the one of this id, dead ones too."""
    rows = store.run(listing.runners(runner_id is not None), runner_id=runner_id)
    found = [(Runner.from_row(row), count) for *row, count in rows]
    return [RunnerSummary(runner, runner.lease_until > now, count) for runner, count in found]


class Overview(NamedTuple):
    """The queue at a glance."""

    runs: dict[str, int]
    at_least: list[str]
    """The statuses of which there are more runs than were counted."""
    oldest_pending_seconds: float | None
    runners: int
    dead_runners: int
    daemons: int


def overview(store: Store, *, now: str, exact: bool = False) -> Overview:
    """Return counts by status (all seven), the age of the oldest pending run, who is alive.

    Unless it is to be exact, of each terminal status only the first `listing.COUNTED` runs are
    counted: what has ended may be any number, and to count it takes its time.
    """
    most = MANY if exact else listing.COUNTED
    found = dict(store.run(listing.COUNTS, most=most + 1))
    at_least = [status for status in map(str, TERMINAL) if found[status] > most]
    oldest = store.run(statements.OLDEST_PENDING)[0][0]
    registered = runners(store, now=now)
    alive = sum(one.is_alive for one in registered)
    return Overview(
        {
            status.value: most if status.value in at_least else found[status.value]
            for status in Status
        },
        sorted(at_least),
        None if oldest is None else max(0.0, seconds_between(oldest, now)),
        alive,
        len(registered) - alive,
        len(store.run(statements.LIVE_DAEMONS, now=now)),
    )


def ailments(
    seen: Overview, *, longest_wait: float | None = None, least_runners: int = 0
) -> list[str]:
    """Return what is wrong with a queue that was seen like this, one sentence each.

    `longest_wait` is in seconds, for the oldest pending run; None: however long.
    """
    found = []
    if not seen.daemons:
        found.append(NO_DAEMON)
    if seen.runners < least_runners:
        found.append(f"{seen.runners} runners are alive, fewer than {least_runners}")
    oldest = seen.oldest_pending_seconds
    if longest_wait is not None and oldest is not None and oldest > longest_wait:
        found.append(f"the oldest pending run has waited {oldest:.0f} s, over {longest_wait:g} s")
    return found
