"""Moving a home while others claim, start or enqueue: no order leaves a run at two places."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from runqueue import IllegalMove, Queue, SessionConflict
from tests.helpers import MovableClock
from tests.race.interleave import Caller, explore
from tests.race.test_interleavings import Scene, Stage, check


@pytest.fixture
def stage(database_url: str, clock: MovableClock) -> Iterator[Stage]:
    """Two callers with runners of their own."""
    with ExitStack() as stack:
        yield Stage(database_url, clock, stack)


def _rehome(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.rehome(scene.session_ids[0], hostname="elsewhere")


def _claim(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return stage.runners[number].claim(timeout=0)


def _start(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return scene.claims[-1].start()


def _next(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.enqueue("next", session_id=scene.session_ids[0])


PAIRS: dict[str, tuple[dict[str, int], Callable[..., Any]]] = {
    "claim": ({"ended": 1}, _claim),
    "start": ({"claimed": 1}, _start),
    "enqueue": ({"ended": 1}, _next),
    "another move": ({"ended": 1}, _rehome),
}


@pytest.mark.parametrize("other", PAIRS)
def test_a_home_is_moved_before_or_after_what_others_do(
    stage: Stage, other: str, most_orders: int
) -> None:
    """An active run is where its session lives, and every waiting run demands that place."""
    shape, verb = PAIRS[other]

    def prepare() -> list[Caller]:
        scene = stage.scene(**shape)
        return [
            Caller(stage.queues[0], lambda queue: _rehome(stage, scene, 0, queue)),
            Caller(stage.queues[1], lambda queue: verb(stage, scene, 1, queue)),
        ]

    here = stage.runners[1].hostname
    # A claim that comes between two of the mover's looks is one order of many.
    is_rare = other == "claim" and stage.director.store.engine.locks_rows
    most = 8 * most_orders if is_rare else most_orders
    for order, (mover, caller) in explore(prepare, most):
        assert caller.error is None, (order, caller.error)
        assert mover.error is None or isinstance(mover.error, IllegalMove), (order, mover.error)
        check(stage.director, order)
        is_active = bool(stage.director.find(status=["claimed", "running"]))
        assert is_active == (mover.error is not None), order
        for run in stage.director.find(status="pending"):
            session = stage.director.session(run.session_id)
            assert session.hostname == (here if is_active else "elsewhere") or other == "start"
            if session.hostname:
                assert json.loads(run.demands)["hostname"] == session.hostname, order
        for run in stage.director.find(status=["claimed", "running"]):
            assert stage.director.session(run.session_id).hostname in (here, None), order
        for runner in stage.runners:
            for claim in runner.held:
                claim.fail("over") if claim.is_started else claim.release()


def test_of_two_sessions_one_gets_the_id(stage: Stage, most_orders: int) -> None:
    """In every order of their calls."""

    def prepare() -> list[Caller]:
        scene = stage.scene(sessions=2, pending=1)
        return [
            Caller(queue, lambda queue, one=one: queue.bind_session(one, "conversation-1"))
            for queue, one in zip(stage.queues, scene.session_ids, strict=True)
        ]

    for order, callers in explore(prepare, most_orders):
        errors = [caller.error for caller in callers if caller.error]
        assert len(errors) == 1, order
        assert isinstance(errors[0], SessionConflict), order
