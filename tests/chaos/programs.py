"""The programs of the chaos tests, which note in a ledger all that they are told."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import runqueue
from runqueue import Claim, IllegalMove, Queue, RunNotFound, StaleClaim, Status, daemon
from runqueue.cli import daemon as daemon_command
from runqueue.settings import Settings
from runqueue.testing import Ledger

BACKLOG = 60
"""Pending runs at which the enqueuer pauses, so that a storm can be followed by an end."""
LEASE = 2.0


def runner(url: str, path: str, runner_id: str, seed: int, work: float = 0.01) -> None:
    """Execute runs for ever, each for up to `work` seconds, in all the ways in which one ends."""
    dice = random.Random(seed)
    with Ledger(path) as ledger, runqueue.connect(url, settings=Settings(lease=LEASE)) as queue:
        with queue.runner(runner_id) as runner:
            ledger.opened(runner)
            while not runner.is_draining:
                if claim := runner.claim():
                    _execute(claim, ledger, dice, work)


def _execute(claim: Claim, ledger: Ledger, dice: random.Random, work: float) -> None:
    ledger.claimed(claim)
    try:
        _report(claim, ledger, dice, work)
    except (StaleClaim, RunNotFound):
        ledger.refused(claim)


def _report(claim: Claim, ledger: Ledger, dice: random.Random, work: float) -> None:
    fate = dice.random()
    try:
        if fate < 0.05:
            claim.release()
            ledger.reported(claim, Status.PENDING)
            return
        claim.start()
    except IllegalMove:  # a stop came first
        claim.confirm_stop()
        ledger.reported(claim, Status.STOPPED)
        return
    ledger.started(claim)
    time.sleep(dice.uniform(0, work))
    ledger.done(claim)
    if fate < 0.15:
        claim.fail("it is its fate")
        ledger.reported(claim, Status.FAILED)
        return
    if claim.stop_requested:
        with contextlib.suppress(IllegalMove):  # nobody asked for it, but a silent heartbeat did
            claim.confirm_stop()
            ledger.reported(claim, Status.STOPPED)
            return
    claim.complete("done")
    ledger.reported(claim, Status.COMPLETED)


def enqueuer(url: str, path: str, seed: int) -> None:
    """Add runs for ever: alone, together, to sessions that are there, with demands; stop some."""
    dice = random.Random(seed)
    with Ledger(path) as ledger, runqueue.connect(url) as queue:
        sessions = [queue.enqueue("first").session_id]
        while True:
            time.sleep(dice.uniform(0, 0.01))
            if len(queue.find(status="pending", limit=BACKLOG)) == BACKLOG:
                continue
            fate = dice.random()
            if fate < 0.1:
                runs = queue.enqueue_many([{"prompt": "one of three"}] * 3)
            elif fate < 0.3:
                runs = [queue.enqueue("resume", session_id=dice.choice(sessions[-20:]))]
            elif fate < 0.4:
                runs = [queue.enqueue("expire", demands={"tags": ["none"]}, timeout=0.2)]
            else:
                runs = [queue.enqueue("run", priority=dice.randrange(3))]
                sessions.append(runs[0].session_id)
            ledger.acknowledged(runs)
            if fate > 0.9:
                with contextlib.suppress(IllegalMove):  # it has ended already
                    queue.stop(dice.choice(queue.find(limit=20)).run_id)


def runqueued(url: str, *options: str) -> None:
    """The daemon itself."""
    sys.argv = ["runqueued", "--db", url, *options]
    daemon_command.main()


def forker(url: str, path: str, forks: int) -> None:
    """Fork again and again with the queue open, at times in the middle of a transaction."""
    with Ledger(path) as ledger, runqueue.connect(url) as queue:
        children: set[int] = set()
        seen = queue.enqueue("for all children")
        ledger.acknowledged(seen)
        for number in range(forks):
            if number % 4 == 3:
                with queue.database.atomic():
                    run = queue.enqueue("in a transaction")
                    if (child := os.fork()) == 0:
                        # The transaction is the parent's alone. To write is not possible here:
                        # SQLite takes the lock of this thread, inherited, for one of this process.
                        assert not queue.database.in_transaction()
                        assert queue.get(seen.run_id).prompt == seen.prompt
                        os._exit(0)
            else:
                run = queue.enqueue("x")
                if (child := os.fork()) == 0:
                    _use(queue, ledger)
                    if number % 4 == 2:
                        os._exit(0)
                    sys.exit()  # through the parent's blocks, and the interpreter's own end
            ledger.acknowledged(run)
            children.add(child)
            while len(children) >= 4:
                _reap(children.pop())
        for child in children:
            _reap(child)


def _use(queue: Queue, ledger: Ledger) -> None:
    ledger.acknowledged(queue.enqueue("by a child"))
    with queue.runner() as runner:
        ledger.opened(runner)
        if claim := runner.claim(timeout=0):
            _execute(claim, ledger, random.Random(os.getpid()), 0.0)


def _reap(child: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"a child ended with {code}"


def stepping_daemon(url: str, offset: str, ticks: str, *options: str) -> None:
    """The daemon on a clock that is off by the seconds in a file, noting when it sweeps."""
    real_time = time.time
    real_sweep = Queue.sweep

    def seconds() -> float:
        return float(Path(offset).read_text())

    class OfAnyKind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime)

    class Stepped(datetime, metaclass=OfAnyKind):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=seconds())

    def sweep(queue: Queue, *arguments: Any, **options: Any) -> Any:
        with Path(ticks).open("a") as file:
            file.write(f"{time.monotonic()}\n")
        return real_sweep(queue, *arguments, **options)

    patched = []
    for name, module in list(sys.modules.items()):
        is_of_it = name.startswith(("apscheduler.", "runqueue."))
        if is_of_it and getattr(module, "datetime", None) is datetime:
            module.datetime = Stepped  # type: ignore[attr-defined]
            patched.append(name)
    assert {"apscheduler.schedulers.base", "runqueue.clock", "runqueue.daemon"} <= set(patched)
    time.time = lambda: real_time() + seconds()
    daemon.Queue.sweep = sweep  # type: ignore[method-assign]
    runqueued(url, *options)


if __name__ == "__main__":
    globals()[sys.argv[1]](*[int(one) if one.isdigit() else one for one in sys.argv[2:]])
