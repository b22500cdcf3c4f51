"""One tick of the daemon: what time alone must do to runs.

Every move is one set-based guarded statement over the rows as they are, so that ticks may be
late, repeated or made by several daemons at once. A tick that finds nothing takes no write lock.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from runqueue import clock, follow, moves, settings, statements, why
from runqueue.database import Store, again
from runqueue.states import Actor, Wake

BATCH: Final = 500
"""Runs expired in one transaction, so that a large backlog does not keep writers waiting."""
FORGET_AFTER: Final = 86_400.0
"""Seconds for which a dead runner stays listed."""


class _Resolved(NamedTuple):
    expired: int = 0
    settled: int = 0
    lost: int = 0
    released: int = 0


class Sweep(_Resolved):
    """How many runs one tick changed: four counts, and what followed of ends that it found."""

    told: int
    """Ends that were written by hand, of which parents were told."""
    retried: int
    """Attempts whose time had come."""

    def __new__(
        cls,
        expired: int = 0,
        settled: int = 0,
        lost: int = 0,
        released: int = 0,
        *,
        told: int = 0,
        retried: int = 0,
    ) -> Sweep:
        self = super().__new__(cls, expired, settled, lost, released)
        self.told, self.retried = told, retried
        return self

    def __bool__(self) -> bool:
        return any(self.counts().values())

    def __repr__(self) -> str:
        return f"Sweep({', '.join(f'{name}={count}' for name, count in self.counts().items())})"

    def counts(self) -> dict[str, int]:
        """Return all of them by their names."""
        return {**self._asdict(), "told": self.told, "retried": self.retried}


def sweep(store: Store, config: settings.Settings, *, now: str, rescues: bool = True) -> Sweep:
    """Expire, settle, lose and release what is due at `now`; then do what follows any end.

    Without `rescues` nothing is settled, lost or released.
    """
    expired = _expire(store, now)
    if not rescues:
        told, retried = follow.catch_up(store, now=now)
        return Sweep(expired, told=told, retried=retried)
    times = {
        "now": now,
        "lease_ago": clock.shift(now, -config.lease),
        "grace_ago": clock.shift(now, -(config.stop_grace + settings.STOP_ALLOWANCE)),
        "deadline_ago": clock.shift(now, -config.start_deadline),
    }
    counts = {
        rescue.name: _rescue(store, rescue, times)
        for rescue in statements.RESCUES
        if store.run(rescue.due, **times)
    }
    settled, lost, released = (counts.get(name, 0) for name in ("settle", "lose", "release"))
    told, retried = follow.catch_up(store, now=now)
    return Sweep(expired, settled, lost, released, told=told, retried=retried)


@again
def rescue_runner(store: Store, runner_id: str, *, now: str, actor: Actor, reason: str) -> Sweep:
    """Resolve all runs of a runner that is known to be gone, whatever its lease."""
    with store.transaction():
        store.lock(statements.LOCK_SESSIONS_OF_RUNNER, runner_id=runner_id)
        counts = {}
        for rescue in statements.RESCUES:
            rows = store.run(rescue.of_runner, runner_id=runner_id, now=now, error=reason)
            _record(store, rescue.name, rows, now, actor)
            counts[rescue.name] = len(rows)
    return Sweep(0, counts["settle"], counts["lose"], counts["release"])


@again
def heal(store: Store) -> int:
    """Correct which runs may be claimed, by the order of their sessions; return how many.

    The triggers keep that right, but for a run that an INSERT OR REPLACE took away, and for
    statuses that somebody wrote by hand while the session changed elsewhere.
    """
    if store.engine.locks_rows:
        with store.transaction():
            healed = int(store.run(statements.HEAL)[0][0])
            if healed:
                store.wake((Wake.WORK,))
        return healed
    healed = 0
    for find, mend in (
        (statements.AHEAD_OF_TURN, statements.MARK),
        (statements.STUCK, statements.UNMARK),
    ):
        for run_id, _ in store.run(find):
            with store.transaction():
                healed += store.change(mend, run_id=run_id)
                store.wake((Wake.WORK,))
    return healed


def forget_runners(store: Store, *, now: str) -> int:
    """Delete the rows of runners that died a day ago and own nothing; return how many."""
    return store.change(statements.FORGET_RUNNERS, before=clock.shift(now, -FORGET_AFTER))


@again
def _rescue(store: Store, rescue: statements.Rescue, times: dict[str, str]) -> int:
    with store.transaction():
        rows = store.run(rescue.move, **times)
        _record(store, rescue.name, rows, times["now"], Actor.DAEMON)
        return len(rows)


def _record(store: Store, name: str, rows: list[tuple[Any, ...]], now: str, actor: Actor) -> None:
    detail = "its owner is gone or did not start it" if name == "release" else None
    by_detail: dict[str | None, list[str]] = {}
    for run_id, error, *_ in rows:
        by_detail.setdefault(detail or error, []).append(run_id)
    followed = {row[0] for row in rows if moves.is_followed(row)}
    for told, run_ids in by_detail.items():
        moves.record_many(
            *(store, name, run_ids),
            now=now,
            actor=actor,
            detail=told,
            followed=[run_id for run_id in run_ids if run_id in followed],
        )


def _expire(store: Store, now: str) -> int:
    expired = 0
    # The end of a session's first run makes the next one the first, in another group than it was.
    while count := sum(
        _expire_group(store, now, *due) for due in store.run(statements.DUE, now=now)
    ):
        expired += count
    return expired


def _expire_group(store: Store, now: str, text: str, waiting: int, run_id: str) -> int:
    reason = why.unclaimed(store, run_id, text, bool(waiting), now=now)
    expired = 0
    while True:
        count = _expire_batch(store, now, text, waiting, f"expired: {reason}")
        expired += count
        if count < BATCH:
            return expired


@again
def _expire_batch(store: Store, now: str, text: str, waiting: int, error: str) -> int:
    with store.transaction():
        rows = store.run(
            statements.EXPIRE, now=now, text=text, waiting=waiting, error=error, limit=BATCH
        )
        _record(store, "expire", rows, now, Actor.DAEMON)
        return len(rows)
