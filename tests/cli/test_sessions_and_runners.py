"""The commands about sessions and runners."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runqueue import Queue, Runner

LONG_AGO = "2020-01-01T00:00:00.000000Z"


@pytest.fixture
def alpha(queue: Queue) -> Iterator[Runner]:
    """A live runner with something of everything."""
    with queue.runner(
        "alpha",
        project_dir="/srv/app",
        executor_type="shell",
        tags=["gpu", "big"],
        properties={"zone": "eu"},
    ) as runner:
        yield runner


@pytest.fixture
def dead(queue: Queue, other: sqlite3.Connection) -> str:
    """A runner that was killed long ago while it had a run at work."""
    run_id = queue.enqueue("x").run_id
    other.execute(
        "INSERT INTO runners (runner_id, incarnation, hostname, registered_at, heartbeat_at, "
        "lease_until) VALUES ('dead', 'other/1/1.00/x', 'elsewhere', ?, ?, ?)",
        (LONG_AGO, LONG_AGO, LONG_AGO),
    )
    other.execute(
        "UPDATE runs SET status = 'running', runner_id = 'dead', claimed_at = ?, started_at = ? "
        "WHERE run_id = ?",
        (LONG_AGO, LONG_AGO, run_id),
    )
    return run_id


def test_sessions_list_shows_a_status_derived_from_the_runs(
    rq: Callable[..., Any], queue: Queue, work: Callable[..., Any]
) -> None:
    """The newest first, with how many runs each has."""
    first = queue.enqueue("x", agent_name="writer").session_id
    work("completed")
    second = queue.enqueue("x").session_id
    queue.enqueue("y", session_id=second)
    ended = rq("sessions", "list")
    assert [line.split()[0] for line in ended.lines[1:]] == [second, first]
    listed = json.loads(rq("sessions", "list", "-o", "json").out)
    assert [(row["session_id"], row["status"], row["runs"]) for row in listed] == [
        (second, "pending", 2),
        (first, "completed", 1),
    ]
    assert [json.loads(line) for line in rq("sessions", "list", "-o", "jsonl").lines] == listed
    assert rq("sessions", "list", "-o", "id", "--limit", "1").lines == [second]


def test_sessions_show_tells_the_home_and_who_is_there(
    rq: Callable[..., Any], queue: Queue, alpha: Runner
) -> None:
    """Unbound before the first start; then host, directory and kind, and the live runners."""
    session_id = queue.enqueue("x").session_id
    assert "none yet" in rq("sessions", "show", session_id).out
    claim = alpha.claim(timeout=5)
    assert claim is not None
    claim.start()
    ended = rq("sessions", "show", session_id)
    assert f"hostname={socket.gethostname()}" in ended.out
    assert "alpha" in ended.out
    row = json.loads(rq("sessions", "show", session_id, "-o", "json").out)
    assert (row["status"], row["runs"], row["home_runners"]) == ("running", 1, ["alpha"])
    claim.complete()


def test_sessions_delete_takes_the_runs_with_it(rq: Callable[..., Any], queue: Queue) -> None:
    """And says how many."""
    session_id = queue.enqueue("x").session_id
    queue.enqueue("y", session_id=session_id)
    ended = rq("sessions", "delete", session_id)
    assert ended == (0, f"{session_id} deleted with 2 runs\n", "")
    assert queue.find() == []
    assert rq("sessions", "show", session_id).code == 3


def test_a_session_at_work_is_deleted_by_force_only(
    rq: Callable[..., Any],
    queue: Queue,
    set_status: Callable[..., None],
    rows: Callable[[], Any],
) -> None:
    """Exit code 4 without --force, and nothing is changed."""
    run = queue.enqueue("x")
    set_status(run.run_id, "running")
    before = rows()
    refused = rq("sessions", "delete", run.session_id)
    assert refused.code == 4
    assert run.run_id in refused.err
    assert rows() == before
    assert rq("sessions", "delete", "--force", run.session_id).code == 0
    assert queue.find() == []


def test_runners_list_shows_what_they_offer(
    rq: Callable[..., Any], queue: Queue, alpha: Runner, dead: str
) -> None:
    """Also the dead, as dead."""
    ended = rq("runners", "list")
    assert [line.split()[:3] for line in ended.lines[1:]] == [
        ["alpha", "online", "0"],
        ["dead", "dead", "1"],
    ]
    assert "big gpu" in ended.lines[1]
    listed = json.loads(rq("runners", "list", "-o", "json").out)
    assert [row["is_alive"] for row in listed] == [True, False]
    assert rq("runners", "list", "-o", "id").lines == ["alpha", "dead"]
    assert len(rq("runners", "list", "-o", "jsonl").lines) == 2


def test_runners_show_prints_one(rq: Callable[..., Any], alpha: Runner) -> None:
    """With its tags and properties as they were given."""
    row = json.loads(rq("runners", "show", "alpha", "-o", "json").out)
    assert row["tags"] == ["big", "gpu"]
    assert row["properties"] == {"zone": "eu"}
    assert (row["executor_type"], row["project_dir"]) == ("shell", "/srv/app")
    assert "alpha" in rq("runners", "show", "alpha").out


def test_runners_drain_tells_the_runner(
    rq: Callable[..., Any], queue: Queue, alpha: Runner
) -> None:
    """It is listed as draining, and `why` says so."""
    run_id = queue.enqueue("x").run_id
    assert rq("runners", "drain", "alpha") == (0, "alpha draining\n", "")
    assert json.loads(rq("runners", "show", "alpha", "-o", "json").out)["state"] == "draining"
    assert "all are draining" in rq("why", run_id).out


def test_runners_remove_resolves_the_runs_of_a_dead_one(
    rq: Callable[..., Any], queue: Queue, dead: str
) -> None:
    """The running run fails with the reason, and the runner is forgotten."""
    ended = rq("runners", "remove", "dead")
    assert ended == (0, "dead removed: 1 runs lost\n", "")
    run = queue.get(dead)
    assert (run.status, run.error) == ("failed", "runner dead was removed")
    assert rq("runners", "list", "-o", "id").lines == []
    assert queue.timeline(dead)[-1].actor == "operator"


def test_a_live_runner_is_removed_by_force_only(
    rq: Callable[..., Any], alpha: Runner, rows: Callable[[], Any]
) -> None:
    """Exit code 4, and nothing is changed."""
    before = rows()
    refused = rq("runners", "remove", "alpha")
    assert refused.code == 4
    assert "is alive" in refused.err
    assert rows() == before
    assert rq("runners", "remove", "--force", "alpha").code == 0


@pytest.mark.parametrize(
    "words", [("sessions", "delete"), ("runners", "drain"), ("runners", "remove")], ids=" ".join
)
def test_an_unknown_id_among_known_ones_does_not_keep_the_others_waiting(
    rq: Callable[..., Any], queue: Queue, dead: str, words: tuple[str, str]
) -> None:
    """As for runs: the others are done, and the exit code is that of the failure."""
    known = [queue.enqueue("x").session_id] if words[0] == "sessions" else ["dead"]
    ended = rq(*words, "nobody", *known)
    assert ended.code == 3
    assert "nobody" in ended.err
    assert known[0] in ended.out


def test_tags_written_by_hand_do_not_break_the_list(
    rq: Callable[..., Any], queue: Queue, dead: str, other: sqlite3.Connection
) -> None:
    """The database takes any JSON for tags; the list must still show every runner."""
    other.execute("UPDATE runners SET tags = '[1, \"gpu\"]', properties = '7'")
    for words in (("runners", "list"), ("runners", "show", "dead")):
        ended = rq(*words)
        assert ended.code == 0
        assert "gpu" in ended.out
