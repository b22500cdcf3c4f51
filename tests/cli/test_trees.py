"""The commands of trees, callbacks and retries."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from runqueue import Queue, Run, Runner
from tests.helpers import start, status_of


@pytest.fixture
def runner(queue: Queue) -> Any:
    with queue.runner("worker") as runner:
        yield runner


def below(queue: Queue, parent: Run, **keywords: Any) -> Run:
    return queue.enqueue(
        "child", parent_session_id=parent.session_id, execution_mode="async_callback", **keywords
    )


# --- tree


def test_a_tree_is_drawn_from_its_root(rq: Callable[..., Any], queue: Queue) -> None:
    """Sessions with their runs, whichever of them was named."""
    root = queue.enqueue("root", agent_name="orchestrator")
    child = below(queue, root, retries=1)
    queue.stop(child.run_id)
    for one in (root.run_id, child.session_id, child.run_id, root.run_id[:-2]):
        ended = rq("tree", one)
        assert (ended.code, ended.err) == (0, "")
        assert ended.lines[0] == f"{root.session_id} pending orchestrator"
        assert ended.lines[1].endswith(f" {root.run_id} pending")
        assert f"{child.session_id} stopped" in ended.out
        assert f"{child.run_id} stopped attempt 1 told its parent by run_" in ended.out
        assert "pending tells of 1" in ended.out


def test_what_a_tree_quotes_does_not_reach_the_terminal_raw(
    rq: Callable[..., Any], queue: Queue
) -> None:
    """Nor is it taken for markup."""
    run = queue.enqueue("x", agent_name="\x1b[2J[bold]\u202e")
    assert "\\x1b[2J[bold]\\u202e" in rq("tree", run.run_id).lines[0]


def test_away_from_a_terminal_no_line_of_a_tree_is_cut(
    rq: Callable[..., Any], queue: Queue
) -> None:
    """Nor wrapped, nor filled up."""
    run = queue.enqueue("x", agent_name="a long name " * 30)
    lines = rq("tree", run.run_id).lines
    assert len(lines) == 2
    assert lines[0].endswith("a long name ")
    assert lines[1].endswith("pending")


def test_a_tree_as_json_has_a_session_a_row(rq: Callable[..., Any], queue: Queue) -> None:
    """Each parent before its children."""
    root = queue.enqueue("root", max_children=3)
    child = below(queue, root)
    rows = json.loads(rq("tree", child.run_id, "-o", "json").out)
    assert [row["session_id"] for row in rows] == [root.session_id, child.session_id]
    assert [row["parent_session_id"] for row in rows] == [None, root.session_id]
    assert [row["depth"] for row in rows] == [0, 1]
    assert rows[0]["tree_limits"] == {"depth": 5, "children": 3, "runs": 256}
    assert rows[1]["runs"][0]["run_id"] == child.run_id
    assert rows[1]["runs"][0]["status"] == "pending"
    lines = rq("tree", child.run_id, "-o", "jsonl").lines
    assert [json.loads(line) for line in lines] == rows
    assert rq("tree", child.run_id, "-o", "id").lines == [root.session_id, child.session_id]


# --- stop --tree


def test_stop_tree_stops_all_of_it(rq: Callable[..., Any], queue: Queue, runner: Runner) -> None:
    """And says which runs."""
    root = queue.enqueue("root")
    start(runner)
    child = below(queue, root)
    ended = rq("stop", "--tree", child.session_id, "--reason", "too dear")
    assert ended.code == 0
    assert ended.lines == [f"{root.run_id} stopping", f"{child.run_id} stopped"]
    told = queue.timeline(child.run_id)[-1]
    assert told.actor == "operator"
    assert told.detail.endswith(": too dear")
    again = rq("stop", "--tree", child.run_id)
    assert (again.code, again.out) == (0, "")
    assert "nothing of the tree" in again.err
    assert json.loads(rq("stop", "--tree", child.run_id, "-o", "json").out) == []


def test_stop_tree_prints_the_rows_when_that_is_wanted(
    rq: Callable[..., Any], queue: Queue
) -> None:
    """As one list, for a tree has any number of runs."""
    root = queue.enqueue("root")
    child = below(queue, root)
    rows = json.loads(rq("stop", "--tree", root.session_id, "-o", "json").out)
    assert sorted(row["run_id"] for row in rows) == sorted([root.run_id, child.run_id])
    assert {row["status"] for row in rows} == {"stopped"}


def test_stop_below_leaves_the_rest(rq: Callable[..., Any], queue: Queue) -> None:
    """Only the session and what is under it."""
    root = queue.enqueue("root")
    child = below(queue, root)
    assert rq("stop", "--tree", "--below", child.run_id).lines == [f"{child.run_id} stopped"]
    assert status_of(queue, root) == "pending"
    assert rq("stop", "--below", child.run_id).code == 2


# --- limits


@pytest.mark.parametrize("option", ["--parent", "--session"])
def test_an_empty_session_is_not_taken_for_none(
    rq: Callable[..., Any], queue: Queue, option: str
) -> None:
    """A variable that is not set would begin a tree of its own, past all limits."""
    ended = rq("enqueue", "x", "--mode", "async_callback", option, "")
    assert (ended.code, ended.out) == (2, "")
    assert f"{option} is empty" in ended.err
    assert queue.find() == []


@pytest.mark.parametrize(
    ("option", "refused"),
    [("--max-depth", 1), ("--max-children", 1), ("--max-tree-runs", 2)],
)
def test_a_run_over_a_limit_is_a_usage_error(
    rq: Callable[..., Any], queue: Queue, option: str, refused: int
) -> None:
    """One sentence, exit code 2, nothing added."""
    root = queue.get(rq("enqueue", "root", option, str(refused)).out.strip())
    parent = queue.get(rq("enqueue", "x", "--parent", root.session_id).out.strip())
    if option != "--max-depth":
        parent = root
    before = len(queue.find())
    ended = rq("enqueue", "x", "--parent", parent.session_id)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert root.session_id in ended.err
    wider = rq("enqueue", "x", "--parent", root.session_id, option, "9")
    assert wider.code == 2
    assert "would widen the limit" in wider.err
    assert len(queue.find()) == before


def test_limits_are_set_by_variables_and_the_settings_file(
    rq: Callable[..., Any], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RUNQUEUE_MAX_CHILDREN and its like are what is set, and an option asks for less."""
    monkeypatch.setenv("RUNQUEUE_MAX_CHILDREN", "2")
    assert rq("enqueue", "x", "--max-children", "3").code == 2
    root = queue.get(rq("enqueue", "root").out.strip())
    codes = [rq("enqueue", "x", "--parent", root.session_id).code for _ in range(3)]
    assert codes == [0, 0, 2]
    monkeypatch.setenv("RUNQUEUE_MAX_CHILDREN", "200")
    assert rq("enqueue", "x", "--parent", root.session_id).code == 2


@pytest.mark.parametrize("value", ["many", "-1", "1.5", "9999999999", "²"])
def test_a_limit_that_is_set_to_nonsense_is_bad_configuration(
    rq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """And told by the name of its variable."""
    monkeypatch.setenv("RUNQUEUE_MAX_TREE_RUNS", value)
    ended = rq("enqueue", "x")
    assert ended.code == 78
    assert "RUNQUEUE_MAX_TREE_RUNS" in ended.err


# --- retries


def test_enqueue_with_retries_and_a_timeline_of_every_attempt(
    rq: Callable[..., Any], queue: Queue, runner: Runner
) -> None:
    """Whichever attempt is named."""
    run_id = rq("enqueue", "x", "--retries", "2", "--retry-lost").out.strip()
    for _ in range(2):
        start(runner).fail("busy", retry=True)
    ids = [run.run_id for run in queue.attempts(run_id)]
    for one in ids:
        ended = rq("timeline", one)
        assert ended.lines[0].startswith("RUN ID ")
        named = [line.split()[0] for line in ended.lines[1:]]
        assert list(dict.fromkeys(named)) == ids
        rows = [json.loads(line) for line in rq("timeline", one, "-o", "jsonl").lines]
        assert list(dict.fromkeys(row["run_id"] for row in rows)) == ids
    assert json.loads(rq("show", ids[2], "-o", "json").out)["attempt"] == 3


def test_the_timeline_of_a_run_that_was_never_retried_is_its_own(
    rq: Callable[..., Any], queue: Queue
) -> None:
    """With no column for what is the same everywhere."""
    run = queue.enqueue("x")
    assert rq("timeline", run.run_id).lines[0].split()[0] == "AT"


def test_enqueue_wait_waits_for_the_last_attempt(
    spawn: Callable[..., Any], queue: Queue, runner: Runner
) -> None:
    """The first failure is none of the caller's business."""
    process = spawn("enqueue", "x", "--retries", "1", "--wait")
    claim = runner.claim(timeout=20)
    claim.start()
    claim.fail("busy", retry=True)
    start(runner).complete("at last")
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "at last\n")


@pytest.mark.parametrize(
    "words",
    [("--retries", "101"), ("--retries", "-1"), ("--retry-delay", "soon"), ("--retry-lost",)],
    ids=" ".join,
)
def test_terms_that_make_no_sense_are_2(
    rq: Callable[..., Any], queue: Queue, words: tuple[str, ...]
) -> None:
    """Nothing is added."""
    assert rq("enqueue", "x", *words).code == 2
    assert queue.find() == []
