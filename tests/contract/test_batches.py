"""Many at once are what they would be one by one, in a few statements."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runqueue import Claim, Queue, Runner, Status, enqueue
from runqueue import claims as owners
from tests.helpers import MovableClock, execute_sql, statements_of

ALL = 6


@pytest.fixture(params=["as a set", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a batch is made; the second is what meets a refusal."""
    if request.param == "one by one":
        monkeypatch.setattr(owners, "_finish_all", lambda store, reports: False)
        monkeypatch.setattr(enqueue.Request, "is_plain", False)
    return str(request.param)


def test_a_batch_is_added_as_it_was_asked_for(queue: Queue, clock: MovableClock, way: str) -> None:
    """With all that each run was given, sessions of their own, and a history."""
    wanted = [
        {"prompt": "a", "agent_name": "writer", "priority": 3, "execution_mode": "async_poll"},
        {"prompt": "b", "project_dir": "/srv", "demands": {"tags": ["gpu"]}, "timeout": 9},
        {"prompt": "c"},
    ]
    runs = queue.enqueue_many(wanted)
    assert [run.as_dict() for run in runs] == [queue.get(run.run_id).as_dict() for run in runs] or [
        {**run.as_dict(), "waiting": 0} for run in runs
    ] == [queue.get(run.run_id).as_dict() for run in runs]
    assert [run.prompt for run in runs] == ["a", "b", "c"]
    assert [run.created_at for run in runs] == [clock.text(n * 1e-6) for n in range(3)]
    assert [run.timeout_at for run in runs] == [None, clock.text(9 + 1e-6), None]
    assert len({run.session_id for run in runs}) == 3
    assert queue.session(runs[0].session_id).agent_name == "writer"
    assert queue.session(runs[1].session_id).project_dir == "/srv"
    for run in runs:
        [event] = queue.timeline(run.run_id)
        assert (event.status, event.actor, event.at) == ("pending", "caller", run.created_at)


def test_a_prune_deletes_the_sessions_of_a_batch_at_once(
    queue: Queue, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many statements for forty runs as for one: the batch holds its locks meanwhile."""
    sent = []
    for number in (1, 40):
        queue.enqueue_many({"prompt": "x", "timeout": 0} for _ in range(number))
        clock.advance(1)
        queue.sweep()
        clock.advance(1)
        with statements_of(queue, monkeypatch) as statements:
            assert queue.prune(0) == number
        sent.append(statements)
    assert execute_sql(queue, "SELECT * FROM sessions") == []
    assert sent[1] == sent[0]
    assert len([sql for sql in sent[0] if 'DELETE FROM "sessions"' in sql]) == 1


def finished(queue: Queue, runner: Runner) -> list[Claim]:
    """Claims of new and of resumed sessions, started or not, completed in one batch."""
    first = queue.enqueue_many([{"prompt": str(number)} for number in range(ALL)])
    claims = runner.claim_many(ALL)
    for claim in claims[:2]:
        claim.start()
    for run in first[1:4]:
        queue.enqueue("next", session_id=run.session_id)
    assert runner.finish_many([(claim, f"result {claim.run.prompt}") for claim in claims]) == []
    return claims


def test_a_batch_is_finished_as_one_by_one(
    queue: Queue, runner: Runner, clock: MovableClock, way: str
) -> None:
    """Results, times, histories, and the homes of sessions and of the runs that wait in them."""
    claims = finished(queue, runner)
    assert runner.held == []
    for claim in claims:
        run = queue.get(claim.run.run_id)
        assert (run.status, run.result) == (Status.COMPLETED, f"result {run.prompt}")
        assert (run.started_at, run.completed_at) == (clock.text(), clock.text())
        history = [(event.status, event.actor) for event in queue.timeline(run.run_id)]
        assert history == [
            ("pending", "caller"),
            ("claimed", "runner"),
            ("running", "runner"),
            ("completed", "runner"),
        ]
        assert queue.session(run.session_id).hostname == runner.hostname
    waiting = queue.find(status="pending")
    assert len(waiting) == 3
    assert all(f'"hostname":"{runner.hostname}"' in (run.demands or "") for run in waiting)


def test_a_batch_of_resumed_sessions_keeps_their_homes(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock, way: str
) -> None:
    """They were bound before: only the time of the last resumption changes."""
    runner = open_runner(executor_type="own")
    finished(queue, runner)
    execute_sql(queue, "UPDATE sessions SET executor_type = NULL")
    clock.advance(10)
    claims = runner.claim_many(ALL)
    assert len(claims) == 3
    assert runner.finish_many([(claim, None) for claim in claims]) == []
    for claim in claims:
        session = queue.session(claim.run.session_id)
        assert (session.executor_type, session.last_resumed_at) == (None, clock.text())


def test_one_that_was_lost_leaves_the_others_done(queue: Queue, runner: Runner, way: str) -> None:
    """And nothing of the lost one, but its late result."""
    queue.enqueue_many([{"prompt": str(number)} for number in range(ALL)])
    claims = runner.claim_many(ALL)
    lost, *others = claims
    queue.release(lost.run.run_id)
    assert runner.finish_many([(claim, "r") for claim in claims]) == [lost]
    assert queue.get(lost.run.run_id).status == Status.PENDING
    assert {queue.get(claim.run.run_id).status for claim in others} == {Status.COMPLETED}


@pytest.mark.parametrize("verb", ["enqueue", "claim", "finish"])
def test_a_larger_batch_takes_no_more_statements(
    queue: Queue, runner: Runner, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A server is asked as often for a hundred as for ten."""

    def count(number: int) -> int:
        requests = [{"prompt": "x"}] * number
        verbs: dict[str, Callable[[], object]] = {"enqueue": lambda: queue.enqueue_many(requests)}
        if verb != "enqueue":
            queue.enqueue_many(requests)
            verbs["claim"] = lambda: runner.claim_many(number)
        if verb == "finish":
            claims = runner.claim_many(number)
            verbs["finish"] = lambda: runner.finish_many([(claim, "r") for claim in claims])
        with statements_of(queue, monkeypatch) as sent:
            verbs[verb]()
        return len(sent)

    if verb == "claim" and not queue.store.engine.locks_rows:
        pytest.skip("SQLite takes one run at a time: there is no server to be asked")
    count(10)
    assert count(10) == count(60)
