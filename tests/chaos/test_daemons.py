"""Daemons beside each other, ended at any moment, and on clocks that somebody sets."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import runqueue
from runqueue import Queue, Status, reading
from runqueue.settings import Settings
from runqueue.testing import Ledger, check, crashing
from tests.chaos.nursery import Child, Nursery
from tests.helpers import LONG, execute_sql, wait_until

pytestmark = pytest.mark.chaos

ENDS_WITHIN = 5.0
"""Seconds within which a daemon promises to end."""
LEASE = 1.0
GRACE = 0.2


@pytest.fixture
def hasty(url: str) -> Iterator[Queue]:
    """A queue whose runners have a short lease."""
    with runqueue.connect(url, settings=Settings(lease=LEASE)) as queue:
        yield queue


def test_two_daemons_resolve_each_run_once(
    hasty: Queue, url: str, ledger: Ledger, nursery: Nursery, is_long: bool
) -> None:
    """Runs expire, runners die with and without having started, stops are never confirmed."""
    options = ("--interval", "0.05", "--lease", str(LEASE), "--stop-grace", str(GRACE))
    daemons = [nursery.start("runqueued", url, *options) for _ in range(2)]
    wait_until(lambda: all(" sweeps " in one.log for one in daemons))
    until = time.monotonic() + (30 if is_long else 3)
    for number in itertools.count():
        if time.monotonic() > until:
            break
        _leave_behind(hasty, ledger, number)
    wait_until(lambda: not hasty.find(status=("pending", *runqueue.ACTIVE), limit=1))
    for one in daemons:
        one.send(signal.SIGTERM)
        assert one.wait(ENDS_WITHIN) == 0
        assert " ERROR " not in one.log
    report = check(hasty, ledger, slots=3)
    assert report.statuses == {Status.FAILED: 7 * number, Status.STOPPED: number}
    assert reading.problems(hasty.store) == []


def _leave_behind(queue: Queue, ledger: Ledger, number: int) -> None:
    """Die with a run that was claimed, one at work and one to be stopped; five others expire.

    What was claimed waits again, for nobody, until it expires, too.
    """
    home = {"tags": [f"round {number}"]}
    requests = [{"prompt": "x", "demands": home, "timeout": 3 * LEASE}] * 3
    requests += [{"prompt": "x", "demands": {"tags": ["none"]}, "timeout": 0.05}] * 5
    ledger.acknowledged(queue.enqueue_many(requests))
    with crashing(queue) as doomed:
        with doomed.runner(f"runner-{number}", tags=home["tags"]) as runner:
            ledger.opened(runner)
            claims = runner.claim_many(3)
            for claim in claims:
                ledger.claimed(claim)
            for claim in claims[1:]:
                claim.start()
                ledger.started(claim)
            queue.stop(claims[2].run.run_id)
            doomed.crash()


def test_a_daemon_that_is_ended_while_it_starts_leaves_nothing_half_done(
    url: str, tmp_path: Path, nursery: Nursery, dice: random.Random, is_long: bool
) -> None:
    """Once, or twice at once; on a database that it is just making, where that is a file."""
    for number in range(50 if is_long else 5):
        place = f"sqlite:///{tmp_path / f'{number}.db'}" if url.startswith("sqlite") else url
        daemon = nursery.start("runqueued", place, "--interval", "0.05")
        time.sleep(dice.uniform(0, 0.3))
        daemon.send(signal.SIGTERM)
        if dice.random() < 0.3:
            daemon.send(signal.SIGTERM)
        code = daemon.wait(ENDS_WITHIN)
        # Until its handler is there a signal has its default effect.
        assert code in (0, -signal.SIGTERM), daemon.log
        # And again when it has ended, if the second comes that late.
        has_ended = daemon.log.rstrip().endswith(" ended")
        assert code == 0 or " sweeps " not in daemon.log or has_ended
        assert "Traceback" not in daemon.log
        assert "ERROR" not in daemon.log
        assert nursery.children() == []
        with runqueue.connect(place) as queue:
            assert reading.problems(queue.store) == []
            assert execute_sql(queue, "SELECT * FROM daemons") == []


INTERVAL = 0.3
DELAY = 2.0
"""Seconds that a busy machine may add to a gap."""
STEPS = {"an hour back": -3600.0, "an hour forward": 3600.0, "180 days forward": 180 * 86400.0}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_daemon_whose_clock_is_set_goes_on_ticking(
    queue: Queue, url: str, nursery: Nursery, tmp_path: Path, step: float
) -> None:
    """No gap of two intervals, and no memory for the ticks that were never due."""
    offset, ticks = tmp_path / "offset", tmp_path / "ticks"
    offset.write_text("0")
    daemon = nursery.start(
        "stepping_daemon", url, str(offset), str(ticks), "--interval", str(INTERVAL)
    )
    _tick_on(daemon, ticks)
    memory = psutil.Process(daemon.pid).memory_info().rss
    stepped = offset.with_suffix(".new")
    stepped.write_text(str(step))
    stepped.rename(offset)
    _tick_on(daemon, ticks, 4)
    assert psutil.Process(daemon.pid).memory_info().rss - memory < 32 * 2**20
    assert f"the clock stepped by {step:+.1f} s" in daemon.log
    moments = [float(line) for line in ticks.read_text().split()]
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert max(gaps) < 2 * INTERVAL + DELAY
    daemon.send(signal.SIGTERM)
    assert daemon.wait(ENDS_WITHIN) == 0
    assert "Traceback" not in daemon.log


def _tick_on(daemon: Child, ticks: Path, more: int = 2) -> None:
    """Wait until the daemon has swept some more times."""

    def count() -> int:
        assert daemon.is_alive, daemon.log
        return len(ticks.read_text().split()) if ticks.exists() else 0

    enough = count() + more
    wait_until(lambda: count() >= enough, timeout=2 * LONG)
