"""What cannot become a run is refused in one sentence, and leaves nothing behind."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from runqueue import InvalidRun, Queue, RunNotFound, RunqueueError, SessionNotFound
from tests.helpers import count, is_empty

HOSTILE = "'; DROP TABLE runs; -- %s ? %(x)s {} \\ \x1b[2J"
MEBIBYTE = 1_048_576


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


BAD = {
    "prompt-none": {"prompt": None},
    "prompt-number": {"prompt": 123},
    "prompt-bytes": {"prompt": b"x"},
    "prompt-empty": {"prompt": ""},
    "prompt-nul": {"prompt": "a\0b"},
    "prompt-surrogate": {"prompt": "\ud800"},
    "prompt-over-1-MiB": {"prompt": "x" * (MEBIBYTE + 1)},
    "prompt-over-1-MiB-in-bytes": {"prompt": "☃" * (MEBIBYTE // 3 + 1)},
    "mode-unknown": {"execution_mode": "later"},
    "mode-capitals": {"execution_mode": "SYNC"},
    "mode-none": {"execution_mode": None},
    "mode-list": {"execution_mode": ["sync"]},
    "run-id-empty": {"run_id": ""},
    "run-id-short": {"run_id": "run_0123456789a"},
    "run-id-long": {"run_id": "run_0123456789abc"},
    "run-id-capitals": {"run_id": "run_0123456789AB"},
    "run-id-newline": {"run_id": "run_0123456789ab\n"},
    "run-id-other-digits": {"run_id": "run_٠١٢٣٤٥٦٧٨٩٠١"},
    "run-id-number": {"run_id": 5},
    "session-number": {"session_id": 5},
    "session-nul": {"session_id": "ses_\0"},
    "session-surrogate": {"session_id": "ses_\udcff"},
    "parent-number": {"parent_session_id": 5},
    "agent-number": {"agent_name": 5},
    "agent-nul": {"agent_name": "a\0"},
    "agent-long": {"agent_name": "a" * 4097},
    "directory-surrogate": {"project_dir": "/srv/\udcff"},
    "directory-path-object": {"project_dir": ["/srv"]},
    "timeout-negative": {"timeout": -0.001},
    "timeout-nan": {"timeout": float("nan")},
    "timeout-infinite": {"timeout": float("inf")},
    "timeout-text": {"timeout": "5"},
    "timeout-bool": {"timeout": True},
    "timeout-endless-integer": {"timeout": 10**400},
    "priority-float": {"priority": 1.5},
    "priority-text": {"priority": "1"},
    "priority-bool": {"priority": True},
    "priority-none": {"priority": None},
    "priority-big": {"priority": 2**31},
    "demands-list": {"demands": ["gpu"]},
    "demands-text": {"demands": '{"tags": ["gpu"]}'},
    "demands-empty-name": {"demands": {"": 1}},
    "demands-number-name": {"demands": {1: 2}},
    "demands-long-name": {"demands": {"n" * 129: 1}},
    "demands-nul-name": {"demands": {"a\0": 1}},
    "demands-tags-text": {"demands": {"tags": "gpu"}},
    "demands-tags-object": {"demands": {"tags": {"gpu": True}}},
    "demands-tags-empty-tag": {"demands": {"tags": ["gpu", ""]}},
    "demands-tags-number": {"demands": {"tags": [1]}},
    "demands-tags-65": {"demands": {"tags": [f"t{number}" for number in range(65)]}},
    "demands-hostname-number": {"demands": {"hostname": 5}},
    "demands-hostname-list": {"demands": {"hostname": ["a"]}},
    "demands-long-value": {"demands": {"kind": "v" * 129}},
    "demands-nul-value": {"demands": {"kind": "a\0"}},
    "demands-surrogate-value": {"demands": {"kind": "\ud800"}},
    "demands-nan": {"demands": {"memory": float("nan")}},
    "demands-infinity": {"demands": {"memory": float("-inf")}},
    "demands-5000-digits": {"demands": {"memory": 10**5000}},
    "demands-object-value": {"demands": {"gpu": {"memory": 1}}},
    "demands-nested-list": {"demands": {"gpu": [[1]]}},
    "demands-null-in-list": {"demands": {"gpu": [None]}},
    "demands-100000-deep": {"demands": {"gpu": deep(100_000)}},
    "demands-over-2000-bytes": {"demands": {f"k{number}": "v" * 100 for number in range(20)}},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_and_leaves_nothing_behind(
    queue: Queue, bad: dict[str, object]
) -> None:
    """Whatever is wrong with a request, it is InvalidRun in one short line, and no row."""
    with pytest.raises(InvalidRun) as refusal:
        queue.enqueue(**{"prompt": "x", **bad})
    assert len(str(refusal.value)) < 300
    assert "\n" not in str(refusal.value)
    assert is_empty(queue)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_keeps_its_whole_batch_out(queue: Queue, bad: dict[str, object]) -> None:
    """enqueue_many refuses what enqueue refuses, and adds none of the others."""
    with pytest.raises(InvalidRun):
        queue.enqueue_many([{"prompt": "good"}, {"prompt": "x", **bad}])
    assert is_empty(queue)


@pytest.mark.parametrize(
    "request_",
    [None, "prompt", ["prompt"], {}, {"agent_name": "a"}, {"prompt": "x", "color": "red"},
     {"prompt": "x", "max_prompt": 10**9}, {"prompt": "x", "status": "completed"}],
    ids=["none", "text", "list", "empty", "no-prompt", "unknown", "own-limit", "status"],
)  # fmt: skip
def test_enqueue_many_refuses_what_is_no_request(queue: Queue, request_: object) -> None:
    """Each request is a mapping of the keywords of enqueue, with a prompt, and nothing else."""
    with pytest.raises(InvalidRun):
        queue.enqueue_many([{"prompt": "good"}, request_])
    assert is_empty(queue)


@pytest.mark.parametrize("keyword", ["session_id", "parent_session_id"])
def test_an_unknown_session_is_refused(queue: Queue, keyword: str) -> None:
    """A run can neither resume nor descend from a session that does not exist."""
    with pytest.raises(SessionNotFound):
        queue.enqueue("x", **{keyword: "ses_0123456789ab"})
    assert is_empty(queue)


def test_a_refusal_does_not_repeat_the_prompt(queue: Queue) -> None:
    """A message never holds what the prompt says."""
    with pytest.raises(InvalidRun) as refusal:
        queue.enqueue("CANARY\0")
    assert "CANARY" not in str(refusal.value)


def test_a_prompt_of_exactly_1_mib_is_accepted(queue: Queue) -> None:
    """The limit itself is within the limit."""
    run = queue.enqueue("x" * MEBIBYTE)
    assert len(queue.get(run.run_id).prompt) == MEBIBYTE


def test_demands_at_their_limits_are_accepted(queue: Queue) -> None:
    """64 tags, 128 characters and the largest whole number may be demanded."""
    queue.enqueue("x", demands={"tags": [f"t{number}" for number in range(64)]})
    queue.enqueue("x", demands={"n" * 128: "v" * 128, "big": 2**63 - 1})
    assert count(queue, "runs") == 2


def test_extreme_priorities_are_stored_as_given(queue: Queue) -> None:
    """The largest and the smallest priority fit."""
    for priority in (2**31 - 1, 1 - 2**31):
        run = queue.enqueue("x", priority=priority)
        assert queue.get(run.run_id).priority == priority


def test_hostile_text_is_stored_as_it_is(queue: Queue) -> None:
    """SQL, placeholders and escapes in any field are data."""
    run = queue.enqueue(
        HOSTILE, agent_name=HOSTILE, project_dir=HOSTILE, demands={"tags": [HOSTILE]}
    )
    stored = queue.get(run.run_id)
    assert stored.prompt == stored.agent_name == stored.project_dir == HOSTILE
    assert [one.run_id for one in queue.find(agent_name=HOSTILE)] == [run.run_id]


@pytest.mark.parametrize("limit", [-1, 1.5, "1", True], ids=str)
def test_find_refuses_a_limit_that_is_no_count(queue: Queue, limit: object) -> None:
    """A limit is a whole number that is not negative."""
    with pytest.raises(InvalidRun):
        queue.find(limit=limit)


def test_find_takes_a_limit_of_any_size(queue: Queue) -> None:
    """A limit that no database can count to is simply not reached."""
    queue.enqueue("x")
    assert len(queue.find(limit=2**63)) == 1


@pytest.mark.parametrize("status", ["PENDING", "", "done", "pending'--"], ids=repr)
def test_find_refuses_an_unknown_status(queue: Queue, status: str) -> None:
    """A status that does not exist is a mistake, not an empty list."""
    with pytest.raises(InvalidRun):
        queue.find(status=status)


@pytest.mark.parametrize("run_id", ["", "run_\0", "run_\udcff", HOSTILE], ids=ascii)
@pytest.mark.parametrize("verb", ["get", "stop", "cancel", "release", "retry", "why", "timeline"])
def test_an_id_that_no_run_can_have_is_not_found(queue: Queue, verb: str, run_id: str) -> None:
    """An id that is not even text, as a shell can pass it on, is refused like any unknown id."""
    with pytest.raises(RunNotFound):
        getattr(queue, verb)(run_id)


@pytest.mark.parametrize("session_id", ["", "ses_\0", "ses_\udcff"], ids=ascii)
def test_an_id_that_no_session_can_have_is_not_found(queue: Queue, session_id: str) -> None:
    """An id that is not even text is refused like any unknown session."""
    with pytest.raises(SessionNotFound):
        queue.session(session_id)
    with pytest.raises(SessionNotFound):
        queue.delete_session(session_id)


@pytest.mark.parametrize("agent_name", ["a\0", "a\udcff"], ids=ascii)
def test_find_by_what_no_run_can_have_is_empty_or_refused(queue: Queue, agent_name: str) -> None:
    """A filter that cannot match anything never ends in an error of the driver."""
    with suppress(RunqueueError):
        assert queue.find(agent_name=agent_name) == []
