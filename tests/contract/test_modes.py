"""How a caller learns of the end of a run: by waiting for it, or by asking."""

from __future__ import annotations

from runqueue import Queue, Runner
from tests.helpers import MovableClock, start


def test_a_polled_run_can_be_asked_about_at_any_time(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """From its enqueue to long after its end, without waiting for anything."""
    run = queue.enqueue("x", execution_mode="async_poll")
    assert run.execution_mode == "async_poll"
    seen = [queue.get(run.run_id).status]
    claim = start(runner)
    seen.append(queue.get(run.run_id).status)
    claim.complete("the result")
    seen.append(queue.get(run.run_id).status)
    assert seen == ["pending", "running", "completed"]
    clock.advance(365 * 86_400)
    queue.sweep()
    assert queue.get(run.run_id).result == "the result"


def test_a_result_is_kept_as_long_as_the_run(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Later runs of the session do not replace it; it goes when the run is pruned, not before."""
    results = {}
    session_id = None
    for number in range(3):
        run = queue.enqueue("x", session_id=session_id, execution_mode="async_poll")
        session_id = run.session_id
        start(runner).complete(f"result {number}")
        results[run.run_id] = f"result {number}"
        clock.advance(60)
    assert {run_id: queue.get(run_id).result for run_id in results} == results
    assert queue.prune(100) == 2
    assert [run.result for run in queue.find()] == ["result 2"]


def test_a_polled_run_may_be_waited_for_all_the_same(queue: Queue, runner: Runner) -> None:
    """The mode says how its caller means to learn of the end; it forbids nothing."""
    run = queue.enqueue("x", execution_mode="async_poll")
    start(runner).fail("it broke")
    assert queue.wait(run.run_id, timeout=0).error == "it broke"
