"""One world, from the first process to the last run that ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sim import invariants, people, services
from tests.sim.world import FLEET, World

STEPS = 200
"""Steps in which things fail."""
CALM_STEPS = 4000
"""Steps within which everything must have ended once nothing fails any more; 100 are usual."""
LAST = 40
"""Lines of the trace that a failure shows."""

FIRST = {
    "services": services.service_manager,
    "caller": people.caller,
    "operator": people.operator,
    "shell": people.by_hand,
}
"""Who is there from the beginning."""


def play(path: Path, seed: int, compiled: dict[Any, Any]) -> World:
    """Let a world live on the empty database at `path`, until something is wrong or all is done.

    `compiled` keeps the compiled statements for the next world.
    """
    world = World(path, seed, compiled)
    with world.in_charge():
        try:
            for name, program in FIRST.items():
                world.start(name, program)
            _live(world)
        finally:
            world.close()
    return world


def _live(world: World) -> None:
    for _ in range(STEPS):
        world.step()
        if world.found:
            return
    world.log("from now on nothing fails")
    world.is_calm = True
    for number in range(CALM_STEPS):
        world.step()
        if world.found or (number % 10 == 0 and not _unsettled(world)):
            return
    world.found += _unsettled(world)


def _unsettled(world: World) -> list[str]:
    runs = world.observer.runs.values()
    return list(invariants.unsettled(runs, FLEET.values(), world.now_text()))


def report(world: World, seed: int) -> str:
    """What a failure says: what is wrong, how it came about, and how to see it again."""
    return "\n".join(
        [
            f"in the world of seed {seed}:",
            *(f"- {problem}" for problem in world.found),
            *(["..."] if len(world.trace) > LAST else []),
            *world.trace[-LAST:],
            f"replay it with: pytest tests/sim --seed {seed}",
        ]
    )
