"""`runqueue enqueue`: what it takes, what it prints, and `--wait`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from runqueue import Queue


def test_enqueue_prints_the_id_and_nothing_else(rq: Callable[..., Any], queue: Queue) -> None:
    """Fit for $(...): one line with one id."""
    ended = rq("enqueue", "Summarise the README")
    assert ended.code == 0
    assert ended.err == ""
    assert re.fullmatch(r"run_[0-9a-f]{12}\n", ended.out)
    run = queue.get(ended.out.strip())
    assert (run.prompt, run.status, run.type) == (
        "Summarise the README",
        "pending",
        "START_SESSION",
    )


def test_enqueue_creates_the_database(rq: Callable[..., Any], path: Any) -> None:
    """The first run of all needs no preparation."""
    assert not path.exists()
    assert rq("enqueue", "x").code == 0
    assert path.exists()


@pytest.mark.parametrize("text", ["one\ntwo\n", "Grüße, 世界 🎉", "x" * 1_048_576, " "])
def test_enqueue_reads_a_prompt_from_standard_input(
    rq: Callable[..., Any], queue: Queue, text: str
) -> None:
    """`-` takes the input as it is, up to the limit."""
    run_id = rq("enqueue", "-", stdin=text).out.strip()
    assert queue.get(run_id).prompt == text


@pytest.mark.parametrize(
    ("stdin", "reason"),
    [
        (b"", "the prompt is empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a\0b", "NUL"),
        (b"x" * 1_048_577, "over the limit"),
        ("é".encode() * 524_289, "over the limit"),
        (b"x" * 6_000_000, "over the limit"),
    ],
    ids=["empty", "not utf-8", "nul", "one over", "one over in bytes", "a giant"],
)
def test_enqueue_refuses_an_input_that_cannot_be_a_prompt(
    rq: Callable[..., Any], rows: Callable[[], Any], stdin: bytes, reason: str
) -> None:
    """One sentence, exit code 2, and no run."""
    before = rows()
    ended = rq("enqueue", "-", stdin=stdin)
    assert (ended.code, ended.out) == (2, "")
    assert reason in ended.err
    assert ended.err.count("\n") == 1
    assert rows() == before


def test_every_option_of_enqueue_reaches_the_run(rq: Callable[..., Any], queue: Queue) -> None:
    """Agent, directory, mode, tags, demands, timeout, priority, parent and id."""
    parent = queue.enqueue("the parent").session_id
    ended = rq(
        *("enqueue", "--agent", "writer", "--project-dir", "/srv/app", "--parent", parent),
        *("--mode", "async_callback", "--tag", "gpu", "--tag", "big", "--demand", "zone=eu"),
        *("--demand", "hostname=h1", "--timeout", "2m", "--priority", "7"),
        *("--run-id", "run_00000000000a", "the child"),
    )
    assert ended.out == "run_00000000000a\n"
    run = queue.get("run_00000000000a")
    assert run.agent_name == "writer"
    assert run.project_dir == "/srv/app"
    assert run.parent_session_id == parent
    assert run.execution_mode == "async_callback"
    assert run.priority == 7
    assert json.loads(run.demands or "") == {
        "hostname": "h1",
        "tags": ["big", "gpu"],
        "zone": "eu",
    }
    assert seconds(run.created_at, run.timeout_at) == 120


@pytest.mark.parametrize("has_parent", [True, False])
def test_a_callback_that_nobody_can_get_is_said(
    rq: Callable[..., Any], queue: Queue, has_parent: bool
) -> None:
    """The run is added all the same, as one that is written by hand would be."""
    parent = ("--parent", queue.enqueue("the parent").session_id) if has_parent else ()
    ended = rq("enqueue", "the child", "--mode", "async_callback", *parent)
    assert ended.code == 0
    said = f"nobody is told of the end of run {ended.out.strip()}: give its --parent"
    assert (said in ended.err) is not has_parent
    assert bool(ended.err) is not has_parent


def seconds(earlier: str, later: str | None) -> float:
    from runqueue import clock

    assert later is not None
    return clock.seconds_between(earlier, later)


def test_a_demand_given_twice_is_a_list(rq: Callable[..., Any], queue: Queue) -> None:
    """--demand K=a --demand K=b asks for both; tags may be given in both ways."""
    run_id = rq("enqueue", "x", "--demand", "cuda=11", "--demand", "cuda=12").out.strip()
    assert json.loads(queue.get(run_id).demands or "") == {"cuda": ["11", "12"]}
    run_id = rq("enqueue", "x", "--tag", "a", "--demand", "tags=b").out.strip()
    assert json.loads(queue.get(run_id).demands or "") == {"tags": ["a", "b"]}
    run_id = rq("enqueue", "x", "--demand", "tags=b").out.strip()
    assert json.loads(queue.get(run_id).demands or "") == {"tags": ["b"]}


def test_the_timeout_is_five_minutes_with_demands_and_none_without(
    rq: Callable[..., Any], queue: Queue
) -> None:
    """As the help says."""
    assert queue.get(rq("enqueue", "x").out.strip()).timeout_at is None
    run = queue.get(rq("enqueue", "x", "--tag", "gpu").out.strip())
    assert seconds(run.created_at, run.timeout_at) == 300


def test_session_resumes_a_session(rq: Callable[..., Any], queue: Queue) -> None:
    """A second run of the same session is a RESUME_SESSION."""
    first = queue.enqueue("x", agent_name="writer")
    run = queue.get(rq("enqueue", "y", "--session", first.session_id).out.strip())
    assert (run.session_id, run.type, run.agent_name) == (
        first.session_id,
        "RESUME_SESSION",
        "writer",
    )


def test_the_same_run_id_twice_is_one_run(rq: Callable[..., Any], queue: Queue) -> None:
    """The second call succeeds and adds nothing; other content is refused."""
    arguments = ("enqueue", "--run-id", "run_00000000000b")
    assert rq(*arguments, "x").code == 0
    assert rq(*arguments, "x").out == "run_00000000000b\n"
    assert len(queue.find()) == 1
    refused = rq(*arguments, "y")
    assert refused.code == 2
    assert "exists already with another prompt" in refused.err
    assert queue.get("run_00000000000b").prompt == "x"


@pytest.mark.parametrize("output", ["json", "jsonl"])
def test_enqueue_prints_the_run_as_json(rq: Callable[..., Any], output: str) -> None:
    """One object with the columns of the table, and nothing that is only the database's."""
    row = json.loads(rq("enqueue", "x", "-o", output).out)
    assert row["prompt"] == "x"
    assert row["status"] == "pending"
    assert "waiting" not in row
    assert rq("enqueue", "x", "-o", "id").out.startswith("run_")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--timeout", "-1"),
        ("--timeout", "soon"),
        ("--timeout", "1e3"),
        ("--timeout", "nan"),
        ("--timeout", "9" * 400),
        ("--priority", "high"),
        ("--priority", "9" * 12),
        ("--mode", "later"),
        ("--demand", "gpu"),
        ("--demand", "=x"),
        ("--tag", ""),
        ("--tag", "t" * 129),
        ("--run-id", "run_1"),
        ("--run-id", ""),
        ("--demand", "hostname=a", "--demand", "hostname=b"),
        ("-o", "yaml"),
        ("--colour", "red"),
        ("a second prompt",),
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_enqueue_refuses_bad_input(
    rq: Callable[..., Any], rows: Callable[[], Any], arguments: tuple[str, ...]
) -> None:
    """Exit code 2, a sentence that begins with Error, and no run."""
    before = rows()
    ended = rq("enqueue", "x", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1].startswith("Error: ")
    assert rows() == before


def test_a_contradiction_of_the_sessions_home_is_refused(
    rq: Callable[..., Any], queue: Queue, work: Callable[..., Any], rows: Callable[[], Any]
) -> None:
    """A resumed run cannot be sent elsewhere."""
    first = queue.enqueue("x")
    work("completed")
    before = rows()
    ended = rq("enqueue", "y", "--session", first.session_id, "--demand", "hostname=elsewhere")
    assert ended.code == 2
    assert "contradicts" in ended.err
    assert rows() == before


def answer(queue: Queue, act: Callable[..., Any]) -> threading.Thread:
    """Execute the next run that comes, in a thread."""

    def serve() -> None:
        with queue.runner("worker") as runner:
            claim = runner.claim(timeout=10)
            assert claim is not None
            claim.start()
            act(claim)
        queue.close()

    thread = threading.Thread(target=serve, name="test-answer")
    thread.start()
    return thread


def test_wait_prints_the_result_and_exits_with_0(rq: Callable[..., Any], queue: Queue) -> None:
    """The id goes to standard error, so that standard output is the result alone."""
    thread = answer(queue, lambda claim: claim.complete("forty\n  two\n"))
    ended = rq("enqueue", "x", "--wait")
    thread.join()
    assert (ended.code, ended.out) == (0, "forty\n  two\n")
    assert re.fullmatch(r"run_[0-9a-f]{12}\n", ended.err)


def test_wait_exits_with_5_when_the_run_fails(rq: Callable[..., Any], queue: Queue) -> None:
    """The reason is on standard error, and standard output is empty."""
    thread = answer(queue, lambda claim: claim.fail("no more disk"))
    ended = rq("enqueue", "x", "--wait")
    thread.join()
    assert (ended.code, ended.out) == (5, "")
    assert "failed: no more disk" in ended.err


def test_wait_can_print_the_ended_run_as_json(rq: Callable[..., Any], queue: Queue) -> None:
    """With -o json the whole run is printed, also one that did not complete."""
    thread = answer(queue, lambda claim: claim.fail("no more disk"))
    ended = rq("enqueue", "x", "--wait", "-o", "json")
    thread.join()
    assert ended.code == 5
    assert json.loads(ended.out)["error"] == "no more disk"
