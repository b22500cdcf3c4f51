"""A claim takes exactly what it returns, whatever the planner thinks of the tables."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest

from runqueue import Queue, Runner
from tests.helpers import execute_sql, ids, together


def claimed(queue: Queue) -> list[str]:
    rows = execute_sql(queue, "SELECT run_id FROM runs WHERE status = 'claimed' ORDER BY run_id")
    return [row[0] for row in rows]


@pytest.mark.parametrize("is_analysed", [False, True], ids=["never-analysed", "analysed"])
@pytest.mark.parametrize("size", [1, 3, 10, 60, 300, 3000])
def test_a_claim_changes_one_run_and_no_other(
    queue: Queue, runner: Runner, size: int, is_analysed: bool
) -> None:
    """On a table that was not analysed, `IN (SELECT .. LIMIT 1 ..)` took 300 runs at once."""
    queue.enqueue_many({"prompt": "x"} for _ in range(size))
    if is_analysed:
        execute_sql(queue, "ANALYZE")
    mine: list[str] = []
    for _ in range(min(size, 8)):
        claim = runner.claim(timeout=0)
        assert claim is not None
        mine.append(claim.run.run_id)
        assert claimed(queue) == sorted(mine)


@pytest.mark.parametrize("is_analysed", [False, True], ids=["never-analysed", "analysed"])
@pytest.mark.parametrize("size", [1, 10, 300])
@pytest.mark.parametrize("claimers", [2, 4, 8])
def test_claimers_at_once_take_what_they_return_and_nothing_twice(
    queue: Queue,
    open_runner: Callable[..., Runner],
    size: int,
    claimers: int,
    is_analysed: bool,
) -> None:
    """Each of them skips what the others are taking, and finds the next."""
    queue.enqueue_many({"prompt": "x"} for _ in range(size))
    if is_analysed:
        execute_sql(queue, "ANALYZE")
    runners = [open_runner(f"r{number}") for number in range(claimers)]
    taken = together(queue, [lambda one=one: one.claim(timeout=0) for one in runners])
    mine = [claim.run.run_id for claim in taken if claim is not None]
    assert len(mine) == min(size, claimers)
    assert claimed(queue) == sorted(mine)


@pytest.mark.parametrize("limit", [2, 5, 100])
@pytest.mark.parametrize("is_analysed", [False, True], ids=["never-analysed", "analysed"])
def test_a_batch_is_as_large_as_was_asked_and_in_order(
    queue: Queue, runner: Runner, limit: int, is_analysed: bool
) -> None:
    """The first runs of all, also where they are of several demand texts."""
    runs = queue.enqueue_many(
        {"prompt": "x", "demands": {"tags": []} if number % 2 else {"hostname": runner.hostname}}
        for number in range(300)
    )
    if is_analysed:
        execute_sql(queue, "ANALYZE")
    for start in (0, limit):
        claims = runner.claim_many(limit)
        assert ids(claims) == ids(runs)[start : start + limit]
    assert claimed(queue) == sorted(ids(runs)[: 2 * limit])


def test_batches_at_once_share_all_runs(queue: Queue, open_runner: Callable[..., Runner]) -> None:
    """Nobody takes more than asked, nobody takes the same, and nothing is left."""
    runs = queue.enqueue_many({"prompt": "x"} for _ in range(200))
    runners = [open_runner(f"r{number}") for number in range(4)]

    def take(runner: Runner) -> list[str]:
        mine: list[str] = []
        while claims := runner.claim_many(7):
            assert len(claims) <= 7
            mine += ids(claims)
        return mine

    taken = together(queue, [lambda one=one: take(one) for one in runners])
    assert sorted(chain.from_iterable(taken)) == sorted(ids(runs))
