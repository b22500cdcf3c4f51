"""Whatever the order of two callers' database calls: each end is told once, no limit is passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from runqueue import (
    Claim,
    IllegalMove,
    InvalidRun,
    Queue,
    RunNotFound,
    SessionNotFound,
    StaleClaim,
    parse_callback,
    reading,
)
from tests.helpers import MovableClock, execute_sql, start
from tests.race.interleave import Caller, explore
from tests.race.stage import TwoCallers

REFUSALS = (StaleClaim, IllegalMove, RunNotFound, SessionNotFound, InvalidRun)


class Scene(NamedTuple):
    """A parent at work and its children, each at work with a runner of its own."""

    parent: Claim
    children: list[Claim]


class Stage(TwoCallers):
    """Prepares the same family again and again, on one database."""

    def scene(self, *, by_hand: bool = False, callback: bool = False, idle: bool = False) -> Scene:
        """Two children; `by_hand` of them have ended, or a `callback` of a third one waits."""
        execute_sql(self.director, "DELETE FROM sessions")
        self.clock.advance(1)
        root = self.director.enqueue("parent", max_children=3)
        parent = start(self.runners[0])
        for number in range(3 if callback else 2):
            self.clock.advance(1)
            self.director.enqueue(
                f"child {number}",
                parent_session_id=root.session_id,
                execution_mode="async_callback",
            )
        children = [start(runner) for runner in self.runners]
        self.clock.advance(1)
        if callback:
            self.director.stop(self.director.find(status="pending")[0].run_id)
        if idle:
            parent.complete("")
        if by_hand:
            execute_sql(
                self.director,
                "UPDATE runs SET status = 'failed' WHERE execution_mode = 'async_callback'",
            )
        self.clock.advance(1)
        return Scene(parent, children)


@pytest.fixture
def stage(database_url: str, clock: MovableClock) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(database_url, clock, stack)


Verb = Callable[[Stage, Scene, int, Queue], Any]


def _complete(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return scene.children[number].complete("done")


def _fail_parent(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return scene.parent.fail("why")


def _resume_parent(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.enqueue("more", session_id=scene.parent.run.session_id, priority=number)


def _another_child(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.enqueue("another", parent_session_id=scene.parent.run.session_id)


def _grandchild(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.enqueue("deeper", parent_session_id=scene.children[0].run.session_id)


def _resume_child(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.enqueue("more", session_id=scene.children[0].run.session_id)


def _claim(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return stage.runners[number].claim(timeout=0)


def _stop_tree(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.stop_tree(scene.parent.run.run_id)


def _delete_parent(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.delete_session(scene.parent.run.session_id, force=True)


def _sweep(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.sweep()


PAIRS: dict[str, tuple[dict[str, bool], Verb, Verb]] = {
    "end a child | end its sibling": ({}, _complete, _complete),
    "end a child | end its sibling, a callback waits": ({"callback": True}, _complete, _complete),
    "end a child | end its parent": ({}, _complete, _fail_parent),
    "end a child | enqueue for the parent": ({}, _complete, _resume_parent),
    "end a child | enqueue below the parent": ({}, _complete, _another_child),
    "end a child | enqueue below it": ({}, _complete, _grandchild),
    "end a child | enqueue for it": ({}, _complete, _resume_child),
    "end a child | claim the callback": ({"callback": True, "idle": True}, _complete, _claim),
    "end a child | stop the tree": ({}, _complete, _stop_tree),
    "end a child | delete the parent": ({}, _complete, _delete_parent),
    "sweep | sweep": ({"by_hand": True}, _sweep, _sweep),
    "sweep | enqueue for the parent": ({"by_hand": True}, _sweep, _resume_parent),
    "sweep | delete the parent": ({"by_hand": True}, _sweep, _delete_parent),
    "enqueue below the parent | likewise": ({}, _another_child, _another_child),
    "stop the tree | enqueue below the parent": ({}, _stop_tree, _another_child),
    "stop the tree | stop the tree": ({}, _stop_tree, _stop_tree),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_two_callers_at_once_tell_each_end_once(stage: Stage, pair: str, most_orders: int) -> None:
    """No order makes a deadlock that is told, a lost or double callback, or a run too many."""
    shape, *verbs = PAIRS[pair]
    scene: Scene

    def prepare() -> list[Caller]:
        nonlocal scene
        scene = stage.scene(**shape)
        return [
            Caller(stage.queues[number], lambda queue, n=number, v=verb: v(stage, scene, n, queue))
            for number, verb in enumerate(verbs)
        ]

    for order, callers in explore(prepare, most_orders):
        for caller in callers:
            assert caller.error is None or isinstance(caller.error, REFUSALS), (order, caller.error)
        check(stage.director, scene, order)
        if pair.startswith("stop the tree | enqueue"):
            added = callers[1].result
            # Added before it, and then stopped with all others, or refused.
            assert added is None or stage.director.get(added.run_id).is_terminal, order
        if pair.startswith("enqueue below"):
            assert [caller.error is None for caller in callers].count(True) == 1, order
        if pair.startswith("end a child | claim"):
            # Nobody has it while the end of the child holds its session; then it still waits.
            assert callers[1].result or stage.director.find(status="pending"), order


def check(queue: Queue, scene: Scene, order: tuple[int, ...]) -> None:
    assert reading.problems(queue.store) == [], order
    runs = queue.find()
    parents = {run.session_id for run in runs}
    ends = [end.run_id for run in runs if run.tells for end in parse_callback(run.prompt) or []]
    assert len(ends) == len(set(ends)), order
    for run in runs:
        if run.execution_mode != "async_callback" or not run.is_terminal:
            continue
        assert run.callback_run_id is not None, order
        is_told = run.run_id in ends
        if run.parent_session_id in parents:
            assert is_told == (run.callback_run_id != "none"), order
        if run.parent_session_id not in parents:
            assert run.callback_run_id, order
    live = {
        run.session_id
        for run in runs
        if run.parent_session_id == scene.parent.run.session_id and not run.is_terminal
    }
    assert len(live) <= 3, order
