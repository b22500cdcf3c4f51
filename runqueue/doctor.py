"""Whether an installation is right, and what to do where it is not.

It only reads: the schema is not brought up, and no file's rights are changed. So it also works on
a standby, and for a role that may only look. What goes wrong within a check is its finding.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Final, NamedTuple

from runqueue import clock, reading, schema, settings, statements, why
from runqueue._version import __version__
from runqueue.database import Store, open_store
from runqueue.errors import ConfigurationError, RunqueueError, StorageError
from runqueue.findings import Check, Finding, fail, ok, warn
from runqueue.models import seconds_between
from runqueue.queue import Queue
from runqueue.reading import RunnerSummary
from runqueue.settings import Settings

LATE_SWEEP: Final = 20.0
"""Seconds since the last sweep that a daemon told of; while they succeed it does so every 10 s."""
OVERDUE: Final = 5.0
"""Seconds after which a run that is past its timeout should have failed."""
NAMED: Final = 3
"""How many runners are named of those that something is wrong with."""


class Line(NamedTuple):
    """What was looked at, and what was found."""

    check: str
    level: str
    seen: str
    advice: str
    exit_code: int


def examine(
    url: str | None = None, *, busy_timeout: float = settings.BUSY_TIMEOUT
) -> Iterator[Line]:
    """Yield what is found, one thing after the other, until nothing more can be looked at.

    `url` as for `connect`. Raises nothing: also what cannot be reached is a line.
    """
    yield _look("versions", _versions)
    yield _look("settings", _settings, is_needed=True)
    try:
        store = open_store(url or settings.default_url(), busy_timeout=busy_timeout, create=False)
    except RunqueueError as error:
        yield _line("database", _refused(error))
        return
    try:
        yield from _examine(store)
    finally:
        store.close()
        store.engine.close()


def _examine(store: Store) -> Iterator[Line]:
    reached = _look("database", partial(_reach, store), is_needed=True)
    yield reached
    yield from _each(store.engine.places())
    if reached.level != "fail":
        yield from _while_there(_with_connection(store))


def _with_connection(store: Store) -> Iterator[Line]:
    yield from _each(_connected(store, store.engine.checks()))
    yield from _each(_connected(store, (("moves", partial(_moves, store)),)))
    known = _look("schema", partial(_schema, store), is_needed=True)
    yield known
    if known.level != "fail":
        yield from _each(_of_queue(Queue(store, Settings(), store.engine.clock())))


def _while_there(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield lines until the database is away: every further look would wait for it."""
    for line in lines:
        yield line
        if line.exit_code:
            return


def _each(checks: Iterable[Check]) -> Iterator[Line]:
    return (_look(name, check) for name, check in checks)


def _connected(store: Store, checks: Iterable[Check]) -> Iterator[Check]:
    """Make checks with a connection, and the driver's errors ours."""

    def look(check: Check) -> Finding:
        with store.ready():
            return check[1]()

    return ((check[0], partial(look, check)) for check in checks)


def _look(name: str, check: Callable[[], Finding], *, is_needed: bool = False) -> Line:
    """Make a check; without one that is needed, there is nothing more to look at."""
    try:
        finding = check()
    except (ConfigurationError, StorageError) as error:
        if isinstance(error, ConfigurationError) and not is_needed:
            finding = warn(f"it cannot be looked at: {error}", "look as somebody who may")
        else:
            finding = _refused(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the others are made
        finding = fail(f"it cannot be looked at: {type(error).__name__}: {error}")
    return _line(name, finding)


def _line(name: str, finding: Finding) -> Line:
    return Line(name, finding.level, finding.seen, finding.advice, finding.exit_code)


def _refused(error: RunqueueError) -> Finding:
    if getattr(error, "retryable", False):
        advice = "see that it is up and can be reached from here, or correct the URL"
    else:
        advice = ""  # of what cannot be used, the sentence says what to do
    return fail(str(error), advice, exit_code=error.exit_code)


def _versions() -> Finding:
    parts = [f"{name} {version(name)}" for name in ("peewee", "apscheduler", "click")]
    return ok(f"runqueue {__version__}, Python {platform.python_version()}, {', '.join(parts)}")


def _settings() -> Finding:
    found = settings.find_env_file()
    seen = f"from {found.path}" if found.path else "there is no settings file"
    if found.closed:
        return warn(
            f"{seen}; {', '.join(map(str, found.closed))} may not be read by you, so what it "
            "names may be another database",
            "be a member of the file's group, or name the database: --db, RUNQUEUE_DB",
        )
    return ok(seen)


def _reach(store: Store) -> Finding:
    with store.ready():
        store.database.connection()
    return ok(store.url)


def _moves(store: Store) -> Finding:
    closing = store.engine.transfer.closing()
    if closing is None:
        return ok("no move has closed the database to changes")
    if closing.is_arriving:
        return fail(f"it is {closing.sentence}", "end that move: the same command goes on with it")
    return fail(f"it was {closing.sentence}", f"set RUNQUEUE_DB to {closing.place}")


def _schema(store: Store) -> Finding:
    number = schema.version_of(store)
    if number == 0:
        return fail("there is none yet", "make it with: runqueue db init")
    if number < schema.VERSION:
        return fail(
            f"it has number {number}, and this version works with {schema.VERSION}",
            "bring it up, as its owner: runqueue db upgrade",
        )
    return ok(f"it has number {number}")


def _of_queue(queue: Queue) -> tuple[Check, ...]:
    return (
        ("runs", partial(_runs, queue)),
        ("daemon", partial(_daemon, queue)),
        ("runners", partial(_runners, queue)),
        ("timeouts", partial(_timeouts, queue)),
        ("demands", partial(_demands, queue)),
    )


def _runs(queue: Queue) -> Finding:
    seen = reading.overview(queue.store, now=queue.now())
    oldest = seen.oldest_pending_seconds
    wait = "" if oldest is None else f", the oldest for {oldest:.0f} s"
    counts = seen.runs
    active = counts["claimed"] + counts["running"] + counts["stopping"]
    return ok(f"{counts['pending']:,} pending{wait}; {active:,} active")


def _daemon(queue: Queue) -> Finding:
    now = queue.now()
    daemons = why.live_daemons(queue.store, now)
    if not daemons:
        return fail(reading.NO_DAEMON, "start it: systemctl start runqueued, or runqueued")
    age = min(max(0.0, seconds_between(one.tick_at, now)) for one in daemons)
    hosts = ", ".join(sorted({one.hostname for one in daemons}))
    seen = f"{len(daemons)} alive, on {hosts}; told of a sweep {age:.0f} s ago"
    if age > LATE_SWEEP:
        return warn(f"{seen}: its sweeps fail", "read its log: journalctl --unit runqueued")
    return ok(seen)


def _runners(queue: Queue) -> Finding:
    found = reading.runners(queue.store, now=queue.now())
    alive = [one for one in found if one.is_alive]
    at_work = sum(one.active for one in alive)
    seen = f"{len(alive)} alive, with {at_work} active runs"
    if lost := [one for one in found if not one.is_alive and one.active]:
        return warn(
            f"{seen}; past their lease with active runs: {_named(lost)}",
            "the daemon resolves those runs; at once: runqueue runners remove RUNNER",
        )
    if not alive:
        return warn("none is alive: nothing is executed", "start one: runqueue-runner -- COMMAND")
    if all(one.runner.state != "online" for one in alive):
        return warn(f"{seen}, and all are draining", "start one: runqueue-runner -- COMMAND")
    return ok(seen)


def _named(runners: list[RunnerSummary]) -> str:
    names = ", ".join(f"{one.runner.runner_id} ({one.active})" for one in runners[:NAMED])
    return names + (f" and {len(runners) - NAMED} more" if len(runners) > NAMED else "")


def _timeouts(queue: Queue) -> Finding:
    before = clock.shift(queue.now(), -OVERDUE)
    due = queue.store.run(statements.DUE, now=before)
    if not due:
        return ok("no run is pending past its timeout")
    return fail(
        f"{due[0][2]} is pending past its timeout, and maybe others",
        "see that a daemon is alive, and that its log tells of no failing sweep",
    )


def _demands(queue: Queue) -> Finding:
    found = why.unserved(queue.store, now=queue.now())
    if not found.runs:
        return ok("every pending run whose turn has come can be served by a runner that is alive")
    more = "" if found.is_all else " or more"
    return warn(
        f"{found.runs:,}{more} pending runs can be served by nobody: {found.reason}",
        "start a runner that has what they demand; of one run: runqueue why RUN",
    )
