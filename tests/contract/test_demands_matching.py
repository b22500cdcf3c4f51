"""A runner claims what it satisfies, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from runqueue import Queue, Runner
from tests.helpers import MovableClock, execute_sql, take

PLACE = {"hostname": "box", "project_dir": "/srv/app", "executor_type": "shell"}
FULL = {
    **PLACE,
    "tags": ["gpu", "big"],
    "properties": {
        "memory": 64,
        "load": 0.5,
        "region": "eu",
        "spot": True,
        "models": ["small", "large"],
        "one": 1,
        "count": "7",
    },
}

MET = {
    "nothing": {},
    "hostname": {"hostname": "box"},
    "directory": {"project_dir": "/srv/app"},
    "executor": {"executor_type": "shell"},
    "place": PLACE,
    "one-tag": {"tags": ["big"]},
    "all-tags": {"tags": ["big", "gpu"]},
    "number": {"memory": 64},
    "number-as-text": {"memory": "64"},
    "text-as-number": {"count": 7},
    "equal-float": {"memory": 64.0},
    "float": {"load": 0.5},
    "text": {"region": "eu"},
    "true": {"spot": True},
    "subset": {"models": ["large"]},
    "list-of-a-scalar": {"region": ["eu"]},
    "nulls": {"hostname": None, "project_dir": "", "tags": [], "memory": None},
    "together": {"hostname": "box", "tags": ["gpu"], "memory": 64, "models": ["small"]},
}
UNMET = {
    "hostname": {"hostname": "other"},
    "hostname-case": {"hostname": "BOX"},
    "directory-below": {"project_dir": "/srv/app/sub"},
    "directory-slash": {"project_dir": "/srv/app/"},
    "executor": {"executor_type": "sdk"},
    "tag": {"tags": ["fast"]},
    "one-tag-of-two": {"tags": ["gpu", "fast"]},
    "tag-prefix": {"tags": ["gp"]},
    "number": {"memory": 32},
    "text": {"region": "us"},
    "false": {"spot": False},
    "true-is-not-one": {"one": True},
    "one-is-not-true": {"spot": 1},
    "one-and-true": {"one": [1, True]},
    "superset": {"models": ["large", "huge"]},
    "unknown-property": {"planet": "mars"},
    "one-of-two-keys": {"hostname": "box", "memory": 1},
}


@pytest.mark.parametrize("demands", MET.values(), ids=MET.keys())
def test_a_runner_claims_what_it_satisfies(
    queue: Queue, open_runner: Callable[..., Runner], demands: dict[str, Any]
) -> None:
    """Every demand that the runner meets lets it have the run."""
    run = queue.enqueue("x", demands=demands)
    assert take(open_runner(**FULL)).run.run_id == run.run_id


@pytest.mark.parametrize("demands", UNMET.values(), ids=UNMET.keys())
def test_a_runner_does_not_claim_what_it_does_not_satisfy(
    queue: Queue, open_runner: Callable[..., Runner], demands: dict[str, Any]
) -> None:
    """One unmet demand keeps the run from the runner, in a batch too."""
    queue.enqueue("x", demands=demands)
    runner = open_runner(**FULL)
    assert runner.claim(timeout=0) is None
    assert runner.claim_many(10) == []


@pytest.mark.parametrize("demands", [{"tags": ["gpu"]}, {"memory": 64}, {"executor_type": "shell"}])
def test_a_bare_runner_meets_no_demand(
    queue: Queue, runner: Runner, demands: dict[str, Any]
) -> None:
    """A runner without tags, properties or executor type serves runs without demands only."""
    queue.enqueue("x", demands=demands)
    plain = queue.enqueue("y")
    assert take(runner).run.run_id == plain.run_id
    assert runner.claim(timeout=0) is None


def test_a_run_behind_many_that_nobody_serves_is_claimed(
    queue: Queue, runner: Runner, clock: MovableClock
) -> None:
    """A backlog that a runner cannot serve, older and more urgent, does not starve it."""
    queue.enqueue_many(
        {"prompt": "x", "demands": {"tags": [f"t{number % 50}"]}, "priority": 9}
        for number in range(300)
    )
    clock.advance(1)
    run = queue.enqueue("y")
    assert take(runner).run.run_id == run.run_id


def test_each_runner_gets_its_own(queue: Queue, open_runner: Callable[..., Runner]) -> None:
    """Of two runs each runner claims the one that it serves, whichever is older."""
    for_b = queue.enqueue("x", demands={"tags": ["b"]})
    for_a = queue.enqueue("x", demands={"tags": ["a"]})
    assert take(open_runner("a", tags=["a"])).run.run_id == for_a.run_id
    assert take(open_runner("b", tags=["b"])).run.run_id == for_b.run_id


def test_a_runner_learns_of_demands_that_it_has_not_seen(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """Demands that first appear after the runner came are decided on when they appear."""
    runner = open_runner(tags=["a", "b"])
    for number, tags in enumerate((["a"], ["b"], ["a", "b"])):
        assert runner.claim(timeout=0) is None
        run = queue.enqueue("x", demands={"tags": tags, "number": None}, priority=number)
        assert take(runner).run.run_id == run.run_id


def test_order_and_repetition_of_tags_do_not_matter(queue: Queue) -> None:
    """Equal demands have equal texts, so that they are one entry of the index."""
    one = queue.enqueue("x", demands={"tags": ["b", "a", "b"], "hostname": "h"})
    two = queue.enqueue("x", demands={"hostname": "h", "tags": ["a", "b"]})
    assert one.demands == two.demands


def test_demands_that_cannot_be_read_do_not_end_the_loop(queue: Queue, runner: Runner) -> None:
    """A row with demands that others wrote, too deep to read, is served by nobody."""
    bad = queue.enqueue("bad", priority=9)
    deep = '{"a":' + "[" * 990 + "]" * 990 + "}"
    execute_sql(queue, "UPDATE runs SET demands = ? WHERE run_id = ?", deep, bad.run_id)
    good = queue.enqueue("good")
    assert take(runner).run.run_id == good.run_id
    assert runner.claim(timeout=0) is None


def test_demands_that_others_wrote_with_spaces_are_matched(
    queue: Queue, open_runner: Callable[..., Runner]
) -> None:
    """The meaning of the JSON counts, not how it is written; one tag may stand without a list."""
    run = queue.enqueue("x")
    execute_sql(queue, "UPDATE runs SET demands = ?", '{ "tags" : "gpu", "hostname": null }')
    assert open_runner("plain").claim(timeout=0) is None
    assert take(open_runner("gpu", tags=["gpu"])).run.run_id == run.run_id
