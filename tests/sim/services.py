"""The services of the world: daemons, runners, and the service manager that restarts them.

A runner's threads are tasks here, which call what the threads call.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from runqueue.claims import Claim
from runqueue.daemon import Daemon
from runqueue.errors import RunnerConflict, StorageError
from runqueue.runner import MOMENT
from tests.sim import people
from tests.sim.invariants import overdue
from tests.sim.owners import execute
from tests.sim.process import Process, Steps
from tests.sim.world import FLEET, SPARE

SLOTS: Final = 2
PATIENCE: Final = 3
"""Claims within which a runner must have found what it owns without knowing it."""


def daemon(process: Process) -> Steps:
    """The daemon's ticks, as its scheduler calls them; two that succeed expire what is due.

    One may miss a run that moves up in its session between the tick's look and its move.
    """
    world = process.world
    ticker = Daemon(process.queue, interval=3.0, keep=None)
    ticker._id = process.name
    were_due: list[str] = []
    while True:
        due = overdue(world.observer.runs.values(), world.now_text())
        ticker.tick()
        left = overdue(world.observer.runs.values(), world.now_text())
        if ticker._failures:
            were_due = []
        else:
            outlived = [run_id for run_id in were_due if run_id in due and run_id in left]
            world.found += [f"{run_id} outlived two ticks" for run_id in outlived]
            were_due = due
        yield 3.0


def runner(process: Process) -> Steps:
    """A runner process: registers, claims, executes, now and then drains, and ends in order."""
    rng, runner_id = process.world.rng, process.name.partition("#")[0]
    process.runner = one = process.queue.runner(runner_id, **FLEET[runner_id])
    yield from register(process)
    process.spawn(beat_on(process))
    process.spawn(watch(process))
    busy: list[Claim] = []
    yield from claim_on(process, busy)
    while busy and rng.random() < 0.9:  # else it ends without waiting for them
        yield rng.uniform(0.2, 2.0)
    try:
        one.close()
        process.log("ends in order")
    except StorageError:
        process.log("cannot sign off")
    process.end()


def register(process: Process) -> Steps:
    world, one = process.world, process.runner
    while not one.is_open:
        try:
            one.open()
            process.log("has registered")
        except StorageError:
            yield world.rng.uniform(0.1, 1.0)
        except RunnerConflict:
            process.log("is in conflict")
            row = world.observer.runners.get(one.runner_id)
            if row is not None and row.incarnation == one.incarnation:
                world.found.append(f"{process.name} is in conflict with itself")
            yield world.rng.uniform(3.0, 12.0)


def claim_on(process: Process, busy: list[Claim]) -> Steps:
    """Claim until it drains, and have what it claims executed; forget no claim of its own."""
    world, rng, one = process.world, process.world.rng, process.runner
    strikes: dict[tuple[str, str], int] = {}
    while not one.is_draining:
        if not world.is_calm and rng.random() < 0.01:
            process.log("drains")
            one.drain()
        yield world.a_while(0.2, 2.0)
        if len(busy) >= SLOTS:
            continue
        try:
            taken = one.claim_many(SLOTS - len(busy))
        except StorageError:
            process.log("cannot claim")
            continue
        for claim in taken:
            process.log(f"claims {claim.run.run_id}")
            busy.append(claim)
            process.spawn(execute(process, claim, busy), claim.fence)
        if one._lease_left() > MOMENT:  # past its lease it may not even look
            unknown = world.observer.unknown(process)
            strikes = {fence: strikes.get(fence, 0) + 1 for fence in unknown}
        if not one.is_draining and max(strikes.values(), default=0) >= PATIENCE:
            world.found.append(f"{process.name} has forgotten {sorted(strikes)}")


def beat_on(process: Process) -> Steps:
    """The runner's thread of this name."""
    failing = False
    while True:
        yield process.runner._pause(failing)
        try:
            if not process.runner._beat():
                return
            failing = False
        except StorageError:
            failing = True


def watch(process: Process) -> Steps:
    """The runner's other two threads: they end agents whose claim is lost or to be stopped."""
    while True:
        yield process.world.a_while(0.5, 4.0)
        if process.runner._lease_left() <= MOMENT:
            process.runner._end_agents()
        with suppress(StorageError):
            process.runner._notify_stops()


def service_manager(process: Process) -> Steps:
    """Keeps everybody there who is needed; sometimes starts one beside one that hangs."""
    world, rng = process.world, process.world.rng
    services = {"daemon": daemon, **dict.fromkeys(FLEET, runner)}
    customers = {"caller": people.caller, "operator": people.operator}
    # The one that the others can do without stays away, if it is: a daemon must see to its runs.
    needed = {name: program for name, program in services.items() if name != SPARE}
    while True:
        for name, program in (needed if world.is_calm else services | customers).items():
            there = len(world.living(name))
            odds = (1.0, 0.0, 0.0) if world.is_calm else (0.5, 0.03, 0.0)
            if rng.random() < odds[there]:
                world.start(name, program).log("is started")
        yield world.a_while(2.0, 2.0)
