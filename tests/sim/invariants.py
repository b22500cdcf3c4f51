"""What must hold of the database after every single transaction, and once all is quiet.

A rule yields what is wrong with a change of one run, as the rest of a sentence about the run.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from runqueue.settings import STOP_ALLOWANCE
from runqueue.states import MOVES
from tests.sim.observer import ENDED, OWNED, Change, Row, RunnerRow

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

LEGAL: Final = {
    (source.value, move.target.value) for move in MOVES.values() for source in move.sources
}
NEVER_CHANGED: Final = ("session_id", "created_at", "timeout_at", "priority", "prompt")


def is_not_lost(change: Change, world: World) -> Iterator[str]:
    if change.new is None and change.old and change.old.session_id not in world.doomed:
        yield "is lost"


def has_ended_for_good(change: Change, world: World) -> Iterator[str]:
    old, new = change.old, change.new
    if old and new and old.status in ENDED and new != old:
        yield f"had ended and was changed from {old} to {new}"


def makes_legal_moves_only(change: Change, world: World) -> Iterator[str]:
    for step in pairwise(change.path):
        if step not in LEGAL:
            yield f"went from {step[0]} to {step[1]}"


def has_a_history(change: Change, world: World) -> Iterator[str]:
    if change.new is None:
        return
    if change.writer is not None and change.path[-1:] != [change.new.status]:
        yield f"is {change.new.status} and its history says {change.path}"
    for event in change.events:
        if event.is_note and event.status != change.new.status:
            yield f"is {change.new.status} and a late report says {event.status}"


def has_the_columns_of_its_status(change: Change, world: World) -> Iterator[str]:
    old, new = change.old, change.new
    if new is None:
        return
    has_owner = new.runner_id is not None, new.claimed_at is not None
    if new.status in OWNED and not all(has_owner):
        yield f"is {new.status} without an owner"
    if new.status == "pending" and any(has_owner):
        yield "is pending and has an owner"
    if (new.completed_at is not None) != (new.status in ENDED):
        yield f"is {new.status} and completed_at is {new.completed_at}"
    if old is None:
        return
    if any(getattr(old, name) != getattr(new, name) for name in NEVER_CHANGED):
        yield f"was changed from {old} to {new}"
    has_new_owner = (old.runner_id, old.claimed_at) != (new.runner_id, new.claimed_at)
    if has_new_owner and not {"claimed", "pending"} & set(change.path[1:]):
        yield f"went from {old.runner_id} to {new.runner_id} without being claimed"


def is_claimed_by_the_living_in_turn_and_in_time(change: Change, world: World) -> Iterator[str]:
    old, new = change.old, change.new
    if new is None or change.writer is None or "claimed" not in change.path[1:]:
        return
    row = change.runners.get(str(new.runner_id))
    if row is None or row.incarnation != change.writer.runner.incarnation:
        yield f"was claimed by {change.writer.name}, which is not registered"
    elif row.lease_until <= world.now_text():
        yield f"was claimed by {change.writer.name}, whose lease has run out"
    if new.timeout_at is not None and str(new.claimed_at) >= new.timeout_at:
        yield f"was claimed at {new.claimed_at}, past its timeout_at {new.timeout_at}"
    if old and old.waiting:
        yield "was claimed before its turn"


def is_reported_by_its_owner(change: Change, world: World) -> Iterator[str]:
    """By the claim that holds it; by another process of that id only when it takes over."""
    old, writer, acting_for = change.old, change.writer, world.acting_for
    if old is None or old.status not in OWNED or writer is None:
        return
    if not any(event.actor == "runner" for event in change.moves):
        return
    if acting_for is not None and acting_for.run_id == change.run_id:
        if acting_for.claimed_at != old.claimed_at:
            yield f"was made {change.path[-1]} by the owner of another claim, {acting_for}"
        return
    owner = world.observer.owners.get(old.claim)
    is_over = owner is None or owner.is_dead or not _lives(change, world)
    if writer is not owner and not (writer.runner.runner_id == old.runner_id and is_over):
        yield f"was made {change.path[-1]} by {writer.name}"


def is_left_to_the_living(change: Change, world: World) -> Iterator[str]:
    """The daemon takes no run within its owner's lease, unless its time is over."""
    old = change.old
    if old is None or old.status not in OWNED or not _lives(change, world):
        return
    settings = world.settings
    grace_ago = world.now_text(-settings.stop_grace - STOP_ALLOWANCE)
    may = {
        "claimed": str(old.claimed_at) <= world.now_text(-settings.start_deadline),
        "stopping": world.observer.stops.get(change.run_id, "") <= grace_ago,
    }
    if any(event.actor == "daemon" for event in change.moves) and not may.get(old.status):
        yield f"was taken from {old.runner_id}, whose lease has not run out"


RULES: Final[tuple[Callable[[Change, World], Iterator[str]], ...]] = (
    is_not_lost,
    has_ended_for_good,
    makes_legal_moves_only,
    has_a_history,
    has_the_columns_of_its_status,
    is_claimed_by_the_living_in_turn_and_in_time,
    is_reported_by_its_owner,
    is_left_to_the_living,
)


def _lives(change: Change, world: World) -> bool:
    """Whether the lease of the owner had not run out."""
    row = change.runners.get(str(change.old.runner_id)) if change.old else None
    return row is not None and row.lease_until > world.now_text()


def broken(changes: list[Change], world: World) -> Iterator[str]:
    """What is wrong with the runs that a transaction changed, and with their sessions."""
    for change in changes:
        for rule in RULES:
            for problem in rule(change, world):
                yield f"{change.run_id} {problem}"
    sessions = {row.session_id for one in changes for row in (one.old, one.new) if row}
    for session_id in sorted(sessions):
        rows = [row for row in world.observer.runs.values() if row.session_id == session_id]
        yield from _of_session(rows)


def _of_session(rows: list[Row]) -> Iterator[str]:
    """One run is active at most; if none is, the first pending one may be claimed, and no other."""
    active = [row.run_id for row in rows if row.status in OWNED]
    if len(active) > 1:
        yield f"{' and '.join(active)} are active in one session"
    for index, row in enumerate(_in_turn(rows)):
        if bool(row.waiting) != bool(index or active):
            yield f"{row.run_id} is marked {row.waiting}: {index} before it, {len(active)} active"


def _in_turn(rows: Iterable[Row]) -> list[Row]:
    pending = [row for row in rows if row.status == "pending"]
    return sorted(pending, key=lambda row: (-row.priority, row.created_at, row.run_id))


def replaced(before: dict[str, RunnerRow], writer: Process | None, world: World) -> Iterator[str]:
    """A runner that lives is not replaced or removed by another process."""
    now = world.now_text()
    for runner_id, old in before.items():
        new = world.observer.runners.get(runner_id)
        if new is not None and new.incarnation == old.incarnation:
            continue
        process = world.process_of(old.incarnation)
        is_gone = process is None or process.is_dead or process is writer
        is_meant = writer is not None and writer.removes == runner_id
        if not is_gone and not is_meant and old.lease_until > now:
            yield f"runner {runner_id} was replaced though it lives until {old.lease_until}"


def overdue(rows: Iterable[Row], now: str) -> list[str]:
    """The runs that are pending although their time to be claimed is over."""
    pending = [row for row in rows if row.status == "pending" and row.timeout_at is not None]
    return [row.run_id for row in pending if str(row.timeout_at) < now]


def unsettled(rows: Iterable[Row], fleet: Iterable[dict[str, Any]], now: str) -> Iterator[str]:
    """The runs that should have ended by now, with every process of the fleet alive."""
    sessions = defaultdict(list)
    rows = list(rows)
    yield from (f"{run_id} is pending past its time" for run_id in overdue(rows, now))
    for row in rows:
        sessions[row.session_id].append(row)
        if row.status in OWNED:
            yield f"{row.run_id} is still {row.status}"
    for session in sessions.values():
        for first in _in_turn(session)[:1]:
            if any(_serves(json.loads(first.demands or "{}"), one) for one in fleet):
                yield f"{first.run_id} is pending though there is a runner for it"


def _serves(demands: dict[str, Any], runner: dict[str, Any]) -> bool:
    is_there = demands.get("hostname") in (None, runner["hostname"])
    return is_there and set(demands.get("tags", ())) <= set(runner.get("tags", ()))
