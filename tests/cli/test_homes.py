"""The commands that move homes and bind the frameworks' own ids, and what shows silence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runqueue import Claim, Queue, Runner

MISSING = "ses_ffffffffffff"


@pytest.fixture
def alpha(queue: Queue) -> Iterator[Runner]:
    with queue.runner("alpha", hostname="box", project_dir="/srv") as runner:
        yield runner


@pytest.fixture
def at_work(queue: Queue, alpha: Runner) -> Iterator[Claim]:
    """A run whose agent is at work."""
    queue.enqueue("x")
    claim = alpha.claim(timeout=5)
    assert claim is not None
    claim.start()
    yield claim
    if not claim.is_over:
        claim.complete()


@pytest.fixture
def session_id(queue: Queue, at_work: Claim) -> str:
    """A session that lives on box, and has a run that waits."""
    at_work.complete()
    queue.enqueue("y", session_id=at_work.run.session_id)
    return at_work.run.session_id


def test_rehome_moves_and_clears(rq: Callable[..., Any], queue: Queue, session_id: str) -> None:
    """It says where home is and how many runs follow; a cleared one says what was forgotten."""
    moved = rq("sessions", "rehome", session_id, "--hostname", "other", "--executor-type", "sdk")
    home = "hostname=other project_dir=/srv executor_type=sdk"
    assert moved == (0, f"{session_id} home {home}; 1 waiting runs follow\n", "")
    assert "none alive" in rq("sessions", "show", session_id).out
    row = json.loads(rq("sessions", "rehome", session_id, "--executor-type", "", "-o", "json").out)
    assert (row["hostname"], row["executor_type"], row["runs"]) == ("other", None, 1)
    rq("sessions", "bind", session_id, "conversation-1")
    cleared = rq("sessions", "rehome", session_id, "--clear")
    assert cleared.out == f"{session_id} home none; 1 waiting runs follow\n"
    assert cleared.err == "its executor session id was conversation-1\n"
    assert queue.session(session_id).home() == {}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((MISSING, "--hostname", "x"), 3, MISSING),
        (("SESSION",), 2, "say where"),
        (("SESSION", "--clear", "--hostname", "x"), 2, "not both"),
        (("SESSION", "--hostname", ""), 2, "would have no host"),
    ],
    ids=["unknown", "nothing", "both", "no host"],
)
def test_a_refused_move_is_one_sentence(
    rq: Callable[..., Any],
    session_id: str,
    rows: Callable[[], Any],
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    """With the exit code of its kind; nothing is changed."""
    before = rows()
    ended = rq("sessions", "rehome", *(session_id if one == "SESSION" else one for one in words))
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
    assert rows() == before


def test_a_busy_session_is_not_moved(rq: Callable[..., Any], at_work: Claim) -> None:
    """Exit code 4, and the run is named."""
    ended = rq("sessions", "rehome", at_work.run.session_id, "--clear")
    assert ended.code == 4
    assert at_work.run.run_id in ended.err


def test_bind_takes_the_session_from_the_environment_of_a_run(
    rq: Callable[..., Any], queue: Queue, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given, it is the one that is given; without either it is a matter of usage."""
    assert rq("sessions", "bind", "conversation-1").code == 2
    monkeypatch.setenv("RUNQUEUE_SESSION_ID", session_id)
    assert rq("sessions", "bind", "conversation-1") == (0, f"{session_id} conversation-1\n", "")
    other = queue.enqueue("x").session_id
    assert rq("sessions", "bind", other, "conversation-2").code == 0
    assert queue.session(session_id).executor_session_id == "conversation-1"
    assert queue.session(other).executor_session_id == "conversation-2"
    assert "conversation-1" in rq("sessions", "show", session_id).out
    assert rq("sessions", "bind", "").out == f"{session_id} bound to nothing\n"
    assert queue.session(session_id).executor_session_id is None


def test_a_refused_binding_is_one_sentence(
    rq: Callable[..., Any], queue: Queue, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was deleted, the id of another one, what is no id, too many words."""
    rq("sessions", "bind", session_id, "conversation-1")
    other = queue.enqueue("x").session_id
    rq("sessions", "rehome", other, "--hostname", "box")
    for words, code in (
        ((MISSING, "x"), 3),
        ((other, "conversation-1"), 4),
        ((other, "--", "--resume"), 2),
        ((other, "a\nb"), 2),
    ):
        ended = rq("sessions", "bind", *words)
        assert (ended.code, ended.out) == (code, ""), words
        assert len(ended.err.splitlines()) == 1
    assert rq("sessions", "bind", "a", "b", "c").code == 2
    assert queue.session(other).executor_session_id is None


def test_show_list_and_why_say_how_long_an_agent_has_been_silent(
    rq: Callable[..., Any], at_work: Claim, other: sqlite3.Connection
) -> None:
    """In words for people, as a time in JSON; a list without runs at work says nothing of it."""
    run_id = at_work.run.run_id
    other.execute("UPDATE runs SET started_at = '2026-01-01T00:00:00.000000Z'")
    assert "no output since its start" in rq("show", run_id).out
    spoke = "2026-01-02T00:00:00.000000Z"
    other.execute("INSERT INTO run_output VALUES (?, ?)", (run_id, spoke))
    assert "last output" in rq("show", run_id).out
    assert "days ago" in rq("show", run_id).out
    assert "last output" in rq("why", run_id).out
    assert json.loads(rq("show", run_id, "-o", "json").out)["last_output_at"] == spoke
    assert json.loads(rq("list", "-o", "json").out)[0]["last_output_at"] == spoke
    listed = rq("list")
    assert "SILENT" in listed.lines[0]
    at_work.complete()
    assert "SILENT" not in rq("list").out
    assert "silence" not in rq("show", run_id).out
