"""Runners on several machines with wrong clocks, and cables that are cut."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone

import pytest

from runqueue import Queue, clock
from tests.helpers import LONG, events_of, status_of, wait_until
from tests.machines.conftest import CLOCKS, HOUR, LEASE
from tests.machines.network import Network
from tests.outage.processes import SLOW, Ledger, Process, Programs, agents

SLACK = 2.0
"""Seconds that a busy machine may take more."""
PROMPT = 1.0
"""Seconds within which machines hear of each other; without being woken it would be five."""
KINDS = ("pulled", "silent")


def _begin_long(queue: Queue, runner: Process, machine: str) -> str:
    run = queue.enqueue("sleep 600", demands={"hostname": machine})
    wait_until(lambda: status_of(queue, run) == "running", timeout=SLOW)
    wait_until(lambda: agents(runner))
    return run.run_id


def test_the_clocks_of_the_machines_are_wrong(start_runner: Callable[..., Process]) -> None:
    """Else the other tests would show nothing."""
    for machine in ("alpha", "beta"):
        log = start_runner(machine).log
        told = log.partition("the clock on the wall says ")[2].split()[0]
        wrong = (datetime.fromisoformat(told) - datetime.now(timezone.utc)).total_seconds()
        assert abs(wrong - CLOCKS[machine]) < 60


def test_runs_go_where_their_demands_say(
    queue: Queue, start_runner: Callable[..., Process], start_daemon: Callable[..., Process]
) -> None:
    """By tag, by the name of the host, and back to the host that holds the session."""
    start_daemon()
    start_runner("alpha", "--tag", "gpu", "--tag", "shared", command=("hostname",))
    start_runner("beta", "--tag", "cpu", "--tag", "shared", command=("hostname",))
    wanted = [({"tags": ["gpu"]}, "alpha"), ({"tags": ["cpu"]}, "beta")]
    wanted += [({"tags": ["shared"], "hostname": name}, name) for name in ("beta", "alpha")]
    runs = [(queue.enqueue("x", demands=demands), name) for demands, name in wanted]
    for run, name in runs:
        ended = queue.wait(run.run_id, timeout=SLOW)
        assert (ended.status, ended.result, ended.runner_id) == ("completed", f"{name}\n", name)
    for run, name in runs:
        following = queue.enqueue("x", session_id=run.session_id)
        assert queue.wait(following.run_id, timeout=SLOW).result == f"{name}\n"
        assert queue.session(run.session_id).hostname == name


@pytest.mark.parametrize("wrong", [-HOUR, HOUR], ids=["an hour behind", "an hour ahead"])
def test_wrong_clocks_expire_and_steal_nothing(
    wrong: float,
    queue: Queue,
    start_runner: Callable[..., Process],
    start_daemon: Callable[..., Process],
    programs: Programs,
    network: Network,
    url: str,
) -> None:
    """Runs of more than a lease end where they began, and a timeout comes when it is due."""
    daemon = start_daemon(wrong)
    command = ("sh", "-c", f"sleep {LEASE + 1}; hostname")
    runners = [start_runner(machine, command=command) for machine in ("alpha", "beta")]
    runs = [queue.enqueue("x", demands={"hostname": name}) for name in ("alpha", "beta")]
    due = queue.enqueue("x", demands={"tags": ["nobody"]}, timeout=2)
    argv = ("enqueue", "x", "--tag", "nobody", "--timeout", "2")
    caller = programs.start("runqueue", url, *argv, prefix=network.prefix("beta", HOUR))
    assert caller.wait() == 0, caller.log
    far = queue.get(caller.log.split()[-1])
    for run in (due, far):
        ended = queue.wait(run.run_id, timeout=SLOW)
        assert str(ended.error).startswith("expired: ")
        assert 0 <= clock.seconds_between(str(ended.timeout_at), str(ended.completed_at)) < SLACK
    for run, name in zip(runs, ("alpha", "beta"), strict=True):
        assert queue.wait(run.run_id, timeout=SLOW).result == f"{name}\n"
        assert events_of(queue, run) == ["pending", "claimed", "running", "completed"]
        moments = [event.at for event in queue.timeline(run.run_id)]
        assert moments == sorted(moments)
        assert 0 <= clock.seconds_between(moments[-1], queue.now()) < SLOW
    for process in (daemon, *runners):
        assert "WARNING" not in process.log, process.log
        assert "ERROR" not in process.log, process.log


def test_machines_wake_each_other(
    queue: Queue, start_runner: Callable[..., Process], ledger: Ledger
) -> None:
    """A run is picked up, and a stop obeyed, long before anybody would look by itself."""
    runner = start_runner("alpha")
    start_runner("beta")
    delays = []
    for _ in range(5):
        run = queue.enqueue("true")
        assert queue.wait(run.run_id, timeout=LONG).status == "completed"
        events = queue.timeline(run.run_id)
        delays.append(clock.seconds_between(events[0].at, events[1].at))
    assert sorted(delays)[2] < PROMPT, delays
    delays = []
    for _ in range(3):
        run_id = _begin_long(queue, runner, "alpha")
        began = time.monotonic()
        queue.stop(run_id)
        wait_until(lambda: not agents(runner))
        delays.append(time.monotonic() - began)
        assert queue.wait(run_id, timeout=LONG).status == "stopped"
    assert sorted(delays)[1] < PROMPT, delays


@pytest.mark.long
@pytest.mark.parametrize("how", KINDS)
def test_a_run_on_a_machine_that_is_cut_off_is_resolved_and_its_agent_ended(
    how: str,
    queue: Queue,
    network: Network,
    start_runner: Callable[..., Process],
    start_daemon: Callable[..., Process],
) -> None:
    """By both ends, at the end of the lease; the late report changes nothing; then all is well."""
    start_daemon()
    runner = start_runner("alpha", "--slots", "3")
    run_id = _begin_long(queue, runner, "alpha")
    second = _begin_long(queue, runner, "alpha")
    network.cut("alpha", how)
    try:
        began = time.monotonic()
        wait_until(lambda: not agents(runner), timeout=LEASE + 1 + SLACK)
        assert time.monotonic() - began > LEASE / 2  # not at once, for it may come back
        for lost in (run_id, second):
            ended = queue.wait(lost, timeout=SLOW)
            assert ended.status == "failed"
        before = [(event.status.value, event.actor) for event in queue.timeline(run_id)]
        assert before[-1] == ("failed", "daemon")
        # Elsewhere life goes on, the sessions of the lost runs too.
        beta = start_runner("beta")
        other = queue.enqueue("true", demands={"hostname": "beta"})
        assert queue.wait(other.run_id, timeout=SLOW).status == "completed"
        assert beta.is_alive
    finally:
        network.mend("alpha", how)
    runner.says("report refused", 2)
    *moves, late = queue.timeline(run_id)
    assert before == [(event.status.value, event.actor) for event in moves]
    assert late.is_late
    assert queue.get(run_id).error == ended.error
    run = queue.enqueue("true", demands={"hostname": "alpha"})
    assert queue.wait(run.run_id, timeout=SLOW).status == "completed"
    assert runner.is_alive
    assert "Traceback" not in runner.log
    assert runner.end(5) == 0


@pytest.mark.long
@pytest.mark.parametrize("how", KINDS)
def test_a_short_cut_is_not_noticed_by_a_run(
    how: str,
    queue: Queue,
    network: Network,
    start_runner: Callable[..., Process],
    start_daemon: Callable[..., Process],
    ledger: Ledger,
) -> None:
    """Shorter than what is left of the lease: the run goes on and completes."""
    start_daemon()
    runner = start_runner("alpha")
    gate = ledger.path.with_name("gate")
    script = f"while [ ! -e {gate} ]; do sleep 0.05; done; echo the result"
    run = queue.enqueue(f"sh -c {script!r}".replace("sh -c", "eval"))
    wait_until(lambda: status_of(queue, run) == "running", timeout=SLOW)
    network.cut("alpha", how)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.5)
    network.mend("alpha", how)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > LEASE + 1)
    gate.touch()
    assert queue.wait(run.run_id, timeout=SLOW).status == "completed"
    assert events_of(queue, run) == ["pending", "claimed", "running", "completed"]
    assert runner.is_alive


@pytest.mark.long
@pytest.mark.parametrize("how", KINDS)
def test_signals_end_processes_that_are_cut_off(
    how: str,
    queue: Queue,
    network: Network,
    start_runner: Callable[..., Process],
    start_daemon: Callable[..., Process],
) -> None:
    """A daemon within five seconds; an idle runner as well, with a word about its sign-off."""
    daemon = start_daemon()
    runner = start_runner("alpha", "--drain", "0.5")
    for machine in ("alpha", "gamma"):
        network.cut(machine, how)
    try:
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > LEASE)  # all calls hang by now
        daemon_code = daemon.end(5.0)
        runner_code = runner.end(5.0 + SLACK)
    finally:
        for machine in ("alpha", "gamma"):
            network.mend(machine, how)
    assert daemon_code == 0, daemon.log
    assert runner_code in (0, 75), runner.log
    for process in (daemon, runner):
        assert "Traceback" not in process.log


@pytest.mark.long
@pytest.mark.parametrize("how", KINDS)
def test_a_daemon_that_was_cut_off_takes_nothing_from_live_runners(
    how: str,
    queue: Queue,
    network: Network,
    start_runner: Callable[..., Process],
    start_daemon: Callable[..., Process],
) -> None:
    """It tells of its failure and of its recovery, and then does what became due meanwhile."""
    daemon = start_daemon()
    runner = start_runner("alpha")
    run_id = _begin_long(queue, runner, "alpha")
    network.cut("gamma", how)
    try:
        due = queue.enqueue("x", demands={"tags": ["nobody"]}, timeout=0.5)
        daemon.says("the sweep failed")
        assert status_of(queue, due) == "pending"
    finally:
        network.mend("gamma", how)
    assert queue.wait(due.run_id, timeout=SLOW).status == "failed"
    daemon.says("the sweep works again")
    assert queue.get(run_id).status == "running"
    queue.stop(run_id)
    assert queue.wait(run_id, timeout=LONG).status == "stopped"
