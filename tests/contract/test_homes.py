"""Where sessions live: their homes are moved and cleared, and frameworks' own ids recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from runqueue import (
    IllegalMove,
    InvalidRun,
    Queue,
    Run,
    Runner,
    RunNotFound,
    SessionConflict,
    SessionNotFound,
    StaleClaim,
    StorageLost,
    claims,
    statements_homes,
)
from runqueue.demands import MAX_PLACE
from runqueue.testing import Crashed, crashing
from tests.conftest import OtherProgram
from tests.helpers import (
    LONG,
    MovableClock,
    count,
    execute_sql,
    in_background,
    row_of,
    start,
    take,
    together,
)

HOME = {"hostname": "box", "project_dir": "/srv/app", "executor_type": "shell"}
AWAY = {"hostname": "other", "project_dir": "/data/app", "executor_type": "sdk"}


@pytest.fixture
def home(open_runner: Callable[..., Runner]) -> Runner:
    """The runner at which sessions begin to live."""
    return open_runner("home", **HOME)


@pytest.fixture
def away(open_runner: Callable[..., Runner]) -> Runner:
    return open_runner("away", **AWAY)


@pytest.fixture
def session_id(queue: Queue, home: Runner) -> str:
    """A session at home, with nothing left to do."""
    run = queue.enqueue("x")
    start(home).complete()
    return run.session_id


def demands_of(queue: Queue, run: Run) -> Any:
    text = queue.get(run.run_id).demands
    return None if text is None else json.loads(text)


# --- moving


def test_a_moved_session_is_resumed_at_its_new_home_only(
    queue: Queue, session_id: str, home: Runner, away: Runner
) -> None:
    """What is enqueued from then on demands the new host, directory and executor type."""
    moved = queue.rehome(session_id, **AWAY)
    assert moved.session.home() == queue.session(session_id).home() == AWAY
    run = queue.enqueue("y", session_id=session_id)
    assert demands_of(queue, run) == AWAY
    assert home.claim(timeout=0) is None
    assert take(away).run.run_id == run.run_id


def test_runs_that_wait_already_follow(
    queue: Queue, session_id: str, home: Runner, away: Runner, clock: MovableClock
) -> None:
    """With the demands that are their own, and in their order."""
    first = queue.enqueue("y", session_id=session_id)
    clock.advance(1)
    gpu = queue.enqueue("z", session_id=session_id, demands={"tags": ["gpu"]})
    assert queue.rehome(session_id, **AWAY).runs == 2
    assert demands_of(queue, first) == AWAY
    assert demands_of(queue, gpu) == {**AWAY, "tags": ["gpu"]}
    assert home.claim(timeout=0) is None
    assert take(away).run.run_id == first.run_id


def test_a_moved_run_wakes_the_runner_that_waits_for_it(
    queue: Queue, session_id: str, away: Runner, parked: Any
) -> None:
    """As if it had been enqueued there."""
    run = queue.enqueue("y", session_id=session_id)
    with in_background(lambda: away.claim(timeout=LONG), queue) as claimed:
        assert parked.wait(LONG)
        queue.rehome(session_id, **AWAY)
        claim = claimed.result(LONG)
        assert claim is not None
        assert claim.run.run_id == run.run_id


def test_what_is_not_given_stays_and_nothing_demands_nothing(queue: Queue, session_id: str) -> None:
    """None keeps a part of the home, an empty text takes it away."""
    queue.rehome(session_id, hostname="other")
    assert queue.session(session_id).home() == {**HOME, "hostname": "other"}
    queue.rehome(session_id, executor_type="")
    run = queue.enqueue("y", session_id=session_id)
    assert demands_of(queue, run) == {"hostname": "other", "project_dir": "/srv/app"}


def test_a_session_may_be_given_its_home_before_it_begins(
    queue: Queue, home: Runner, away: Runner
) -> None:
    """Its first run goes there too, and no start binds it anew."""
    run = queue.enqueue("x")
    queue.rehome(run.session_id, hostname="other")
    assert home.claim(timeout=0) is None
    start(away)
    assert queue.session(run.session_id).home() == {"hostname": "other"}


def test_a_working_directory_within_the_old_home_moves_along(
    queue: Queue, home: Runner, session_id: str
) -> None:
    """Of the session and of the runs that wait; a directory elsewhere stays."""
    run = queue.enqueue("x", project_dir="/srv/app/docs")
    start(home)
    inherited = queue.enqueue("y", session_id=run.session_id)
    own = queue.enqueue("z", session_id=run.session_id, project_dir="/elsewhere")
    near = queue.enqueue("z", session_id=run.session_id, project_dir="/srv/application")
    execute_sql(queue, "UPDATE runs SET status = 'completed' WHERE run_id = ?", run.run_id)
    queue.rehome(run.session_id, hostname="other", project_dir="/data/app")
    assert queue.session(run.session_id).project_dir == "/data/app/docs"
    directories = [queue.get(one.run_id).project_dir for one in (inherited, own, near)]
    assert directories == ["/data/app/docs", "/elsewhere", "/srv/application"]


def test_a_cleared_home_is_bound_anew_by_the_next_start(
    queue: Queue, session_id: str, away: Runner
) -> None:
    """Waiting runs demand only what is their own; what the old place knew is forgotten."""
    queue.bind_session(session_id, "conversation-1")
    run = queue.enqueue("y", session_id=session_id)
    moved = queue.rehome(session_id, clear=True)
    assert (moved.session.home(), moved.runs, moved.forgotten) == ({}, 1, "conversation-1")
    assert demands_of(queue, run) is None
    claim = start(away)
    assert queue.session(session_id).home() == AWAY
    assert claim.executor_session_id is None


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_run_that_came_while_its_session_was_bound_demands_the_home_after_a_lost_answer(
    queue: Queue, home: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There one statement starts and binds, and what it did not see is looked for afterwards."""
    run = queue.enqueue("x")
    claim = take(home)
    give_home = claims._give_home

    def lose(*_: object) -> None:
        monkeypatch.setattr(claims, "_give_home", give_home)
        execute_sql(
            queue,
            "INSERT INTO runs (run_id, session_id, type, prompt, created_at) "
            "VALUES ('run_00000000000a', ?, 'RESUME_SESSION', 'y', ?)",
            run.session_id,
            queue.now(),
        )
        raise StorageLost("the server went away")

    monkeypatch.setattr(claims, "_give_home", lose)
    with pytest.raises(StorageLost):
        claim.start()
    claim.start()
    assert json.loads(queue.get("run_00000000000a").demands or "{}") == HOME
    claim.complete()


def test_a_moved_session_keeps_the_frameworks_id(queue: Queue, session_id: str) -> None:
    """Whoever moves a home moves the conversation that is kept there."""
    queue.bind_session(session_id, "conversation-1")
    assert queue.rehome(session_id, **AWAY).forgotten is None
    assert queue.session(session_id).executor_session_id == "conversation-1"


def test_a_demand_that_contradicted_the_old_home_is_met_at_the_new_one(
    queue: Queue, open_runner: Callable[..., Runner], clock: MovableClock
) -> None:
    """The run waited for nobody; now it waits for the host that it asked for."""
    run = queue.enqueue("x")
    clock.advance(1)
    elsewhere = queue.enqueue("y", session_id=run.session_id, demands={"hostname": "other"})
    start(open_runner("home", **HOME)).complete()
    assert demands_of(queue, elsewhere)["hostname"] == ["box", "other"]
    queue.rehome(run.session_id, hostname="other")
    assert demands_of(queue, elsewhere) == {**HOME, "hostname": "other"}


def test_a_home_is_not_moved_while_a_run_is_active(
    queue: Queue, home: Runner, clock: MovableClock
) -> None:
    """One sentence that names the run; nothing is changed, and the run completes."""
    run = queue.enqueue("x")
    clock.advance(1)
    waiting = queue.enqueue("y", session_id=run.session_id)
    claim = take(home)
    for step in (claim.start, lambda: queue.stop(run.run_id), lambda: None):
        before = row_of(queue, waiting)
        with pytest.raises(IllegalMove, match=rf"{run.session_id}.*{run.run_id}"):
            queue.rehome(run.session_id, **AWAY)
        assert row_of(queue, waiting) == before
        step()
    claim.complete()
    assert queue.rehome(run.session_id, **AWAY).runs == 1


def test_a_claim_and_a_move_at_once_leave_the_run_at_one_home(
    queue: Queue, session_id: str, home: Runner
) -> None:
    """Either the claim comes first and the move is refused, or the run goes elsewhere.

    A claim that has found the run by what it demanded asks again once it has locked it.
    """
    for _ in range(40):
        run = queue.enqueue("y", session_id=session_id)

        def move() -> bool:
            try:
                queue.rehome(session_id, hostname="other")
            except IllegalMove:
                return False
            return True

        claim, moved = together(queue, [lambda: home.claim(timeout=0), move])
        assert (claim is None) == moved
        host = "other" if moved else "box"
        assert queue.session(session_id).hostname == host
        assert demands_of(queue, run)["hostname"] == host
        queue.rehome(session_id, hostname="box") if moved else claim.release()
        queue.stop(run.run_id)


def test_all_of_a_home_moves_or_nothing(queue: Queue, session_id: str, clock: MovableClock) -> None:
    """A waiting run that cannot follow, for its demands would be too large, holds the session."""
    queue.enqueue("y", session_id=session_id)
    clock.advance(1)
    # With a directory of one character more than may be, beside what is demanded already.
    large = queue.enqueue("z", session_id=session_id)
    text = json.dumps({"note": "n" * 2200}, separators=(",", ":"))
    execute_sql(queue, "UPDATE runs SET demands = ? WHERE run_id = ?", text, large.run_id)
    before = execute_sql(queue, "SELECT * FROM runs ORDER BY run_id")
    with pytest.raises(InvalidRun, match=large.run_id):
        queue.rehome(session_id, project_dir="/" + "d" * 500)
    assert execute_sql(queue, "SELECT * FROM runs ORDER BY run_id") == before
    assert queue.session(session_id).home() == HOME


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"clear": True, "hostname": "other"},
        {"hostname": ""},
        {"hostname": 7},
        {"hostname": "a\0b"},
        {"project_dir": "\ud800"},
        {"project_dir": "/" + "d" * MAX_PLACE},
        {"executor_type": "t" * 5000},
    ],
    ids=lambda given: ",".join(given) or "nothing",
)
def test_what_is_no_home_is_refused(queue: Queue, session_id: str, given: dict[str, Any]) -> None:
    """InvalidRun, and the session stays where it was."""
    with pytest.raises(InvalidRun):
        queue.rehome(session_id, **given)
    assert queue.session(session_id).home() == HOME


def test_a_home_needs_a_host(queue: Queue) -> None:
    """A session that has none yet cannot be given a directory alone."""
    run = queue.enqueue("x")
    with pytest.raises(InvalidRun, match="hostname"):
        queue.rehome(run.session_id, project_dir="/srv")


@pytest.mark.parametrize("session_id", ["ses_ffffffffffff", "", "x'; --", "\0", "\ud800"])
def test_a_session_that_does_not_exist_has_no_home(queue: Queue, session_id: str) -> None:
    """Neither to be moved nor to be bound."""
    with pytest.raises(SessionNotFound):
        queue.rehome(session_id, hostname="other")
    with pytest.raises(SessionNotFound):
        queue.bind_session(session_id, "conversation-1")


# --- the framework's own id


def test_a_resumed_run_receives_what_the_first_one_bound(
    queue: Queue, home: Runner, session_id: str
) -> None:
    """It is the session's, whichever of its runs bound it."""
    queue.enqueue("y", session_id=session_id)
    claim = start(home)
    assert claim.executor_session_id is None
    claim.bind_session("conversation-1")
    assert claim.executor_session_id == "conversation-1"
    claim.complete()
    queue.enqueue("z", session_id=session_id)
    assert take(home).executor_session_id == "conversation-1"
    assert queue.session(session_id).executor_session_id == "conversation-1"


def test_an_id_can_be_replaced_and_forgotten(queue: Queue, session_id: str) -> None:
    """Some frameworks give a conversation a new id with each turn."""
    for wanted in ("conversation-1", "conversation-2", "conversation-2"):
        queue.bind_session(session_id, wanted)
        assert queue.session(session_id).executor_session_id == wanted
    queue.bind_session(session_id, "")
    assert queue.session(session_id).executor_session_id is None


def test_the_id_of_another_session_is_refused(queue: Queue, home: Runner, session_id: str) -> None:
    """Two sessions of one conversation would fork its history; the first one keeps it."""
    queue.bind_session(session_id, "conversation-1")
    other = queue.enqueue("x")
    claim = start(home)
    with pytest.raises(SessionConflict, match=rf"{other.session_id}.*conversation-1.*{session_id}"):
        claim.bind_session("conversation-1")
    assert claim.executor_session_id is None
    queue.bind_session(session_id, None)
    claim.bind_session("conversation-1")


def test_the_same_id_at_another_place_is_another_conversation(
    queue: Queue, away: Runner, session_id: str
) -> None:
    """A framework that counts from 1 does so on every host."""
    queue.bind_session(session_id, "1")
    other = queue.enqueue("x")
    start(away).bind_session("1")
    assert queue.session(other.session_id).executor_session_id == "1"


def test_of_two_sessions_that_bind_one_id_at_once_one_gets_it(queue: Queue) -> None:
    """Neither sees what the other has not committed yet."""
    sessions = [queue.enqueue("x").session_id for _ in range(2)]

    def bind(session_id: str, wanted: str) -> bool:
        try:
            queue.bind_session(session_id, wanted)
        except SessionConflict:
            return False
        return True

    for number in range(20):
        calls = [lambda one=one, n=number: bind(one, f"conversation-{n}") for one in sessions]
        assert sorted(together(queue, calls)) == [False, True]


def test_who_has_lost_its_run_binds_nothing(
    queue: Queue, home: Runner, session_id: str, clock: MovableClock
) -> None:
    """A late agent does not take the conversation away from those who go on with it."""
    queue.bind_session(session_id, "conversation-1")
    queue.enqueue("y", session_id=session_id)
    claim = start(home)
    queue.stop(claim.run.run_id)
    claim.bind_session("conversation-2")  # a stopping run is still its own
    execute_sql(queue, "UPDATE runs SET status = 'failed' WHERE run_id = ?", claim.run.run_id)
    with pytest.raises(StaleClaim):
        claim.bind_session("conversation-3")
    assert queue.session(session_id).executor_session_id == "conversation-2"


def test_a_session_that_is_deleted_while_its_run_executes_binds_nothing(
    queue: Queue, home: Runner
) -> None:
    """The claim is told that its run is gone; the caller that there is no such session."""
    run = queue.enqueue("x")
    claim = start(home)
    queue.delete_session(run.session_id, force=True)
    assert claim.executor_session_id is None
    with pytest.raises(RunNotFound):
        claim.bind_session("conversation-1")
    with pytest.raises(SessionNotFound):
        queue.bind_session(run.session_id, "conversation-1")
    assert count(queue, "sessions") == 0


def test_a_process_that_has_crashed_binds_nothing(queue: Queue) -> None:
    """In tests of one's own runners its claims are dead to every verb."""
    run = queue.enqueue("x")
    with crashing(queue, at="started") as doomed:
        with doomed.runner("worker") as runner:
            claim = take(runner)
            with pytest.raises(Crashed):
                claim.start()
            with pytest.raises(Crashed):
                claim.bind_session("conversation-1")
            with pytest.raises(Crashed):
                _ = claim.executor_session_id
    assert queue.session(run.session_id).executor_session_id is None


@pytest.mark.parametrize(
    "wanted", ["--resume", "a\nb", "a\0b", "\ud800", "x" * 513, 7, "\x1b[31m"], ids=ascii
)
def test_what_is_no_id_is_refused(queue: Queue, session_id: str, wanted: Any) -> None:
    """It becomes a word of a command line and a variable; it must not pass for an option."""
    with pytest.raises(InvalidRun):
        queue.bind_session(session_id, wanted)
    assert queue.session(session_id).executor_session_id is None


def test_many_waiting_runs_follow_in_few_statements(
    queue: Queue, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long backlog is moved in one go, and not with a round trip for each run."""
    queue.enqueue_many({"prompt": "y", "session_id": session_id} for _ in range(300))
    executed: list[str] = []
    real = queue.store._compile

    def compile_(statement: Any) -> Any:
        executed.append(real(statement).sql)
        return real(statement)

    monkeypatch.setattr(queue.store, "_compile", compile_)
    assert queue.rehome(session_id, **AWAY).runs == 300
    assert len(executed) < 10


# --- retries


@pytest.mark.parametrize("after", [AWAY, None], ids=["moved", "cleared"])
@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "when due"])
def test_another_attempt_takes_the_home_as_it_is_then(
    queue: Queue,
    open_runner: Callable[..., Runner],
    clock: MovableClock,
    after: dict[str, str] | None,
    by_hand: bool,
) -> None:
    """What came from the old home is replaced, whenever the run ended; the caller's own stays."""
    home = open_runner("home", **HOME, tags=["gpu"])
    session_id = queue.enqueue("x", project_dir="/srv/app/web").session_id
    start(home).complete()
    terms = {} if by_hand else {"retries": 1, "retry_delay": 5.0}
    run = queue.enqueue("y", session_id=session_id, demands={"tags": ["gpu"]}, **terms)
    start(home).fail("busy", retry=True)
    queue.rehome(session_id, hostname="between", project_dir="/between")
    queue.rehome(session_id, **after) if after else queue.rehome(session_id, clear=True)
    clock.advance(6)
    if by_hand:
        following = queue.retry(run.run_id)
    else:
        queue.sweep()
        (following,) = queue.attempts(run.run_id)[1:]
    assert demands_of(queue, following) == {**(after or {}), "tags": ["gpu"]}
    directory = "/data/app/web" if after else "/between/web"
    assert queue.get(following.run_id).project_dir == directory


def test_a_retry_and_a_move_at_once_leave_the_attempt_at_one_home(
    queue: Queue, session_id: str
) -> None:
    """Whichever comes first: what is retried may have moved since it was looked at."""
    run = queue.enqueue("y", session_id=session_id)
    queue.cancel(run.run_id)
    for number in range(20):
        to = {**HOME, "hostname": f"host-{number}"}
        calls: list[Callable[[], Any]] = [
            lambda: queue.retry(run.run_id),
            lambda to=to: queue.rehome(session_id, **to),
        ]
        following = together(queue, calls)[0]
        assert demands_of(queue, following) == to
        queue.cancel(following.run_id)


def test_a_retried_first_run_goes_where_its_session_went(
    queue: Queue, home: Runner, away: Runner
) -> None:
    """Also when its caller had named the old host, for that was where the session lived."""
    run = queue.enqueue("x", demands={"hostname": "box"})
    start(home).fail("busy")
    queue.rehome(run.session_id, **AWAY)
    following = queue.retry(run.run_id)
    assert demands_of(queue, following) == AWAY
    assert take(away).run.run_id == following.run_id


def test_a_demand_that_contradicts_the_home_is_not_lost_by_a_retry(
    queue: Queue, session_id: str
) -> None:
    """A home adds to what was demanded and overrides nothing, so the run waits for nobody."""
    run = queue.enqueue("y", session_id=session_id)
    queue.cancel(run.run_id)
    execute_sql(
        *(queue, "UPDATE runs SET demands = ? WHERE run_id = ?"),
        *('{"hostname":"third"}', run.run_id),
    )
    following = queue.retry(run.run_id)
    assert demands_of(queue, following)["hostname"] == ["box", "third"]


def test_a_run_that_follows_a_home_says_so_in_its_history(queue: Queue, home: Runner) -> None:
    """What it demands is not what it was enqueued with; one that named no place is left alone."""
    first = queue.enqueue("x")
    start(home).complete()
    run = queue.enqueue("y", session_id=first.session_id)
    queue.cancel(run.run_id)
    before = queue.timeline(first.run_id)
    queue.rehome(first.session_id, **AWAY)
    assert queue.timeline(run.run_id)[-1].detail == "follows its session, whose home was changed"
    assert queue.timeline(first.run_id) == before
    assert demands_of(queue, first) is None


# --- the same id at one place, by other ways than binding it


def test_a_session_does_not_move_to_where_another_has_its_id(
    queue: Queue, away: Runner, session_id: str
) -> None:
    """Two sessions of one place never have one id, whichever came last; nothing is moved."""
    queue.bind_session(session_id, "1")
    other = queue.enqueue("x").session_id
    start(away).bind_session("1")
    run = queue.enqueue("y", session_id=session_id)
    before = queue.session(session_id).as_dict()
    with pytest.raises(SessionConflict, match=rf"{session_id}.*{other}"):
        queue.rehome(session_id, **AWAY)
    assert queue.session(session_id).as_dict() == before
    assert demands_of(queue, run) == HOME
    queue.rehome(session_id, hostname="third")
    with pytest.raises(SessionConflict):
        queue.rehome(session_id, hostname="other", executor_type="sdk")
    queue.rehome(session_id, hostname="other")
    queue.rehome(session_id, clear=True)


def test_the_id_of_a_session_without_a_home_is_of_every_place(
    queue: Queue, home: Runner, session_id: str
) -> None:
    """Its first start binds it to whatever place comes first, and is not to be refused there."""
    queue.bind_session(session_id, "1")
    other = queue.enqueue("x").session_id
    with pytest.raises(SessionConflict, match=rf"{other}.*{session_id}"):
        queue.bind_session(other, "1")
    queue.bind_session(other, "2")
    with pytest.raises(SessionConflict, match=rf"{session_id}.*{other}"):
        queue.bind_session(session_id, "2")
    start(home)
    assert queue.session(other).executor_session_id == "2"
    queue.rehome(session_id, hostname="third")
    queue.bind_session(session_id, "2")


def test_of_two_sessions_that_move_to_one_place_at_once_one_arrives(queue: Queue) -> None:
    """With one id they come from two hosts; neither sees what the other has not committed yet."""
    sessions = [queue.enqueue("x").session_id for _ in range(2)]

    def move(session_id: str) -> bool:
        try:
            queue.rehome(session_id, hostname="box")
        except SessionConflict:
            return False
        return True

    for number in range(20):
        for session_id in sessions:
            queue.rehome(session_id, hostname=f"host-{session_id}")
            queue.bind_session(session_id, f"conversation-{number}")
        calls = [lambda one=one: move(one) for one in sessions]
        assert sorted(together(queue, calls)) == [False, True]


# --- the same run again


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "waiting"])
@pytest.mark.parametrize("after", [AWAY, None], ids=["moved", "cleared"])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"demands": {"tags": ["gpu"]}},
        {"demands": {"hostname": "box"}, "project_dir": "/srv/app"},
    ],
    ids=["nothing", "a tag", "the old home"],
)
def test_the_same_run_is_the_same_after_its_session_has_moved(
    queue: Queue,
    session_id: str,
    own: dict[str, Any],
    after: dict[str, str] | None,
    ended: bool,
) -> None:
    """Where it executes is no more what its caller said; all else has to be."""
    content = {"prompt": "y", "session_id": session_id, "run_id": "run_0123456789ab", **own}
    run = queue.enqueue(**content)
    if ended:
        queue.cancel(run.run_id)
    queue.rehome(session_id, **after) if after else queue.rehome(session_id, clear=True)
    assert queue.enqueue(**content).run_id == run.run_id
    for change in ({"prompt": "z"}, {"demands": {"tags": ["other"]}}, {"priority": 1}):
        with pytest.raises(InvalidRun, match="exists already with another"):
            queue.enqueue(**{**content, **change})


def test_another_place_under_one_run_id_is_refused_where_nothing_was_moved(
    queue: Queue, home: Runner
) -> None:
    """Only a move makes up for a difference."""
    queue.enqueue("x", run_id="run_0123456789ab", demands={"hostname": "box"})
    start(home).complete()
    with pytest.raises(InvalidRun, match="demands"):
        queue.enqueue("x", run_id="run_0123456789ab", demands={"hostname": "other"})


# --- runs that other programs insert


def insert_resume(
    program: OtherProgram, run_id: str, session_id: str, demands: str | None = None
) -> None:
    program.execute(
        "INSERT INTO runs (run_id, session_id, type, prompt, demands, status, created_at) "
        "VALUES (?, ?, 'RESUME_SESSION', 'y', ?, 'pending', '2025-01-01T00:00:00Z')",
        *(run_id, session_id, demands),
    )


@pytest.mark.parametrize("own", [{}, {"tags": ["gpu"]}], ids=["no demands", "its own"])
def test_a_resume_that_was_inserted_by_hand_is_executed_at_home(
    queue: Queue,
    open_runner: Callable[..., Runner],
    program: OtherProgram,
    session_id: str,
    home: Runner,
    own: dict[str, Any],
) -> None:
    """Whoever comes first from elsewhere has it demand its session's home, and takes other work."""
    away = open_runner("away", **AWAY, tags=["gpu"])
    at_home = open_runner("at-home", **HOME, tags=["gpu"])
    insert_resume(program, "run_by_hand", session_id, json.dumps(own) if own else None)
    assert away.claim(timeout=0) is None
    run = queue.get("run_by_hand")
    assert (run.status, run.runner_id, demands_of(queue, run)) == ("pending", None, {**HOME, **own})
    other = queue.enqueue("z")
    assert take(away).run.run_id == other.run_id
    assert take(at_home).run.run_id == "run_by_hand"


def test_of_many_that_were_inserted_by_hand_none_is_executed_elsewhere(
    queue: Queue, open_runner: Callable[..., Runner], program: OtherProgram, away: Runner
) -> None:
    """And they do not keep a runner from the work behind them, with one look."""
    home = open_runner("home", **HOME)
    sessions = [queue.enqueue("x").session_id for _ in range(12)]
    for claim in home.claim_many(12):
        claim.start()
        claim.complete()
    for number, session_id in enumerate(sessions):
        insert_resume(program, f"run_{number:02d}", session_id)
    other = queue.enqueue("z")
    assert [claim.run.run_id for claim in away.claim_many(3)] == [other.run_id]
    assert len(home.claim_many(20)) == 12


def test_a_resume_of_a_session_without_a_home_is_executed_anywhere(
    queue: Queue, program: OtherProgram, away: Runner
) -> None:
    """Its first start gives it one."""
    first = queue.enqueue("x")
    queue.cancel(first.run_id)
    insert_resume(program, "run_by_hand", first.session_id)
    start(away)
    assert queue.session(first.session_id).home() == AWAY


def test_a_resume_that_demands_its_home_costs_no_look_at_it(
    queue: Queue, session_id: str, home: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what other programs have inserted is compared with its session."""
    queue.enqueue("y", session_id=session_id)
    queue.enqueue("z")
    executed: list[Any] = []
    real = queue.store._compile
    monkeypatch.setattr(queue.store, "_compile", lambda one: (executed.append(one), real(one))[1])
    take(home)
    take(home)
    assert executed
    assert statements_homes.HOMES not in executed
