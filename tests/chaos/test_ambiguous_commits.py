"""The answer to a commit is lost: the verb is made again, and nothing happens twice."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from runqueue import Claim, IllegalMove, Queue, Runner, StaleClaim, StorageError, reading
from runqueue.ids import new_run_id
from runqueue.states import ACTIVE
from tests.chaos import histories
from tests.helpers import execute_sql, make_commits_by, start, take, wait_until

pytestmark = pytest.mark.chaos

VARIANTS = ["made", "not made"]
"""What became of the commit whose answer was lost."""


@pytest.fixture
def runner(queue: Queue) -> Iterator[Runner]:
    """A registered runner; it beats too seldom to be in the way of a test."""
    with queue.runner("worker") as runner:
        yield runner


class Line:
    """The connection of one thread to the database, which may break at a commit."""

    def __init__(self, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
        self._database = queue.database
        self._thread = threading.current_thread()
        self._due: tuple[int, str] | None = None
        self.breaks = 0
        make_commits_by(self._commit_or_break, queue, monkeypatch)

    @property
    def is_sound(self) -> bool:
        """Whether it will not break unless it is told to."""
        return self._due is None

    def break_at_commit(self, variant: str, after: int = 0) -> None:
        """Break at the next commit, or after so many that are made and answered."""
        self._due = after, variant

    def mend(self) -> None:
        """Break no more."""
        self._due = None

    def _commit_or_break(self, commit: Callable[[], Any]) -> Any:
        if self._due is None or threading.current_thread() is not self._thread:
            return commit()
        after, variant = self._due
        if after > 0:
            self._due = after - 1, variant
            return commit()
        self._due = None
        self.breaks += 1
        if variant == "made":
            commit()
        if isinstance(self._database.connection(), sqlite3.Connection):
            raise sqlite3.OperationalError("disk I/O error")
        import psycopg

        self._database.connection().close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")


@pytest.fixture
def line(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Line:
    """The connection of the test's thread."""
    return Line(queue, monkeypatch)


class Deed(NamedTuple):
    """A verb that is to be made, and the history of the run once it is."""

    make: Callable[[], Any]
    run_id: str
    history: tuple[str, ...]
    is_refused_when_made: bool = False
    """Whether asking for it again is an error that says that it was done."""


def _enqueue(queue: Queue, runner: Runner) -> Deed:
    run_id = new_run_id()
    return Deed(lambda: queue.enqueue("x", run_id=run_id, timeout=60), run_id, ("pending",))


def _enqueue_many(queue: Queue, runner: Runner) -> Deed:
    requests = [{"prompt": "x", "run_id": new_run_id()} for _ in range(3)]
    return Deed(lambda: queue.enqueue_many(requests), requests[1]["run_id"], ("pending",))


def _claim(queue: Queue, runner: Runner) -> Deed:
    run_id = queue.enqueue("x").run_id

    def claim() -> None:
        assert take(runner).fence.run_id == run_id
        assert [one.fence.run_id for one in runner.held] == [run_id]

    return Deed(claim, run_id, ("pending", "claimed"))


def _claim_many(queue: Queue, runner: Runner) -> Deed:
    run_ids = {run.run_id for run in queue.enqueue_many([{"prompt": "x"}] * 3)}

    def claim() -> None:
        assert {one.fence.run_id for one in runner.claim_many(3)} == run_ids
        assert {one.fence.run_id for one in runner.held} == run_ids

    return Deed(claim, min(run_ids), ("pending", "claimed"))


def _owned(report: Callable[[Claim], None], *statuses: str, refused: bool = False) -> Any:
    """A report of a run's owner, who has started it if that is a part of the history."""

    def prepare(queue: Queue, runner: Runner) -> Deed:
        run_id = queue.enqueue("x").run_id
        claim = take(runner)
        if "running" in statuses[:-1]:
            claim.start()
        if "stopping" in statuses:
            queue.stop(run_id)
        return Deed(lambda: report(claim), run_id, ("pending", "claimed", *statuses), refused)

    return prepare


def _finish_many(queue: Queue, runner: Runner) -> Deed:
    run_ids = [run.run_id for run in queue.enqueue_many([{"prompt": "x"}] * 3)]
    claims = runner.claim_many(3)

    def finish() -> None:
        assert runner.finish_many([(claim, "done") for claim in claims]) == []

    return Deed(finish, run_ids[1], ("pending", "claimed", "running", "completed"))


def _stop(queue: Queue, runner: Runner) -> Deed:
    run_id = queue.enqueue("x").run_id
    take(runner).start()
    history = ("pending", "claimed", "running", "stopping")
    return Deed(lambda: queue.stop(run_id), run_id, history)


def _cancel(queue: Queue, runner: Runner) -> Deed:
    run_id = queue.enqueue("x").run_id
    return Deed(lambda: queue.stop(run_id), run_id, ("pending", "stopped"), True)


def _release_by_operator(queue: Queue, runner: Runner) -> Deed:
    run_id = queue.enqueue("x").run_id
    take(runner)
    return Deed(lambda: queue.release(run_id), run_id, ("pending", "claimed", "pending"), True)


def _sweep(queue: Queue, runner: Runner) -> Deed:
    run_id = queue.enqueue("x", timeout=0.001, demands={"tags": ["none"]}).run_id
    return Deed(queue.sweep, run_id, ("pending", "failed"))


DEEDS: dict[str, Callable[[Queue, Runner], Deed]] = {
    "enqueue": _enqueue,
    "enqueue_many": _enqueue_many,
    "claim": _claim,
    "claim_many": _claim_many,
    "start": _owned(Claim.start, "running"),
    "complete": _owned(lambda claim: claim.complete("r"), "running", "completed"),
    "fail": _owned(lambda claim: claim.fail("e"), "running", "failed"),
    "confirm": _owned(Claim.confirm_stop, "running", "stopping", "stopped"),
    "release": _owned(Claim.release, "pending", refused=True),
    "finish_many": _finish_many,
    "stop": _stop,
    "cancel": _cancel,
    "release by an operator": _release_by_operator,
    "sweep": _sweep,
}


def history_of(queue: Queue, run_id: str) -> tuple[str, ...]:
    sql = "SELECT status FROM run_events WHERE run_id = ? ORDER BY event_id"
    with queue.store.ready():  # on a connection that is not the broken one
        return tuple(status for (status,) in execute_sql(queue, sql, run_id))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", DEEDS)
def test_a_verb_is_made_again_when_its_answer_was_lost(
    queue: Queue, runner: Runner, line: Line, name: str, variant: str
) -> None:
    """The run is where it would be with an answer, and each move is recorded once."""
    deed = DEEDS[name](queue, runner)
    before = history_of(queue, deed.run_id)
    line.break_at_commit(variant)
    with pytest.raises(StorageError) as lost:
        deed.make()
    assert lost.value.retryable
    assert line.breaks == 1
    assert history_of(queue, deed.run_id) == (deed.history if variant == "made" else before)
    if deed.is_refused_when_made and variant == "made":
        with pytest.raises((IllegalMove, StaleClaim)):
            deed.make()
    else:
        deed.make()
    assert history_of(queue, deed.run_id) == deed.history
    assert str(queue.get(deed.run_id).status) == deed.history[-1]
    assert reading.problems(queue.store) == []


class Family(NamedTuple):
    """A deed that something follows, and what follows it."""

    make: Callable[[], Any]
    run_id: str
    parent_id: str | None = None
    """The session that is to hear of the end, once."""
    attempts: int = 1
    """How many there are of the run once it is done."""
    is_refused_when_made: bool = False
    is_tried_alone: bool = False
    """Whether a statement that stands alone is tried first, which changes nothing here."""


def _work(queue: Queue, runner: Runner, **keywords: Any) -> Claim:
    queue.enqueue("x", **keywords)
    return start(runner)


def _work_of_child(queue: Queue, runner: Runner, **keywords: Any) -> tuple[str, Claim]:
    """A child at work, of a parent's session that is idle."""
    parent = _work(queue, runner)
    parent.complete("fanned out")
    parent_id = parent.run.session_id
    mode = "async_callback"
    return parent_id, _work(
        queue, runner, parent_session_id=parent_id, execution_mode=mode, **keywords
    )


def _report(
    make: Callable[[], Any], claim: Claim, parent_id: str | None, attempts: int = 1
) -> Family:
    return Family(make, claim.fence.run_id, parent_id, attempts, is_tried_alone=True)


def _complete_child(queue: Queue, runner: Runner) -> Family:
    parent_id, claim = _work_of_child(queue, runner)
    return _report(lambda: claim.complete("r"), claim, parent_id)


def _complete_children(queue: Queue, runner: Runner) -> Family:
    parent_id, claim = _work_of_child(queue, runner)
    report = [(claim, "done")]
    return Family(lambda: runner.finish_many(report), claim.fence.run_id, parent_id)


def _cancel_child(queue: Queue, runner: Runner) -> Family:
    parent_id, claim = _work_of_child(queue, runner)
    claim.complete("r")
    start(runner).complete("read")
    child = queue.enqueue("x", parent_session_id=parent_id, execution_mode="async_callback")
    return Family(
        lambda: queue.stop(child.run_id), child.run_id, parent_id, is_refused_when_made=True
    )


def _expire_child(queue: Queue, runner: Runner) -> Family:
    parent_id = queue.enqueue("x", demands={"tags": ["none"]}).session_id
    child = queue.enqueue(
        "x", parent_session_id=parent_id, execution_mode="async_callback", timeout=0.001
    )
    wait_until(lambda: queue.now() > str(child.timeout_at))
    return Family(queue.sweep, child.run_id, parent_id)


def _end_child_by_hand(queue: Queue, runner: Runner) -> Family:
    parent_id, claim = _work_of_child(queue, runner)
    sql = "UPDATE runs SET status = 'completed', completed_at = started_at WHERE run_id = ?"
    execute_sql(queue, sql, claim.fence.run_id)
    return Family(queue.sweep, claim.fence.run_id, parent_id)


def _fail_with_retries(queue: Queue, runner: Runner) -> Family:
    claim = _work(queue, runner, retries=2)
    return _report(lambda: claim.fail("busy", retry=True), claim, None, 2)


def _fail_child_at_last(queue: Queue, runner: Runner) -> Family:
    parent_id, claim = _work_of_child(queue, runner, retries=1)
    claim.fail("busy", retry=True)
    last = start(runner)
    return _report(lambda: last.fail("busy", retry=True), claim, parent_id, 2)


def _make_due_attempt(queue: Queue, runner: Runner) -> Family:
    claim = _work(queue, runner, retries=2, retry_delay=0.001)
    claim.fail("busy", retry=True)
    sql = "SELECT due_at FROM run_attempts WHERE run_id = ?"
    ((due_at,),) = execute_sql(queue, sql, claim.fence.run_id)
    wait_until(lambda: queue.now() > due_at)
    return Family(queue.sweep, claim.fence.run_id, None, 2)


FAMILIES: dict[str, Callable[[Queue, Runner], Family]] = {
    "complete a child": _complete_child,
    "complete many children": _complete_children,
    "cancel a child": _cancel_child,
    "expire a child": _expire_child,
    "tell of an end by hand": _end_child_by_hand,
    "fail with retries": _fail_with_retries,
    "fail a child's last attempt": _fail_child_at_last,
    "make an attempt that is due": _make_due_attempt,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_follows_an_end_is_neither_lost_nor_doubled_when_its_answer_was(
    queue: Queue, runner: Runner, line: Line, name: str, variant: str
) -> None:
    """One callback or one next attempt, after the caller asks again and after sweeps."""
    deed = FAMILIES[name](queue, runner)
    before = following(queue, deed)
    tried = deed.is_tried_alone and queue.store.engine.writes_in_one
    line.break_at_commit(variant, after=int(tried))
    with pytest.raises(StorageError):
        deed.make()
    assert line.breaks == 1
    with queue.store.ready():  # on a connection that is not the broken one
        now = following(queue, deed)
    done = (1 if deed.parent_id else 0, deed.attempts)
    assert before != done
    assert now == (done if variant == "made" else before)
    if deed.is_refused_when_made and variant == "made":
        with pytest.raises(IllegalMove):
            deed.make()
    else:
        deed.make()
    for _ in range(2):
        assert following(queue, deed) == done
        queue.sweep()
    assert reading.problems(queue.store) == []


def following(queue: Queue, deed: Family) -> tuple[int, int]:
    """How many ends the callbacks tell of that wait for a parent, and how many attempts exist."""
    waiting = queue.find(session_id=deed.parent_id, status="pending") if deed.parent_id else []
    return sum(run.tells or 0 for run in waiting), len(queue.attempts(deed.run_id))


def until_done(line: Line, verb: Callable[[], Any], may_be_refused: bool = False) -> Any:
    """Make a verb again and again while its answer is lost; None when it is refused as done."""
    before = broken = line.breaks
    while True:
        try:
            return verb()
        except StorageError:
            assert line.breaks > broken, "it failed on a sound line"
            broken = line.breaks
        except (IllegalMove, StaleClaim):
            assert may_be_refused
            assert broken > before, "every answer came"
            return None


def finish(queue: Queue, runner: Runner, line: Line, claim: Claim, way: str) -> None:
    """Take a claim to its end in one of the ways that there are."""
    if way == "release":
        until_done(line, claim.release, may_be_refused=True)
        return
    if way == "finish_many":
        assert until_done(line, lambda: runner.finish_many([(claim, "done")])) == []
        return
    until_done(line, claim.start)
    if way == "stop":
        until_done(line, lambda: queue.stop(claim.fence.run_id))
    report = {
        "complete": lambda: claim.complete("the result"),
        "fail": lambda: claim.fail("the error"),
        "stop": claim.confirm_stop,
    }[way]
    until_done(line, report)


def test_no_claim_is_forgotten(queue: Queue, runner: Runner, line: Line, is_long: bool) -> None:
    """After many lost answers of all verbs, a live runner owns nothing that it does not know of,
    and every run has the history of one that was claimed, started and ended once."""
    dice = random.Random(1)
    enqueued = []
    while line.breaks < (100 if is_long else 25):
        if line.is_sound:
            line.break_at_commit(dice.choice(VARIANTS), after=dice.randrange(6))
        run_id = new_run_id()
        enqueued.append(run_id)
        until_done(line, lambda run_id=run_id: queue.enqueue("x", run_id=run_id))
        until_done(line, queue.sweep)
        for claim in until_done(line, lambda: runner.claim_many(2)):
            way = dice.choice(["complete", "fail", "stop", "release", "finish_many"])
            finish(queue, runner, line, claim, way)
    line.mend()
    assert queue.find(status=[status.value for status in ACTIVE]) == []
    assert runner.held == []
    while claim := runner.claim(timeout=0):
        assert runner.finish_many([(claim, "done")]) == []
    assert {run.run_id for run in queue.find()} == set(enqueued)
    for run in queue.find():
        assert run.is_terminal
        history = history_of(queue, run.run_id)
        assert histories.is_legal(history), history
        assert history.count("running") == 1
    assert reading.problems(queue.store) == []
