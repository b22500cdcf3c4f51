"""`runqueued` as a service: it starts, tells, reloads, ends, and comes back."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.systemd.box import DAEMON, Box
from tests.systemd.machine import LONG, Machine, wait_for

pytestmark = pytest.mark.systemd

PLANTS = "Environment=PYTHONPATH=/opt/plants"
AT_ONCE = "RestartSec=100ms"


def status_of(machine: Machine) -> str:
    return machine.show(DAEMON, "StatusText")[0]


def main_pid(machine: Machine) -> int:
    return int(machine.show(DAEMON, "MainPID")[0])


def restarts(machine: Machine) -> int:
    return int(machine.show(DAEMON, "NRestarts")[0])


def test_it_is_up_when_its_first_sweep_has_succeeded(box: Box, machine: Machine) -> None:
    """`systemctl start` returns then and not before: with a schema, and what was due done."""
    box.rq("db", "init")
    run_id = box.enqueue("x", "--timeout", "0")
    box.drop_in(DAEMON, PLANTS)
    box.plant("hung-sweep")
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(machine.systemctl, "start", DAEMON)
        wait_for(lambda: box.select("SELECT 1 FROM daemons"), "the daemon's first words")
        assert machine.state(DAEMON) == "activating/start"
        box.pull_out("hung-sweep")
        started.result(LONG)
    assert box.status(run_id) == "failed"
    assert machine.state(DAEMON) == "active/running"
    assert "last sweep" in status_of(machine)


@pytest.mark.long
def test_a_migration_may_take_longer_than_a_start(box: Box, machine: Machine) -> None:
    """It asks for more time, and is not up while the schema is not right."""
    box.drop_in(DAEMON, PLANTS, "TimeoutStartSec=1s")
    box.plant("slow-migration")
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(machine.systemctl, "start", DAEMON)
        wait_for(lambda: "upgrading" in status_of(machine), "it says what it does")
        until = time.monotonic() + 2.5  # longer than the unit would wait
        wait_for(lambda: time.monotonic() > until, "time")
        assert machine.state(DAEMON) == "activating/start"
        box.pull_out("slow-migration")
        started.result(LONG)
    assert machine.state(DAEMON) == "active/running"
    assert restarts(machine) == 0


@pytest.mark.long
def test_its_status_says_how_much_there_is_to_do_and_when_it_swept(
    box: Box, machine: Machine, daemon: str
) -> None:
    """In words, for `systemctl status`; it goes on telling."""
    for _ in range(2):
        box.enqueue("x")
    wait_for(lambda: status_of(machine).startswith("2 pending, 0 running; last sweep "), "status")
    assert "2 pending" in machine.systemctl("status", DAEMON)


def test_it_stops_within_five_seconds(box: Box, machine: Machine, daemon: str) -> None:
    """By itself: with a success, nothing left, and signed off."""
    began = time.monotonic()
    machine.systemctl("stop", DAEMON)
    assert time.monotonic() - began < 5
    assert machine.show(DAEMON, "Result", "ExecMainStatus") == ["success", "0"]
    assert box.select("SELECT * FROM daemons") == []


@pytest.mark.long
def test_a_killed_one_is_started_again(box: Box, machine: Machine, daemon: str) -> None:
    """As the unit says; it then does what was due meanwhile."""
    run_id = box.enqueue("x", "--timeout", "1s")
    machine.systemctl("kill", "--signal=KILL", DAEMON)
    wait_for(lambda: restarts(machine) == 1, "the restart")
    box.becomes(run_id, "failed")
    wait_for(lambda: machine.state(DAEMON) == "active/running", "the return")


@pytest.mark.long
def test_a_hung_sweep_is_noticed_and_ended(box: Box, machine: Machine) -> None:
    """That the process lives and its main loop turns is no sign of life; where it hung is told."""
    box.drop_in(DAEMON, PLANTS, AT_ONCE, "WatchdogSec=2s", "Environment=RUNQUEUE_PATIENCE=0")
    machine.systemctl("start", DAEMON)
    first = main_pid(machine)
    box.plant("hung-sweep")
    wait_for(lambda: restarts(machine) >= 1, "the restart", timeout=60)
    box.pull_out("hung-sweep")
    wait_for(lambda: machine.state(DAEMON) == "active/running", "the return")
    assert main_pid(machine) != first
    told = "\n".join(box.told(DAEMON))
    assert "Watchdog timeout" in told
    assert "Fatal Python error: Aborted" in told
    assert "in sweep" in told


@pytest.mark.long
def test_a_daemon_that_sweeps_is_left_alone(box: Box, machine: Machine) -> None:
    """With a watchdog that is shorter than its interval: it asks for what it needs."""
    box.drop_in(DAEMON, "WatchdogSec=1s", "Environment=RUNQUEUE_INTERVAL=3s")
    machine.systemctl("start", DAEMON)
    pid = main_pid(machine)
    until = time.monotonic() + 4
    wait_for(lambda: time.monotonic() > until, "time")
    assert (main_pid(machine), restarts(machine)) == (pid, 0)


@pytest.mark.parametrize(
    ("setting", "code"), [("RUNQUEUE_DB=mysql://u:secret@h/db", 78), ("RUNQUEUE_INTERVAL=abc", 2)]
)
def test_a_bad_setting_is_no_reason_to_start_again(
    box: Box, machine: Machine, setting: str, code: int
) -> None:
    """It ends with a code that the unit knows, once, and one sentence says why."""
    box.drop_in(DAEMON, AT_ONCE)
    box.set(setting)
    machine.systemctl("start", DAEMON, check=False)
    assert machine.state(DAEMON) == "failed/failed"
    assert machine.show(DAEMON, "ExecMainStatus", "NRestarts") == [str(code), "0"]
    entries = machine.journal(f"--unit={DAEMON}")
    (error,) = [one for one in entries if one["MESSAGE"].startswith("Error: ")]
    assert error["PRIORITY"] == "3"
    assert not any("secret" in one["MESSAGE"] for one in entries)


@pytest.mark.long
def test_a_database_that_stays_busy_ends_it_until_it_is_free(box: Box, machine: Machine) -> None:
    """With 75 when its patience is over, again and again, and up as soon as it can be."""
    box.rq("db", "init")
    box.drop_in(DAEMON, AT_ONCE, "Environment=RUNQUEUE_PATIENCE=1")
    with box.held():
        machine.systemctl("start", "--no-block", DAEMON)
        wait_for(lambda: restarts(machine) >= 2, "two restarts", timeout=60)
        assert "Main process exited, code=exited, status=75/TEMPFAIL" in "".join(box.told(DAEMON))
    wait_for(lambda: machine.state(DAEMON) == "active/running", "the return")


def test_a_reload_goes_by_the_settings_as_they_are(box: Box, machine: Machine, daemon: str) -> None:
    """The same process, with another lease; `systemctl reload` returns when that is so."""
    pid = main_pid(machine)
    box.set("RUNQUEUE_DB=sqlite:////var/lib/runqueue/runqueue.db", "RUNQUEUE_LEASE=17")
    machine.systemctl("reload", DAEMON)
    assert machine.state(DAEMON) == "active/running"
    assert "reloaded; changed: RUNQUEUE_LEASE" in box.told(DAEMON)
    wait_for(lambda: box.select("SELECT lease FROM daemons") == [(17.0,)], "the new lease")
    assert main_pid(machine) == pid


@pytest.mark.long
def test_a_reload_of_settings_that_cannot_be_used_changes_nothing(
    box: Box, machine: Machine, daemon: str
) -> None:
    """They are named, and the daemon goes on as it was."""
    box.set("RUNQUEUE_DB=sqlite:////var/lib/runqueue/runqueue.db", "RUNQUEUE_INTERVAL=never")
    pid = main_pid(machine)
    machine.systemctl("reload", DAEMON)
    assert machine.state(DAEMON) == "active/running"
    assert main_pid(machine) == pid
    (told,) = [line for line in box.told(DAEMON) if line.startswith("reloaded nothing")]
    assert "--interval" in told
    run_id = box.enqueue("x", "--timeout", "0")
    box.becomes(run_id, "failed")


def test_the_files_are_the_groups_from_the_first_moment(
    box: Box, machine: Machine, daemon: str
) -> None:
    """Directory 2770, database and its side files 0660, all of the user and group runqueue."""
    box.enqueue("x")
    listed = machine.run("sh", "-c", "cd /var/lib/runqueue && stat -c '%n %a %U %G' . *").stdout
    found = {line.split()[0]: line.split()[1:] for line in listed.splitlines()}
    assert found.pop(".") == ["2770", "runqueue", "runqueue"]
    assert "runqueue.db" in found
    assert "runqueue.db-wal" in found
    assert {tuple(of) for of in found.values()} == {("660", "runqueue", "runqueue")}
    assert machine.run("stat", "-c", "%a %U %G", "/etc/runqueue").stdout == "750 root runqueue\n"
    settings = Path("/etc/runqueue/runqueue.env")
    assert machine.run("stat", "-c", "%a %U %G", str(settings)).stdout == "640 root runqueue\n"
