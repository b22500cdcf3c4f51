"""`runqueue-runner@NAME` as a service: another user's runs, drained, frozen, and ended with it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.systemd.box import DAEMON, Box
from tests.systemd.machine import LONG, Machine, wait_for

pytestmark = pytest.mark.systemd

WAITS = "touch $HOME/began; until test -e $HOME/go; do sleep 0.05; done; echo done"
"""An agent that is at work until it is let go."""
HOME = "var/lib/runqueue-runner"


def begun(machine: Machine) -> bool:
    return (machine.root / HOME / "began").exists()


def let_go(machine: Machine) -> None:
    machine.write(f"/{HOME}/go", "")


def at_work(box: Box, unit: str) -> str:
    """Have the runner execute an agent that waits; return its run's id."""
    run_id = box.enqueue(WAITS)
    wait_for(lambda: begun(box.machine), "the agent's work")
    box.becomes(run_id, "running")
    return run_id


def main_pid(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "MainPID")[0])


def test_it_executes_runs_as_another_user_over_the_shared_file(
    box: Box, machine: Machine, daemon: str
) -> None:
    """Its agent is the runner's user, may use the queue, and gets nothing that is the service's."""
    unit = box.start_runner()
    run_id = box.enqueue(
        "id -un; env | grep -cE '^(NOTIFY_SOCKET|CREDENTIALS_DIRECTORY|RUNQUEUE_SERVICE_FILES)='; "
        "/opt/runqueue/bin/runqueue show $RUNQUEUE_RUN_ID -o id; umask"
    )
    box.becomes(run_id, "completed")
    assert box.row(run_id)["result"].split() == ["runqueue-runner", "0", run_id, "0007"]
    (runner_id,) = box.select("SELECT runner_id FROM runners")[0]
    assert runner_id == "machine-one"
    assert machine.state(unit) == "active/running"
    wait_for(
        lambda: machine.show(unit, "StatusText") == ["0 runs at work, 1 slots free"], "its status"
    )
    owners = machine.run("sh", "-c", "stat -c '%a %G' /var/lib/runqueue/*").stdout
    assert set(owners.splitlines()) == {"660 runqueue"}


@pytest.mark.long
def test_what_it_executes_may_have_quotes(box: Box, machine: Machine, daemon: str) -> None:
    """Its file says it as one would in a shell, though there is none."""
    box.start_runner(command="\"sh -c 'cat; echo two words $0' it\"")
    run_id = box.enqueue("prompt ")
    box.becomes(run_id, "completed")
    assert box.row(run_id)["result"] == "prompt two words it\n"


def test_it_is_up_when_it_is_registered(box: Box, machine: Machine, daemon: str) -> None:
    """So that what is started after it finds it."""
    box.start_runner("a")
    assert box.select("SELECT count(*) FROM runners") == [(1,)]


@pytest.mark.long
def test_a_stop_lets_what_is_at_work_end(box: Box, machine: Machine) -> None:
    """It claims nothing new, takes longer than the unit says, and beats on until the end."""
    box.set("RUNQUEUE_DB=sqlite:////var/lib/runqueue/runqueue.db", "RUNQUEUE_LEASE=2")
    machine.systemctl("start", DAEMON)
    box.drop_in("runqueue-runner@one.service", "TimeoutStopSec=1s")
    unit = box.start_runner("one", "RUNQUEUE_DRAIN=1h")
    run_id = at_work(box, unit)
    waiting = box.enqueue("echo never")
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(machine.systemctl, "stop", unit)
        wait_for(lambda: "draining" in machine.show(unit, "StatusText")[0], "the drain")
        until = time.monotonic() + 3  # longer than the unit would wait
        wait_for(lambda: time.monotonic() > until, "time")
        assert machine.state(unit).startswith("deactivating")
        assert box.status(run_id) == "running"
        let_go(machine)
        stopped.result(LONG)
    assert box.status(run_id) == "completed"
    assert box.status(waiting) == "pending"
    assert machine.show(unit, "Result", "ExecMainStatus") == ["success", "0"]
    assert box.select("SELECT * FROM runners") == []


@pytest.mark.long
def test_what_is_left_when_the_drain_is_over_is_ended_and_reported(
    box: Box, machine: Machine, daemon: str
) -> None:
    """The run fails with the reason, before the unit is down."""
    unit = box.start_runner("one", "RUNQUEUE_DRAIN=1s")
    run_id = at_work(box, unit)
    machine.systemctl("stop", unit)
    assert box.status(run_id) == "failed"
    assert "was shut down before the run had ended" in box.row(run_id)["error"]
    assert machine.show(unit, "Result") == ["success"]


@pytest.mark.long
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_no_process_of_a_run_outlives_the_unit(
    box: Box, machine: Machine, daemon: str, how: str
) -> None:
    """Not one with a session of its own that ignores every signal but one."""
    unit = box.start_runner("one", "RUNQUEUE_DRAIN=0", "RUNQUEUE_STOP_GRACE=1s")
    box.drop_in(unit, "RestartSec=1h")
    stubborn = "trap '' TERM INT HUP; touch $HOME/stubborn; while :; do sleep 0.1; done"
    run_id = box.enqueue(f'setsid sh -c "{stubborn}" >/dev/null 2>&1 & {stubborn}')
    wait_for(lambda: (machine.root / HOME / "stubborn").exists(), "the agent's work")
    before = machine.processes(unit)
    assert len(before) >= 4
    if how == "stop":
        machine.systemctl("stop", unit)
        assert box.status(run_id) == "failed"
    else:
        machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", unit)
    wait_for(lambda: machine.processes(unit) == [], "an empty control group")
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]


@pytest.mark.long
def test_a_reload_drains_and_begins_anew(box: Box, machine: Machine, daemon: str) -> None:
    """The same process with new settings, once what is at work has ended, however long it takes."""
    unit = box.start_runner("one", "RUNQUEUE_DRAIN=0")
    run_id = at_work(box, unit)
    pid = main_pid(machine, unit)
    box.set("RUNQUEUE_COMMAND=sh", "RUNQUEUE_SLOTS=3", "GREETING=hello", file="runner-one.env")
    with ThreadPoolExecutor(1) as pool:
        reloaded = pool.submit(machine.systemctl, "reload", unit)
        wait_for(lambda: machine.state(unit) == "reloading/reload", "the reload")
        waiting = box.enqueue("echo $GREETING")
        until = time.monotonic() + 1
        wait_for(lambda: time.monotonic() > until, "time")
        assert (box.status(run_id), box.status(waiting)) == ("running", "pending")
        assert not reloaded.done()
        let_go(machine)
        reloaded.result(LONG)
    assert box.status(run_id) == "completed"
    box.becomes(waiting, "completed")
    assert box.row(waiting)["result"].strip() == "hello"
    assert main_pid(machine, unit) == pid
    assert machine.state(unit) == "active/running"
    assert "begins anew; changed: GREETING RUNQUEUE_DRAIN RUNQUEUE_SLOTS" in box.told(unit)


@pytest.mark.long
def test_a_frozen_runner_has_lost_its_run_when_it_thaws(box: Box, machine: Machine) -> None:
    """Beyond its lease: its report is refused, its agent ended, and it works on."""
    box.set("RUNQUEUE_DB=sqlite:////var/lib/runqueue/runqueue.db", "RUNQUEUE_LEASE=3")
    machine.systemctl("start", DAEMON)
    unit = box.start_runner()
    run_id = at_work(box, unit)
    machine.systemctl("freeze", unit)
    box.becomes(run_id, "failed")
    assert "lease ran out" in box.row(run_id)["error"]
    machine.systemctl("thaw", unit)
    # Nobody lets the agent go: it is the runner who ends it.
    wait_for(lambda: len(machine.processes(unit)) == 1, "the end of its agent")
    wait_for(lambda: any("report refused" in line for line in box.told(unit)), "the refusal")
    assert box.status(run_id) == "failed"
    assert ("failed", "daemon") in box.events(run_id)
    following = box.enqueue("echo on")
    box.becomes(following, "completed")
    assert main_pid(machine, unit) > 0


def test_a_runner_without_a_command_that_is_there_stays_down(
    box: Box, machine: Machine, daemon: str
) -> None:
    """With 78, and a sentence that names it."""
    box.drop_in("runqueue-runner@one.service", "RestartSec=100ms")
    box.set("RUNQUEUE_COMMAND=no-such-agent", file="runner-one.env")
    unit = "runqueue-runner@one.service"
    machine.systemctl("start", unit, check=False)
    assert machine.state(unit) == "failed/failed"
    assert machine.show(unit, "ExecMainStatus", "NRestarts") == ["78", "0"]
    assert any("no-such-agent" in line for line in box.told(unit))


@pytest.mark.long
def test_a_drained_host_stays_drained(box: Box, machine: Machine, daemon: str) -> None:
    """Asked for with the command: the runner ends, with its run, and systemd leaves it so."""
    box.drop_in("runqueue-runner@one.service", "RestartSec=100ms")
    unit = box.start_runner("one", "RUNQUEUE_LEASE=3")
    run_id = at_work(box, unit)
    box.rq("runners", "drain", "machine-one")
    let_go(machine)
    wait_for(lambda: machine.state(unit) == "inactive/dead", "its end")
    assert box.status(run_id) == "completed"
    assert machine.show(unit, "Result", "NRestarts") == ["success", "0"]
