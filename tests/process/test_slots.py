"""What becomes of runs at work when the runner's own loop fails."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from runqueue import Claim, ConfigurationError, Queue, Status, homes
from runqueue.slots import Slots


def test_an_error_in_the_claim_loop_ends_the_runs_before_the_runner(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No agent is left at work without a heartbeat, and its run is reported."""
    before = set(psutil.Process().children())
    run = queue.enqueue("x")
    with queue.runner() as runner:
        slots = Slots(queue.store, runner, ["sleep", "600"], slots=2, stop_grace=1, drain=60)
        claim_once, calls = runner.claim, []

        def claim(timeout: float) -> Any:
            calls.append(timeout)
            if len(calls) == 1:
                return claim_once(timeout)
            raise ConfigurationError("the database is read-only for this user")

        monkeypatch.setattr(runner, "claim", claim)
        with pytest.raises(ConfigurationError):
            slots.serve()
        assert runner.held == []
        ended = queue.get(run.run_id)
        assert ended.status == Status.FAILED
        assert "shut down" in ended.error
    assert set(psutil.Process().children()) <= before


def test_between_the_start_of_a_run_and_its_agent_nothing_is_asked(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that goes away then would keep an agent from beginning that is said to work."""
    run = queue.enqueue("x")
    started, asked = [], []
    start, ask = Claim.start, homes.executor_session_id

    def started_by(claim: Claim) -> None:
        start(claim)
        started.append(claim)

    def asked_of(*args: Any) -> str | None:
        assert not started
        asked.append(args)
        return ask(*args)

    monkeypatch.setattr(Claim, "start", started_by)
    monkeypatch.setattr(homes, "executor_session_id", asked_of)
    with queue.runner() as runner:
        slots = Slots(queue.store, runner, ["true"], slots=1, stop_grace=1, drain=60)
        claim_once = runner.claim

        def claim_last(timeout: float) -> Claim | None:
            claim = claim_once(timeout)
            runner.drain()
            return claim

        monkeypatch.setattr(runner, "claim", claim_last)
        slots.serve()
    assert len(started) == len(asked) == 1
    assert queue.get(run.run_id).status == Status.COMPLETED
