"""The daemon: APScheduler ticks, the queue's sweep does the work.

Correctness never depends on a tick coming on time, for every move of the sweep is guarded; the
daemon's own care is that ticks go on coming, whatever the clock or the database does.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from runqueue import clock, retention, statements, sweeper
from runqueue._version import __version__
from runqueue.backoff import patiently, pauses
from runqueue.errors import RunqueueError, StorageLost
from runqueue.queue import Queue
from runqueue.reporter import Reporter
from runqueue.settings import BEATS_PER_LEASE, Settings
from runqueue.systemd.notify import Manager

log = logging.getLogger("runqueue.daemon")

BUSY_TIMEOUT: Final = 3.0
"""Seconds that a tick waits for other writers; with it a daemon always ends within 5 s."""
BEAT: Final = 10.0
"""Seconds between two signs of life of the daemon in the database."""
ALIVE: Final = 45.0
"""Seconds after its last sign of life for which a daemon counts as alive."""
REMIND: Final = 60.0
"""Seconds after which a failure that goes on is told again."""
TIDY_EVERY: Final = 60.0
"""Seconds between two looks for what is to be pruned, forgotten or healed."""
PRUNE_FOR: Final = 0.2
"""Share of the time between two sweeps that is used for pruning while there is much of it."""
AWAY: Final = 5.0
"""Seconds without a sweep after which the daemon cannot tell silent runners from its own sleep."""
LONGEST_START: Final = 3600.0
"""Seconds that a service manager is asked to wait at most for a migration."""
FIRST_SWEEP: Final = 300.0
"""Seconds that it is asked to wait at most for a first sweep, after what patience allows."""


class Steady(BaseTrigger):  # type: ignore[misc]
    """Every `interval` seconds from now on.

    APScheduler's own interval trigger lists every time that was missed: a clock that steps
    forward by 180 days costs it 28 s and 1.6 GiB at an interval of one second.
    """

    def __init__(self, interval: float) -> None:
        self.interval = timedelta(seconds=interval)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        following = previous + self.interval if previous is not None else now
        return following if following > now else now + self.interval


class Daemon:
    """Sweeps a queue until it is told to end.

    With `patience` it also ends when no sweep has succeeded for so many seconds.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        interval: float,
        keep: float | None,
        keep_runs: int | None = None,
        patience: float | None = None,
        manager: Manager | None = None,
    ) -> None:
        self._queue = queue
        self._reporter = Reporter(queue.store, manager or Manager({}))
        self._interval = interval
        self._keep = keep
        self._keep_runs = keep_runs
        self._patience = patience
        self._job: Any = None
        self._ended = threading.Event()
        self._given_up: Exception | None = None
        self._id = f"{socket.gethostname()}-{os.getpid()}"
        self._started_at = queue.now()
        self._beaten: float | None = None
        self._tidied = -TIDY_EVERY
        self._going: retention.Bounds | None = None
        self._held_until = 0.0
        self._failures = 0
        self._cause = ""
        self._told = 0.0
        self._retry_at = 0.0
        self._waits = pauses()

    def run(self, ended: threading.Event) -> None:
        """Tick until `ended` is set.

        Raises what the first tick raises when the patience for it is over, and what the last
        ones raised when they failed for longer than the patience.
        """
        self._ended = ended
        patience = self._patience or 0.0
        with self._reporter.manager.patient(patience + FIRST_SWEEP):
            patiently(self._begin, patience, ended, self._tell)
        if self._reporter.swept_at is None:  # it was told to end while it waited
            self._end()
            return
        log.info(
            *("daemon %s of version %s sweeps %s every %g s", self._id, __version__),
            *(self._queue.store.url, self._interval),
        )
        self._reporter.expect(patience=self._patience, interval=self._interval)
        self._reporter.ready()
        scheduler = BackgroundScheduler(
            timezone=timezone.utc,
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        self._job = scheduler.add_job(self.tick, Steady(self._interval), id="sweep")
        scheduler.start()
        try:
            self._watch_clock(self._job, ended)
        finally:
            self._reporter.manager.stopping("ending")
            self._queue.store.hurry(0.5)
            scheduler.shutdown(wait=True)
            self._end()
        if self._given_up is not None:
            raise self._given_up

    def adopt(
        self,
        settings: Settings,
        *,
        interval: float,
        keep: float | None,
        keep_runs: int | None,
        patience: float | None,
    ) -> None:
        """Go by these settings from now on; may be called from any thread."""
        self._queue.settings = settings
        self._interval, self._patience = interval, patience
        self._keep, self._keep_runs = keep, keep_runs
        self._beaten = None  # the next tick publishes the lease
        self._tidied = -TIDY_EVERY
        self._reporter.expect(patience=patience, interval=interval)
        if self._job is not None:
            self._job.reschedule(Steady(interval))

    def tell_ready(self) -> None:
        """Tell the service manager that a reload is over; not before it was told of the start."""
        if self._reporter.swept_at is not None:
            self._reporter.ready()

    def _begin(self) -> None:
        try:
            self._reporter.begin()
            self._work()
        except Exception:
            with suppress(Exception):
                self._queue.close()
            raise

    def _end(self) -> None:
        self._sign_off()
        log.info("daemon %s ended", self._id)

    def _watch_clock(self, job: Any, ended: threading.Event) -> None:
        # APScheduler sleeps by the wall clock: set back by an hour, it sleeps for an hour.
        offset = time.time() - time.monotonic()
        while not ended.wait(min(self._interval, 1.0)):
            self._reporter.say()
            step = time.time() - time.monotonic() - offset
            if abs(step) > min(self._interval, 1.0):
                offset += step
                log.warning("the clock stepped by %+.1f s; sweeping now", step)
                self._hold(time.monotonic())
                job.modify(next_run_time=datetime.now(timezone.utc))

    def tick(self) -> None:
        """Sweep once; a failure is told once a cause and minute, and so is the recovery."""
        if time.monotonic() < self._retry_at:
            return
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next tick must come
            self._tell(error)
            if self._is_too_much():
                self._given_up = error
                self._ended.set()
            if isinstance(error, StorageLost):
                # At random, so that those who wait for a server do not all come at once.
                self._retry_at = time.monotonic() + next(self._waits)
            # The next tick begins with a new connection; a lost one would stay lost.
            with suppress(Exception):
                self._queue.close()
            return
        if self._failures:
            log.warning("the sweep works again after %d failures", self._failures)
        self._failures, self._cause, self._waits = 0, "", pauses()
        self._reporter.failing = ""

    def _is_too_much(self) -> bool:
        swept_at = self._reporter.swept_at
        if self._patience is None or swept_at is None:
            return False
        return time.monotonic() - swept_at > self._patience

    def _tell(self, error: Exception) -> None:
        self._failures += 1
        known = isinstance(error, RunqueueError)
        cause = f"{type(error).__name__}: {error}"
        self._reporter.failing = cause
        if cause == self._cause and time.monotonic() - self._told < REMIND:
            return
        self._cause, self._told = cause, time.monotonic()
        log.error("the sweep failed and is tried again: %s", cause, exc_info=not known)

    def _work(self) -> None:
        moment = time.monotonic()
        # One that fails to sweep must not look alive for ever.
        if self._beaten is None or (moment - self._beaten >= BEAT and not self._failures):
            self._beat()
            self._beaten = moment
        swept_at = self._reporter.swept_at
        if swept_at is not None and moment - swept_at > max(AWAY, 3 * self._interval):
            self._hold(moment)
        swept = self._queue.sweep(rescues=moment >= self._held_until)
        self._reporter.swept()
        if swept:
            told = ", ".join(f"{count} {name}" for name, count in swept.counts().items() if count)
            log.info("sweep: %s", told)
            self._reporter.tell_decisions()
        self._reporter.look()
        if not swept:
            self._queue.store.trim_log()
        if moment - self._tidied >= TIDY_EVERY:
            self._tidied = moment
            self._tidy()
        if self._going is not None:
            self._prune(self._going)

    def _hold(self, moment: float) -> None:
        """Rescue nothing until every live runner has had the time for a heartbeat.

        If this process slept, or the clock stepped, or the database was locked, then the same
        may hold for runners, whose leases ran out without their fault.
        """
        pause = self._queue.settings.lease / BEATS_PER_LEASE + AWAY / 5
        self._held_until = moment + pause
        log.warning("no sweep for a while; runners have %.0f s to show that they live", pause)

    def _tidy(self) -> None:
        store, now = self._queue.store, self._queue.now()
        sweeper.forget_runners(store, now=now)
        if healed := sweeper.heal(store):
            log.warning("%d runs waited behind nobody and may be claimed now", healed)
        before = None if self._keep is None else clock.shift(now, -self._keep)
        self._going = retention.bounds(store, ended_before=before, keep=self._keep_runs)

    def _prune(self, going: retention.Bounds) -> None:
        """Go on pruning for a share of the tick; the next one goes on if that is not all."""
        share = PRUNE_FOR * self._interval
        pruned, is_all = retention.prune_for(self._queue.store, going, share)
        if pruned:
            log.info("pruned %d finished runs", pruned)
        if is_all:
            self._going = None

    def _beat(self) -> None:
        store, now = self._queue.store, self._queue.now()
        values = {
            "daemon_id": self._id,
            "tick_at": now,
            "alive_until": clock.shift(now, ALIVE),
            "lease": self._queue.settings.lease,
        }
        with store.transaction():
            if not store.change(statements.BEAT_DAEMON, **values):
                store.change(
                    statements.INSERT_DAEMON,
                    hostname=socket.gethostname(),
                    started_at=self._started_at,
                    **values,
                )

    def _sign_off(self) -> None:
        long_ago = clock.shift(self._queue.now(), -86_400)
        try:
            self._queue.store.change(
                statements.DELETE_DAEMON, daemon_id=self._id, long_ago=long_ago
            )
        except RunqueueError as error:
            log.warning("daemon %s could not sign off: %s", self._id, error)
