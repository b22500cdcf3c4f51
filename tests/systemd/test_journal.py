"""What the services tell the journal: priorities, and fields that make a run's story of it."""

from __future__ import annotations

import json

import pytest

from tests.systemd.box import DAEMON, Box
from tests.systemd.machine import Machine, wait_for

pytestmark = pytest.mark.systemd


def test_the_journal_tells_a_runs_story(box: Box, machine: Machine, daemon: str) -> None:
    """By its id, over daemon and runner, each line with priority and what it is about."""
    box.start_runner()
    run_id = box.enqueue("exit 3  # canary-5f1c")
    expired = box.enqueue("x", "--tag", "gpu", "--timeout", "0")
    box.becomes(run_id, "failed")
    box.becomes(expired, "failed")
    session = box.row(run_id)["session_id"]
    wait_for(lambda: len(machine.journal(f"RUN_ID={run_id}")) == 2, "both lines")
    started, ended = machine.journal(f"RUN_ID={run_id}")
    for line in (started, ended):
        assert line["SESSION_ID"] == session
        assert line["RUNNER_ID"] == "machine-one"
        assert line["PRIORITY"] == "6"
        assert line["SYSLOG_IDENTIFIER"] == "runqueue-runner"
        assert line["_SYSTEMD_UNIT"] == "runqueue-runner@one.service"
    assert started["MESSAGE"] == f"run {run_id} of session {session} started"
    assert "failed after" in ended["MESSAGE"]
    wait_for(lambda: machine.journal(f"RUN_ID={expired}"), "what the daemon decided")
    (decided,) = machine.journal(f"RUN_ID={expired}")
    assert decided["_SYSTEMD_UNIT"] == DAEMON
    assert decided["MESSAGE"].startswith(f"run {expired} is failed: expired: ")
    everything = machine.run("journalctl", "--output=export", "--all").stdout
    assert "canary-5f1c" not in everything


@pytest.mark.long
def test_a_fault_has_the_priority_of_one(box: Box, machine: Machine) -> None:
    """So that `journalctl -p warning` shows what a person should look at, and nothing else."""
    box.rq("db", "init")
    box.drop_in(DAEMON, "Environment=RUNQUEUE_PATIENCE=30")
    with box.held():
        machine.systemctl("start", "--no-block", DAEMON)
        wait_for(lambda: machine.journal(f"--unit={DAEMON}", "--priority=err"), "the failure", 40)
        (told, *_) = machine.journal(f"--unit={DAEMON}", "--priority=err")
        assert "StorageBusy" in told["MESSAGE"]
    wait_for(lambda: machine.state(DAEMON) == "active/running", "the daemon")


@pytest.mark.long
def test_collectors_get_json_and_files_get_lines(box: Box, machine: Machine) -> None:
    """As asked for: one object a line, with the same fields."""
    box.set("RUNQUEUE_DB=sqlite:////var/lib/runqueue/runqueue.db", "RUNQUEUE_LOG_FORMAT=json")
    machine.systemctl("start", DAEMON)
    expired = box.enqueue("x", "--timeout", "0")
    box.becomes(expired, "failed")

    def lines() -> list[dict[str, str]]:
        told = box.told(DAEMON)
        return [json.loads(line) for line in told if line.startswith("{")]

    wait_for(lambda: any(line.get("run_id") == expired for line in lines()), "its line")
    (line,) = [line for line in lines() if line.get("run_id") == expired]
    assert set(line) == {"time", "level", "logger", "message", "run_id", "session_id"}
    assert (line["level"], line["logger"]) == ("INFO", "runqueue.daemon")
