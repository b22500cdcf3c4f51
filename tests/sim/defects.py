"""Defects to plant in the product, each of which the simulation must find.

Each breaks one guard in the place where it is made, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, Final

import pytest

from runqueue import StorageError, claims, enqueue, moves, statements, sweeper
from runqueue.clock import shift
from runqueue.database import Statement
from runqueue.models import Run
from runqueue.moves import Fence
from tests.sim.observer import Observer
from tests.sim.world import World

Plant = Callable[[pytest.MonkeyPatch], None]


def fenced_by(name: str, *columns: str, **sets: Any) -> Plant:
    """An owner's move is guarded by these columns of the fence alone."""

    def build() -> Any:
        fence = [getattr(Run, column) == statements.hole(column) for column in columns]
        return statements._move(name, reduce(and_, fence), Run.session, **sets)

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(statements.OWNER_MOVES, name, Statement(build))

    return plant


def complete_again(patch: pytest.MonkeyPatch) -> None:
    def build() -> Any:
        fence = [getattr(Run, name) == statements.hole(name) for name in Fence._fields]
        sets = {
            Run.status: statements.literal("completed"),
            Run.completed_at: statements.hole("now"),
        }
        begun = Run.status.not_in([statements.literal(one) for one in ("pending", "claimed")])
        return Run.update(sets).where(*fence, begun).returning(Run.session)

    patch.setitem(statements.OWNER_MOVES, "complete", Statement(build))


def claim_past_timeout(patch: pytest.MonkeyPatch) -> None:
    real = statements._is_pending
    patch.setattr(statements, "_is_ready", lambda run: real(run) & (run.waiting == 0))


def sweep_early(patch: pytest.MonkeyPatch) -> None:
    real = sweeper._rescue

    def rescue(store: Any, one: Any, times: dict[str, str]) -> int:
        return real(store, one, {**times, "now": shift(times["now"], 25)})

    patch.setattr(sweeper, "_rescue", rescue)


def forget_lost_claims(patch: pytest.MonkeyPatch) -> None:
    real = claims.claim_many

    def claim_many(*args: Any, **options: Any) -> list[Run]:
        try:
            return real(*args, **options)
        except StorageError:
            return []

    patch.setattr(claims, "claim_many", claim_many)


def take_over_the_living(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "_is_dead", lambda *_: True)


def keep_no_record_of_stops(patch: pytest.MonkeyPatch) -> None:
    real = moves.record

    def record(store: Any, name: str, run_id: str, **values: Any) -> None:
        if name != "stop":
            real(store, name, run_id, **values)

    patch.setattr(moves, "record", record)


def acknowledge_in_advance(patch: pytest.MonkeyPatch) -> None:
    real = enqueue.add_many

    def add_many(store: Any, requests: list[Any], clock_text: Any) -> list[Run]:
        try:
            return real(store, requests, clock_text)
        except StorageError:
            return [Run(run_id=one.run_id, session_id=one.session_id) for one in requests]

    patch.setattr(enqueue, "add_many", add_many)


def never_expire(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sweeper, "_expire", lambda *_: 0)


def keep_no_order(patch: pytest.MonkeyPatch) -> None:
    """The end of a run lets none of its session go on."""
    real = Observer.__init__

    def init(observer: Observer, path: Path, world: World) -> None:
        real(observer, path, world)
        observer._connection.execute("DROP TRIGGER IF EXISTS runs_order_update")

    patch.setattr(Observer, "__init__", init)


DEFECTS: Final[dict[str, tuple[Plant, str]]] = {
    "start without a fence": (fenced_by("start", "run_id"), "by the owner of another claim"),
    "start with half a fence": (
        fenced_by("start", "run_id", "runner_id"),
        "by the owner of another claim",
    ),
    "complete without a fence": (
        fenced_by("complete", "run_id", result=statements.hole("result")),
        "by the owner of another claim",
    ),
    "complete what has ended": (complete_again, "had ended and was changed"),
    "claim past timeout_at": (claim_past_timeout, "past its timeout_at"),
    "sweep before leases are over": (sweep_early, "was taken from"),
    "forget claims without an answer": (forget_lost_claims, "has forgotten"),
    "take over a living runner": (take_over_the_living, "was replaced though it lives"),
    "keep no record of stops": (keep_no_record_of_stops, "its history says"),
    "acknowledge what is not there": (acknowledge_in_advance, "was acknowledged and is not there"),
    "never expire": (never_expire, "outlived two ticks"),
    "keep no order in a session": (keep_no_order, "is marked"),
}
"""What is planted in the product, and how the simulation tells of it."""
