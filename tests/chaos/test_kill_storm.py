"""Whoever is killed, at whatever instruction: nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import random
import signal
import time

import pytest

from runqueue import ACTIVE, TERMINAL, Queue, Status, reading
from runqueue.testing import Ledger, Note, check
from tests.chaos.nursery import Child, Nursery
from tests.chaos.programs import LEASE
from tests.helpers import LONG, wait_until

pytestmark = pytest.mark.chaos

RUNNERS = 4
DAEMON = ("--interval", "0.1", "--lease", str(LEASE), "--stop-grace", "0.5")


def test_a_storm_of_kills_loses_nothing_and_does_nothing_twice(
    queue: Queue,
    url: str,
    ledger: Ledger,
    nursery: Nursery,
    dice: random.Random,
    is_long: bool,
) -> None:
    """Four runners, a daemon and an enqueuer; a random one dies and another takes its place."""

    def start(role: str, runner_id: str = "") -> Child:
        if role == "daemon":
            return nursery.start("runqueued", url, *DAEMON)
        if role == "enqueuer":
            return nursery.start("enqueuer", url, str(ledger.path), dice.randrange(10**6))
        return nursery.start("runner", url, str(ledger.path), runner_id, dice.randrange(10**6))

    runner_ids = {f"runner {number}": f"runner-{number}" for number in range(RUNNERS)}
    roles = ["daemon", "enqueuer", *runner_ids]
    cast = {role: start(role, runner_ids.get(role, "")) for role in roles}
    # All are at work before the first one dies.
    wait_until(lambda: len(queue.find(status="completed", limit=20)) == 20, timeout=3 * LONG)
    for number in range(200 if is_long else 20):
        time.sleep(dice.uniform(0.010, 0.120))
        role = dice.choice(roles)
        cast[role].kill()
        if role in runner_ids and dice.random() < 0.5:
            runner_ids[role] = f"runner-{RUNNERS + number}"  # a new one; the other is a restart
        cast[role] = start(role, runner_ids.get(role, ""))

    cast["enqueuer"].kill()
    dead = dice.sample(sorted(runner_ids), RUNNERS // 2)
    for role in dead:
        cast[role].kill()
    # Within a lease and a sweep, all that they held is given back or ended.
    for role in dead:
        held = {"status": ACTIVE, "runner_id": runner_ids[role], "limit": 1}
        wait_until(lambda held=held: not queue.find(**held), timeout=LEASE + LONG)
    # The living do the rest, and nothing waits for those who had their names before them.
    unfinished = (*ACTIVE, Status.PENDING)
    with contextlib.suppress(AssertionError):  # the check says what did not come to its end
        wait_until(lambda: not queue.find(status=unfinished, limit=1), timeout=3 * LONG)
    for role in set(runner_ids) - set(dead):
        cast[role].kill()
    cast["daemon"].send(signal.SIGTERM)
    assert cast["daemon"].wait() == 0

    report = check(queue, ledger)
    assert set(report.statuses) <= TERMINAL
    assert report.statuses[Status.COMPLETED] >= 20
    assert report.notes[Note.ACKNOWLEDGED] <= report.runs
    assert reading.problems(queue.store) == []
    assert "Traceback" not in nursery.logs
