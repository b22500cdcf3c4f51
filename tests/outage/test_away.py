"""The server is down, starting up, read-only, or hangs: what commands and processes say and do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import runqueue
from runqueue import Queue
from tests.helpers import status_of, wait_until
from tests.outage.conftest import Server
from tests.outage.processes import SLOW, Ledger, Programs, agents, frozen

pytestmark = pytest.mark.long

ENDS_WITHIN = 5.0
"""Seconds within which a daemon promises to end."""
LEASE = 3.0
SLACK = 2.0
"""Seconds that a busy machine may take more."""


def _down(server: Server) -> None:
    server.stop("immediate")


def _starting(server: Server) -> None:
    server.become_standby("starting up")


def _standby(server: Server) -> None:
    server.become_standby("hot")


def _read_only(server: Server) -> None:
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")
    wait_until(lambda: server.execute("SHOW default_transaction_read_only") == [("on",)])


TROUBLES: dict[str, tuple[Callable[[Server], None], Callable[[Server], None], str]] = {
    "down": (_down, Server.reset, "not to be reached"),
    "starting up": (_starting, Server.promote, "not to be reached"),
    "a standby": (_standby, Server.promote, "read-only"),
    "read-only": (_read_only, Server.reset, "read-only"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_command_says_in_one_sentence_that_the_server_takes_nothing(
    trouble: str, server: Server, url: str, queue: Queue, programs: Programs
) -> None:
    """Exit code 75, so that a script knows that a later try can help."""
    queue.close()
    begin, _, sentence = TROUBLES[trouble]
    begin(server)
    for argv in (["enqueue", "x"], ["stop", "run_000000000000"])[: 1 if "read" in sentence else 2]:
        command = programs.start("runqueue", url, *argv)
        assert command.wait() == 75, command.log
        assert command.log.startswith("Error: ")
        assert command.log.count("\n") == 1, command.log
        assert sentence in command.log
        assert "postgres:postgres" not in command.log  # nobody's password


@pytest.mark.parametrize("trouble", TROUBLES)
def test_processes_go_on_when_the_server_takes_writes_again(
    trouble: str, server: Server, url: str, queue: Queue, programs: Programs, ledger: Ledger
) -> None:
    """A daemon and a runner that were started before; the daemon tells that it works again."""
    daemon = programs.daemon(url)
    runner = programs.runner(url, "one", "--lease", str(LEASE), command=ledger.agent)
    run = queue.enqueue("true")
    queue.wait(run.run_id, timeout=SLOW)
    queue.close()
    begin, end, _ = TROUBLES[trouble]
    begin(server)
    runner.says("no heartbeat")
    if trouble in ("down", "starting up"):
        daemon.says("the sweep failed")
    end(server)
    runner.says("the heartbeat is back")
    run = queue.enqueue("true", timeout=20)
    assert queue.wait(run.run_id, timeout=SLOW).status == "completed"
    due = queue.enqueue("true", demands={"tags": ["nobody"]}, timeout=0.1)
    assert queue.wait(due.run_id, timeout=SLOW).status == "failed"
    for process in (daemon, runner):
        assert process.is_alive
        assert "Traceback" not in process.log


def test_reading_goes_on_from_a_standby(server: Server, url: str, queue: Queue) -> None:
    """A queue on a server that takes no writes can be looked at."""
    run = queue.enqueue("x")
    queue.close()
    server.become_standby("hot")
    with runqueue.connect(url) as reader:
        assert status_of(reader, run) == "pending"
        assert reader.why(run.run_id)


@contextmanager
def _away(server: Server, how: str) -> Iterator[None]:
    """Have the server refuse every connection, or hang: take it, and say nothing."""
    if how == "refuses":
        server.stop("immediate")
        yield
        server.start()
    else:
        assert server.pid is not None
        with frozen(server.pid):
            yield


HOWS = ("refuses", "hangs")


@pytest.mark.parametrize("how", HOWS)
def test_sigterm_ends_a_daemon_in_time_while_the_server_is_away(
    how: str, server: Server, url: str, programs: Programs
) -> None:
    """Within five seconds, whatever it waits for."""
    daemon = programs.daemon(url)
    with _away(server, how):
        if how == "refuses":
            daemon.says("the sweep failed")
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1)  # a sweep begins, and may hang
        assert daemon.end(ENDS_WITHIN) == 0
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("work", ["idle", "at work", "reporting"])
def test_sigterm_ends_a_runner_in_time_while_the_server_is_away(
    work: str, how: str, server: Server, url: str, queue: Queue, programs: Programs, ledger: Ledger
) -> None:
    """After the drain, the grace and the ten seconds of its last word."""
    runner = programs.runner(
        url, "one", "--drain", "0.5", "--stop-grace", "1", command=ledger.agent
    )
    if work != "idle":
        gate = ledger.path.with_name("gate")
        script = ledger.path.with_name("script")
        script.write_text(f"while [ ! -e {gate} ]; do sleep 0.02; done")
        run = queue.enqueue(f"sh {script}" if work == "reporting" else "sleep 600")
        wait_until(lambda: ledger.has("START", run.run_id))
        wait_until(lambda: status_of(queue, run) == "running")
    queue.close()
    with _away(server, how):
        if work == "reporting":
            gate.touch()
            wait_until(lambda: ledger.has("DONE", run.run_id))
            if how == "refuses":
                runner.says("its report waits")
        limit = 0.5 + (11 if work != "idle" else 0) + ENDS_WITHIN + SLACK
        assert runner.end(limit) in (0, 75), runner.log
    assert "Traceback" not in runner.log


@pytest.mark.parametrize("how", HOWS)
def test_an_agent_ends_with_its_lease_while_the_server_is_away(
    how: str, server: Server, url: str, queue: Queue, programs: Programs, ledger: Ledger
) -> None:
    """Others may have taken its run by then; the same runner goes on when the server is back."""
    options = ("--lease", str(LEASE), "--slots", "3", "--stop-grace", "1")
    runner = programs.runner(url, "one", *options, command=ledger.agent)
    runs = [queue.enqueue("sleep 600") for _ in range(2)]
    wait_until(lambda: len(queue.find(status="running")) == 2)
    wait_until(lambda: len(agents(runner)) == 2)
    queue.close()
    with _away(server, how):
        began = time.monotonic()
        wait_until(lambda: not agents(runner), timeout=LEASE + 1 + SLACK)
        assert time.monotonic() - began > LEASE / 3 - 0.5  # not at once, for it may come back
    for run in runs:
        ended = queue.wait(run.run_id, timeout=SLOW)
        assert ended.status == "failed"
        assert "heartbeat" in str(ended.error)
    run = queue.enqueue("true")
    assert queue.wait(run.run_id, timeout=SLOW).status == "completed"
    assert runner.is_alive
