"""A runner: registered, beating, and claiming what it can serve.

The lease is the runner's, not the run's: one heartbeat, in a thread of its own, from the first
claim until the last report, says that everything it holds is alive. A second thread watches
for stops while there is something to stop.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple

from runqueue import claims, clock, demands, homes, incarnation, moves, silence, statements, sweeper
from runqueue.backoff import BACK_OFF, pauses
from runqueue.claims import Claim
from runqueue.database import RAISED, Store
from runqueue.demands import Capabilities
from runqueue.errors import (
    ConfigurationError,
    InvalidRun,
    RunnerConflict,
    RunqueueError,
    StorageBusy,
    StorageError,
)
from runqueue.models import Run
from runqueue.models import Runner as RunnerRow
from runqueue.settings import BEATS_PER_LEASE, Settings
from runqueue.signals import on_ending
from runqueue.states import Actor, Status, Wake
from runqueue.wake import Watch

log = logging.getLogger("runqueue.runner")

LOOK_AGAIN: Final = 5.0
"""Seconds after which a waiting claim asks even though nothing was seen to change."""
MOMENT: Final = 0.05
"""Seconds of a lease that are as good as none."""
STOP_GAP: Final = 0.005
"""Seconds between two looks for stops: a busy database changes thousands of times a second."""


class Failure(NamedTuple):
    """That the database is away, as the heartbeat has noticed it."""

    since: float
    """time.monotonic() of the first heartbeat that failed."""
    error: StorageError


class Runner:
    """A process that claims runs, as a context: registered on entry, gone on exit."""

    def __init__(
        self,
        store: Store,
        clock_: clock.Clock,
        config: Settings,
        *,
        runner_id: str | None = None,
        hostname: str | None = None,
        project_dir: str | None = None,
        executor_type: str | None = None,
        tags: Iterable[str] = (),
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock_
        self._bell = store.engine.bell
        self._lease = config.lease
        self.hostname = hostname or socket.gethostname()
        self.runner_id = _runner_id(runner_id, self.hostname)
        self.capabilities = _capabilities(
            self.hostname, project_dir, executor_type, tags, properties
        )
        self.incarnation = incarnation.current()
        self._claimer = claims.Claimer(self.runner_id, self.incarnation)
        self._matcher = claims.Matcher(self.capabilities)
        self._lock = threading.Lock()
        self._finding = threading.Lock()
        self._lost_at: set[str] = set()
        self._held: dict[str, Claim] = {}
        self._holds = threading.Event()
        self._told: dict[moves.Fence, float] = {}
        self._tells = True
        self._draining = threading.Event()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._answered_at = 0.0
        self.failure: Failure | None = None
        """What keeps the heartbeat from the database, None while it succeeds."""
        self._pid = 0
        self.is_open = False

    def __enter__(self) -> Runner:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Register and begin to beat.

        A predecessor with the same id that is dead is taken over: its runs are resolved by the
        rules, not adopted. Raises RunnerConflict when it may be alive.
        """
        if self.is_open:
            return
        self._register()
        self.is_open = True
        self._pid = os.getpid()
        for name, target in (
            ("heartbeat", self._beat_on),
            ("lease", self._watch_lease),
            ("stops", self._watch_stops),
        ):
            thread = threading.Thread(target=target, name=f"runqueue-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Resolve what was not reported, sign off, and stop beating."""
        if not self.is_open:
            return
        if self._pid != os.getpid():  # the child of a fork: the runner is its parent's
            self.is_open = False
            return
        self.drain()
        self._closed.set()
        self._holds.set()
        self._bell.ring((Wake.STOP,))  # for the thread that waits for stops
        for thread in self._threads:
            thread.join()
        self.is_open = False
        with self._store.transaction():
            # In the order in which one who removes the runner locks them.
            self._store.lock(statements.LOCK_RUNNER, runner_id=self.runner_id)
            if self._row() is not None:
                self._give_up(f"runner {self.runner_id} ended without reporting")
                self._store.change(
                    statements.DELETE_RUNNER,
                    runner_id=self.runner_id,
                    incarnation=self.incarnation,
                )

    def drain(self) -> None:
        """Claim nothing more; a waiting claim returns at once, and the claim loop ends."""
        self._draining.set()
        self._bell.ring((Wake.WORK,))

    def draining_on_signals(self) -> AbstractContextManager[None]:
        """Drain on SIGTERM or SIGINT within this context; enter it in the main thread.

        The run at work is finished, then the claim loop ends.
        """
        return on_ending(self.drain)

    @property
    def is_draining(self) -> bool:
        return self._draining.is_set()

    @property
    def held(self) -> list[Claim]:
        """The claims that were not reported yet."""
        with self._lock:
            return list(self._held.values())

    def claim(self, timeout: float = 30.0) -> Claim | None:
        """Claim one run, waiting for it at most `timeout` seconds."""
        taken = self.claim_many(1, timeout)
        return taken[0] if taken else None

    def claim_many(self, limit: int, timeout: float = 0.0) -> list[Claim]:
        """Claim up to `limit` runs in one transaction, waiting at most `timeout` seconds.

        Returns as soon as there is one, or an empty list; also when the runner is draining.
        """
        if limit < 1 or not clock.is_duration(timeout):
            raise InvalidRun("claim at least one run, and wait for zero seconds or more")
        if self._draining.is_set():
            return []
        self.open()
        if self._pid != os.getpid():
            raise RunnerConflict(
                f"runner {self.runner_id} belongs to process {self._pid}; a fork needs its own"
            )
        deadline = time.monotonic() + timeout
        # A busy runner need not watch; one that waits must do so before it asks, to miss nothing.
        if timeout <= 0 or not self._matcher.is_idle:
            taken = self._take(limit)
            if taken or timeout <= 0:
                return taken
        with Watch(self._store, (Wake.WORK,)) as watch:
            while not self._draining.is_set():
                if taken := self._take(limit):
                    return taken
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                watch.wait(min(left, LOOK_AGAIN))
        return []

    def finish_many(self, finished: Iterable[tuple[Claim, str | None]]) -> list[Claim]:
        """Complete claims in one transaction; return those that were refused as lost."""
        return claims.finish_many(self._store, finished)

    def __iter__(self) -> Iterator[Claim]:
        """Yield one claim after another until the runner drains; survives a lost database.

        A claim whose stop came before its start is confirmed and not yielded; one that comes
        in the instant between makes entering the claim raise StaleClaim.
        """
        waits = pauses()
        while not self._draining.is_set():
            try:
                claim = self.claim(timeout=LOOK_AGAIN)
            except StorageError as error:
                if not error.retryable:
                    raise
                log.warning("runner %s: %s", self.runner_id, error)
                self._draining.wait(next(waits))
                continue
            waits = pauses()
            if claim is None:
                continue
            if self._was_stopped(claim):
                # It cannot be started any more, and its `with` would end the caller's loop.
                with suppress(RunqueueError):
                    claim.confirm_stop()
            else:
                yield claim

    def _was_stopped(self, claim: Claim) -> bool:
        try:
            return claim.stop_requested
        except StorageError:  # whoever enters the claim waits for the database, and then sees it
            return False

    def _take(self, limit: int) -> list[Claim]:
        if self._lost_at and (found := self._find_again(limit)):
            return found
        now = self._now()
        try:
            runs = claims.claim_many(
                self._store,
                self._matcher,
                self._claimer,
                limit,
                now=now,
                moment=time.monotonic(),
                may_claim=self._is_alive,
            )
        except StorageError:
            # It may have been committed, and only its answer lost.
            if not self._store.database.in_transaction():
                self._lost_at.add(now)
            raise
        if not runs and self._matcher.sees_work:
            self._is_online()  # or there is no work for it any more
        return self._hold(runs)

    def _hold(self, runs: list[Run]) -> list[Claim]:
        if not runs:
            return []
        taken = [
            Claim(self._store, run, self.capabilities, self._now, self._forget) for run in runs
        ]
        with self._lock:
            self._held.update({claim.fence.run_id: claim for claim in taken})
            if self._held:
                self._holds.set()
        return taken

    def _find_again(self, limit: int) -> list[Claim]:
        """Return up to `limit` claims of this runner whose answer was lost; nobody else can.

        They are known by their time, which is that of the call that failed.
        """
        if not self._finding.acquire(blocking=False):
            return []  # another thread is about to find them
        try:
            lost_at = set(self._lost_at)
            # Before asking: what has ended meanwhile is still listed then, and not lost.
            held = {claim.fence for claim in self.held}
            with self._store.transaction():
                # Another process may have taken over the id, and what it claims is its own.
                if not self._is_online():
                    return []
                rows = self._store.run(statements.NOT_STARTED, runner_id=self.runner_id)
            runs = [Run.from_row(row, statements.CLAIM_COLUMNS) for row in rows]
            lost = [
                run
                for run in runs
                if run.claimed_at in lost_at
                and moves.Fence(run.run_id, self.runner_id, run.claimed_at) not in held
            ]
            if len(lost) <= limit:
                self._lost_at -= lost_at
            if lost:
                log.warning("runner %s found %d of its claims again", self.runner_id, len(lost))
            kept = homes.keep(self._store, lost[:limit], self.capabilities, now=self._now())
            return self._hold(kept)
        finally:
            self._finding.release()

    def _forget(self, claim: Claim) -> None:
        with self._lock:
            if self._held.get(claim.fence.run_id) is claim:
                del self._held[claim.fence.run_id]
            if not self._held and not self._closed.is_set():
                self._holds.clear()

    def _now(self) -> str:
        try:
            return clock.to_text(self._clock())
        except RAISED as error:
            self._store.rethrow(error)

    def _row(self) -> tuple[str, str] | None:
        rows = self._store.run(
            statements.RUNNER_STATE, runner_id=self.runner_id, incarnation=self.incarnation
        )
        return rows[0] if rows else None

    def _register(self) -> None:
        sent = time.monotonic()
        with self._store.transaction():
            now = self._now()
            lease = self._wanted_lease(now)
            values = {
                "runner_id": self.runner_id,
                "incarnation": self.incarnation,
                **{key: getattr(self.capabilities, key) for key in demands.PLACE},
                "tags": json.dumps(sorted(self.capabilities.tags)),
                "properties": demands.canonical(self.capabilities.properties),
                "registered_at": now,
                "heartbeat_at": now,
                "lease_until": clock.shift(now, lease),
            }
            if not self._store.change(statements.INSERT_RUNNER, **values):
                self._take_over(now, values)
        self._lease, self._answered_at = lease, sent

    def _take_over(self, now: str, values: dict[str, Any]) -> None:
        rows = self._store.run(statements.LOCK_RUNNER, runner_id=self.runner_id)
        if not rows:  # and to see it is not this role's right
            raise RunnerConflict(
                f"runner {self.runner_id} was registered by another role; choose another id"
            )
        found = RunnerRow.from_row(rows[0])
        # Else it is registered already, and only the answer to that was lost.
        if found.incarnation != self.incarnation:
            if found.lease_until > now and not incarnation.is_dead(found.incarnation):
                raise RunnerConflict(
                    f"runner {self.runner_id} is alive on {found.hostname}; "
                    "stop it first, or choose another id"
                )
            self._give_up(f"runner {self.runner_id} was restarted")
        self._store.change(statements.TAKE_OVER, **values)

    def _wanted_lease(self, now: str) -> float:
        """The lease that the living daemons want, else this runner's own."""
        wanted = self._store.run(statements.LEASE_WANTED, now=now)[0][0]
        return float(wanted) if wanted else self._lease

    def _give_up(self, reason: str) -> None:
        sweeper.rescue_runner(
            self._store, self.runner_id, now=self._now(), actor=Actor.RUNNER, reason=reason
        )

    def _beat_on(self) -> None:
        failing = False
        try:
            while not self._closed.wait(self._pause(failing)):
                try:
                    if not self._beat():
                        return
                    if failing:
                        log.warning("runner %s: the heartbeat is back", self.runner_id)
                    failing, self.failure = False, None
                except ConfigurationError as error:
                    # It was moved, or is not ours any more: that will not pass by itself.
                    log.error("runner %s ends: %s", self.runner_id, error)
                    self._end_agents()
                    self.drain()
                    return
                except Exception as error:
                    # A failed beat says nothing about ownership; only the lease's end does.
                    if not failing:
                        known = isinstance(error, RunqueueError)
                        log.warning(
                            "runner %s: no heartbeat: %s", self.runner_id, error, exc_info=not known
                        )
                        if isinstance(error, StorageError):
                            self.failure = Failure(time.monotonic(), error)
                    failing = True
                    if isinstance(error, StorageBusy) and not self._store.engine.locks_rows:
                        # Whoever holds the one write lock keeps out also those who could take
                        # our runs: whether somebody took them, the next beat says.
                        self._answered_at = time.monotonic()
        finally:
            self._store.close()

    def _watch_lease(self) -> None:
        # Not in the heartbeat's own thread: a database that is cut off does not even refuse, and
        # the beat hangs while the lease runs out and others take the runs.
        while not self._closed.wait(self._lease_left()):
            if self._lease_left() <= MOMENT:
                if self.held:
                    log.error("runner %s had no heartbeat within its lease", self.runner_id)
                    self._end_agents()
                self._closed.wait(self._lease / BEATS_PER_LEASE)

    def _lease_left(self) -> float:
        return max(MOMENT, self._answered_at + self._lease - time.monotonic())

    def _pause(self, failing: bool) -> float:
        if not failing:
            return self._lease / BEATS_PER_LEASE
        # At random, so that the runners of a server that is back do not all come at once.
        return min(1.0, self._lease / 10) * random.uniform(0.5, 1.0)

    def _beat(self) -> bool:
        """Beat once; return whether this runner still exists."""
        sent = time.monotonic()
        with self._store.transaction():
            now = self._now()
            lease = self._wanted_lease(now)
            row = self._row()
            is_registered = row is not None and self._store.change(
                statements.BEAT,
                now=now,
                lease_until=clock.shift(now, lease),
                runner_id=self.runner_id,
                incarnation=self.incarnation,
            )
        if row is None or not is_registered:
            log.error("runner %s was removed or replaced; it ends", self.runner_id)
            self._end_agents()
            self.drain()
            return False
        state, lease_until = row
        if lease_until <= now:
            # What somebody resolved meanwhile is lost; what is still its own goes on.
            log.warning("runner %s was silent for longer than its lease", self.runner_id)
            self._notify_stops()
        self._lease, self._answered_at = lease, sent
        if lease_until <= now:
            self._bell.ring((Wake.WORK,))  # it may claim again
        if state == "draining":
            self._drain_as_asked()
        self._tell_output(now)
        return True

    def _tell_output(self, now: str) -> None:
        """Tell when the agents were last heard of, where that has changed since the last beat.

        It only tells people, so no failure of it concerns the runner; the next beat tells it anew.
        """
        heard = {claim.fence: claim.output_at for claim in self.held}
        known = {fence: at for fence, at in heard.items() if at is not None}
        moment = time.monotonic()
        changed = {
            fence: clock.shift(now, at - moment)
            for fence, at in known.items()
            if self._told.get(fence) != at
        }
        try:
            if changed:
                silence.tell(self._store, changed)
        except RunqueueError as error:
            if self._tells:
                log.warning("runner %s: its agents' output is not told: %s", self.runner_id, error)
            self._tells = False
            return
        self._told, self._tells = known, True

    def _drain_as_asked(self) -> None:
        if not self._draining.is_set():
            log.info("runner %s drains, as asked", self.runner_id)
            self.drain()

    def _is_alive(self) -> bool:
        # Past its lease, what it claims is taken from it at once; a heartbeat must come first.
        return time.monotonic() < self._answered_at + self._lease

    def _is_online(self) -> bool:
        """Whether it may claim, by what the database says of it; drains if it may not."""
        row = self._row()
        is_online = row is not None and row[0] == "online"
        if not is_online:
            self._drain_as_asked()
        return is_online

    def _end_agents(self) -> None:
        for claim in self.held:
            claim.notify_stop()

    def _watch_stops(self) -> None:
        watch, waits = None, pauses()
        try:
            while not self._closed.is_set():
                if not self._holds.wait(LOOK_AGAIN):
                    continue
                try:
                    watch = watch or Watch(self._store, (Wake.STOP,))
                    if self._closed.is_set():  # and rung, before this watch could hear it
                        return
                    self._notify_stops()
                    waits = pauses()
                    self._closed.wait(STOP_GAP)
                    watch.wait(LOOK_AGAIN)
                except StorageError:
                    watch = None  # the heartbeat tells; a stop is seen once the database is back
                    self._closed.wait(next(waits))
                except Exception:
                    log.exception("runner %s cannot look for stops", self.runner_id)
                    self._closed.wait(BACK_OFF[1])
        finally:
            if watch is not None:
                watch.close()
            self._store.close()

    def _notify_stops(self) -> None:
        held = self.held  # before asking: a claim taken meanwhile is not missing, only new
        if not held:
            return
        owned = {
            (run_id, claimed_at): status
            for run_id, claimed_at, status in self._store.run(
                statements.OWNED, runner_id=self.runner_id
            )
        }
        for claim in held:
            status = owned.get((claim.fence.run_id, claim.fence.claimed_at))
            if not claim.is_over and status in (None, Status.STOPPING.value):
                claim.notify_stop()


def _runner_id(runner_id: str | None, hostname: str) -> str:
    if runner_id is None:
        return f"{hostname}-{os.getpid()}-{secrets.token_hex(2)}"
    if not isinstance(runner_id, str) or not runner_id:
        raise InvalidRun("the runner id must be a non-empty string")
    demands.check_name(runner_id, "the runner id")
    return runner_id


def _capabilities(
    hostname: str,
    project_dir: str | None,
    executor_type: str | None,
    tags: Iterable[str],
    properties: Mapping[str, Any] | None,
) -> Capabilities:
    if isinstance(tags, str):
        raise InvalidRun("a runner's tags must be a list of strings, not one string")
    names = list(tags)
    for name in names:
        if not isinstance(name, str) or not name:
            raise InvalidRun("every tag of a runner must be a non-empty string")
        demands.check_name(name, "a tag of the runner")
    try:
        demands.check_text(demands.canonical(properties or {}), "a property of the runner")
    except (TypeError, ValueError) as error:
        raise InvalidRun(f"the runner's properties are not JSON: {error}") from None
    place = {"hostname": hostname, "project_dir": project_dir, "executor_type": executor_type}
    if len(demands.canonical(place).encode()) > demands.MAX_PLACE:
        raise InvalidRun(
            f"the runner's place (host name, project directory, executor type) is over the limit "
            f"of {demands.MAX_PLACE} bytes"
        )
    return Capabilities(hostname, project_dir, executor_type, frozenset(names), properties or {})
