"""The services with PostgreSQL as a unit beside them: its password, its restarts, its silence."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres
from tests.systemd.box import DAEMON, HIDDEN, VENV, Box
from tests.systemd.machine import Machine, wait_for

pytestmark = [pytest.mark.systemd, pytest.mark.long]

SERVER = "tests-postgres.service"
PASSWORD = "s3cret-in-the-url"
URL = f"postgresql://runqueue:{PASSWORD}@127.0.0.1:5432/runqueue"
UNIT = """\
[Unit]
Description=PostgreSQL of the tests
[Service]
User=runqueue-tests
ExecStart={bin}/postgres -D /var/lib/runqueue-tests/data -k /var/lib/runqueue-tests \\
    -c listen_addresses=127.0.0.1 -c unix_socket_permissions=0777
KillSignal=SIGINT
"""


def programs() -> str:
    """Where the server's programs are in the machine."""
    found = postgres.binaries()
    packages = Path(sysconfig.get_paths()["purelib"])
    if found.is_relative_to(packages):
        return f"/opt/packages/{found.relative_to(packages)}"
    if any(found.is_relative_to(hidden) for hidden in HIDDEN):
        pytest.skip(f"the machine does not see {found}")
    return str(found)


@pytest.fixture
def server(box: Box) -> Iterator[str]:
    """The server's unit, started, with a database for the services, who know the password."""
    machine, place = box.machine, "/var/lib/runqueue-tests"
    directory = programs()
    machine.run("useradd", "--system", "--home-dir", place, "--create-home", "runqueue-tests")

    def as_owner(*argv: str) -> None:
        machine.run(*argv, user="runqueue-tests")

    initdb = f"{directory}/initdb -D {place}/data -U admin --auth-local=trust"
    as_owner("sh", "-c", f"{initdb} --auth-host=scram-sha-256 --no-sync -E UTF8")
    machine.write(f"/run/systemd/system/{SERVER}", UNIT.format(bin=directory))
    machine.systemctl("daemon-reload")
    machine.systemctl("start", SERVER)
    ready = (
        "import psycopg, sys; c = psycopg.connect(sys.argv[1], autocommit=True); "
        "[c.execute(s) for s in sys.argv[2:]]"
    )
    argv = (f"{VENV}/bin/python", "-c", ready, f"postgresql://admin@/postgres?host={place}")
    wait_for(lambda: machine.run(*argv, check=False).returncode == 0, "the server")
    machine.run(
        *argv,
        f"CREATE ROLE runqueue LOGIN PASSWORD '{PASSWORD}'",
        "CREATE DATABASE runqueue OWNER runqueue",
    )
    box.set("RUNQUEUE_DB=postgresql://runqueue@127.0.0.1:5432/runqueue")
    for name in ("runqueue-db", "runqueue-runner-one-db"):
        machine.write(f"/etc/credstore/{name}", f"{URL}\n", 0o600)
    yield SERVER
    machine.systemctl("thaw", SERVER, check=False)
    machine.systemctl("kill", "--signal=KILL", SERVER, check=False)
    machine.systemctl("stop", SERVER, check=False)
    machine.run("userdel", "--force", "--remove", "runqueue-tests", check=False)


def status_of(box: Box, run_id: str) -> str:
    """A run's status, by the command, with the password that people have elsewhere."""
    shown = box.rq("--db", URL, "show", run_id, "-o", "json", check=False)
    return str(json.loads(shown.stdout)["status"]) if shown.returncode == 0 else "unknown"


def enqueue(box: Box, prompt: str) -> str:
    return str(box.rq("--db", URL, "enqueue", prompt).stdout.strip())


def completes(box: Box, run_id: str) -> None:
    wait_for(lambda: status_of(box, run_id) == "completed", f"the end of {run_id}", timeout=60)


def test_a_password_is_a_credential_and_seen_nowhere(
    box: Box, machine: Machine, server: str
) -> None:
    """Not in `ps`, not in the journal, not in `systemctl status` or `show`; agents use the URL."""
    machine.systemctl("start", DAEMON)
    unit = box.start_runner()
    completes(box, enqueue(box, "sleep 0.1; /opt/runqueue/bin/runqueue status"))
    shown = [
        machine.run("ps", "axww", "-o", "args").stdout,
        machine.run("journalctl", "--output=export", "--all").stdout,
        machine.systemctl("status", "--full", DAEMON, unit),
        machine.systemctl("show", DAEMON, unit),
        machine.run("find", "/etc/runqueue", "-type", "f", "-exec", "cat", "{}", "+").stdout,
    ]
    assert all("runqueue" in text for text in shown)
    assert [text for text in shown if PASSWORD in text] == []
    level = machine.run("systemd-analyze", "security", "--threshold=15", DAEMON, check=False)
    assert level.returncode == 0, level.stdout[-200:]


def test_a_server_that_is_restarted_under_load_is_found_again(
    box: Box, machine: Machine, server: str
) -> None:
    """Stopped and killed, while runs are executed: each ends once, and no service was restarted."""
    machine.systemctl("start", DAEMON)
    unit = box.start_runner("one", "RUNQUEUE_SLOTS=2")
    added = [enqueue(box, "sleep 0.3") for _ in range(3)]
    machine.systemctl("restart", server)
    wait_for(lambda: box.rq("--db", URL, "status", check=False).returncode == 0, "the server")
    added += [enqueue(box, "sleep 0.3") for _ in range(3)]
    machine.systemctl("kill", "--signal=KILL", server)
    wait_for(lambda: machine.state(server).startswith("failed"), "the crash")
    machine.systemctl("start", server)
    for run_id in added:
        completes(box, run_id)
    assert machine.show(DAEMON, "NRestarts") == ["0"]
    assert machine.show(unit, "NRestarts") == ["0"]


def test_a_server_that_stays_away_ends_the_daemon_until_it_is_back(
    box: Box, machine: Machine, server: str
) -> None:
    """With 75 when its patience is over; then it is started again, and up when the server is."""
    box.drop_in(DAEMON, "RestartSec=100ms", "Environment=RUNQUEUE_PATIENCE=1")
    machine.systemctl("start", DAEMON)
    machine.systemctl("stop", server)
    ended = "Main process exited, code=exited, status=75/TEMPFAIL"
    wait_for(lambda: sum(ended in line for line in box.told(DAEMON)) >= 2, "two ends", 60)
    machine.systemctl("start", server)
    wait_for(lambda: machine.state(DAEMON) == "active/running", "the return")


def test_a_server_that_hangs_is_noticed(box: Box, machine: Machine, server: str) -> None:
    """It neither answers nor refuses: the watchdog ends the daemon, which waits for the server."""
    box.drop_in(DAEMON, "RestartSec=100ms", "WatchdogSec=2s", "Environment=RUNQUEUE_PATIENCE=0")
    machine.systemctl("start", DAEMON)
    machine.systemctl("freeze", server)
    wait_for(
        lambda: any("Watchdog timeout" in line for line in box.told(DAEMON)), "the watchdog", 60
    )
    machine.systemctl("thaw", server)
    wait_for(lambda: machine.state(DAEMON) == "active/running", "the return", 60)
