"""Every pair of moves that can meet in a status leaves what one after the other could leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import pytest

from runqueue import Claim, Queue, RunqueueError
from runqueue.states import MOVES, Status
from tests.helpers import MovableClock, execute_sql
from tests.race.interleave import Caller, explore
from tests.race.stage import TwoCallers

LATE = 7200.0
"""Seconds after which every lease, deadline, grace and timeout of the scene is over."""


class Scene(NamedTuple):
    """One run in some status, and the claim of it, if it has an owner."""

    run_id: str
    claim: Claim | None


class Stage(TwoCallers):
    """Prepares one run in any status, again and again."""

    def scene(self, status: Status) -> Scene:
        """A fresh run that is in this status."""
        execute_sql(self.director, "DELETE FROM sessions")
        self.clock.advance(1)
        run_id = self.director.enqueue("x", timeout=LATE / 2).run_id
        if status is Status.PENDING:
            return Scene(run_id, None)
        claim = self.runners[0].claim(timeout=0)
        assert claim is not None
        if status is not Status.CLAIMED:
            claim.start()
        if status is Status.STOPPING:
            self.director.stop(run_id)
        return Scene(run_id, claim)

    def outcome(self, scene: Scene) -> tuple[Any, ...]:
        """What became of the run: all that another order of the same calls may change."""
        run = self.director.get(scene.run_id)
        history = [
            (event.status, event.actor, event.detail)
            for event in self.director.timeline(run.run_id)
        ]
        return run.status, run.runner_id, run.error, run.result, tuple(history)


Verb = Callable[[Stage, Scene, int, Queue], Any]


def _owned(report: Callable[[Claim, int], None]) -> Verb:
    def verb(stage: Stage, scene: Scene, number: int, queue: Queue) -> None:
        assert scene.claim is not None
        runner = stage.runners[0]
        # The same claim through the caller's own queue: its owner asks twice at once.
        claim = Claim(
            queue.store, scene.claim.run, runner.capabilities, stage.clock.text, lambda _: None
        )
        claim.is_started = True
        report(claim, number)

    return verb


def _sweep(stage: Stage, scene: Scene, number: int, queue: Queue) -> None:
    queue.sweep(stage.clock.text(LATE))


VERBS: dict[str, Verb] = {
    "claim": lambda stage, scene, number, queue: stage.runners[number].claim(timeout=0),
    "start": _owned(lambda claim, number: claim.start()),
    "complete": _owned(lambda claim, number: claim.complete(f"result of {number}")),
    "fail": _owned(lambda claim, number: claim.fail(f"error of {number}")),
    "confirm": _owned(lambda claim, number: claim.confirm_stop()),
    "release": _owned(lambda claim, number: claim.release()),
    "stop": lambda stage, scene, number, queue: queue.stop(scene.run_id),
    "cancel": lambda stage, scene, number, queue: queue.cancel(scene.run_id),
    "expire": _sweep,
    "settle": _sweep,
    "lose": _sweep,
}
"""One who makes each move; the daemon's are made by its tick."""

COLLISIONS = [
    (status, first, second)
    for status in Status
    for first, second in combinations_with_replacement(
        [name for name, move in MOVES.items() if status in move.sources], 2
    )
]


@pytest.fixture
def stage(database_url: str, clock: MovableClock) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(database_url, clock, stack)


def kind(error: BaseException | None) -> str | None:
    assert error is None or isinstance(error, RunqueueError), error
    return type(error).__name__ if error else None


@pytest.mark.parametrize(
    ("status", "first", "second"), COLLISIONS, ids=[f"{s}: {a} | {b}" for s, a, b in COLLISIONS]
)
def test_two_moves_at_once_are_one_after_the_other(
    stage: Stage, status: Status, first: str, second: str, most_orders: int
) -> None:
    """One of the two orders, or the daemon or a claim leaves alone what the other holds."""
    names = (first, second)
    scene = Scene("", None)

    def verb(number: int, queue: Queue) -> Any:
        return VERBS[names[number]](stage, scene, number, queue)

    def one_by_one(*numbers: int) -> tuple[Any, ...]:
        nonlocal scene
        scene = stage.scene(status)
        errors: list[str | None] = [None, None]
        for number in numbers:
            try:
                verb(number, stage.queues[number])
            except RunqueueError as error:
                errors[number] = kind(error)
        return (*errors, stage.outcome(scene))

    legal = [one_by_one(0, 1), one_by_one(1, 0)]
    for number, name in enumerate(names):
        if name == "claim" or VERBS[name] is _sweep:
            legal.append(one_by_one(1 - number))

    def prepare() -> list[Caller]:
        nonlocal scene
        scene = stage.scene(status)
        return [Caller(queue, lambda q, n=n: verb(n, q)) for n, queue in enumerate(stage.queues)]

    for order, callers in explore(prepare, most_orders):
        seen = (*(kind(caller.error) for caller in callers), stage.outcome(scene))
        assert seen in legal, order


def test_every_move_can_be_made() -> None:
    """Whoever adds a move says who makes it, and it meets all others."""
    assert set(VERBS) == set(MOVES)
    assert len(COLLISIONS) == 36
