"""Whatever the order of two callers' database calls: one winner, and no error but a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import pytest

from runqueue import (
    Claim,
    IllegalMove,
    Queue,
    RunNotFound,
    SessionNotFound,
    StaleClaim,
    StorageBusy,
    sweeper,
)
from tests.helpers import MovableClock, events_of, execute_sql
from tests.race.interleave import Caller, explore, orders, run, steps_of
from tests.race.stage import TwoCallers

REFUSALS = (StaleClaim, IllegalMove, RunNotFound, SessionNotFound)


class Scene(NamedTuple):
    """A queue with something in it, and the claims that its runners hold."""

    queue: Queue
    claims: list[Claim]
    session_ids: list[str]
    pending_ids: list[str]


class Stage(TwoCallers):
    """Prepares the same scene again and again, on one database."""

    def scene(
        self,
        *,
        claimed: int = 0,
        held: int = 0,
        ended: int = 0,
        pending: int = 2,
        sessions: int = 1,
        emptied: bool = False,
    ) -> Scene:
        """Sessions with `pending` runs each, of which some are claimed, started, or completed."""
        execute_sql(self.director, "DELETE FROM sessions")
        session_ids = []
        for _ in range(sessions):
            self.clock.advance(1)
            session_ids.append(self.director.enqueue("first").session_id)
            for _ in range(pending - 1):
                self.clock.advance(1)
                self.director.enqueue("next", session_id=session_ids[-1])
        claims = []
        for number in range(claimed + held + ended):
            claim = self.runners[0].claim(timeout=0)
            assert claim is not None
            claims.append(claim)
            if number >= claimed:
                claim.start()
            if number >= claimed + held:
                claim.complete("done")
        self.clock.advance(1)
        if emptied:
            execute_sql(self.director, "DELETE FROM runs")
        pending = self.director.find(status="pending")
        return Scene(self.director, claims, session_ids, [run.run_id for run in pending[::-1]])


@pytest.fixture
def stage(database_url: str, clock: MovableClock) -> Iterator[Stage]:
    """Two callers with runners of their own."""
    with ExitStack() as stack:
        yield Stage(database_url, clock, stack)


Verb = Callable[[Stage, Scene, int, Queue], Any]


def _claim(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return stage.runners[number].claim(timeout=0)


def _claim_two(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return stage.runners[number].claim_many(2)


def _urgent(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.enqueue("urgent", session_id=scene.session_ids[0], priority=9)


def _next(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.enqueue("next", session_id=scene.session_ids[0])


def _next_in_all(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    ids = scene.session_ids if number else scene.session_ids[::-1]
    return queue.enqueue_many({"prompt": "x", "session_id": one} for one in ids)


def _complete(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return scene.claims[0].complete("done")


def _finish_all(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return stage.runners[0].finish_many([(claim, "done") for claim in scene.claims])


def _stop_active(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.stop(scene.claims[0].run.run_id)


def _cancel_first(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.stop(scene.pending_ids[0])


def _delete_session(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.delete_session(scene.session_ids[0], force=True)


def _delete_idle_session(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.delete_session(scene.session_ids[0])


def _sweep(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.sweep(stage.clock.text(7200))


def _start(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return scene.claims[0].start()


def _change_and_insert(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    with queue.database.atomic():
        execute_sql(queue, "UPDATE sessions SET agent_name = 'x'")
        _insert(stage, scene, number, queue)


def _insert(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    with queue.database.atomic() if not queue.database.in_transaction() else nullcontext():
        execute_sql(
            queue,
            "INSERT INTO runs (run_id, session_id, type, prompt, created_at) "
            "VALUES (?, ?, 'RESUME_SESSION', 'by hand', ?)",
            *(f"run_{number:012}", scene.session_ids[0], stage.clock.text(number)),
        )


def _prune(stage: Stage, scene: Scene, number: int, queue: Queue) -> Any:
    return queue.prune(0)


PAIRS: dict[str, tuple[dict[str, Any], Verb, Verb]] = {
    "claim | claim": ({}, _claim, _claim),
    "claim | claim, of two sessions": ({"sessions": 2}, _claim, _claim),
    "claim many | claim many": ({"sessions": 3, "pending": 1}, _claim_two, _claim_two),
    "claim | enqueue what goes first": ({"pending": 1}, _claim, _urgent),
    "claim | enqueue what comes after": ({"pending": 1}, _claim, _next),
    "claim | cancel": ({}, _claim, _cancel_first),
    "claim | delete the session": ({}, _claim, _delete_session),
    "claim | delete the idle session": ({}, _claim, _delete_idle_session),
    "claim | sweep": ({}, _claim, _sweep),
    "cancel | enqueue what goes first": ({}, _cancel_first, _urgent),
    "enqueue | enqueue": ({"pending": 1}, _next, _next),
    "enqueue many | enqueue many": ({"sessions": 2}, _next_in_all, _next_in_all),
    "complete | stop": ({"held": 1}, _complete, _stop_active),
    "complete | claim": ({"held": 1}, _complete, _claim),
    "complete | enqueue what goes first": ({"held": 1}, _complete, _urgent),
    "complete | sweep": ({"held": 1}, _complete, _sweep),
    "complete | delete the session": ({"held": 1}, _complete, _delete_session),
    "finish many | enqueue many": ({"held": 2, "sessions": 2}, _finish_all, _next_in_all),
    "sweep | sweep": ({"held": 2, "sessions": 2}, _sweep, _sweep),
    "sweep | enqueue many": ({"held": 2, "sessions": 2}, _sweep, _next_in_all),
    "prune | enqueue": ({"ended": 1, "pending": 1}, _prune, _next),
    "prune | prune": ({"ended": 2, "pending": 1, "sessions": 2}, _prune, _prune),
    "enqueue | delete the session": ({}, _next, _delete_session),
    "start | enqueue": ({"claimed": 1, "pending": 1}, _start, _next),
    "insert by hand | insert by hand": ({"ended": 1, "pending": 1}, _insert, _insert),
    "insert by hand | insert by hand, into an empty session": (
        {"emptied": True},
        _insert,
        _insert,
    ),
    "change the session, insert | insert by hand": ({"emptied": True}, _change_and_insert, _insert),
    "change the session, insert | change it, insert": (
        {"emptied": True},
        _change_and_insert,
        _change_and_insert,
    ),
    "claim | insert by hand": ({"pending": 1}, _claim, _insert),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_two_callers_at_once_leave_what_one_after_the_other_could(
    stage: Stage, pair: str, most_orders: int
) -> None:
    """No order makes a deadlock, a second active run of a session, or a run that is stuck."""
    shape, *verbs = PAIRS[pair]

    def prepare() -> list[Caller]:
        scene = stage.scene(**shape)
        return [
            Caller(stage.queues[number], lambda queue, n=number, v=verb: v(stage, scene, n, queue))
            for number, verb in enumerate(verbs)
        ]

    for order, callers in explore(prepare, most_orders):
        for caller in callers:
            assert caller.error is None or isinstance(caller.error, REFUSALS), (order, caller.error)
        check(stage.director, order)
        if pair == "claim | claim":
            assert len([one for one in callers if one.result is not None]) == 1, order
        if pair == "claim | delete the idle session":
            assert callers[0].result is None or callers[1].error is not None, order
        if pair == "prune | enqueue":
            # Or the session was gone before the run could be added.
            error, run_added = callers[1].error, callers[1].result
            assert error or stage.director.get(run_added.run_id).prompt == "next", order
        if pair == "start | enqueue":
            home = stage.runners[0].hostname
            assert home in (stage.director.get(callers[1].result.run_id).demands or ""), order


def check(queue: Queue, order: tuple[int, ...]) -> None:
    """The marks are right, a session has one active run, a claim was told to somebody."""
    from runqueue import reading

    assert reading.problems(queue.store) == [], order
    active = execute_sql(
        queue,
        "SELECT session_id FROM runs WHERE status IN ('claimed', 'running', 'stopping') "
        "GROUP BY session_id HAVING count(*) > 1",
    )
    assert active == [], order
    for one in queue.find():
        events = events_of(queue, one)
        assert not events or events[-1] == one.status, order


@pytest.mark.parametrize("marked", [False, True], ids=["both-unmarked", "as-it-should-be"])
def test_two_runners_never_hold_two_runs_of_one_session(stage: Stage, marked: bool) -> None:
    """Also where somebody's SQL lets both be claimed: the index refuses one, unheard."""
    count = steps_of(stage.queues[0], lambda _: stage.runners[0].claim(timeout=0))
    for order in orders(count, count):
        scene = stage.scene()
        if not marked:
            execute_sql(stage.director, "UPDATE runs SET waiting = 0")
        callers = [
            Caller(queue, lambda queue, n=number: stage.runners[n].claim(timeout=0))
            for number, queue in enumerate(stage.queues)
        ]
        run(callers, order)
        assert [caller.error for caller in callers] == [None, None], order
        assert len([one for one in callers if one.result is not None]) == 1, order
        # Whoever never met the other did not see that the marks were wrong; the daemon will.
        sweeper.heal(stage.director.store)
        check(scene.queue, order)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_the_interleaver_sees_a_deadlock_where_there_is_one(stage: Stage) -> None:
    """Two transactions that take two locks in two orders: else the tests above prove nothing."""
    scene = stage.scene(sessions=2, pending=1)
    failures: list[BaseException] = []

    def change(ids: list[str]) -> Callable[[Queue], None]:
        def verb(queue: Queue) -> None:
            with queue.store.transaction():
                for one in ids:
                    execute_sql(
                        queue, "UPDATE sessions SET agent_name = 'x' WHERE session_id = ?", one
                    )

        return verb

    for order in ((0, 0, 1, 1, 0, 1), (1, 1, 0, 0, 1, 0)):
        callers = [
            Caller(stage.queues[0], change(scene.session_ids)),
            Caller(stage.queues[1], change(scene.session_ids[::-1])),
        ]
        run(callers, order)
        failures += [caller.error for caller in callers if caller.error]
    assert failures
    assert all(isinstance(error, StorageBusy) for error in failures)
