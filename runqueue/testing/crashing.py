"""A runner that crashes where it is told to, in the process of the test.

To the database it is a process that was killed there: it beats no more, reports nothing more and
never signs off. To the test it is an exception, so that a movable clock goes on serving both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

from runqueue import clock
from runqueue.claims import Claim
from runqueue.database import Store
from runqueue.queue import Queue
from runqueue.runner import Runner
from runqueue.settings import Settings
from runqueue.states import Wake


class CrashPoint(str, Enum):
    """Where the process crashes."""

    CLAIMED = "claimed"
    """The claim is committed, and the runner never learns of it."""
    STARTING = "starting"
    """The runner has the claim and has not started it."""
    STARTED = "started"
    """The start is committed, and nothing of the work is done."""
    REPORTING = "reporting"
    """The work is done, and nothing of it is reported."""
    REPORTED = "reported"
    """The report is committed, and the runner never learns of it."""

    def __str__(self) -> str:
        return self.value


class Crashed(BaseException):
    """The process is dead. No `except Exception` goes on after that."""


class NeverCrashed(AssertionError):
    """The block ended and the process never came to the point where it was to crash."""


class _Fate:
    """One process: where it dies, whether it has, and the runners that die with it."""

    def __init__(self, at: CrashPoint | None, survives: int) -> None:
        self._at = at
        self._left = survives
        self._runners: list[CrashingRunner] = []
        self.is_dead = False

    def __str__(self) -> str:
        return f"the process was to crash when {self._at}"

    def add(self, runner: CrashingRunner) -> None:
        self.go_on()
        self._runners.append(runner)

    def go_on(self) -> None:
        """Raise Crashed in a process that is dead."""
        if self.is_dead:
            raise Crashed("this process has crashed")

    def reach(self, point: CrashPoint) -> None:
        """Go on, or die here."""
        self.go_on()
        if point == self._at:
            self._left -= 1
            if self._left < 0:
                self.crash()

    def crash(self) -> None:
        self.is_dead = True
        for runner in self._runners:
            runner.end_silently()
        raise Crashed("the process crashes here, as it was told to")


class _CrashingClaim(Claim):
    """A claim of a process that dies at one of its verbs."""

    def __init__(self, claim: Claim, fate: _Fate) -> None:
        # One state in two classes: whoever tells the runner's own claim to stop tells this one.
        self.__dict__ = claim.__dict__
        self._fate = fate

    def start(self) -> None:
        self._fate.reach(CrashPoint.STARTING)
        super().start()
        self._fate.reach(CrashPoint.STARTED)

    def _end(self, name: str, **values: Any) -> None:
        # Whatever is reported, and by whatever verb, also once more after a lost database.
        self._fate.reach(CrashPoint.REPORTING)
        super()._end(name, **values)
        self._fate.reach(CrashPoint.REPORTED)

    @property
    def stop_requested(self) -> bool:
        self._fate.go_on()
        return super().stop_requested

    @property
    def executor_session_id(self) -> str | None:
        self._fate.go_on()
        return super().executor_session_id

    def bind_session(self, executor_session_id: str | None) -> None:
        self._fate.go_on()
        super().bind_session(executor_session_id)


class CrashingRunner(Runner):
    """A runner of a process that dies."""

    def __init__(
        self,
        fate: _Fate,
        store: Store,
        clock_: clock.Clock,
        config: Settings,
        runner_id: str | None,
        **capabilities: Any,
    ) -> None:
        super().__init__(store, clock_, config, runner_id=runner_id, **capabilities)
        self._fate = fate

    def open(self) -> None:
        if not self.is_open:
            self._fate.add(self)
            super().open()

    def claim_many(self, limit: int, timeout: float = 0.0) -> list[Claim]:
        self._fate.go_on()
        claims = super().claim_many(limit, timeout)
        if claims:
            self._fate.reach(CrashPoint.CLAIMED)
        return claims

    def finish_many(self, finished: Iterable[tuple[Claim, str | None]]) -> list[Claim]:
        self._fate.reach(CrashPoint.REPORTING)
        refused = super().finish_many(finished)
        self._fate.reach(CrashPoint.REPORTED)
        return refused

    def end_silently(self) -> None:
        """End the threads without a word to the database, as the kernel does."""
        if not self.is_open:
            return
        self.is_open = False  # so that leaving the runner's block resolves nothing
        self._draining.set()
        self._closed.set()
        self._holds.set()
        self._bell.ring((Wake.WORK, Wake.STOP))
        for thread in self._threads:
            if thread is not threading.current_thread():  # which calls back what is to stop
                thread.join()

    def _take(self, limit: int) -> list[Claim]:
        taken = [_CrashingClaim(claim, self._fate) for claim in super()._take(limit)]
        with self._lock:
            self._held.update({claim.fence.run_id: claim for claim in taken})
        return list(taken)


class DoomedQueue(Queue):
    """The queue as a process sees it that will crash: its runners are CrashingRunners."""

    def __init__(self, store: Store, settings: Settings, clock_: clock.Clock, fate: _Fate) -> None:
        super().__init__(store, settings, clock_)
        self._fate = fate

    @property
    def has_crashed(self) -> bool:
        """Whether the process is dead."""
        return self._fate.is_dead

    def crash(self) -> None:
        """Crash here: raises Crashed."""
        self._fate.crash()

    def runner(
        self,
        runner_id: str | None = None,
        *,
        hostname: str | None = None,
        project_dir: str | None = None,
        executor_type: str | None = None,
        tags: Iterable[str] = (),
        properties: Mapping[str, Any] | None = None,
    ) -> CrashingRunner:
        """Return a runner that dies with this process."""
        return CrashingRunner(
            self._fate,
            self.store,
            self._clock,
            self.settings,
            runner_id,
            hostname=hostname,
            project_dir=project_dir,
            executor_type=executor_type,
            tags=tags,
            properties=properties,
        )


@contextmanager
def crashing(
    queue: Queue, at: CrashPoint | str | None = None, *, survives: int = 0
) -> Iterator[DoomedQueue]:
    """Execute the block as a process that crashes at a point, and leave it in peace.

    Give what is yielded to the code under test instead of the queue. The process passes the
    point `survives` times unharmed, then Crashed ends the block. Without a point it crashes
    where you call its `crash()`. Raises NeverCrashed when the block ends by itself.
    """
    fate = _Fate(None if at is None else CrashPoint(at), survives)
    doomed = DoomedQueue(queue.store, queue.settings, queue._clock, fate)
    try:
        yield doomed
    except Crashed:
        if not fate.is_dead:
            raise
    if not fate.is_dead:
        raise NeverCrashed(f"{fate}, and never did")
