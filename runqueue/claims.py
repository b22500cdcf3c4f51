"""The owner's verbs: claiming runs, and reporting what became of them.

Matching happens here, claiming in SQL: a runner decides once for each distinct demand text
whether it serves it, and claims by the texts that it serves.
"""

from __future__ import annotations

import logging
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NamedTuple

from runqueue import callbacks, demands, follow, homes, moves, statements, sweeper
from runqueue.backoff import pauses
from runqueue.database import Statement, Store, again
from runqueue.demands import Capabilities
from runqueue.engines.base import SessionTaken
from runqueue.enqueue import lock_sessions
from runqueue.errors import IllegalMove, RunNotFound, StaleClaim, StorageError
from runqueue.models import Run, Session
from runqueue.states import ACTIVE, Actor, Status

log = logging.getLogger("runqueue.runner")

TRIES: Final = 5
"""How often a claim is tried when its session is taken by hand meanwhile."""
CROWD: Final = (0.001, 0.004)
"""Shortest and longest random pause, in seconds, of a runner that was too late for a run.

Of many that wait, one commit wakes all. Those that come too late the next time find that there is
nothing any more by reading; at once, they would keep the first one from starting its run.
"""
DEPTHS: Final = tuple(statements.CLAIMS)
CHOICE: Final = 16
"""Runs that a claim looks at at least, for of the first ones others may be about to take some."""
LOOK_AROUND: Final = 1.0
"""Seconds after which also a busy runner looks for demand texts that it has not seen."""


class Claimer(NamedTuple):
    """Who claims: a runner, as the process that has registered it."""

    runner_id: str
    incarnation: str


class Matcher:
    """Which demand texts a runner serves, decided once for each."""

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities: Final = capabilities
        self._decided: dict[str, bool] = {}
        self._served: Any = None
        self._texts = 0
        self._looked_at: float | None = None
        self._crowd = 0.0
        self.is_idle = True
        """Whether the last claim found nothing."""
        self.sees_work = False
        """Whether the last look found a text that it serves."""

    def look_in_turn(self, store: Store, moment: float) -> bool:
        """Look, but not at the same instant as others that were too late, too."""
        if self._crowd:
            time.sleep(random.uniform(0.0, self._crowd))
        return self.look(store, moment)

    def look(self, store: Store, moment: float) -> bool:
        """Decide on the texts that wait now; return whether there is one to serve.

        Texts that no longer wait are forgotten, so that memory follows the backlog and not the
        history. `moment` is monotonic.
        """
        texts = [row[0] for row in store.run(statements.DEMAND_TEXTS)]
        known = self._decided
        self._decided = {
            text: known[text] if text in known else self._serves(text) for text in texts
        }
        served = [text for text, serves in self._decided.items() if serves]
        self._served = store.engine.as_list(served)
        self._texts = len(served)
        self._looked_at = moment
        self.sees_work = bool(served)
        return self.sees_work

    def claim(
        self, store: Store, claimer: Claimer, limit: int, *, now: str, moment: float
    ) -> list[Run]:
        """Take the first ready runs that the runner serves: one at least, if there is any."""
        if self._looked_at is None or moment - self._looked_at >= LOOK_AROUND:
            self.look(store, moment)
        rows: list[tuple[Any, ...]] = []
        for depth in self._depths(limit):
            values = {"texts": self._served, "now": now, "limit": limit, **claimer._asdict()}
            rows = store.run(statements.CLAIMS[depth], **values)
            # Of a text that the runner has not seen there may be a run; and where many claim at
            # once, others may be about to take all that were looked at.
            if rows or not self.look(store, moment):
                break
        if rows:
            self._crowd = 0.0
        elif self.is_idle:  # and had seen one: somebody was faster
            self._crowd = min(max(CROWD[0], 2 * self._crowd), CROWD[1])
        self.is_idle = not rows
        runs = [Run.from_row(row, statements.CLAIM_COLUMNS) for row in rows]
        if len(runs) > 1:
            runs.sort(key=lambda run: (-run.priority, run.created_at, run.run_id))
        return runs

    def _depths(self, limit: int) -> tuple[int, ...]:
        """As deep as many are wanted, or as it takes to have a choice; and deeper if need be."""
        enough = max(limit, -(-CHOICE // max(1, self._texts)))
        return DEPTHS[bisect_left(DEPTHS, enough, hi=len(DEPTHS) - 1) :]

    def _serves(self, text: str) -> bool:
        try:
            return not demands.unmet(demands.parse(text), self.capabilities)
        except (TypeError, ValueError):
            return False  # a row that somebody wrote by hand must not end the loop


@again
def claim_many(
    store: Store,
    matcher: Matcher,
    claimer: Claimer,
    limit: int,
    *,
    now: str,
    moment: float,
    may_claim: Callable[[], bool] = lambda: True,
) -> list[Run]:
    """Take up to `limit` runs in one transaction; an empty list when there is none to serve.

    A runner that was drained or removed takes nothing. What another program inserted, and lives
    elsewhere, is sent home, and the next is taken. `may_claim` is asked once the transaction
    has begun, which may have had to wait.
    """
    # Looking takes no write lock, so that idle runners do not stand in anybody's way.
    if matcher.is_idle and not matcher.look_in_turn(store, moment):
        return []
    while taken := _claim_some(store, matcher, claimer, limit, now, moment, may_claim):
        if kept := homes.keep(store, taken, matcher.capabilities, now=now):
            return kept
    return []


def _claim_some(
    store: Store,
    matcher: Matcher,
    claimer: Claimer,
    limit: int,
    now: str,
    moment: float,
    may_claim: Callable[[], bool],
) -> list[Run]:
    for _ in range(TRIES):
        try:
            with store.one_statement():
                return _claim(store, matcher, claimer, limit, now, moment) if may_claim() else []
        except SessionTaken:
            # Somebody made another run of the session active by hand, in this very instant.
            if store.database.in_transaction():
                raise
            sweeper.heal(store)
    return []


def _claim(
    store: Store, matcher: Matcher, claimer: Claimer, limit: int, now: str, moment: float
) -> list[Run]:
    runs: list[Run] = []
    while len(runs) < limit:
        taken = matcher.claim(store, claimer, limit - len(runs), now=now, moment=moment)
        runs += taken
        if not taken or store.engine.writes_in_one:  # which takes all at once
            break
    taken_ids = [run.run_id for run in runs]
    moves.tell_owned(store, "claim", taken_ids, now=now, detail=claimer.runner_id)
    return runs


_LATE: Final = {"complete": "result", "fail": "failure", "confirm": "confirmation"}
"""Reports that are kept when they come too late, by the name of the move."""


class Claim:
    """One claim of one run: the right to execute it, until it is reported or lost.

    Every report raises StaleClaim once the run belongs to somebody else or has ended: stop
    working then, and do not retry.
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        place: Capabilities,
        clock_text: Callable[[], str],
        ended: Callable[[Claim], None],
    ) -> None:
        self._store = store
        self.place: Final = place
        self.now: Final = clock_text
        self._ended = ended
        self.run = run
        """The run as it was claimed."""
        self.fence: Final = moves.Fence(run.run_id, str(run.runner_id), str(run.claimed_at))
        self.is_over = False
        """Whether a report was committed, or the claim found to be lost."""
        self._is_reported = False
        self._attempt: tuple[str, dict[str, Any]] | None = None
        self.is_started = False
        self._to_end = False
        self._on_stop: Callable[[], None] | None = None
        self.output_at: float | None = None
        """time.monotonic() when the agent was last heard of."""

    def start(self) -> None:
        """Report that execution begins; binds the session to this runner's place."""
        _start(self._store, self)
        self.is_started = True

    @property
    def executor_session_id(self) -> str | None:
        """The agent framework's own id of the session, None until one is bound; asks anew."""
        return homes.executor_session_id(self._store, self.run.session_id)

    def bind_session(self, executor_session_id: str | None) -> None:
        """Record the agent framework's own id of the session, which later runs of it receive.

        Raises SessionConflict when it is that of another session, or InvalidRun.
        """
        session_id = self.run.session_id
        homes.bind(self._store, session_id, executor_session_id, fence=self.fence)

    def note_output(self) -> None:
        """Note that the agent has said something; the runner's next heartbeat tells others."""
        self.output_at = time.monotonic()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call back, from another thread, as soon as `stop_requested` becomes true."""
        self._on_stop = callback
        if self._to_end:
            callback()

    def notify_stop(self) -> None:
        """Tell whoever executes the run to end it; for the runner, who watches for stops."""
        if self._to_end:
            return
        self._to_end = True
        if self._on_stop is not None:
            try:
                self._on_stop()
            except Exception:
                # The caller's code in the runner's thread, which must see the next stop too.
                log.exception("run %s: what was to end it failed", self.fence.run_id)

    def complete(self, result: str | None = None) -> None:
        """Report success and the result."""
        self._end("complete", result=_storable(result))

    def fail(self, error: str, *, retry: bool = False) -> None:
        """Report failure and why; with `retry` it is one that another attempt may not meet.

        There is one if it was asked for when the run was enqueued, and unless a stop was.
        """
        self._end("fail", error=_storable(error), retry=retry)

    def confirm_stop(self) -> None:
        """Report that the agent's processes are gone, after a stop was requested."""
        self._end("confirm")

    def release(self) -> None:
        """Give back a run that was not started."""
        self._end("release")

    @property
    def stop_requested(self) -> bool:
        """Whether the agent should be ended: a stop was requested, or the claim was lost."""
        if self._to_end:
            return True
        rows = self._store.run(statements.RUN_STATE, run_id=self.fence.run_id)
        if not rows:
            return True
        status, runner_id, claimed_at = rows[0][:3]
        is_owner = (runner_id, claimed_at) == (self.fence.runner_id, self.fence.claimed_at)
        return not is_owner or status not in (Status.CLAIMED.value, Status.RUNNING.value)

    def __enter__(self) -> Run:
        """Start. Raises StaleClaim when a stop came first, which is then confirmed."""
        try:
            self.insist(self.start)
        except IllegalMove as error:
            self.insist(self.confirm_stop)
            raise StaleClaim(f"run {self.run.run_id} was stopped before it started") from error
        return self.run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Complete, fail with the exception, or confirm a stop; what was reported stays.

        A report that met a lost database is repeated, and its error goes no further: the work
        was done.
        """
        if self._is_reported:
            self.insist(self._see_whether_it_stands)
        if self.is_over or self._is_reported:
            return False
        if self._attempt is not None and isinstance(error, StorageError) and error.retryable:
            name, values = self._attempt
            self.insist(lambda: self._end(name, **values))
            return True
        if error is None:
            self.insist(lambda: self._confirm_or(self.complete))
        else:
            reason = str(error).strip()
            text = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
            try:
                self.insist(lambda: self._confirm_or(lambda: self.fail(text)))
            except (StaleClaim, RunNotFound) as refusal:
                raise refusal from error
        return False

    def insist(
        self, report: Callable[[], None], may_go_on: Callable[[], bool] = lambda: True
    ) -> None:
        """Repeat a report while the database is away: the work is done, only its end is not told.

        Gives up once it may not go on, and in a transaction of the caller's at once.
        """
        for pause in pauses():
            try:
                report()
                return
            except StorageError as error:
                is_lasting = error.retryable and not self._store.database.in_transaction()
                if not is_lasting or not may_go_on():
                    raise
                log.warning("run %s: its report waits: %s", self.fence.run_id, error)
            time.sleep(pause)

    def _confirm_or(self, report: Callable[[], None]) -> None:
        rows = self._store.run(statements.RUN_STATE, run_id=self.fence.run_id)
        if rows and rows[0][0] == Status.STOPPING.value:
            self.confirm_stop()
        else:
            report()

    def complete_with_others(self, result: str | None) -> None:
        """Complete, and start before that if needed, within the transaction of `finish_many`."""
        now = self.now()
        values = {"result": _storable(result)}
        try:
            moves.make_owned(self._store, "complete", self.fence, now=now, **values)
        except IllegalMove:  # it was not started, or that was rolled back
            self.start_at(now)
            moves.make_owned(self._store, "complete", self.fence, now=now, **values)

    def end(self) -> None:
        """Note that there is nothing left to report."""
        self.is_over = True
        self._ended(self)

    def end_on_commit(self) -> None:
        """Note the end once it is true: a caller's transaction may yet be rolled back."""
        self._is_reported = True
        if self._store.database.in_transaction():
            self._store.database.after_commit(self._end_if_it_stands)
        else:
            self.end()

    def _end_if_it_stands(self) -> None:
        # A savepoint may have been rolled back, or this be called after another transaction: when
        # a commit fails, Peewee's rollback can fail too, and it keeps what was to be called.
        with suppress(StorageError):
            self._see_whether_it_stands()
            if self._is_reported:
                self.end()

    def _see_whether_it_stands(self) -> None:
        """Forget what was reported in a caller's transaction that was rolled back."""
        if self.is_over or self._store.database.in_transaction():
            return  # where it may be rolled back yet
        rows = self._store.run(statements.RUN_STATE, run_id=self.fence.run_id)
        fence = (self.fence.runner_id, self.fence.claimed_at)
        active = {status.value for status in ACTIVE}
        self._is_reported = not (rows and rows[0][0] in active and rows[0][1:3] == fence)

    def _end(self, name: str, **values: Any) -> None:
        self._attempt = name, values
        self._report(name, self.now(), **values)
        self.end_on_commit()

    def start_at(self, now: str) -> None:
        """Start, within a transaction that is open."""
        home = self._home()
        session_id, *bound = self._report("start", now, **home)
        _start_session(self._store, session_id, home, now, *bound)

    def start_alone(self) -> bool:
        """Start by one statement; False where that cannot be, or the start is refused."""
        values = {"now": self.now(), "session_id": self.run.session_id, **self._home()}
        made = moves.make_alone(self._store, "start", self.fence, **values)
        if made and made[1]:
            _give_home(self._store, self.run.session_id)
        return bool(made)

    def _home(self) -> dict[str, str | None]:
        return {key: self.place.of(key) for key in demands.PLACE}

    def _report(self, name: str, now: str, **values: Any) -> tuple[Any, ...]:
        try:
            return moves.make_owned(self._store, name, self.fence, now=now, **values)
        except (StaleClaim, RunNotFound) as refusal:
            if name in _LATE and isinstance(refusal, StaleClaim):
                self.keep_late(name, values.get("result", values.get("error")), now)
                self.end_on_commit()  # what is kept may be undone with the caller's transaction
            else:
                self.end()
            raise

    def keep_late(self, name: str, text: str | None, now: str | None = None) -> None:
        """Keep what was reported too late in the history of the run.

        Raises StorageError where it can be kept by reporting it again.
        """
        if self.is_over:
            return
        try:
            now = now or self.now()
            moves.keep_late(self._store, self.fence, _LATE[name], text, now=now)
        except StorageError as error:
            if error.retryable:
                raise
            log.warning("run %s: its late %s is not kept: %s", self.run.run_id, name, error)


def finish_many(store: Store, finished: Iterable[tuple[Claim, str | None]]) -> list[Claim]:
    """Complete claims in one transaction, starting those that were not started.

    Returns the claims that were refused, because they were lost; the others are completed.
    """
    reports = list(finished)
    owners = {claim.fence.runner_id for claim, _ in reports}
    is_batch = len(reports) > 1 and len(owners) == 1
    refused = {} if is_batch and _finish_all(store, reports) else _finish(store, reports)
    for claim, _ in reports:
        if claim not in refused:
            claim.end_on_commit()
    for claim, result in reports:
        if claim in refused:
            if isinstance(refused[claim], StaleClaim):
                claim.keep_late("complete", result)
            claim.end_on_commit()
    return list(refused)


class _NotAllError(Exception):
    """Not every row was changed, so nothing is, and each is looked at for itself."""


@again
def _finish_all(store: Store, reports: list[tuple[Claim, str | None]]) -> bool:
    """Complete all claims by a few statements for all of them; return whether that was possible."""
    claims = [claim for claim, _ in reports]
    try:
        with store.transaction():
            lock_sessions(store, [claim.run.session_id for claim in claims])
            now = claims[0].now()
            if unstarted := [claim for claim in claims if not claim.is_started]:
                fences = [claim.fence._asdict() for claim in unstarted]
                _change_all(store, "start", statements.START_MANY, fences, now)
                _start_sessions(store, unstarted, now)
            values = [
                {**claim.fence._asdict(), "result": _storable(result)} for claim, result in reports
            ]
            _change_all(store, "complete", statements.COMPLETE_MANY, values, now)
            followed = [claim.fence.run_id for claim in claims if _may_be_followed(claim.run)]
            follow.after(store, "complete", followed, now=now, actor=Actor.RUNNER)
    except _NotAllError:
        return False
    return True


def _may_be_followed(run: Run) -> bool:
    """What the statement of a single move tells of the row, by what the claim has seen of it."""
    return run.attempt is not None or callbacks.wants(run)


def _change_all(
    store: Store, name: str, statement: Statement, values: list[dict[str, Any]], now: str
) -> None:
    (runner_id,) = {one.pop("runner_id") for one in values}
    if store.change_listed(statement, values, runner_id=runner_id, now=now) != len(values):
        raise _NotAllError
    moves.tell_owned(store, name, [one["run_id"] for one in values], now=now)


def _start_sessions(store: Store, claims: list[Claim], now: str) -> None:
    """What `_start_session` does, for the claims of one runner."""
    home = {key: claims[0].place.of(key) for key in demands.PLACE}
    session_ids = [claim.run.session_id for claim in claims]
    listed = store.engine.as_list(session_ids)
    rows = store.run(statements.BIND_SESSIONS, session_ids=listed, now=now, **home)
    if bound := {row[0] for row in rows}:
        listed = store.engine.as_list(sorted(bound))
        _inherit_home(store, home, store.run(statements.PENDING_OF_SESSIONS, session_ids=listed))
    if known := [one for one in session_ids if one not in bound]:
        listed = store.engine.as_list(known)
        store.change(statements.RESUME_SESSIONS, session_ids=listed, now=now)


@again
def _finish(
    store: Store, reports: list[tuple[Claim, str | None]]
) -> dict[Claim, StaleClaim | RunNotFound]:
    refused: dict[Claim, StaleClaim | RunNotFound] = {}
    with store.transaction():
        lock_sessions(store, [claim.run.session_id for claim, _ in reports])
        for claim, result in reports:
            try:
                claim.complete_with_others(result)
            except (StaleClaim, RunNotFound) as refusal:
                refused[claim] = refusal
    return refused


@again
def _start(store: Store, claim: Claim) -> None:
    if claim.start_alone():
        return
    with store.transaction():
        claim.start_at(claim.now())


def _start_session(
    store: Store, session_id: str, home: dict[str, str | None], now: str, bound: int | None = None
) -> None:
    """Bind a session to the place of the runner that starts its first run.

    `bound` is whether the statement that started the run has done so, where it can. Runs that
    were enqueued before they could inherit the home get it now.
    """
    if bound is None:
        bound = store.change(statements.BIND_SESSION, session_id=session_id, now=now, **home)
        if not bound:
            store.change(statements.RESUME_SESSION, session_id=session_id, now=now)
            if store.engine.writes_in_one:
                # It was started before, and what comes after that may not have been done.
                _give_home(store, session_id)
    if bound:
        _inherit_home(store, home, store.run(statements.PENDING_OF_SESSION, session_id=session_id))


def _give_home(store: Store, session_id: str) -> None:
    """Have the runs demand a session's home that were added while a statement bound it.

    The statement does not see what is committed once it has begun. Whoever adds one later finds
    a session that has its home; and none can be claimed meanwhile, for the session is busy.
    """
    if not store.run(statements.PENDING_OF_SESSION, session_id=session_id):
        return
    with store.transaction():
        for row in store.run(statements.LOCK_SESSION, session_id=session_id):
            pending = store.run(statements.PENDING_OF_SESSION, session_id=session_id)
            _inherit_home(store, Session.from_row(row).home(), pending)


def _inherit_home(
    store: Store, home: Mapping[str, str | None], pending: list[tuple[Any, ...]]
) -> None:
    wanted = {key: value for key, value in home.items() if value}
    for run_id, text in pending:
        try:
            merged = demands.canonical(demands.both(wanted, demands.parse(text)))
        except ValueError:  # malformed by hand: nobody claims it, and `why` says so
            continue
        if len(merged.encode()) > demands.MAX_MERGED:  # written by hand, too
            continue
        store.change(statements.SET_DEMANDS, run_id=run_id, demands=merged)


def _storable(text: str | None) -> str | None:
    """Return what an agent said with the characters replaced that a database cannot store."""
    if text is None:
        return None
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
