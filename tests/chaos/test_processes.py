"""Processes that are frozen beyond their lease, or that fork with the queue open."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from runqueue import ACTIVE, TERMINAL, Queue, Status, reading
from runqueue.states import LATE
from runqueue.testing import Ledger, check
from tests.chaos.nursery import Child, Nursery
from tests.helpers import LONG, execute_sql, wait_until
from tests.outage.processes import Programs

pytestmark = pytest.mark.chaos

LEASE = 0.5
DAEMON = ("--interval", "0.1", "--stop-grace", "0.5", "--lease")
AGENT = """
read -r gate
echo $$ > "$gate.pid"
while [ ! -e "$gate" ]; do sleep 0.05; done
echo "the result of $RUNQUEUE_RUN_ID"
"""


def test_what_a_frozen_runner_reports_too_late_is_refused_and_kept(
    queue: Queue, url: str, programs: Programs, tmp_path: Path
) -> None:
    """One agent ends while its runner is frozen, the other is ended by it; both runs are lost."""
    programs.daemon(url, *DAEMON, "2")
    runner = programs.runner(
        url, "frozen", "--slots", "2", "--stop-grace", "0.2", command=("sh", "-c", AGENT)
    )
    gates = [tmp_path / "first", tmp_path / "second"]
    runs = [queue.enqueue(f"{gate}\n") for gate in gates]
    pids = [gate.with_suffix(".pid") for gate in gates]
    wait_until(lambda: all(pid.exists() and pid.read_text().strip() for pid in pids), 3 * LONG)
    agents = [psutil.Process(int(pid.read_text())) for pid in pids]

    runner.send(signal.SIGSTOP)
    wait_until(lambda: all(queue.get(run.run_id).status == "failed" for run in runs))
    lost = [queue.get(run.run_id) for run in runs]
    gates[0].touch()
    wait_until(lambda: not agents[0].is_running())
    assert agents[1].is_running()
    assert [queue.get(run.run_id).as_dict() for run in runs] == [run.as_dict() for run in lost]
    runner.send(signal.SIGCONT)

    wait_until(lambda: not agents[1].is_running())
    runner.says("report refused", 2)
    assert [queue.get(run.run_id).as_dict() for run in runs] == [run.as_dict() for run in lost]
    assert {run.error for run in lost} == {"runner frozen was lost: its lease ran out"}
    late = [queue.timeline(run.run_id)[-1] for run in runs]
    assert [event.status for event in late] == ["failed", "failed"]
    assert late[0].detail == (f"late result of runner frozen: the result of {runs[0].run_id}\n")
    assert late[1].detail.startswith("late ")
    # It works on, as if nothing had happened.
    after = queue.enqueue(f"{gates[0]}\n")
    assert queue.wait(after.run_id, timeout=LONG).status == "completed"
    assert runner.end(LONG) == 0
    assert "Traceback" not in runner.log


def test_runners_that_are_frozen_at_any_instruction_do_nothing_twice(
    queue: Queue,
    url: str,
    ledger: Ledger,
    nursery: Nursery,
    dice: random.Random,
    is_long: bool,
) -> None:
    """For longer than the lease, three of four at a time, until enough reports came too late."""
    cast = _crowd(url, ledger, nursery, dice, runners=4, work=0.05)
    wait_until(lambda: len(queue.find(status="completed", limit=9)) == 9, timeout=3 * LONG)
    enough = 20 if is_long else 2
    deadline = time.monotonic() + 6 * LONG
    while _late(queue) < enough:
        assert time.monotonic() < deadline, "no report comes too late"
        frozen = dice.sample(cast[2:], 3)
        for one in frozen:
            time.sleep(dice.uniform(0, 0.05))
            one.send(signal.SIGSTOP)
        # Not until something has happened: one that holds a lock keeps everybody out.
        time.sleep(1.5 * LEASE)
        for one in frozen:
            one.send(signal.SIGCONT)
    _end(queue, ledger, cast)
    assert "Traceback" not in nursery.logs


def test_forks_with_the_queue_open_harm_nobody(
    queue: Queue,
    url: str,
    ledger: Ledger,
    nursery: Nursery,
    programs: Programs,
    dice: random.Random,
    is_long: bool,
) -> None:
    """Children that use the queue and end in every way, beside others who use it all the time."""
    cast = _crowd(url, ledger, nursery, dice, runners=1, work=0.001)
    forks = 100 if is_long else 20
    argv = ["-m", "tests.chaos.programs", "forker", url, str(ledger.path), str(forks)]
    forker = programs.execute([sys.executable, *argv])
    assert forker.wait(6 * LONG) == 0, forker.log
    assert "Traceback" not in forker.log
    _end(queue, ledger, cast)
    assert "Traceback" not in nursery.logs


def _crowd(
    url: str, ledger: Ledger, nursery: Nursery, dice: random.Random, *, runners: int, work: float
) -> list[Child]:
    """Start an enqueuer, a daemon and runners, in this order."""
    path = str(ledger.path)
    cast = [
        nursery.start("enqueuer", url, path, dice.randrange(10**6)),
        nursery.start("runqueued", url, *DAEMON, str(LEASE)),
    ]
    for number in range(runners):
        seed = dice.randrange(10**6)
        cast.append(nursery.start("runner", url, path, f"runner-{number}", seed, work))
    return cast


def _late(queue: Queue) -> int:
    """How many reports were refused and kept."""
    sql = "SELECT count(*) FROM run_events WHERE actor = ? AND detail LIKE ?"
    return int(execute_sql(queue, sql, "runner", f"{LATE}%")[0][0])


def _end(queue: Queue, ledger: Ledger, cast: list[Child]) -> None:
    """Let all that was enqueued come to its end, then look whether everything is right."""
    cast[0].kill()
    unfinished = (*ACTIVE, Status.PENDING)
    with contextlib.suppress(AssertionError):  # the check says what did not come to its end
        wait_until(lambda: not queue.find(status=unfinished, limit=1), timeout=3 * LONG)
    for one in cast[1:]:
        one.kill()
    report = check(queue, ledger)
    assert set(report.statuses) <= TERMINAL
    assert reading.problems(queue.store) == []
