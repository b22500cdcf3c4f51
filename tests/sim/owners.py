"""What becomes of a claim: who owns it works and reports, in order or not.

Each is a task of the runner's process, as a thread of a slot is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from runqueue.claims import Claim
from runqueue.errors import IllegalMove
from tests.sim.asking import REFUSALS, insist
from tests.sim.process import Process, Steps
from tests.sim.world import World


class AgentFailed(Exception):
    """What an agent raises within `with claim`."""


def execute(process: Process, claim: Claim, busy: list[Claim]) -> Steps:
    """What becomes of a claim: usually `with claim`, sometimes what else an owner may do."""
    rng, world, run_id = process.world.rng, process.world, claim.run.run_id
    is_odd = not world.is_calm and rng.random() < world.oddity
    whim = rng.choice(list(WHIMS)) if is_odd else "with"
    try:
        yield rng.uniform(0.0, 1.0)
        if whim in WHIMS:
            yield from WHIMS[whim](process, claim)
        else:
            with claim:
                began(world, claim)
                yield from work(process, claim)
                if rng.random() < 0.2:
                    raise AgentFailed("the agent failed")
        process.log(f"has done {run_id}")
        if whim in ("with", "reports", "dawdles"):
            was_told(world, claim)
    except (*REFUSALS, AgentFailed) as error:
        process.log(f"{run_id} ends with {type(error).__name__}")
    finally:
        busy.remove(claim)


def began(world: World, claim: Claim) -> None:
    if claim.run.run_id in world.executed:
        world.found.append(f"{claim.run.run_id} is executed a second time")
    world.executed.add(claim.run.run_id)


def was_told(world: World, claim: Claim) -> None:
    """Hold the database to the answer that the report is there."""
    row = world.observer.runs.get(claim.run.run_id)
    if row is not None and world.observer.ended_by.get(row.run_id, "") not in ("runner", None):
        world.found.append(f"{row.run_id} is {row.status}, and its owner was told otherwise")


def work(process: Process, claim: Claim) -> Steps:
    """An agent at work, short or long, until it is done or told to end."""
    rng, world = process.world.rng, process.world
    end = world.moment + rng.choice((0.1, 3.0, 10.0, 60.0))
    is_stubborn = rng.random() < 0.2
    while world.moment < end and not world.is_calm:
        if claim._to_end and not is_stubborn:
            return
        yield rng.uniform(0.2, 3.0)


def _reports(process: Process, claim: Claim) -> Steps:
    """Report step by step, as `runqueue-runner` does."""
    rng, run_id = process.world.rng, claim.run.run_id
    try:
        claim.insist(claim.start)
    except IllegalMove:
        claim.insist(claim.confirm_stop)
        return
    began(process.world, claim)
    yield from work(process, claim)
    if claim._to_end:
        try:
            claim.insist(claim.confirm_stop)
        except IllegalMove:
            claim.insist(lambda: claim.fail("ended by its runner"))
    elif rng.random() < 0.2:
        claim.insist(lambda: claim.fail("the agent failed"))
    else:
        claim.insist(lambda: claim.complete(f"result of {run_id}"))


def _gives_back(process: Process, claim: Claim) -> Steps:
    yield from insist(process, claim.release, f"release {claim.run.run_id}")


def _dawdles(process: Process, claim: Claim) -> Steps:
    """Begin when the start deadline may be over."""
    yield process.world.rng.choice((4.0, 15.0, 65.0))
    yield from _reports(process, claim)


def _reports_only_the_end(process: Process, claim: Claim) -> Steps:
    """Complete in a batch, which starts what was not started."""
    yield process.world.rng.choice((0.5, 10.0, 65.0))
    verb = partial(process.runner.finish_many, [(claim, "of many")])
    yield from insist(process, verb, f"finish {claim.run.run_id}")


def _forgets_to_start(process: Process, claim: Claim) -> Steps:
    """A caller's mistake: the run stays claimed, and belongs to somebody else in the end."""
    yield process.world.rng.choice((0.5, 10.0, 65.0))
    run_id = claim.run.run_id
    yield from insist(process, partial(claim.complete, "too early"), f"complete {run_id}")
    yield from insist(process, partial(claim.fail, "a mistake"), f"fail {run_id}")


WHIMS: Final[dict[str, Callable[[Process, Claim], Steps]]] = {
    "reports": _reports,
    "gives back": _gives_back,
    "dawdles": _dawdles,
    "ends": _reports_only_the_end,
    "mistaken": _forgets_to_start,
}
