"""Trees of sessions: what they look like, that all of one can be stopped, and that they end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from runqueue import (
    Claim,
    IllegalMove,
    InvalidRun,
    Queue,
    Run,
    Runner,
    RunNotFound,
    SessionNotFound,
)
from tests.conftest import OtherProgram
from tests.helpers import (
    MovableClock,
    count,
    execute_sql,
    ids,
    in_background,
    is_empty,
    start,
    status_of,
    together,
    wait_until,
)


def below(queue: Queue, parent: Run | str, prompt: str = "child", **keywords: Any) -> Run:
    parent_id = parent if isinstance(parent, str) else parent.session_id
    return queue.enqueue(prompt, parent_session_id=parent_id, **keywords)


def shape(queue: Queue, one: str) -> list[tuple[int, str]]:
    return [(node.depth, node.session.session_id) for node in queue.tree(one).walk()]


# --- looking


def test_a_tree_shows_parents_and_children_from_any_of_them(
    queue: Queue, clock: MovableClock
) -> None:
    """By a run or a session; each with its runs."""
    root = queue.enqueue("root", agent_name="orchestrator")
    clock.advance(1)
    one, two = below(queue, root), below(queue, root)
    leaf = below(queue, one)
    clock.advance(1)
    again = queue.enqueue("again", session_id=one.session_id)
    stranger = queue.enqueue("another tree")
    for member in (root.run_id, one.session_id, two.run_id, leaf.run_id, again.run_id):
        tree = queue.tree(member)
        assert tree.session.agent_name == "orchestrator"
        nodes = list(tree.walk())
        assert {(node.depth, node.session.session_id) for node in nodes} == {
            (0, root.session_id),
            (1, one.session_id),
            (1, two.session_id),
            (2, leaf.session_id),
        }
        (found,) = [node for node in nodes if node.session.session_id == one.session_id]
        assert ids(found.runs) == [one.run_id, again.run_id]
        assert [ids(child.runs) for child in found.children] == [[leaf.run_id]]
        assert found.status == "pending"
    assert shape(queue, stranger.run_id) == [(0, stranger.session_id)]


def test_a_parent_that_only_a_run_names_is_in_the_tree(
    queue: Queue, clock: MovableClock, program: OtherProgram
) -> None:
    """As of a run that was inserted by hand."""
    root = queue.enqueue("root")
    program.execute(
        "INSERT INTO sessions (session_id, created_at) VALUES ('hand', ?)", clock.text()
    )
    program.execute(
        "INSERT INTO runs (run_id, session_id, type, prompt, parent_session_id, created_at) "
        "VALUES ('run_hand', 'hand', 'START_SESSION', 'x', ?, ?)",
        root.session_id,
        clock.text(),
    )
    for member in (root.run_id, "run_hand", "hand"):
        assert shape(queue, member) == [(0, root.session_id), (1, "hand")]


def test_parents_in_a_circle_are_shown_and_not_followed_for_ever(
    queue: Queue, program: OtherProgram
) -> None:
    """Nobody keeps hands from making one."""
    one = queue.enqueue("one")
    two = below(queue, one)
    program.execute(
        "UPDATE sessions SET parent_session_id = ? WHERE session_id = ?",
        two.session_id,
        one.session_id,
    )
    assert len(shape(queue, one.run_id)) == 2
    assert sorted(ids(queue.stop_tree(two.run_id))) == sorted(ids([one, two]))


def test_a_tree_of_any_depth_that_somebody_made_by_hand_is_shown(
    queue: Queue, program: OtherProgram, clock: MovableClock
) -> None:
    """Hands know no limits."""
    depth = 1_200
    above = None
    for number in range(depth):
        program.execute(
            "INSERT INTO sessions (session_id, created_at, parent_session_id) VALUES (?, ?, ?)",
            f"ses_{number:04}",
            clock.text(),
            above,
        )
        above = f"ses_{number:04}"
    assert [level for level, _ in shape(queue, "ses_0600")] == list(range(depth))


@pytest.mark.parametrize("verb", ["tree", "stop_tree"])
def test_an_unknown_run_or_session_is_not_found(queue: Queue, verb: str) -> None:
    """And said to be what it looks like."""
    with pytest.raises(RunNotFound):
        getattr(queue, verb)("run_0123456789ab")
    with pytest.raises(SessionNotFound):
        getattr(queue, verb)("ses_0123456789ab")


# --- stopping


def _grow(queue: Queue, runner: Runner, clock: MovableClock) -> dict[str, Claim | Run]:
    """A root at work, a child at work, one that waits, and a grandchild at work."""
    root = queue.enqueue("root")
    grown: dict[str, Claim | Run] = {"root": start(runner)}
    clock.advance(1)
    child = below(queue, root, execution_mode="async_callback")
    grown["child"] = start(runner)
    clock.advance(1)
    below(queue, child, execution_mode="async_callback")
    grown["grandchild"] = start(runner)
    clock.advance(1)
    grown["waiting"] = below(queue, root, execution_mode="async_callback")
    return grown


def _run(one: Claim | Run) -> Run:
    return one.run if isinstance(one, Claim) else one


@pytest.mark.parametrize("member", ["root", "child", "grandchild", "waiting"])
def test_a_stop_of_a_tree_stops_all_of_it(
    queue: Queue, runner: Runner, clock: MovableClock, member: str
) -> None:
    """Whichever of its runs is named; and nothing of it comes to life again."""
    grown = _grow(queue, runner, clock)
    other = queue.enqueue("another tree")
    stopped = queue.stop_tree(_run(grown[member]).run_id, reason="enough")
    assert sorted(ids(stopped)) == sorted(_run(one).run_id for one in grown.values())
    statuses = {name: status_of(queue, _run(one)) for name, one in grown.items()}
    assert statuses.pop("waiting") == "stopped"
    assert set(statuses.values()) == {"stopping"}
    assert queue.timeline(stopped[0].run_id)[-1].detail.endswith(": enough")
    for one in grown.values():
        if isinstance(one, Claim):
            one.confirm_stop()
    queue.sweep()
    assert count(queue, "runs") == 5, "no parent is resumed"
    assert status_of(queue, other) == "pending"
    assert queue.stop_tree(_run(grown[member]).run_id) == []


def test_a_stop_of_what_is_below_tells_the_parent_above(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """It goes on, and must know."""
    grown = _grow(queue, runner, clock)
    stopped = queue.stop_tree(_run(grown["child"]).run_id, below=True)
    assert sorted(ids(stopped)) == sorted(_run(grown[n]).run_id for n in ("child", "grandchild"))
    for name in ("grandchild", "child"):
        grown[name].confirm_stop()
    root = _run(grown["root"])
    (callback,) = [run for run in queue.find(session_id=root.session_id) if run.tells]
    assert callback.tells == 1
    assert _run(grown["child"]).run_id in callback.prompt
    assert len(queue.find(session_id=_run(grown["child"]).session_id)) == 1


def test_a_child_that_completes_while_its_tree_is_stopped_keeps_its_result(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """But resumes nobody."""
    grown = _grow(queue, runner, clock)
    queue.stop_tree(_run(grown["root"]).run_id)
    grown["child"].complete("done all the same")
    assert queue.get(_run(grown["child"]).run_id).result == "done all the same"
    assert count(queue, "runs") == 4


def test_a_run_that_is_being_stopped_starts_no_more_children(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Its agent may go on for its whole grace, and would undo the stop."""
    grown = _grow(queue, runner, clock)
    queue.stop_tree(_run(grown["root"]).run_id)
    before = count(queue, "runs")
    with pytest.raises(IllegalMove, match="is being stopped"):
        below(queue, _run(grown["child"]))
    assert count(queue, "runs") == before


def test_a_stop_of_a_tree_makes_no_other_attempt(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Of what had failed and was waiting for one."""
    root = queue.enqueue("root")
    below(queue, root, retries=3, retry_delay=5, priority=1)
    start(runner).fail("busy", retry=True)
    queue.stop_tree(root.run_id)
    clock.advance(5)
    assert not queue.sweep()
    assert count(queue, "runs") == 2


# --- limits


def test_a_tree_has_a_limited_depth(queue: Queue) -> None:
    """Five levels below its root, and one sentence for the sixth."""
    run = queue.enqueue("root")
    for _ in range(5):
        run = below(queue, run)
    with pytest.raises(InvalidRun, match=r"6 levels below session .*, whose limit is 5"):
        below(queue, run)
    assert count(queue, "runs") == 6
    assert count(queue, "sessions") == 6


def test_a_session_has_a_limited_number_of_live_children(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """Sixteen at a time; one that has ended makes room for another."""
    root = queue.enqueue("root")
    start(runner)
    children = [below(queue, root) for _ in range(16)]
    with pytest.raises(InvalidRun, match="16 live children"):
        below(queue, root)
    queue.enqueue("more for one that lives", session_id=children[0].session_id)
    queue.stop(children[1].run_id)
    below(queue, root)
    with pytest.raises(InvalidRun):
        queue.enqueue("again", session_id=children[1].session_id)


def test_a_tree_has_a_limited_number_of_runs(queue: Queue, connect: Callable[..., Queue]) -> None:
    """Counted over all of it, with those that have ended."""
    small = connect(max_tree_runs=6)
    root = small.enqueue("root")
    one, two = below(small, root), below(small, root)
    small.stop(one.run_id)
    deep = below(small, two)
    below(small, deep)
    small.enqueue("again", session_id=deep.session_id)
    for parent in (root, two, deep):
        with pytest.raises(InvalidRun, match="have 6 runs or more"):
            below(small, parent)
    with pytest.raises(InvalidRun):
        small.enqueue("again", session_id=deep.session_id)
    assert count(queue, "runs") == 6


def test_256_runs_are_the_limit_by_default(queue: Queue, runner: Runner) -> None:
    """An agent that starts one child after another comes to an end."""
    root = queue.enqueue("root")
    start(runner)
    for _ in range(255):
        queue.stop(below(queue, root).run_id)
    with pytest.raises(InvalidRun, match="256"):
        below(queue, root)


def test_a_batch_is_counted_one_after_the_other(queue: Queue) -> None:
    """All of it is refused when one is over the limit."""
    root = queue.enqueue("root")
    requests = [{"prompt": "x", "parent_session_id": root.session_id}] * 17
    with pytest.raises(InvalidRun):
        queue.enqueue_many(requests)
    assert len(queue.enqueue_many(requests[:16])) == 16


def test_two_who_add_the_last_child_at_once_are_one_too_many(
    queue: Queue, connect: Callable[..., Queue]
) -> None:
    """The root is locked while they are counted."""
    root = queue.enqueue("root", max_children=3, max_tree_runs=4)
    queues = [connect() for _ in range(6)]

    def add(other: Queue) -> bool:
        try:
            below(other, root)
        except InvalidRun:
            return False
        return True

    added = together(queue, [lambda q=other: add(q) for other in queues], queues)
    for other in queues:
        other.close()
    assert sum(added) == 3
    assert count(queue, "runs") == 4


def test_whoever_comes_while_the_last_child_is_being_added_waits_and_is_refused(
    queue: Queue, connect: Callable[..., Queue], program: OtherProgram
) -> None:
    """What is not committed yet is counted, too."""
    root = queue.enqueue("root", max_children=1)
    other = connect()

    def is_waiting() -> bool:
        if queue.store.engine.name == "sqlite":
            return True  # a writer is alone there
        rows = program.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(rows[0][0])

    with ExitStack() as stack:
        with queue.database.atomic():
            below(queue, root)
            future = stack.enter_context(in_background(lambda: below(other, root), other))
            wait_until(lambda: is_waiting() or future.done())
        with pytest.raises(InvalidRun, match="its limit is 1"):
            future.result(timeout=10)
    assert count(queue, "runs") == 2


def test_the_root_and_the_resumes_of_other_sessions_have_no_limit(
    queue: Queue, connect: Callable[..., Queue]
) -> None:
    """A long conversation is no recursion."""
    small = connect(max_tree_runs=2, max_children=0, max_depth=0)
    root = small.enqueue("root")
    for _ in range(5):
        small.enqueue("go on", session_id=root.session_id)
    assert count(queue, "runs") == 6


def test_callbacks_and_retries_are_never_refused(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """What was promised is kept, whatever the counts say."""
    root = queue.enqueue("root", max_tree_runs=2, priority=1)
    claim = start(runner)
    clock.advance(1)
    child = below(queue, root, execution_mode="async_callback", retries=1)
    start(runner).fail("busy", retry=True)
    assert len(queue.attempts(child.run_id)) == 2
    start(runner).complete("x")
    claim.complete("")
    assert start(runner).run.tells == 1


# --- narrower limits


@pytest.mark.parametrize("limit", ["max_depth", "max_children", "max_tree_runs"])
def test_a_narrower_limit_is_inherited_and_never_widened(queue: Queue, limit: str) -> None:
    """By no descendant, and by no later run of the session itself."""
    root = queue.enqueue("root", **{limit: 3})
    child = below(queue, root)
    before = count(queue, "runs")
    for wider in (
        lambda: below(queue, root, **{limit: 4}),
        lambda: below(queue, child, **{limit: 4}),
        lambda: queue.enqueue("again", session_id=root.session_id, **{limit: 4}),
        lambda: queue.enqueue("again", session_id=child.session_id, **{limit: 4}),
    ):
        with pytest.raises(InvalidRun, match=f"{limit} 4 would widen the limit of 3"):
            wider()
    assert count(queue, "runs") == before
    narrow = below(queue, root, **{limit: 2})
    with pytest.raises(InvalidRun, match="would widen the limit of 2"):
        below(queue, narrow, **{limit: 3})


def test_a_limit_holds_for_what_is_below_the_session_that_was_given_it(queue: Queue) -> None:
    """And not for its siblings."""
    root = queue.enqueue("root")
    narrow, wide = below(queue, root, max_children=1), below(queue, root)
    below(queue, narrow)
    with pytest.raises(InvalidRun, match="its limit is 1"):
        below(queue, narrow)
    below(queue, wide), below(queue, wide)


def test_a_child_may_be_given_a_budget_of_its_own(queue: Queue) -> None:
    """Levels and runs are counted from the session that was given them."""
    root = queue.enqueue("root")
    small = below(queue, root, max_depth=1, max_tree_runs=3)
    leaf = below(queue, small)
    with pytest.raises(InvalidRun, match=f"2 levels below session {small.session_id}"):
        below(queue, leaf)
    below(queue, small)
    with pytest.raises(InvalidRun, match=f"session {small.session_id} and what is below it have 3"):
        below(queue, small)
    below(queue, below(queue, below(queue, root)))


def test_a_limit_may_be_narrowed_later(queue: Queue) -> None:
    """By a run of the same session."""
    root = queue.enqueue("root", max_children=9)
    queue.enqueue("again", session_id=root.session_id, max_children=0, max_depth=2)
    with pytest.raises(InvalidRun, match="its limit is 0"):
        below(queue, root)


def test_no_child_widens_what_was_set_where_its_tree_began(
    queue: Queue, connect: Callable[..., Queue]
) -> None:
    """An agent's own settings can narrow, and no more."""
    careful, careless = connect(max_children=1), connect(max_children=50, max_depth=50)
    root = careful.enqueue("root")
    below(careless, root)
    with pytest.raises(InvalidRun, match="its limit is 1"):
        below(careless, root)
    free = queue.enqueue("root")
    below(queue, free)
    with pytest.raises(InvalidRun):
        below(careful, free)
    below(queue, free)


def test_what_is_set_may_be_wider_than_usual(connect: Callable[..., Queue], queue: Queue) -> None:
    """For the trees that begin there, whoever goes on with them."""
    run = connect(max_depth=7).enqueue("root")
    for _ in range(7):
        run = below(queue, run)
    with pytest.raises(InvalidRun, match="whose limit is 7"):
        below(queue, run)


def test_a_root_asks_for_no_more_than_what_is_set(queue: Queue) -> None:
    """Who may set more is not who enqueues."""
    with pytest.raises(InvalidRun, match="max_depth 6 would widen the limit of 5 that is set"):
        queue.enqueue("root", max_depth=6)
    assert is_empty(queue)


@pytest.mark.parametrize("value", [-1, 1.5, "3", True, 2**31])
def test_a_limit_that_is_none_is_refused(queue: Queue, value: Any) -> None:
    """In one sentence."""
    with pytest.raises(InvalidRun, match="max_children must be a whole number from 0 on"):
        queue.enqueue("x", max_children=value)


@pytest.mark.parametrize("text", ['{"depth":"deep"}', '{"depth":-1}', '{"runs":[]}', "{}"])
def test_limits_that_somebody_wrote_by_hand_and_are_none_are_the_usual(
    queue: Queue, program: OtherProgram, text: str
) -> None:
    """A tree does not become useless, nor endless."""
    run = queue.enqueue("root")
    program.execute("UPDATE sessions SET tree_limits = ?", text)
    for _ in range(5):
        run = below(queue, run)
    with pytest.raises(InvalidRun):
        below(queue, run)


def test_limits_that_are_no_object_are_refused_by_the_database(
    queue: Queue, program: OtherProgram
) -> None:
    """As demands are."""
    queue.enqueue("x")
    assert program.is_refused("UPDATE sessions SET tree_limits = '[1]'")
    assert program.is_refused("UPDATE sessions SET tree_limits = 'x'")


def test_a_tree_without_any_run_is_refused(queue: Queue) -> None:
    """The run that asks for it is one."""
    with pytest.raises(InvalidRun, match="max_tree_runs must be a whole number from 1 on"):
        queue.enqueue("x", max_tree_runs=0)


# --- circles and strangers


def test_a_session_is_not_made_a_child_of_what_is_below_it(queue: Queue) -> None:
    """Nor of itself: parents in a circle would resume each other for ever."""
    root = queue.enqueue("root")
    leaf = below(queue, below(queue, root))
    for parent in (root, leaf):
        with pytest.raises(InvalidRun) as refused:
            queue.enqueue("x", session_id=root.session_id, parent_session_id=parent.session_id)
        assert root.session_id in str(refused.value)
    assert count(queue, "runs") == 3


def test_nothing_is_added_below_parents_in_a_circle(queue: Queue, program: OtherProgram) -> None:
    """It has no root whose limits would hold."""
    one = queue.enqueue("one")
    two = below(queue, one)
    program.execute(
        "UPDATE sessions SET parent_session_id = ? WHERE session_id = ?",
        two.session_id,
        one.session_id,
    )
    with pytest.raises(InvalidRun, match="in a circle"):
        below(queue, two)


def test_an_unknown_parent_is_not_found(queue: Queue) -> None:
    """And nothing is added."""
    with pytest.raises(SessionNotFound):
        below(queue, "ses_0123456789ab")
    assert is_empty(queue)


def test_a_session_that_a_parent_resumes_is_its_child(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """For the tree, its limits, and the callback."""
    helper = queue.enqueue("helper")
    start(runner).complete("")
    root = queue.enqueue("root", max_children=0)
    with pytest.raises(InvalidRun, match="its limit is 0"):
        below(queue, root, session_id=helper.session_id)
    other = queue.enqueue("root")
    below(queue, other, session_id=helper.session_id)
    assert shape(queue, helper.run_id) == [(0, other.session_id), (1, helper.session_id)]


def test_the_same_run_id_twice_is_one_run_though_its_tree_is_full(queue: Queue) -> None:
    """A repeated enqueue adds nothing, so nothing is over a limit."""
    root = queue.enqueue("root", max_children=1)
    for _ in range(2):
        child = below(queue, root, run_id="run_00000000000a")
    assert child.run_id == "run_00000000000a"
    assert execute_sql(queue, "SELECT count(*) FROM runs") == [(2,)]
