"""`runqueue.testing`: a process that crashes where it is told to is dead to every database."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from runqueue import Claim, Queue, RunnerConflict, Status
from runqueue.testing import Crashed, CrashPoint, MovableClock, NeverCrashed, crashing
from tests.helpers import LONG, count, events_of, execute_sql, take

LEASE = 30.0


def serve(queue: Queue, work: Callable[[Claim], None] = lambda claim: claim.complete("x")) -> None:
    """A runner as users write them; it ends when there is nothing left."""
    with queue.runner("worker") as runner:
        while claim := runner.claim(timeout=0):
            claim.start()
            work(claim)


@pytest.mark.parametrize(
    ("point", "left", "resolved"),
    [
        (CrashPoint.CLAIMED, "claimed", "pending"),
        (CrashPoint.STARTING, "claimed", "pending"),
        (CrashPoint.STARTED, "running", "failed"),
        (CrashPoint.REPORTING, "running", "failed"),
        (CrashPoint.REPORTED, "completed", "completed"),
    ],
    ids=str,
)
def test_a_crash_leaves_what_a_kill_leaves(
    queue: Queue, clock: MovableClock, point: CrashPoint, left: str, resolved: str
) -> None:
    """The row as it was, a runner that is still listed, and the sweep as the only rescue."""
    run_id = queue.enqueue("x").run_id
    with crashing(queue, at=point) as doomed:
        serve(doomed)
    assert doomed.has_crashed
    assert queue.get(run_id).status == left
    assert execute_sql(queue, "SELECT lease_until FROM runners") == [(clock.text(LEASE),)]
    queue.sweep()
    assert queue.get(run_id).status == left
    clock.advance(LEASE)
    queue.sweep()
    assert queue.get(run_id).status == resolved


@pytest.mark.parametrize("point", [None, *CrashPoint], ids=str)
def test_it_does_no_more_than_it_had_done(queue: Queue, point: CrashPoint | None) -> None:
    """Its work is done before `reporting`, and not before; code after the crash is not reached."""
    reached: list[str] = []
    queue.enqueue("x")

    def work(claim: Claim) -> None:
        reached.append("work")
        if point is None:
            doomed.crash()
        claim.complete("x")
        reached.append("after")

    with crashing(queue, at=point) as doomed:
        serve(doomed, work)
    is_begun = point in (None, CrashPoint.REPORTING, CrashPoint.REPORTED)
    assert reached == (["work"] if is_begun else [])


@pytest.mark.parametrize("verb", ["fail", "confirm", "release", "finish_many", "with"])
@pytest.mark.parametrize("point", [CrashPoint.REPORTING, CrashPoint.REPORTED], ids=str)
def test_every_report_is_such_a_point(queue: Queue, verb: str, point: CrashPoint) -> None:
    """Before it the run is as it was, after it the report is there."""
    run_id = queue.enqueue("x").run_id
    reports: dict[str, tuple[Callable[[Claim], object], str, str]] = {
        "fail": (lambda claim: claim.fail("y"), "claimed", "failed"),
        "confirm": (lambda claim: claim.confirm_stop(), "stopping", "stopped"),
        "release": (lambda claim: claim.release(), "claimed", "pending"),
        "finish_many": (lambda claim: runner.finish_many([(claim, "y")]), "claimed", "completed"),
        "with": (
            lambda claim: claim.__enter__() and claim.__exit__(None, None, None),
            "running",
            "completed",
        ),
    }
    report, before, after = reports[verb]
    with crashing(queue, at=point) as doomed, doomed.runner() as runner:
        claim = take(runner)
        if verb == "confirm":
            queue.stop(run_id)
        report(claim)
    assert doomed.has_crashed
    assert queue.get(run_id).status == (before if point == CrashPoint.REPORTING else after)


def test_the_dead_report_nothing_not_even_while_their_blocks_are_left(queue: Queue) -> None:
    """`with claim` would fail the run, and `with runner` resolve it: neither does."""
    run = queue.enqueue("x")

    def no_verb_works(claim: Claim) -> None:
        for verb in (
            claim.complete,
            claim.release,
            lambda: claim.fail("y"),
            lambda: claim.stop_requested,
            lambda: runner.claim(timeout=0),
            lambda: runner.finish_many([(claim, None)]),
            doomed.runner("second").open,
        ):
            with pytest.raises(Crashed):
                verb()

    with crashing(queue) as doomed, doomed.runner("worker") as runner:
        for claim in runner:
            with claim:
                try:
                    doomed.crash()
                finally:
                    no_verb_works(claim)
    assert not runner.is_open
    assert events_of(queue, run) == ["pending", "claimed", "running"]
    assert count(queue, "runners") == 1


def test_code_that_catches_every_exception_does_not_go_on(queue: Queue) -> None:
    """As many agents' loops do, so that the error of one run ends no other."""
    caught: list[Exception] = []
    queue.enqueue_many([{"prompt": "x"}] * 2)

    def work(claim: Claim) -> None:
        try:
            claim.complete("x")
        except Exception as error:  # noqa: BLE001
            caught.append(error)

    with crashing(queue, at="reporting") as doomed:
        serve(doomed, work)
    assert caught == []
    assert sorted(run.status for run in queue.find()) == ["pending", "running"]


def test_all_runners_of_the_process_die_together(queue: Queue) -> None:
    """What a second one holds is left behind, too."""
    queue.enqueue_many([{"prompt": "x"}] * 2)
    with crashing(queue, at="starting") as doomed:
        with doomed.runner("first") as first, doomed.runner("second") as second:
            held = take(second)
            take(first).start()
    assert not second.is_open
    assert count(queue, "runners") == 2
    assert queue.get(held.run.run_id).status == Status.CLAIMED


def test_a_point_may_be_passed_unharmed_some_times(queue: Queue) -> None:
    """The first two runs are executed, the third is begun."""
    queue.enqueue_many([{"prompt": "x"}] * 4)
    with crashing(queue, at="reporting", survives=2) as doomed:
        serve(doomed)
    statuses = sorted(run.status for run in queue.find())
    assert statuses == ["completed", "completed", "pending", "running"]


def test_a_process_that_never_comes_there_is_an_error(queue: Queue) -> None:
    """Or a test would show nothing and not say so."""
    with pytest.raises(NeverCrashed, match="the process was to crash when started"):
        with crashing(queue, at="started") as doomed:
            serve(doomed)
    assert count(queue, "runners") == 0


def test_any_other_error_is_raised_as_it_is(queue: Queue) -> None:
    """A bug of the code under test is no crash."""
    with pytest.raises(ZeroDivisionError):
        with crashing(queue, at="started"):
            _ = 1 / 0


def test_a_process_in_a_process_dies_alone(queue: Queue) -> None:
    """The crash of the outer one ends both blocks, that of the inner one its own."""
    with crashing(queue) as outer:
        with crashing(queue) as inner:
            inner.crash()
        assert not outer.has_crashed
        with crashing(queue, at="started"):
            outer.crash()
    assert outer.has_crashed


def test_its_id_is_free_when_its_lease_is_over(queue: Queue, clock: MovableClock) -> None:
    """As if its machine were lost: from here nobody can see that it is dead."""
    run = queue.enqueue("x")
    with crashing(queue, at="started") as doomed:
        serve(doomed)
    with pytest.raises(RunnerConflict):
        serve(queue)
    clock.advance(LEASE)
    serve(queue)
    ended = queue.get(run.run_id)
    assert (ended.status, ended.error) == ("failed", "runner worker was restarted")


def test_a_stop_reaches_whoever_executes_the_run(queue: Queue) -> None:
    """Until it crashes, its claims are as every runner's."""
    told = threading.Event()
    queue.enqueue("x")
    with crashing(queue, at="reporting") as doomed, doomed.runner() as runner:
        claim = take(runner)
        claim.on_stop(told.set)
        queue.stop(claim.run.run_id)
        assert told.wait(LONG)
        assert claim.stop_requested
        assert runner.held == [claim]
        claim.confirm_stop()
