"""What must never be lost: runs, when the power fails, and a backup, when the file is gone."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.systemd.box import DAEMON, DATABASE, VENV, Box
from tests.systemd.machine import LONG, Machine, wait_for

pytestmark = pytest.mark.systemd

ADD = """
import sys, time, runqueue
queue = runqueue.connect(sys.argv[1])
while True:
    print(queue.enqueue("true").run_id, flush=True)
    time.sleep(0.02)
"""
"""A caller that tells each run that it was told is there."""


@pytest.mark.long
def test_a_power_cut_under_load_loses_nothing(box: Box, machine: Machine) -> None:
    """Process 1 is killed, everything with it; after the boot every run is there and ends."""
    box.set("RUNQUEUE_DB=sqlite:////var/lib/runqueue/runqueue.db", "RUNQUEUE_LEASE=3")
    machine.systemctl("enable", "--now", DAEMON)
    unit = box.start_runner("one", "RUNQUEUE_SLOTS=2")
    machine.systemctl("enable", unit)
    caller = machine.start(
        f"{VENV}/bin/python", "-c", ADD, f"sqlite:///{DATABASE}", user="runqueue"
    )
    assert caller.stdout is not None
    known = [caller.stdout.readline().strip() for _ in range(40)]
    wait_for(lambda: box.select("SELECT 1 FROM runs WHERE status = 'completed'"), "a first end")
    machine.cut_power()
    with caller:
        known += [line.strip() for line in caller.stdout if line.endswith("\n")]
    machine.boot()
    wait_for(lambda: machine.state(unit) == "active/running", "the runner")
    kept = {run_id for (run_id,) in box.select("SELECT run_id FROM runs")}
    assert set(known) <= kept
    wait_for(
        lambda: box.select("SELECT count(*) FROM runs WHERE completed_at IS NULL") == [(0,)],
        "the end of all runs",
        timeout=4 * LONG,
    )
    statuses = dict(box.select("SELECT status, count(*) FROM runs GROUP BY status"))
    # What was at work when the power failed is told as lost, and is not done twice.
    assert statuses["completed"] >= len(kept) - 2
    assert statuses.get("failed", 0) <= 2
    assert box.rq("db", "check").stdout.endswith("is sound\n")


@pytest.mark.long
def test_a_backup_that_was_made_under_load_can_be_restored(
    box: Box, machine: Machine, daemon: str
) -> None:
    """By the steps of the manual; what came after it is gone, all before is there and goes on."""
    unit = box.start_runner()
    before = [box.enqueue("echo before") for _ in range(3)]
    for run_id in before:
        box.becomes(run_id, "completed")
    later = box.enqueue("echo later", "--priority", "-1")
    box.rq("db", "backup", "/root/backup.db")
    assert machine.run("stat", "-c", "%a", "/root/backup.db").stdout == "600\n"
    box.becomes(later, "completed")
    after = box.enqueue("echo after")
    box.forget_looker()
    for line in RESTORE.replace("/srv/backup/runqueue.db", "/root/backup.db").splitlines():
        machine.run("sh", "-c", line)
    known = {row["run_id"] for row in json.loads(box.rq("list", "-o", "json").stdout)}
    assert known >= {*before, later}
    assert after not in known
    assert machine.run("stat", "-c", "%a %U %G", DATABASE).stdout == "660 runqueue runqueue\n"
    machine.systemctl("start", unit)
    box.becomes(box.enqueue("echo on"), "completed")
    box.becomes(later, "completed")
    assert box.rq("db", "check").stdout.endswith("is sound\n")


RESTORE = """\
systemctl stop 'runqueue-runner@*' runqueued
rm -f /var/lib/runqueue/runqueue.db-wal /var/lib/runqueue/runqueue.db-shm
install -o runqueue -g runqueue -m 660 /srv/backup/runqueue.db /var/lib/runqueue/runqueue.db
/opt/runqueue/bin/runqueue db check
systemctl start runqueued
"""
"""What the manual says; a test compares the two."""


def test_the_manual_restores_in_the_same_steps() -> None:
    """So that what is tried here is what people do."""
    from tests.systemd.box import ROOT

    manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    lines = [f"    {line.replace(f'{VENV}/bin/', '')}" for line in RESTORE.splitlines()]
    assert "\n".join(lines) in manual


@pytest.mark.long
def test_a_full_group_of_people_and_runners_shares_the_file(
    box: Box, machine: Machine, daemon: str
) -> None:
    """An operator of the group adds and looks; somebody else may not."""
    machine.run("useradd", "--groups", "runqueue", "someone")
    machine.run("useradd", "stranger")
    try:
        added = box.rq("enqueue", "true", user="someone").stdout.strip()
        assert box.status(added) == "pending"
        refused = box.rq("--db", f"sqlite:///{DATABASE}", "list", user="stranger", check=False)
        assert refused.returncode == 78
        assert refused.stdout == ""
        assert f"{DATABASE} may not be read" in refused.stderr
    finally:
        for name in ("someone", "stranger"):
            machine.run("userdel", name)
        shutil.rmtree(machine.root / "home/someone", ignore_errors=True)
