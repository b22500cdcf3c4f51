"""Sessions: one run at a time, in order, and always at home."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from runqueue import InvalidRun, Queue, Run, Runner
from tests.helpers import MovableClock, count, execute_sql, ids, start, take

HOME = {"hostname": "box", "project_dir": "/srv/app", "executor_type": "shell"}


@pytest.fixture
def session(queue: Queue, clock: MovableClock) -> list[Run]:
    """Three pending runs of one session, a second apart."""
    runs = [queue.enqueue("first")]
    for prompt in ("second", "third"):
        clock.advance(1)
        runs.append(queue.enqueue(prompt, session_id=runs[0].session_id))
    return runs


def test_a_session_has_one_active_run(session: list[Run], runner: Runner) -> None:
    """While a run of a session is active no other run of it is claimed, by batch or one by one."""
    assert ids(runner.claim_many(5)) == [session[0].run_id]
    assert runner.claim(timeout=0) is None


@pytest.mark.parametrize("end", ["complete", "fail", "confirm"])
def test_the_next_run_follows_whatever_end_the_first_had(
    queue: Queue, session: list[Run], runner: Runner, end: str
) -> None:
    """A session goes on after every end of a run."""
    claim = start(runner)
    assert runner.claim(timeout=0) is None
    if end == "confirm":
        queue.stop(claim.run.run_id)
        assert runner.claim(timeout=0) is None  # stopping is active
        claim.confirm_stop()
    elif end == "fail":
        claim.fail("why")
    else:
        claim.complete()
    assert take(runner).run.run_id == session[1].run_id


def test_a_released_run_is_first_again(session: list[Run], runner: Runner) -> None:
    """Giving the first run back does not let the second overtake it."""
    take(runner).release()
    assert take(runner).run.run_id == session[0].run_id


def test_a_cancelled_run_makes_way(queue: Queue, session: list[Run], runner: Runner) -> None:
    """The first run that is left is the next."""
    queue.stop(session[0].run_id)
    queue.stop(session[1].run_id)
    assert take(runner).run.run_id == session[2].run_id


def test_an_expired_run_makes_way(queue: Queue, runner: Runner, clock: MovableClock) -> None:
    """A run that expired does not keep its session waiting."""
    first = queue.enqueue("first", timeout=1)
    clock.advance(0.5)
    second = queue.enqueue("second", session_id=first.session_id)
    clock.advance(1)
    queue.sweep()
    assert take(runner).run.run_id == second.run_id


def test_priority_goes_before_age_within_a_session(
    queue: Queue, session: list[Run], runner: Runner
) -> None:
    """A later run of a higher priority is the session's next."""
    urgent = queue.enqueue("urgent", session_id=session[0].session_id, priority=5)
    order = []
    for _ in range(4):
        claim = start(runner)
        order.append(claim.run.run_id)
        claim.complete()
    assert order == [urgent.run_id, *ids(session)]


def test_a_batch_for_one_session_is_executed_in_the_order_given(
    queue: Queue, runner: Runner
) -> None:
    """Runs that were enqueued together follow each other as they were listed."""
    session_id = queue.enqueue("first").session_id
    start(runner).complete()
    queue.enqueue_many({"prompt": f"p{number}", "session_id": session_id} for number in range(8))
    order = []
    for _ in range(8):
        claim = start(runner)
        order.append(claim.run.prompt)
        claim.complete()
    assert order == [f"p{number}" for number in range(8)]


def test_sessions_do_not_wait_for_each_other(queue: Queue, runner: Runner) -> None:
    """Runs of different sessions are active at the same time."""
    queue.enqueue_many({"prompt": "x"} for _ in range(3))
    assert len(runner.claim_many(5)) == 3


def test_start_binds_the_session_to_the_runners_place(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A session lives where its first run was started, not where it was claimed."""
    run = queue.enqueue("x")
    claim = take(open_runner(**HOME))
    assert queue.session(run.session_id).hostname is None
    clock.advance(1)
    claim.start()
    session = queue.session(run.session_id)
    assert session.hostname == "box"
    assert session.executor_type == "shell"
    assert session.project_dir == "/srv/app"
    assert session.last_resumed_at == clock.text()


def test_a_session_is_bound_once(queue: Queue, open_runner: Callable[..., Runner]) -> None:
    """A later start, wherever it is, does not move the session."""
    run = queue.enqueue("x")
    start(open_runner(**HOME)).complete()
    execute_sql(queue, "UPDATE runs SET status = 'pending', demands = NULL")
    start(open_runner("other", hostname="elsewhere"))
    assert queue.session(run.session_id).hostname == "box"


def test_a_resume_inherits_its_sessions_home(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """A resume demands its session's host, directory and executor type, and goes nowhere else."""
    run = queue.enqueue("x")
    home = open_runner("home", **HOME)
    start(home).complete()
    again = queue.enqueue("y", session_id=run.session_id)
    assert json.loads(again.demands) == HOME
    for key, value in (("hostname", "b"), ("project_dir", "/x"), ("executor_type", "sdk")):
        stranger = open_runner(f"stranger-{key}", **{**HOME, key: value})
        assert stranger.claim(timeout=0) is None
    assert take(home).run.run_id == again.run_id


def test_an_inherited_home_brings_no_timeout(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """The default timeout is for demands of the run's own: home may be away for longer."""
    run = queue.enqueue("x")
    start(open_runner(**HOME)).complete()
    assert queue.enqueue("y", session_id=run.session_id).timeout_at is None


def test_a_home_without_directory_demands_none(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """What the session's runner does not have is not demanded of the next one."""
    run = queue.enqueue("x", project_dir="/only/the/runs/own")
    start(open_runner(hostname="box")).complete()
    assert json.loads(queue.enqueue("y", session_id=run.session_id).demands) == {"hostname": "box"}


def test_a_resume_inherits_agent_and_directory(queue: Queue) -> None:
    """What a resume does not say it takes over from its session; what it says stays."""
    run = queue.enqueue("x", agent_name="writer", project_dir="/srv/app")
    again = queue.enqueue("y", session_id=run.session_id)
    other = queue.enqueue("z", session_id=run.session_id, agent_name="reader", project_dir="/x")
    assert (again.agent_name, again.project_dir) == ("writer", "/srv/app")
    assert (other.agent_name, other.project_dir) == ("reader", "/x")


def test_a_resume_adds_to_its_home(queue: Queue, open_runner: Callable[..., Runner]) -> None:
    """Demands of a resume come on top of the home."""
    run = queue.enqueue("x")
    home = open_runner("home", **HOME)
    start(home).complete()
    again = queue.enqueue("y", session_id=run.session_id, demands={"tags": ["gpu"]})
    assert json.loads(again.demands) == {**HOME, "tags": ["gpu"]}
    assert home.claim(timeout=0) is None
    assert take(open_runner("gpu", tags=["gpu"], **HOME)).run.run_id == again.run_id


@pytest.mark.parametrize("key", HOME)
def test_a_resume_cannot_override_its_home(
    queue: Queue, open_runner: Callable[..., Runner], key: str
) -> None:
    """A demand that contradicts the home could never be met, and is refused."""
    run = queue.enqueue("x")
    start(open_runner(**HOME)).complete()
    with pytest.raises(InvalidRun):
        queue.enqueue("y", session_id=run.session_id, demands={key: "elsewhere"})
    assert count(queue, "runs") == 1


def test_a_resume_cannot_relax_its_home(queue: Queue, open_runner: Callable[..., Runner]) -> None:
    """A demand for nothing does not take away what the home demands."""
    run = queue.enqueue("x")
    start(open_runner(**HOME)).complete()
    again = queue.enqueue("y", session_id=run.session_id, demands=dict.fromkeys(HOME, ""))
    assert json.loads(again.demands) == HOME


def test_the_home_is_given_to_runs_enqueued_before_it_was_known(
    queue: Queue, session: list[Run], open_runner: Callable[..., Runner]
) -> None:
    """Runs that already waited when the session was bound follow it home."""
    home, stranger = open_runner("home", **HOME), open_runner("stranger", hostname="elsewhere")
    start(home).complete()
    assert [json.loads(queue.get(run.run_id).demands) for run in session[1:]] == [HOME, HOME]
    assert stranger.claim(timeout=0) is None
    assert take(home).run.run_id == session[1].run_id


def test_a_waiting_run_that_contradicts_the_new_home_is_not_claimed_elsewhere(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """A conversation is not resumed on a host where it does not live."""
    run = queue.enqueue("x")
    clock.advance(1)
    queue.enqueue("y", session_id=run.session_id, demands={"hostname": "elsewhere"})
    start(open_runner("home", **HOME)).complete()
    assert open_runner("stranger", hostname="elsewhere").claim(timeout=0) is None
