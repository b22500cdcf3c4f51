"""`runqueue systemd install` and `uninstall`: what they write, and that they take it all away."""

from __future__ import annotations

import re

import pytest

from tests.systemd.box import DAEMON, ROOT, VENV, Box
from tests.systemd.machine import Machine, wait_for

pytestmark = pytest.mark.systemd

UNITS = ("runqueued.service", "runqueue-runner@.service")
DIRECTORY = "/etc/systemd/system"


def exposure(machine: Machine, unit: str) -> float:
    """What `systemd-analyze security` thinks of a unit that is loaded."""
    shown = machine.run("systemd-analyze", "security", unit).stdout
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", shown)
    return float(level)


def test_units_are_as_systemd_wants_them(box: Box, machine: Machine) -> None:
    """`verify` has nothing to say of them: it tells even of an unknown key, and succeeds."""
    for unit in UNITS:
        done = machine.run("systemd-analyze", "verify", "--man=no", f"{DIRECTORY}/{unit}")
        assert (done.stdout, done.stderr) == ("", ""), unit


def test_the_daemon_is_locked_down(box: Box, machine: Machine, daemon: str) -> None:
    """Also with a database on a server, and the runner as far as agents allow."""
    assert exposure(machine, DAEMON) <= 1.5
    assert exposure(machine, "runqueue-runner@one.service") <= 3.0


@pytest.mark.long
def test_without_a_server_it_works_without_a_network(box: Box, machine: Machine) -> None:
    """With the manual's own lines."""
    manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    lines = re.search(r"    \[Service\]\n((?:    .*\n)+)", manual)
    assert lines is not None
    box.drop_in(DAEMON, *(line.strip() for line in lines[1].splitlines()))
    machine.systemctl("start", DAEMON)
    assert exposure(machine, DAEMON) <= 0.7
    box.becomes(box.enqueue("x", "--timeout", "0"), "failed")


def test_installing_says_first_what_it_does_and_then_what_to_do_next(
    box: Box, machine: Machine
) -> None:
    """A dry run says the same and does nothing; to install again changes nothing."""
    box.rq("systemd", "uninstall")
    before = box.files()
    would = box.rq("systemd", "install", "--dry-run").stdout.splitlines()
    assert box.files() == before
    did = box.rq("systemd", "install").stdout.splitlines()
    assert [line.removeprefix("would ") for line in would] == did
    assert f"write {DIRECTORY}/{DAEMON}" in did
    assert "  systemctl enable --now runqueued" in did
    again = box.rq("systemd", "install").stdout
    assert "write" not in again
    assert "keep /etc/runqueue/runqueue.env, which is yours" in again


def test_one_command_leads_to_a_daemon_that_works(box: Box, machine: Machine) -> None:
    """From nothing, and again after the machine was started anew."""
    box.rq("systemd", "uninstall")
    box.rq("systemd", "install", "--now")
    assert machine.state(DAEMON) == "active/running"
    assert box.rq("status", "--check").stdout.startswith("ok: ")
    machine.cut_power()
    machine.boot()
    assert machine.state(DAEMON) == "active/running"


def test_a_unit_that_was_changed_by_hand_is_nobodys_to_overwrite(
    box: Box, machine: Machine
) -> None:
    """It is named, with what to do instead; nor is it removed."""
    path = f"{DIRECTORY}/{DAEMON}"
    text = machine.run("cat", path).stdout
    machine.write(path, text.replace("TasksMax=128", "TasksMax=64"))
    refused = box.rq("systemd", "install", check=False)
    assert refused.returncode == 78
    assert path in refused.stderr
    assert "--force" in refused.stderr
    kept = box.rq("systemd", "uninstall").stdout
    assert f"keep {path}, for it was changed by hand" in kept
    assert (machine.root / path.lstrip("/")).exists()
    box.rq("systemd", "install", "--force")
    assert machine.run("cat", path).stdout == text


@pytest.mark.long
def test_uninstalling_leaves_nothing_but_data(box: Box, machine: Machine, daemon: str) -> None:
    """Services are stopped and disabled, also runners; the queue and its users stay."""
    run_id = box.enqueue("echo kept")
    unit = box.start_runner()
    box.becomes(run_id, "completed")
    machine.systemctl("enable", DAEMON, unit)
    would = box.rq("systemd", "uninstall", "--dry-run").stdout
    assert machine.state(DAEMON) == "active/running"
    assert f"would systemctl disable --now {unit} {DAEMON}" in would
    box.rq("systemd", "uninstall")
    assert machine.show(DAEMON, "LoadState", "ActiveState") == ["not-found", "inactive"]
    assert machine.processes(unit) == []
    (machine.root / "etc/runqueue/runner-one.env").unlink()  # the operator's own
    (machine.root / "etc/runqueue").rmdir()
    left = {path for path in box.files() - box.before if "/users" not in path}
    accounts = {
        path for path in left if re.fullmatch(r"/etc/(g?shadow|passwd|group|sub[ug]id)-?", path)
    }
    assert {path.split("/")[3] for path in left - accounts if path.startswith("/var/lib/")} == {
        "runqueue",
        "runqueue-runner",
    }
    assert {path for path in left - accounts if not path.startswith("/var/lib/runqueue")} == set()
    assert box.status(run_id) == "completed"
    assert box.rq("systemd", "uninstall").stdout == "nothing is installed here\n"


@pytest.mark.long
def test_the_next_version_takes_over_while_work_goes_on(
    box: Box, machine: Machine, daemon: str
) -> None:
    """The daemon is started anew, a runner when what it executes has ended; both versions meet."""
    unit = box.start_runner()
    run_id = box.enqueue("until test -e $HOME/go; do sleep 0.05; done; echo done")
    box.becomes(run_id, "running")
    try:
        box.put_in(box.wheel_of_next)
        box.rq("systemd", "install", "--now")
        assert any("of version 99.0 sweeps" in line for line in box.told(DAEMON))
        machine.systemctl("reload", "--no-block", unit)
        assert box.status(run_id) == "running"
        machine.write("/var/lib/runqueue-runner/go", "")
        box.becomes(run_id, "completed")
        wait_for(
            lambda: any("of version 99.0 serves" in line for line in box.told(unit)),
            "the runner of the next version",
        )
        following = box.enqueue("echo on")
        box.becomes(following, "completed")
    finally:
        box.put_in(box.wheel)


@pytest.mark.long
def test_one_person_has_services_without_root(box: Box, machine: Machine) -> None:
    """User units, settings of their own, a runner, and an uninstall."""
    name = "someone"
    machine.run("useradd", "--create-home", name)
    machine.run("loginctl", "enable-linger", name)
    uid = machine.run("id", "-u", name).stdout.strip()
    wait_for(lambda: machine.state(f"user@{uid}.service") == "active/running", "their manager")
    home = f"/home/{name}"
    env = {"HOME": home, "XDG_RUNTIME_DIR": f"/run/user/{uid}"}

    def as_them(*argv: str, check: bool = True) -> str:
        return machine.run(*argv, user=name, env=env, check=check).stdout

    try:
        rq = f"{VENV}/bin/runqueue"
        as_them(rq, "systemd", "install", "--user", "--now")
        assert as_them("systemctl", "--user", "is-active", DAEMON).strip() == "active"
        settings = f"{home}/.config/runqueue"
        as_them("sh", "-c", f"echo RUNQUEUE_COMMAND=sh >{settings}/runner-one.env")
        as_them("systemctl", "--user", "start", "runqueue-runner@one")
        done = as_them(rq, "enqueue", "echo $PWD", "--wait")
        assert done.strip().endswith(home)
        assert as_them(rq, "status", "--check", "--min-runners", "1").startswith("ok: ")
        listed = as_them("stat", "-c", "%a", f"{home}/.local/state/runqueue/runqueue.db")
        assert listed == "600\n"
        as_them("rm", f"{settings}/runner-one.env")
        as_them(rq, "systemd", "uninstall", "--user")
        left = as_them("find", f"{home}/.config", "-type", "f", "-o", "-type", "l")
        assert left == ""
        assert as_them("systemctl", "--user", "is-active", DAEMON, check=False) != "active\n"
        assert as_them(
            rq, "list", "-o", "id", "--db", f"sqlite:///{home}/.local/state/runqueue/runqueue.db"
        )
    finally:
        machine.run("loginctl", "disable-linger", name, check=False)
        machine.systemctl("stop", f"user@{uid}.service", check=False)
        machine.run("userdel", "--remove", "--force", name, check=False)
