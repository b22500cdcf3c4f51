"""A run that was enqueued is there, whole, once, and as it was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

import runqueue
from runqueue import InvalidRun, Queue, Runner, RunNotFound, RunType, SessionNotFound, Status
from tests.helpers import MovableClock, count, events_of, ids, is_empty, start, take

RUN_ID = "run_0123456789ab"


def test_enqueue_returns_a_pending_run_of_a_new_session(queue: Queue) -> None:
    """A run without a session starts one, and both have ids of the documented shape."""
    run = queue.enqueue("Summarise the README")
    assert re.fullmatch("run_[0-9a-f]{12}", run.run_id)
    assert re.fullmatch("ses_[0-9a-f]{12}", run.session_id)
    assert run.status == Status.PENDING
    assert run.type == RunType.START_SESSION
    assert run.execution_mode == "sync"


def test_enqueue_in_a_session_resumes_it(queue: Queue) -> None:
    """A run for a session that exists is a RESUME_SESSION of it."""
    first = queue.enqueue("Summarise the README")
    second = queue.enqueue("Now in French", session_id=first.session_id)
    assert second.type == RunType.RESUME_SESSION
    assert second.session_id == first.session_id
    assert count(queue, "sessions") == 1


def test_everything_that_was_asked_for_is_stored(queue: Queue, clock: MovableClock) -> None:
    """Every keyword of enqueue is a column of the run."""
    parent = queue.enqueue("parent")
    clock.advance(1)
    run = queue.enqueue(
        "Write\n'it' \"down\" \\ ☃",
        agent_name="writer",
        project_dir="/srv/app",
        parent_session_id=parent.session_id,
        execution_mode="async_callback",
        demands={"tags": ["gpu", "big"], "hostname": "box"},
        timeout=90.5,
        priority=-7,
        run_id=RUN_ID,
    )
    stored = queue.get(RUN_ID)
    assert stored.run_id == run.run_id == RUN_ID
    assert stored.prompt == "Write\n'it' \"down\" \\ ☃"
    assert stored.agent_name == "writer"
    assert stored.project_dir == "/srv/app"
    assert stored.parent_session_id == parent.session_id
    assert stored.execution_mode == "async_callback"
    assert json.loads(stored.demands) == {"hostname": "box", "tags": ["big", "gpu"]}
    assert stored.created_at == clock.text()
    assert stored.timeout_at == clock.text(90.5)
    assert stored.priority == -7


def test_the_returned_run_is_the_stored_run(queue: Queue) -> None:
    """What enqueue returns does not differ from what a later look finds."""
    run = queue.enqueue("x", agent_name="writer", demands={"tags": ["gpu"]}, priority=3)
    stored = queue.get(run.run_id).as_dict()
    assert run.as_dict().items() <= stored.items()


def test_a_new_session_keeps_what_its_first_run_was_given(
    queue: Queue, clock: MovableClock
) -> None:
    """The session remembers agent, directory, parent and mode, and is not bound to a host."""
    parent = queue.enqueue("parent")
    clock.advance(1)
    run = queue.enqueue(
        "x",
        agent_name="writer",
        project_dir="/srv/app",
        parent_session_id=parent.session_id,
        execution_mode="async_poll",
    )
    session = queue.session(run.session_id)
    assert session.created_at == clock.text()
    assert session.agent_name == "writer"
    assert session.project_dir == "/srv/app"
    assert session.parent_session_id == parent.session_id
    assert session.execution_mode == "async_poll"
    assert session.hostname is None


def test_a_run_without_demands_never_times_out(queue: Queue) -> None:
    """The default timeout is none for a run that demands nothing."""
    run = queue.enqueue("x")
    assert run.timeout_at is None
    assert run.demands is None


def test_a_run_with_demands_times_out_after_300_seconds(queue: Queue, clock: MovableClock) -> None:
    """The default timeout is 300 seconds for a run with demands of its own."""
    assert queue.enqueue("x", demands={"tags": ["gpu"]}).timeout_at == clock.text(300)


@pytest.mark.parametrize(
    "demands",
    [
        {},
        {"tags": [], "hostname": "", "memory": None},
        {"tags": ()},
        {"tags": set()},
    ],
    ids=["nothing", "nulls", "tuple", "set"],
)
def test_demands_that_ask_for_nothing_are_no_demands(queue: Queue, demands: object) -> None:
    """null, "" and an empty list of any kind demand nothing, so they bring no timeout either."""
    run = queue.enqueue("x", demands=demands)
    assert run.demands is None
    assert run.timeout_at is None


def test_a_timeout_beyond_the_calendar_is_held_at_its_end(queue: Queue) -> None:
    """A huge timeout is stored as the last time that the format can express."""
    assert queue.enqueue("x", timeout=1e300).timeout_at == "9999-12-31T23:59:59.999999Z"


def test_the_same_run_id_with_the_same_content_adds_nothing(
    queue: Queue, clock: MovableClock
) -> None:
    """A repeated enqueue finds the run of the first, whatever the time is by then."""
    content = {"agent_name": "writer", "demands": {"tags": ["b", "a"]}, "priority": 2}
    first = queue.enqueue("x", run_id=RUN_ID, **content)
    clock.advance(1)
    again = queue.enqueue("x", run_id=RUN_ID, **content)
    assert again.session_id == first.session_id
    assert again.created_at == first.created_at
    assert count(queue, "runs") == count(queue, "sessions") == 1
    assert events_of(queue, first) == ["pending"]


def test_the_same_run_id_is_accepted_after_the_run_has_moved_on(
    queue: Queue, runner: Runner
) -> None:
    """A repeated enqueue does not revive a run that was claimed meanwhile."""
    queue.enqueue("x", run_id=RUN_ID)
    take(runner)
    assert queue.enqueue("x", run_id=RUN_ID).status == Status.CLAIMED


def test_a_repeated_resume_adds_nothing_even_when_the_session_was_bound_meanwhile(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """The home that a run was given does not make it another run than was asked for."""
    first = queue.enqueue("x")
    clock.advance(1)
    queue.enqueue("y", session_id=first.session_id, run_id=RUN_ID, demands={"tags": ["gpu"]})
    take(runner).start()
    queue.enqueue("y", session_id=first.session_id, run_id=RUN_ID, demands={"tags": ["gpu"]})
    assert count(queue, "runs") == 2


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "y"},
        {"agent_name": "reader"},
        {"agent_name": None},
        {"project_dir": "/tmp"},
        {"execution_mode": "async_poll"},
        {"demands": {"tags": ["cpu"]}},
        {"demands": {"tags": ["gpu"], "hostname": "box"}},
        {"demands": None},
        {"timeout": 61},
        {"timeout": None},
        {"priority": 1},
    ],
    ids=lambda change: "-".join(f"{key}={value}" for key, value in change.items()),
)
def test_the_same_run_id_with_another_content_is_refused(
    queue: Queue, change: dict[str, object]
) -> None:
    """A run id stands for one content; nothing is added or changed by another one."""
    content = {"agent_name": "writer", "demands": {"tags": ["gpu"]}, "timeout": 60}
    first = queue.enqueue("x", run_id=RUN_ID, **content)
    with pytest.raises(InvalidRun):
        queue.enqueue(**{"prompt": "x", "run_id": RUN_ID, **content, **change})
    assert count(queue, "runs") == count(queue, "sessions") == 1
    assert first.as_dict().items() <= queue.get(RUN_ID).as_dict().items()


def test_the_same_run_id_for_another_session_is_refused(queue: Queue) -> None:
    """A run id belongs to one session."""
    one, other = queue.enqueue("x"), queue.enqueue("x")
    queue.enqueue("y", session_id=one.session_id, run_id=RUN_ID)
    with pytest.raises(InvalidRun):
        queue.enqueue("y", session_id=other.session_id, run_id=RUN_ID)


def test_enqueue_many_adds_the_runs_in_order(queue: Queue, runner: Runner) -> None:
    """Many runs, from any iterable, are returned in the order in which they were given."""
    runs = queue.enqueue_many({"prompt": f"p{number}"} for number in range(5))
    assert [run.prompt for run in runs] == ["p0", "p1", "p2", "p3", "p4"]
    assert {run.run_id for run in queue.find()} == set(ids(runs))


def test_enqueue_many_of_nothing_adds_nothing(queue: Queue) -> None:
    """An empty batch is no error."""
    assert queue.enqueue_many([]) == []
    assert is_empty(queue)


def test_enqueue_many_adds_all_or_none(queue: Queue) -> None:
    """A run that the database cannot take keeps the whole batch out."""
    with pytest.raises(SessionNotFound):
        queue.enqueue_many([{"prompt": "good"}, {"prompt": "bad", "session_id": "ses_missing"}])
    assert is_empty(queue)


def test_an_enqueued_run_is_visible_to_others_at_once(
    queue: Queue, connect: Callable[..., Queue]
) -> None:
    """When enqueue returns, another connection sees the run with its demands."""
    other = connect()
    run = queue.enqueue("x", demands={"tags": ["gpu"]})
    assert other.get(run.run_id).demands == '{"tags":["gpu"]}'


def test_connecting_again_keeps_the_runs(database_url: str) -> None:
    """A database is created once; whoever opens it later finds what is there."""
    with runqueue.connect(database_url) as queue:
        run = queue.enqueue("x")
    with runqueue.connect(database_url) as queue:
        assert queue.get(run.run_id).prompt == "x"


def test_get_of_an_unknown_run_is_refused(queue: Queue) -> None:
    """A run that does not exist is RunNotFound, which is a LookupError."""
    with pytest.raises(RunNotFound):
        queue.get("run_missing")
    assert issubclass(RunNotFound, LookupError)


def test_session_of_an_unknown_id_is_refused(queue: Queue) -> None:
    """A session that does not exist is SessionNotFound."""
    with pytest.raises(SessionNotFound):
        queue.session("ses_missing")
    with pytest.raises(SessionNotFound):
        queue.session_status("ses_missing")


def test_find_returns_the_newest_first_up_to_the_limit(queue: Queue, clock: MovableClock) -> None:
    """A list begins with what was enqueued last."""
    runs = []
    for number in range(3):
        runs.append(queue.enqueue(f"p{number}"))
        clock.advance(1)
    assert ids(queue.find()) == ids(runs)[::-1]
    assert ids(queue.find(limit=2)) == [runs[2].run_id, runs[1].run_id]
    assert queue.find(limit=0) == []


def test_find_returns_what_matches_all_filters(queue: Queue, runner: Runner) -> None:
    """Each filter narrows the list, and several of them narrow it together."""
    first = queue.enqueue("x", agent_name="writer", priority=1)
    second = queue.enqueue("x", agent_name="reader")
    take(runner)
    assert ids(queue.find(status="claimed")) == [first.run_id]
    assert ids(queue.find(status=Status.PENDING)) == [second.run_id]
    assert len(queue.find(status=["pending", Status.CLAIMED])) == 2
    assert ids(queue.find(session_id=second.session_id)) == [second.run_id]
    assert ids(queue.find(runner_id="worker")) == [first.run_id]
    assert ids(queue.find(agent_name="reader")) == [second.run_id]
    assert queue.find(agent_name="reader", status="claimed") == []


def test_find_takes_wildcards_literally(queue: Queue) -> None:
    """% and _ in a filter match themselves only."""
    queue.enqueue("x", agent_name="writer")
    assert queue.find(agent_name="%") == []
    assert queue.find(agent_name="write_") == []


def test_a_repeated_resume_is_compared_with_what_was_asked_for(
    queue: Queue, runner: Runner
) -> None:
    """The home that was added to it is no difference; a demand that was left out is one."""
    first = queue.enqueue("x")
    content = {"session_id": first.session_id, "run_id": RUN_ID, "timeout": 60}
    with_host = {**content, "demands": {"hostname": runner.hostname}}
    resumed = queue.enqueue("y", **with_host)
    with pytest.raises(InvalidRun):
        queue.enqueue("y", **content)
    start(runner).complete()
    assert queue.enqueue("y", **with_host).run_id == resumed.run_id
