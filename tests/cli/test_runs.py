"""The commands about runs: list, show, wait, why, timeline, stop, release and retry."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from runqueue import Queue

GIVEN = [
    *("run_id", "session_id", "type", "agent_name", "prompt", "project_dir"),
    *("parent_session_id", "execution_mode", "demands", "status", "runner_id", "error"),
    *("created_at", "claimed_at", "started_at", "completed_at", "timeout_at"),
]
MISSING = "run_ffffffffffff"


@pytest.fixture
def three(queue: Queue, work: Callable[..., Any]) -> list[str]:
    """A completed, a failed and a pending run, the oldest first."""
    first = queue.enqueue("one", agent_name="reader").run_id
    work("completed", "the answer", runner_id="alpha")
    second = queue.enqueue("two", agent_name="writer").run_id
    work("failed", "it broke", runner_id="beta")
    third = queue.enqueue("three", agent_name="writer").run_id
    return [first, second, third]


def test_list_shows_the_newest_first(rq: Callable[..., Any], three: list[str]) -> None:
    """A header and one line a run, in plain text."""
    ended = rq("list")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines[0].split() == [
        *("RUN", "ID", "STATUS", "AGENT", "NAME", "SESSION", "ID", "RUNNER", "ID", "AGE", "ERROR")
    ]
    assert [line.split()[0] for line in ended.lines[1:]] == three[::-1]
    assert [line.split()[1] for line in ended.lines[1:]] == ["pending", "failed", "completed"]
    assert "it broke" in ended.lines[2]


def test_list_of_nothing_is_empty(rq: Callable[..., Any], queue: Queue) -> None:
    """No rows: nothing on standard output, or an empty list as JSON."""
    assert rq("list")[:2] == (0, "")
    assert rq("list", "-o", "json") == (0, "[]\n", "")
    assert rq("list", "-o", "jsonl") == (0, "", "")
    assert rq("list", "-o", "id") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--status", "failed"), [1]),
        (("--status", "failed", "--status", "pending"), [2, 1]),
        (("--agent", "writer"), [2, 1]),
        (("--agent", "writer", "--status", "pending"), [2]),
        (("--runner", "alpha"), [0]),
        (("--runner", "nobody"), []),
        (("--limit", "0"), [2, 1, 0]),
        (("--limit", "3"), [2, 1, 0]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_list_filters(
    rq: Callable[..., Any], three: list[str], arguments: tuple[str, ...], expected: list[int]
) -> None:
    """By status, agent and runner; a run must match all that is given."""
    ended = rq("list", "-o", "id", *arguments)
    assert ended.code == 0
    assert ended.err == ""
    assert ended.lines == [three[number] for number in expected]


def test_list_filters_by_session(rq: Callable[..., Any], queue: Queue, three: list[str]) -> None:
    """Only the runs of one session."""
    session_id = queue.get(three[1]).session_id
    assert rq("list", "-o", "id", "--session", session_id).lines == [three[1]]


def test_list_says_when_there_are_more(rq: Callable[..., Any], three: list[str]) -> None:
    """On standard error, so that a script reads ids only."""
    ended = rq("list", "--limit", "2", "-o", "id")
    assert ended.lines == three[:0:-1]
    assert "--limit 0" in ended.err


def test_list_prints_json(rq: Callable[..., Any], three: list[str]) -> None:
    """A list, or one object a line; never a prompt, which may be large."""
    listed = json.loads(rq("list", "-o", "json").out)
    assert [row["run_id"] for row in listed] == three[::-1]
    assert [json.loads(line) for line in rq("list", "-o", "jsonl").lines] == listed
    assert set(GIVEN) - set(listed[0]) == {"prompt"}
    assert "waiting" not in listed[0]


def test_a_long_error_is_shortened_in_the_table_only(
    rq: Callable[..., Any], queue: Queue, work: Callable[..., Any]
) -> None:
    """A table stays readable; JSON and `show` have all of it."""
    queue.enqueue("x")
    error = "e" * 5000
    run = work("failed", error)
    assert max(map(len, rq("list").lines)) < 300
    assert json.loads(rq("list", "-o", "json").out)[0]["error"] == error
    assert error in rq("show", run.run_id).out


def test_show_prints_every_column_of_the_contract(rq: Callable[..., Any], three: list[str]) -> None:
    """As JSON all of them in the table's order; as text those that hold something."""
    row = json.loads(rq("show", three[0], "-o", "json").out)
    assert list(row)[:17] == GIVEN
    assert (row["prompt"], row["result"], row["status"]) == ("one", "the answer", "completed")
    assert json.loads(rq("show", three[0], "-o", "jsonl").out) == row
    assert rq("show", three[0], "-o", "id").out == f"{three[0]}\n"
    text = rq("show", three[0])
    shown = dict(line.split(maxsplit=1) for line in text.lines)
    assert shown == {name: str(value) for name, value in row.items() if value is not None}


def test_show_takes_the_beginning_of_an_id(rq: Callable[..., Any], queue: Queue) -> None:
    """When only one run begins so; several are refused."""
    for run_id in ("run_aa0000000001", "run_ab0000000001"):
        queue.enqueue("x", run_id=run_id)
    assert rq("show", "run_aa", "-o", "id").out == "run_aa0000000001\n"
    refused = rq("show", "run_a")
    assert (refused.code, refused.out) == (2, "")
    assert "more than one" in refused.err
    assert rq("show", "run_a%").code == 3
    assert rq("show", "run_b").code == 3


@pytest.mark.parametrize("command", ["show", "wait", "why", "timeline", "stop", "release", "retry"])
def test_an_empty_id_is_nobodys_id(
    rq: Callable[..., Any], queue: Queue, rows: Callable[[], Any], command: str
) -> None:
    """`runqueue stop "$id"` with the variable unset must not act on the only run there is."""
    queue.enqueue("x")
    before = rows()
    ended = rq(command, "", *(["--timeout", "0"] if command == "wait" else []))
    assert ended.code in (2, 3)
    assert ended.out == ""
    assert ended.err.startswith("Error: ")
    assert rows() == before


def test_wait_prints_the_result_of_an_ended_run(rq: Callable[..., Any], three: list[str]) -> None:
    """Exit code 0 with the result, or 5 with the reason on standard error."""
    assert rq("wait", three[0]) == (0, "the answer\n", "")
    assert rq("wait", three[1]) == (5, "", f"run {three[1]} failed: it broke\n")


def test_wait_gives_up_in_time_and_leaves_the_run_alone(
    rq: Callable[..., Any], three: list[str], rows: Callable[[], Any]
) -> None:
    """Exit code 5, and the run goes on."""
    before = rows()
    ended = rq("wait", three[2], "--timeout", "0.05")
    assert (ended.code, ended.out) == (5, "")
    assert ended.err == f"Error: run {three[2]} had not ended after 0.05 s\n"
    assert rows() == before


def test_wait_of_a_stopped_run_exits_with_5(
    rq: Callable[..., Any], queue: Queue, work: Callable[..., Any]
) -> None:
    """Stopped is not completed."""
    queue.enqueue("x")
    run = work("stopped")
    ended = rq("wait", run.run_id, "-o", "json")
    assert ended.code == 5
    assert json.loads(ended.out)["status"] == "stopped"


def test_why_explains(rq: Callable[..., Any], queue: Queue) -> None:
    """One sentence and its details; the same as JSON."""
    run_id = queue.enqueue("x", demands={"tags": ["gpu"]}).run_id
    ended = rq("why", run_id)
    assert ended.lines[0] == "pending: no runner is alive"
    assert any("expires in" in line for line in ended.lines)
    assert any("no daemon is alive" in line for line in ended.lines)
    row = json.loads(rq("why", run_id, "-o", "json").out)
    assert (row["run_id"], row["status"]) == (run_id, "pending")
    assert row["summary"] == ended.lines[0]


def test_why_names_the_unmet_demand_of_each_runner(rq: Callable[..., Any], queue: Queue) -> None:
    """What the operator has to change is in the answer."""
    run_id = queue.enqueue("x", demands={"tags": ["gpu"]}).run_id
    with queue.runner("alpha", tags=["cpu"]):
        ended = rq("why", run_id)
    assert ended.lines[0] == 'pending: no live runner meets the demand tags ["gpu"]'
    assert '  alpha: tags ["gpu"] (has ["cpu"])' in ended.lines


def test_timeline_tells_who_did_what(rq: Callable[..., Any], three: list[str]) -> None:
    """One line a move, the oldest first."""
    ended = rq("timeline", three[0])
    assert [line.split()[1] for line in ended.lines] == [
        *("STATUS", "pending", "claimed", "running", "completed")
    ]
    events = json.loads(rq("timeline", three[0], "-o", "json").out)
    assert [event["actor"] for event in events] == ["caller", "runner", "runner", "runner"]
    assert [json.loads(line) for line in rq("timeline", three[0], "-o", "jsonl").lines] == events


def test_timeline_shows_what_was_written_by_hand(
    rq: Callable[..., Any], queue: Queue, other: sqlite3.Connection
) -> None:
    """A status that nobody recorded is there too."""
    run_id = queue.enqueue("x").run_id
    other.execute("UPDATE runs SET status = 'failed' WHERE run_id = ?", (run_id,))
    events = json.loads(rq("timeline", run_id, "-o", "json").out)
    assert [(event["status"], event["actor"]) for event in events] == [
        ("pending", "caller"),
        ("failed", "sql"),
    ]


def test_stop_cancels_and_stops(
    rq: Callable[..., Any], queue: Queue, set_status: Callable[..., None]
) -> None:
    """A pending run is over at once; a running one is stopping. The reason is kept."""
    pending, running = (queue.enqueue("x").run_id for _ in range(2))
    set_status(running, "running")
    ended = rq("stop", pending, running, "--reason", "no longer wanted")
    assert ended == (0, f"{pending} stopped\n{running} stopping\n", "")
    last = queue.timeline(running)[-1]
    assert (last.status, last.actor, last.detail) == ("stopping", "operator", "no longer wanted")
    assert rq("stop", running).out == f"{running} stopping\n"


def test_stop_reads_ids_from_standard_input(rq: Callable[..., Any], queue: Queue) -> None:
    """`runqueue list -o id --status pending | runqueue stop -`."""
    ids = [queue.enqueue("x").run_id for _ in range(3)]
    listed = rq("list", "-o", "id", "--status", "pending").out
    ended = rq("stop", "-", stdin=listed)
    assert ended.code == 0
    assert sorted(line.split()[0] for line in ended.lines) == sorted(ids)
    assert {run.status.value for run in queue.find()} == {"stopped"}
    assert rq("stop", "-", stdin="") == (0, "", "")


@pytest.mark.parametrize("command", ["stop", "release", "retry"])
def test_one_bad_id_among_good_ones_stops_nothing_else(
    rq: Callable[..., Any],
    queue: Queue,
    set_status: Callable[..., None],
    command: str,
) -> None:
    """The others are done, and the exit code is that of the first failure."""
    good = [queue.enqueue("x").run_id for _ in range(2)]
    bad = queue.enqueue("x").run_id
    for run_id in good:
        set_status(run_id, {"stop": "running", "release": "claimed", "retry": "failed"}[command])
    set_status(bad, {"stop": "completed", "release": "running", "retry": "running"}[command])
    ended = rq(command, good[0], MISSING, bad, good[1])
    assert ended.code == 3
    assert len(ended.lines) == 2
    errors = ended.err.splitlines()
    assert [line.startswith("Error: ") for line in errors] == [True, True]
    assert MISSING in errors[0]
    assert bad in errors[1]
    assert rq(command, bad, MISSING).code == 4


@pytest.mark.parametrize("command", ["stop", "release", "retry"])
def test_what_was_moved_is_printed_as_rows_when_that_is_wanted(
    rq: Callable[..., Any], queue: Queue, set_status: Callable[..., None], command: str
) -> None:
    """As JSON it is one value, also when one of the ids is not there."""
    before = {"stop": "running", "release": "claimed", "retry": "failed"}[command]
    after = {"stop": "stopping", "release": "pending", "retry": "pending"}[command]

    def some(number: int) -> list[str]:
        ids = [queue.enqueue("x").run_id for _ in range(number)]
        for run_id in ids:
            set_status(run_id, before)
        return ids

    row = json.loads(rq(command, *some(1), "-o", "json").out)
    assert row["status"] == after
    ended = rq(command, *some(2), MISSING, "-o", "json")
    assert ended.code == 3
    assert [row["status"] for row in json.loads(ended.out)] == [after] * 2
    assert [json.loads(line)["status"] for line in rq(command, *some(2), "-o", "jsonl").lines] == [
        *(after, after)
    ]
    ids = some(2)
    printed = rq(command, *ids, "-o", "id").lines
    assert len(printed) == 2
    assert (printed == ids) is (command != "retry")
    assert rq(command, MISSING, "-o", "json")[:2] == (3, "")


def test_stop_can_wait_for_the_end(rq: Callable[..., Any], queue: Queue) -> None:
    """With --wait the last status is printed."""
    run_id = queue.enqueue("x").run_id
    assert rq("stop", "--wait", run_id).out == f"{run_id} stopped\n"


def test_release_gives_a_claimed_run_back(
    rq: Callable[..., Any], queue: Queue, set_status: Callable[..., None]
) -> None:
    """It is pending again, and nobody's; a running one is refused."""
    run_id = queue.enqueue("x").run_id
    set_status(run_id, "claimed")
    assert rq("release", run_id) == (0, f"{run_id} pending\n", "")
    run = queue.get(run_id)
    assert (run.status, run.runner_id, run.claimed_at) == ("pending", None, None)
    assert queue.timeline(run_id)[-1].actor == "operator"


def test_retry_adds_a_new_run_and_prints_its_id(
    rq: Callable[..., Any], queue: Queue, three: list[str]
) -> None:
    """The same content in the same session; the old run stays as it is."""
    ended = rq("retry", three[1])
    assert (ended.code, ended.err) == (0, "")
    old, new = queue.get(three[1]), queue.get(ended.out.strip())
    assert new.run_id != old.run_id
    assert (new.prompt, new.session_id, new.agent_name) == (
        old.prompt,
        old.session_id,
        old.agent_name,
    )
    assert (old.status, new.status, new.type) == ("failed", "pending", "RESUME_SESSION")
    assert rq("retry", new.run_id).code == 4


def test_the_beginning_of_an_id_is_enough_to_act(rq: Callable[..., Any], queue: Queue) -> None:
    """As for show; one that begins two ids changes neither."""
    for run_id in ("run_aa0000000001", "run_ab0000000001"):
        queue.enqueue("x", run_id=run_id)
    assert rq("stop", "run_a").code == 2
    assert {run.status.value for run in queue.find()} == {"pending"}
    assert rq("stop", "run_ab").out == "run_ab0000000001 stopped\n"
