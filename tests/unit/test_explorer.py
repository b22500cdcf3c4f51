"""Every order of moves by two runners, the daemon and anybody, explored; nothing bad is found.

The world is one run. A runner keeps every claim that it was ever given and may act on it at any
time: it may have been frozen, cut off or restarted. What the database would answer is decided by
`MOVES` and the fence alone. The explorer itself is tested by faults planted in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from runqueue.states import ACTIVE, MOVES, TERMINAL, Move, Status

RUNNERS = ("runner-a", "runner-b")
CLAIMS = 4
"""How often the run may be claimed; the shortest bad story of a weak fence needs two."""


class Fence(NamedTuple):
    runner_id: str
    claimed_at: int


class World(NamedTuple):
    status: Status = Status.PENDING
    row: Fence | None = None
    """The columns runner_id and claimed_at of the row."""
    holder: Fence | None = None
    """Who truly holds the run: the story's truth, which no column knows."""
    handed_out: frozenset[Fence] = frozenset()


FenceRule = Callable[[World, Fence], bool]
GuardRule = Callable[[str, Move, Status], bool]


def fenced_by_the_pair(world: World, claim: Fence) -> bool:
    return world.row == claim


def guarded(name: str, move: Move, status: Status) -> bool:
    return status in move.sources


def attempts(name: str, move: Move, world: World) -> list[Fence | None]:
    """Who may try a move: every holder of a claim ever handed out, and those without one."""
    if name == "claim":
        time = len(world.handed_out)
        return [] if time == CLAIMS else [Fence(runner, time) for runner in RUNNERS]
    tries: list[Fence | None] = []
    if "its owner" in move.by:
        tries += sorted(world.handed_out)
    if not move.owned:
        tries.append(None)
    return tries


def after(name: str, move: Move, world: World, claim: Fence | None) -> World:
    if name == "claim":
        assert claim is not None
        return World(move.target, claim, claim, world.handed_out | {claim})
    row = None if name == "release" else world.row
    holder = world.holder if move.target in ACTIVE else None
    return World(move.target, row, holder, world.handed_out)


def explore(
    fence: FenceRule = fenced_by_the_pair, guard: GuardRule = guarded
) -> tuple[set[World], set[str]]:
    """Return every world that can be, and the names of the bad things that happened."""
    seen, to_visit, bad = {World()}, [World()], set()
    while to_visit:
        world = to_visit.pop()
        owners = set()
        for name, move in MOVES.items():
            if not guard(name, move, world.status):
                continue
            for claim in attempts(name, move, world):
                by_owner = claim is not None and name != "claim"
                if by_owner and not fence(world, claim):
                    continue
                if by_owner:
                    owners.add(claim)
                if by_owner and claim != world.holder:
                    bad.add("stale claim accepted")
                if world.status in TERMINAL:
                    bad.add("terminal status left")
                if name == "claim" and world.holder is not None:
                    bad.add("two owners")
                following = after(name, move, world, claim)
                if following not in seen:
                    seen.add(following)
                    to_visit.append(following)
        if len(owners) > 1:
            bad.add("two owners")
        if (world.status in ACTIVE) != (world.holder is not None):
            bad.add("active without an owner")
    return seen, bad


def test_no_order_of_moves_leads_to_anything_bad():
    """One owner at most, terminal is final, a stale claim changes nothing."""
    worlds, bad = explore()
    assert not bad
    assert {world.status for world in worlds} == set(Status)
    assert max(len(world.handed_out) for world in worlds) == CLAIMS


def test_stale_claims_were_really_tried():
    """In some world the run belongs to one runner while both remember a claim of it."""
    worlds, _ = explore()
    assert any(
        world.holder is not None
        and {claim.runner_id for claim in world.handed_out - {world.holder}} == set(RUNNERS)
        for world in worlds
    )


def test_fence_by_runner_alone_is_found_to_accept_a_stale_claim():
    """A runner that claims the same run again would answer for its earlier claim too."""
    _, bad = explore(fence=lambda world, claim: (world.row or ("",))[0] == claim.runner_id)
    assert bad == {"stale claim accepted", "two owners"}


def test_fence_by_time_of_start_alone_or_none_at_all_is_found():
    """Without any fence every runner that ever had the run may still report on it."""
    _, bad = explore(fence=lambda world, claim: True)
    assert bad >= {"stale claim accepted", "two owners"}


@pytest.mark.parametrize("dropped", MOVES)
def test_dropping_the_guard_of_any_single_move_is_found(dropped):
    """Each `status IN (sources)` is needed: without it that move leaves a terminal status."""
    _, bad = explore(
        guard=lambda name, move, status: name == dropped or guarded(name, move, status)
    )
    assert "terminal status left" in bad


def test_claiming_an_active_run_is_found_to_make_two_owners():
    """The guard of the claim is what makes a claim exclusive."""
    _, bad = explore(
        guard=lambda name, move, status: (
            guarded(name, move, status) or (name == "claim" and status in ACTIVE)
        )
    )
    assert "two owners" in bad
