"""`runqueue-runner` as a process: what a run gets, what becomes of it, and how the runner ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runqueue import Queue, silence
from runqueue.runner import LOOK_AGAIN
from tests.helpers import execute_sql
from tests.process.conftest import Other

REPORT = (
    "import json, os, sys; "
    "names = [name for name in os.environ if name.startswith('RUNQUEUE_')]; "
    "print(json.dumps({'prompt': sys.stdin.read(), 'cwd': os.getcwd(), "
    "'env': {name: os.environ[name] for name in names}}))"
)


def test_a_run_gets_its_prompt_its_ids_and_its_directory(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    tmp_path: Path,
    url: str,
) -> None:
    """Standard input, environment and working directory; its standard output is the result."""
    start_runner("alpha", "--tag", "gpu", command=(sys.executable, "-c", REPORT))
    prompt = "Grüße\n\x1b[31m 🎉\n" + "x" * 200_000
    run = queue.enqueue(
        prompt, agent_name="writer", project_dir=str(tmp_path), demands={"tags": ["gpu"]}
    )
    ended = has_status(run.run_id, "completed")
    report = json.loads(ended.result)
    assert report["prompt"] == prompt
    assert report["cwd"] == str(tmp_path)
    env = report["env"]
    del env["RUNQUEUE_ENV_FILE"]
    assert env == {
        "RUNQUEUE_RUN_ID": run.run_id,
        "RUNQUEUE_SESSION_ID": run.session_id,
        "RUNQUEUE_RUN_TYPE": "START_SESSION",
        "RUNQUEUE_AGENT_NAME": "writer",
        "RUNQUEUE_DB": url,
    }
    assert ended.runner_id == "alpha"
    assert ended.error is None
    session = queue.session(run.session_id)
    assert session.hostname == socket.gethostname()


def test_a_resumed_run_receives_what_an_earlier_one_bound(
    queue: Queue, start_runner: Callable[..., Any], has_status: Callable[..., Any]
) -> None:
    """A command binds the framework's own id from within its run, by its environment alone."""
    start_runner("alpha")
    binding = f"{sys.executable} -m runqueue sessions bind conversation-1"
    asking = "echo ${RUNQUEUE_EXECUTOR_SESSION_ID-none}"
    run = queue.enqueue(f"{asking}; {binding}")
    first = has_status(run.run_id, "completed")
    assert first.result == f"none\n{run.session_id} conversation-1\n"
    again = queue.enqueue(asking, session_id=run.session_id)
    assert has_status(again.run_id, "completed").result == "conversation-1\n"
    # A runner that is itself executed by a run does not hand on what is that run's own.
    other = queue.enqueue(asking)
    assert has_status(other.run_id, "completed").result == "none\n"


def test_a_runner_says_where_its_sessions_live(
    queue: Queue, start_runner: Callable[..., Any], has_status: Callable[..., Any]
) -> None:
    """Also when the host itself has another name, or another one every day."""
    start_runner("alpha", "--hostname", "box")
    run = queue.enqueue("echo x", demands={"hostname": "box"})
    has_status(run.run_id, "completed")
    assert queue.session(run.session_id).hostname == "box"


def test_a_run_whose_session_is_deleted_is_ended_and_binds_nothing(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """One sentence for the agent, exit code 3; the runner goes on."""
    process = start_runner("alpha", "--stop-grace", "20")
    ready, said = tmp_path / "ready", tmp_path / "said"
    binding = f"{sys.executable} -m runqueue sessions bind conversation-1 2> {said}"
    run = queue.enqueue(
        f"trap '{binding}; echo $? >> {said}; exit 0' TERM; "
        f"touch {ready}; while :; do sleep 0.02; done"
    )
    until(ready.exists)
    queue.delete_session(run.session_id, force=True)
    until(lambda: said.exists() and said.read_text().endswith("3\n"))
    assert said.read_text() == f"Error: session {run.session_id} does not exist\n3\n"
    assert has_status(queue.enqueue("echo x").run_id, "completed").result == "x\n"
    assert process.is_alive


def test_when_an_agent_was_last_heard_of_comes_with_the_heartbeat(
    queue: Queue,
    start_runner: Callable[..., Any],
    until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """What it says on either stream counts; when it falls silent, the time stays."""
    start_runner("alpha", "--lease", "1")
    go = tmp_path / "go"
    script = f"echo working >&2; while [ ! -e {go} ]; do sleep 0.02; done; echo more; sleep 600"
    run_id = queue.enqueue(script).run_id
    until(lambda: queue.get(run_id).status == "running")

    def heard() -> str | None:
        return silence.of_run(queue.store, queue.get(run_id), now=queue.now()).at

    until(heard)
    first = heard()
    go.touch()
    until(lambda: heard() != first)
    queue.stop(run_id)


def test_a_run_can_use_the_queue_that_it_came_from(
    queue: Queue, start_runner: Callable[..., Any], has_status: Callable[..., Any]
) -> None:
    """An agent that calls `runqueue enqueue` adds a child to the same database."""
    start_runner("alpha")
    script = f'{sys.executable} -m runqueue enqueue "exit 0" --parent "$RUNQUEUE_SESSION_ID"'
    run = queue.enqueue(script)
    child = has_status(run.run_id, "completed").result.strip()
    assert has_status(child, "completed").parent_session_id == run.session_id


def test_a_failing_command_gives_the_end_of_its_standard_error(
    queue: Queue, start_runner: Callable[..., Any], has_status: Callable[..., Any]
) -> None:
    """And its exit status; the next run is not affected."""
    start_runner("alpha")
    failing = queue.enqueue("echo partial; echo 'no such model' >&2; exit 3").run_id
    killed = queue.enqueue("kill -9 $$").run_id
    fine = queue.enqueue("echo fine").run_id
    run = has_status(failing, "failed")
    assert run.error == "exit status 3: no such model"
    assert has_status(killed, "failed").error == "killed by SIGKILL"
    assert has_status(fine, "completed").result == "fine\n"


def test_a_missing_directory_fails_the_run_and_not_the_runner(
    queue: Queue, start_runner: Callable[..., Any], has_status: Callable[..., Any], tmp_path: Path
) -> None:
    """The reason names the directory, and the runner lives on."""
    process = start_runner("alpha")
    missing = str(tmp_path / "nowhere")
    run = has_status(queue.enqueue("echo x", project_dir=missing).run_id, "failed")
    assert missing in run.error
    assert "No such file or directory" in run.error
    has_status(queue.enqueue("echo x").run_id, "completed")
    assert process.is_alive


def test_three_slots_execute_three_runs_at_once(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    tmp_path: Path,
    until: Callable[..., None],
) -> None:
    """Each of three runs waits for the other two; a fourth has to wait."""
    start_runner("alpha", "--slots", "3")
    go = tmp_path / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.02; done; echo done"
    runs = queue.enqueue_many([{"prompt": script}] * 4)
    until(lambda: len(queue.find(status="running")) == 3)
    assert len(queue.find(status="pending")) == 1
    go.touch()
    for run in runs:
        has_status(run.run_id, "completed")


SCATTER = """
import os, subprocess, sys, time
token = sys.stdin.read()
subprocess.Popen(["sleep", token])
subprocess.Popen(["sleep", token], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", token])
    os._exit(0)
os.wait()
subprocess.Popen(["sh", "-c", "trap '' TERM HUP INT; sleep " + token + "; sleep " + token])
time.sleep(600)
"""


def test_a_stop_ends_every_process_of_the_run_and_is_confirmed(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    users: Callable[[str], list[Any]],
    token: str,
    until: Callable[..., None],
) -> None:
    """Also those in sessions of their own, forked twice, and deaf to SIGTERM."""
    process = start_runner("alpha", "--stop-grace", "0.5", command=(sys.executable, "-c", SCATTER))
    run_id = queue.enqueue(token).run_id
    until(lambda: len(users(token)) == 4)
    queue.stop(run_id, reason="no longer wanted")
    run = has_status(run_id, "stopped")
    assert users(token) == []
    assert run.error is None
    assert [event.status.value for event in queue.timeline(run_id)][-2:] == ["stopping", "stopped"]
    assert queue.timeline(run_id)[-1].actor == "runner"
    assert process.is_alive


@pytest.fixture
def slow(queue: Queue, tmp_path: Path, until: Callable[..., None]) -> Callable[[], Any]:
    """Adds a run that lasts until it is let go; returns when it executes, with the letting go."""

    def begin() -> tuple[str, Callable[[], None]]:
        begun, go = tmp_path / "begun", tmp_path / "go"
        script = f"touch {begun}; while [ ! -e {go} ]; do sleep 0.02; done; echo done"
        run_id = queue.enqueue(script).run_id
        until(begun.exists)
        return run_id, go.touch

    return begin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_it(
    queue: Queue,
    start_runner: Callable[..., Any],
    slow: Callable[[], Any],
    other: Other,
    until: Callable[..., None],
    number: int,
) -> None:
    """The run at work completes, nothing new is claimed, and it exits with 0, signed off."""
    process = start_runner("alpha", "--slots", "2")
    run_id, let_go = slow()
    process.send(number)
    until(lambda: "runs at work: 1" in process.log)
    later = queue.enqueue("echo later").run_id
    let_go()
    assert process.wait() == 0
    run = queue.get(run_id)
    assert (run.status, run.result) == ("completed", "done\n")
    assert queue.get(later).status == "pending"
    assert other.execute("SELECT * FROM runners").fetchall() == []
    assert "Traceback" not in process.log


def test_an_idle_runner_ends_at_once(
    queue: Queue, start_runner: Callable[..., Any], has_status: Callable[..., Any]
) -> None:
    """A signal wakes it from its waiting: before it would look again by itself."""
    process = start_runner("alpha")
    has_status(queue.enqueue("echo x").run_id, "completed")
    assert process.end_within(signal.SIGTERM, LOOK_AGAIN - 1) == 0
    assert "Traceback" not in process.log


# Between its registration and its loop a runner is as slow here as on a busy machine.
SLOW_START = """
import sys, time
from runqueue import slots
from runqueue.cli import runner
begin = slots.Slots.__init__
def slowly(*arguments, **options):
    time.sleep(0.5)
    begin(*arguments, **options)
slots.Slots.__init__ = slowly
runner.main()
"""


def test_a_signal_finds_a_registered_runner_ready_for_it(
    environment: dict[str, str], url: str, other: Other, until: Callable[..., None]
) -> None:
    """From the moment it can be seen it signs off: no dead runner is left for a lease."""
    argv = [sys.executable, "-c", SLOW_START, "--db", url, "--", "sh"]
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: other.execute("SELECT 1 FROM runners").fetchall())
            process.terminate()
            _, err = process.communicate(timeout=5)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert other.execute("SELECT runner_id FROM runners").fetchall() == []


def test_a_second_signal_ends_the_runs_at_once(
    queue: Queue,
    start_runner: Callable[..., Any],
    slow: Callable[[], Any],
    until: Callable[..., None],
) -> None:
    """The run fails, and its error says why."""
    process = start_runner("alpha")
    run_id, _ = slow()
    process.send(signal.SIGTERM)
    until(lambda: "drains" in process.log)
    assert process.end_within(signal.SIGTERM, 5.0) == 0
    run = queue.get(run_id)
    assert run.status == "failed"
    assert run.error == "runner alpha was shut down before the run had ended"


def test_the_drains_time_is_bounded(
    queue: Queue, start_runner: Callable[..., Any], slow: Callable[[], Any]
) -> None:
    """After --drain seconds the runs are ended, without a second signal."""
    process = start_runner("alpha", "--drain", "0.3")
    run_id, _ = slow()
    assert process.end_within(signal.SIGTERM, 5.0) == 0
    assert queue.get(run_id).status == "failed"


def test_runners_drain_ends_it_when_its_run_has_ended(
    queue: Queue,
    start: Callable[..., Any],
    start_daemon: Callable[..., Any],
    start_runner: Callable[..., Any],
    slow: Callable[[], Any],
    until: Callable[..., None],
) -> None:
    """Asked for with the command, on any host; it hears of it with its next heartbeat."""
    start_daemon("--lease", "1")
    process = start_runner("alpha")
    run_id, let_go = slow()
    assert start("runqueue", "runners", "drain", "alpha").wait() == 0
    until(lambda: "drains, as asked" in process.log)
    later = queue.enqueue("echo later").run_id
    assert process.is_alive
    let_go()
    assert process.wait() == 0
    assert queue.get(run_id).status == "completed"
    assert queue.get(later).status == "pending"


def test_a_runner_whose_id_is_taken_over_by_a_successor_leaves_no_run_behind(
    queue: Queue,
    start_runner: Callable[..., Any],
    slow: Callable[[], Any],
    has_status: Callable[..., Any],
) -> None:
    """A killed runner's successor with the same id need not wait for the lease."""
    process = start_runner("alpha")
    run_id, _ = slow()
    process.send(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    start_runner("alpha")
    run = has_status(run_id, "failed", timeout=5)
    assert time.monotonic() - began < 5
    assert run.error == "runner alpha was restarted"
    has_status(queue.enqueue("echo x").run_id, "completed")


SLEEP = "import subprocess, sys; subprocess.run(['sleep', sys.stdin.read()])"


def test_the_runs_of_a_killed_runner_are_resolved_within_a_lease(
    queue: Queue,
    start_daemon: Callable[..., Any],
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    other: Other,
    users: Callable[[str], list[Any]],
    token: str,
    until: Callable[..., None],
) -> None:
    """Running fails with the reason, never started is pending again, stopping is settled."""
    start_daemon("--lease", "2", "--interval", "0.1")
    process = start_runner(
        "alpha", "--slots", "2", "--stop-grace", "0.2", command=(sys.executable, "-c", SLEEP)
    )
    running, stopping, claimed = (queue.enqueue(token).run_id for _ in range(3))
    until(lambda: len(users(token)) == 2)
    process.send(signal.SIGSTOP)  # it must not see what is written by hand now
    for run_id, status in ((claimed, "claimed"), (stopping, "stopping")):
        other.execute(
            "UPDATE runs SET status = ?, runner_id = 'alpha', claimed_at = coalesce(claimed_at, ?) "
            "WHERE run_id = ?",
            (status, queue.now(), run_id),
        )
    process.send(signal.SIGKILL)
    process.wait()
    killed = time.monotonic()
    until(lambda: users(token) == [])
    run = has_status(running, "failed", timeout=5)
    assert run.error == "runner alpha was lost: its lease ran out"
    has_status(claimed, "pending", timeout=1)
    settled = has_status(stopping, "stopped", timeout=1)
    assert time.monotonic() - killed < 2 + 1
    assert settled.error == "stop presumed, not confirmed by runner alpha"
    assert queue.get(claimed).runner_id is None
    assert [queue.timeline(one)[-1].actor for one in (running, claimed, stopping)] == ["daemon"] * 3


def test_a_runner_that_slept_beyond_its_lease_has_lost_its_run_and_works_on(
    queue: Queue,
    start_daemon: Callable[..., Any],
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    users: Callable[[str], list[Any]],
    token: str,
    until: Callable[..., None],
) -> None:
    """Its report is refused, its agent is ended, and the next run is executed."""
    start_daemon("--lease", "1", "--interval", "0.1")
    process = start_runner("alpha", "--stop-grace", "0.2")
    run_id = queue.enqueue(f"sleep {token}").run_id
    until(lambda: users(token))
    process.send(signal.SIGSTOP)
    lost = has_status(run_id, "failed", timeout=5)
    assert lost.error == "runner alpha was lost: its lease ran out"
    assert users(token)
    process.send(signal.SIGCONT)
    until(lambda: users(token) == [])
    until(lambda: "report refused" in process.log)
    after = queue.get(run_id)
    assert (after.status, after.error, after.completed_at) == (
        "failed",
        lost.error,
        lost.completed_at,
    )
    assert has_status(queue.enqueue("echo back").run_id, "completed").result == "back\n"
    assert process.is_alive
    assert "Traceback" not in process.log


def test_a_removed_runner_ends_its_agents_and_itself(
    queue: Queue,
    start_daemon: Callable[..., Any],
    start_runner: Callable[..., Any],
    users: Callable[[str], list[Any]],
    token: str,
    until: Callable[..., None],
) -> None:
    """`runners remove --force` of a live one: it hears of it with its next heartbeat."""
    from runqueue import retention

    start_daemon("--lease", "1")
    process = start_runner("alpha", "--stop-grace", "0.2")
    run_id = queue.enqueue(f"sleep {token}").run_id
    until(lambda: users(token))
    retention.remove_runner(queue.store, "alpha", now=queue.now(), force=True)
    assert queue.get(run_id).error == "runner alpha was removed"
    until(lambda: users(token) == [])
    assert process.wait() == 0
    assert "Traceback" not in process.log


def test_a_deleted_sessions_run_is_ended(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    users: Callable[[str], list[Any]],
    token: str,
    until: Callable[..., None],
) -> None:
    """With --force: the agent is ended, and the runner works on."""
    process = start_runner("alpha", "--stop-grace", "0.2")
    run = queue.enqueue(f"sleep {token}")
    until(lambda: users(token))
    queue.delete_session(run.session_id, force=True)
    until(lambda: users(token) == [])
    has_status(queue.enqueue("echo x").run_id, "completed")
    assert "Traceback" not in process.log


def test_a_report_waits_for_a_busy_database(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    other: Other,
    slow: Callable[[], Any],
    until: Callable[..., None],
) -> None:
    """A writer that holds the lock for long delays a report; it does not lose it."""
    process = start_runner("alpha")
    run_id, let_go = slow()
    other.keep_writers_out()
    let_go()
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 1.0)
    assert queue.get(run_id).status == "running"
    other.let_writers_in()
    assert has_status(run_id, "completed").result == "done\n"
    assert process.is_alive


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_database_that_goes_away_and_comes_back_is_survived(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    slow: Callable[[], Any],
    place: Path,
    until: Callable[..., None],
) -> None:
    """As when a disk is mounted anew: the run is reported, and the next one executed."""
    process = start_runner("alpha", "--lease", "3")
    run_id, let_go = slow()
    queue.close()
    away = place.with_name("away")
    place.rename(away)
    until(lambda: "no heartbeat" in process.log)
    let_go()
    until(lambda: f"run {run_id} completed" in process.log)
    away.rename(place)
    assert has_status(run_id, "completed").result == "done\n"
    assert has_status(queue.enqueue("echo x").run_id, "completed").result == "x\n"
    until(lambda: "the heartbeat is back" in process.log)
    assert process.is_alive


def test_four_runners_execute_every_run_exactly_once(
    queue: Queue,
    start_runner: Callable[..., Any],
    start_daemon: Callable[..., Any],
    tmp_path: Path,
    until: Callable[..., None],
) -> None:
    """400 runs, eight slots, a sweeping daemon: each is executed once, none is locked."""
    done = tmp_path / "executed"
    command = ("sh", "-c", f'echo "$RUNQUEUE_RUN_ID" >> {done}')
    ids = {run.run_id for run in queue.enqueue_many([{"prompt": "x"}] * 400)}
    processes = [start_daemon("--interval", "0.1")]
    processes += [
        start_runner(f"runner-{number}", "--slots", "2", command=command) for number in range(4)
    ]
    until(lambda: len(queue.find(status="completed")) == 400, timeout=60)
    executed = done.read_text().split()
    assert len(executed) == 400
    assert set(executed) == ids
    assert {run.runner_id for run in queue.find()} == {f"runner-{number}" for number in range(4)}
    for process in processes:
        assert process.end_within(signal.SIGTERM, 5.0) == 0
        assert "locked" not in process.log
        assert "busy" not in process.log
        assert "Traceback" not in process.log
        assert " ERROR " not in process.log
    sql = "SELECT count(*) FROM run_events WHERE status = ?"
    counts = {
        status: execute_sql(queue, sql, status)[0][0]
        for status in ("pending", "claimed", "running", "completed")
    }
    assert counts == dict.fromkeys(counts, 400)


def test_an_exit_status_that_may_be_retried_is(
    queue: Queue,
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Only that one, only for a run that asked for it, and the last attempt has the result."""
    start_runner("alpha", "--retry-exit", "75", "--retry-exit", "9")
    seen = tmp_path / "seen"
    script = f"if test -e {seen}; then echo done; else touch {seen}; exit 75; fi"
    run = queue.enqueue(script, retries=2)
    assert queue.wait(run.run_id, timeout=20, last_attempt=True).result == "done\n"
    assert [one.status for one in queue.attempts(run.run_id)] == ["failed", "completed"]
    assert queue.get(run.run_id).error.startswith("exit status 75")
    for script, retries in (("exit 74", 2), ("exit 75", 0)):
        other = queue.enqueue(script, retries=retries)
        has_status(other.run_id, "failed")
        assert len(queue.attempts(other.run_id)) == 1
