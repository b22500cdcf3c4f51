"""What the processes say on standard error: never a prompt, never a character that drives."""

from __future__ import annotations

import signal
import unicodedata
from collections.abc import Callable
from typing import Any

from runqueue import Queue

CANARY = "canary-5f1c"


def test_prompts_never_reach_a_log(
    queue: Queue,
    start_daemon: Callable[..., Any],
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
    users: Callable[[str], list[Any]],
    token: str,
    until: Callable[..., None],
) -> None:
    """At the level debug, over runs that complete, fail, are stopped, expire, or are refused."""
    daemon = start_daemon("--log-level", "debug", "--interval", "0.1")
    runner = start_runner("alpha", "--log-level", "debug", "--stop-grace", "0.2", "--slots", "2")
    mark = f"# {CANARY}\n"
    completed = queue.enqueue(f"{mark}echo {CANARY}").run_id
    failed = queue.enqueue(f"{mark}echo {CANARY} >&2; exit 1").run_id
    stopped = queue.enqueue(f"{mark}sleep {token}").run_id
    expired = queue.enqueue(mark, demands={"tags": [CANARY[::-1]]}, timeout=0.2).run_id
    has_status(completed, "completed")
    has_status(failed, "failed")
    has_status(expired, "failed")
    until(lambda: users(token))
    queue.stop(stopped)
    has_status(stopped, "stopped")
    refused = queue.enqueue(f"{mark}sleep {token}")
    until(lambda: users(token))
    queue.delete_session(refused.session_id, force=True)
    until(lambda: "report refused" in runner.log)
    drained = queue.enqueue(f"{mark}sleep {token}").run_id
    until(lambda: users(token))
    runner.send(signal.SIGTERM)
    until(lambda: "drains" in runner.log)
    assert runner.end_within(signal.SIGTERM, 5.0) == 0
    assert CANARY in queue.get(failed).error  # the agent quotes it: that is the run's, no log's
    assert queue.get(drained).status == "failed"
    assert daemon.end_within(signal.SIGTERM, 5.0) == 0
    for process in (daemon, runner):
        assert " INFO " in process.log
        assert CANARY not in process.log
    for run_id in (completed, failed, stopped):
        assert run_id in runner.log


def test_a_log_line_is_one_line_that_prints(
    queue: Queue,
    start_daemon: Callable[..., Any],
    start_runner: Callable[..., Any],
    has_status: Callable[..., Any],
) -> None:
    """Whatever the runner's id is, and whatever the agent says."""
    start_daemon()
    nasty = "w\x1b[2J\x07\u202e\nrun_FAKE completed"
    process = start_runner(nasty)
    run = queue.enqueue("printf '\\033[2J\\nrun_FAKE completed\\n' >&2; exit 1")
    has_status(run.run_id, "failed")
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    hidden = {one for one in process.log if unicodedata.category(one) in ("Cc", "Cf")}
    assert hidden <= {"\n"}
    assert not any(line.startswith("run_FAKE") for line in process.log.splitlines())
