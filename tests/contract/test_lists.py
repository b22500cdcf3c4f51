"""A list shows the newest of what it is asked for, in order, by any combination of filters."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from runqueue import Queue, Status, listing, reading
from tests.helpers import MovableClock, execute_sql, statements_of

TIMES = [f"2026-01-01T00:00:00.00000{digit}Z" for digit in range(6)]
"""Few, so that many runs are added at the same time."""
CHOICES: dict[str, list[Any]] = {
    "status": [None, "failed", ["pending", "completed"], [Status.RUNNING], list(Status)],
    "session_id": [None, "ses_2", "ses_no"],
    "runner_id": [None, "worker", "nobody"],
    "agent_name": [None, "writer", "nobody"],
}
LIMITS = [1, 2, 7, 90, 1000, None]


@pytest.fixture
def rows(queue: Queue) -> list[dict[str, Any]]:
    """Runs of all statuses, of a few agents and runners, written as any program may write them."""
    dice = random.Random(5)
    made = []
    for session in range(45):
        execute_sql(
            queue,
            "INSERT INTO sessions (session_id, created_at) VALUES (?, ?)",
            f"ses_{session}",
            dice.choice(TIMES),
        )
        for number in range(2):
            status = dice.choice(list(Status) if number else ["completed", "failed", "stopped"])
            made.append(
                {
                    "run_id": f"run_{dice.randrange(10**9):09}",
                    "session_id": f"ses_{session}",
                    "status": str(status),
                    "runner_id": dice.choice([None, "worker", "other"]),
                    "agent_name": dice.choice([None, "writer", "reader"]),
                    "created_at": dice.choice(TIMES),
                }
            )
    for row in made:
        execute_sql(
            queue,
            "INSERT INTO runs (type, prompt, run_id, session_id, status, runner_id, agent_name, "
            "created_at) VALUES ('START_SESSION', 'x', ?, ?, ?, ?, ?, ?)",
            *row.values(),
        )
    return made


def wanted(rows: list[dict[str, Any]], filters: dict[str, Any], limit: int | None) -> list[str]:
    """What a list must show."""
    found = []
    for row in sorted(rows, key=lambda row: (row["created_at"], row["run_id"]), reverse=True):
        statuses = filters["status"]
        if statuses is not None:
            given = [statuses] if isinstance(statuses, str) else statuses
            if row["status"] not in [str(one) for one in given]:
                continue
        others = ("session_id", "runner_id", "agent_name")
        if all(filters[name] in (None, row[name]) for name in others):
            found.append(row["run_id"])
    return found if limit is None else found[:limit]


def test_a_list_is_the_newest_runs_that_match_all_that_is_given(
    queue: Queue, rows: list[dict[str, Any]]
) -> None:
    """Every combination of filters, cut off anywhere among runs of the same time."""
    for values in itertools.product(*CHOICES.values()):
        filters = dict(zip(CHOICES, values, strict=True))
        for limit in LIMITS:
            found = queue.find(**filters, limit=limit)
            shown = [run.run_id for run in found]
            assert shown == wanted(rows, filters, limit), (filters, limit)
            for run in found[:1]:
                (row,) = (row for row in rows if row["run_id"] == run.run_id)
                assert row.items() <= run.as_dict().items()


def test_names_may_be_long_and_begin_alike(queue: Queue) -> None:
    """Who writes by SQL may give any name, and an index has room for its beginning only."""
    dice = random.Random(7)
    name = "".join(chr(dice.randrange(0x4E00, 0x9FFF)) for _ in range(5000))
    for agent_name in (name, name[:-1], "writer/failed"):
        run = queue.enqueue("x")
        execute_sql(
            queue, "UPDATE runs SET agent_name = ? WHERE run_id = ?", agent_name, run.run_id
        )
        for limit in (5, None):
            assert [one.run_id for one in queue.find(agent_name=agent_name, limit=limit)] == [
                run.run_id
            ]
    assert queue.find(agent_name="writer", limit=5) == []
    assert queue.find(agent_name=name[:200], limit=5) == []


def test_a_list_of_no_status_is_empty(queue: Queue) -> None:
    """Nothing has none of them."""
    queue.enqueue("x")
    assert queue.find(status=[]) == []
    assert len(queue.find(status=["pending", "pending"], limit=5)) == 1


@pytest.mark.parametrize("limit", [0, 1, 10, 44, 45, 100, None])
def test_sessions_are_listed_from_the_newest(
    queue: Queue,
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
) -> None:
    """With their status and how many runs they have, cut off anywhere."""
    monkeypatch.setattr(reading, "AT_ONCE", 7)
    every = execute_sql(queue, "SELECT created_at, session_id FROM sessions")
    in_order = [session_id for _, session_id in sorted(every, reverse=True)]
    found = reading.sessions(queue.store, limit)
    assert [one.session.session_id for one in found] == in_order[:limit]
    assert {one.runs for one in found} <= {2}
    for one in found:
        assert one.status == reading.session_status(queue.store, one.session.session_id)


@pytest.mark.parametrize("limit", [1, 40])
def test_the_statuses_of_all_sessions_of_a_list_are_asked_for_together(
    queue: Queue, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """A list of forty costs a server no more trips than a list of one."""
    with statements_of(queue, monkeypatch) as sent:
        assert len(reading.sessions(queue.store, limit)) == limit
    assert len(sent) == 2


def test_a_runner_is_listed_with_the_active_runs_that_it_has(
    queue: Queue, rows: list[dict[str, Any]]
) -> None:
    """Of all runs that it has ever had."""
    active = [row for row in rows if row["status"] in ("claimed", "running", "stopping")]
    with queue.runner("worker"), queue.runner("idle"):
        found = {one.runner.runner_id: one for one in reading.runners(queue.store, now=queue.now())}
        (alone,) = reading.runners(queue.store, now=queue.now(), runner_id="worker")
    assert found["worker"].active == len([row for row in active if row["runner_id"] == "worker"])
    assert found["idle"].active == 0
    assert (alone.active, alone.is_alive) == (found["worker"].active, True)


def test_the_ended_runs_are_counted_up_to_a_bound(
    queue: Queue, clock: MovableClock, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and all of them when that is asked for; what lives is always counted."""
    now = clock.text()
    exact = {
        str(status): len([row for row in rows if row["status"] == status]) for status in Status
    }
    assert reading.overview(queue.store, now=now).runs == exact
    assert reading.overview(queue.store, now=now).at_least == []
    bound = sorted(exact[name] for name in ("completed", "failed", "stopped"))[1]
    monkeypatch.setattr(listing, "COUNTED", bound)
    some = reading.overview(queue.store, now=now)
    (more,) = some.at_least
    assert exact[more] > bound
    assert some.runs == {**exact, more: bound}
    assert reading.overview(queue.store, now=now, exact=True).runs == exact
    monkeypatch.setattr(listing, "COUNTED", 1)
    assert reading.overview(queue.store, now=now).at_least == ["completed", "failed", "stopped"]
    assert reading.overview(queue.store, now=now).runs["pending"] == exact["pending"]
