"""A server that takes everything and says nothing: nobody waits for another, or claims too late."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import runqueue
from runqueue import StorageLost, reading
from runqueue.settings import Settings
from tests.helpers import LONG, wait_until
from tests.outage.conftest import Server
from tests.outage.processes import SLOW, frozen


def test_threads_wait_side_by_side_for_a_server_that_hangs(server: Server, url: str) -> None:
    """One that connects holds up no other: a heartbeat among them would come after its lease."""
    with runqueue.connect(f"{url}?connect_timeout=2") as queue:
        queue.find()
        queue.close()
        assert server.pid is not None
        began = time.monotonic()
        with frozen(server.pid), ThreadPoolExecutor(4, "test-hang") as threads:
            calls = [threads.submit(queue.find) for _ in range(4)]
            errors = [call.exception(timeout=SLOW) for call in calls]
            took = time.monotonic() - began
    assert [type(error) for error in errors] == [StorageLost] * 4
    assert took < 2 * 2  # and not two seconds for each


def test_a_runner_past_its_lease_claims_nothing_before_its_next_heartbeat(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon would take the run from it at once, and it would end the agent itself."""
    with runqueue.connect(url, settings=Settings(lease=0.5)) as queue, queue.runner() as runner:

        def hang() -> bool:
            raise StorageLost("the server does not answer")

        monkeypatch.setattr(runner, "_beat", hang)
        lease_until = max(row.runner.lease_until for row in reading.runners(queue.store, now=""))
        wait_until(lambda: queue.now() > lease_until)
        run = queue.enqueue("x")
        assert runner.claim(timeout=0) is None
        monkeypatch.undo()
        claim = runner.claim(timeout=LONG)
        assert claim is not None
        assert claim.run.run_id == run.run_id
        claim.release()
