"""Sees every transaction as the difference of two pictures of the database.

The pictures are taken with plain `sqlite3`: what is looked at is what is stored, not what the
product says of it.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runqueue.states import ACTIVE, LATE, TERMINAL

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

ENDED = {status.value for status in TERMINAL}
OWNED = {status.value for status in ACTIVE}


class Row(NamedTuple):
    """A row of `runs`."""

    run_id: str
    session_id: str
    status: str
    runner_id: str | None
    claimed_at: str | None
    started_at: str | None
    completed_at: str | None
    timeout_at: str | None
    created_at: str
    priority: int
    demands: str | None
    waiting: int
    result: str | None
    error: str | None
    prompt: str

    @property
    def claim(self) -> tuple[str, str | None]:
        """Which claim of the run it is that holds it."""
        return self.run_id, self.claimed_at


class Event(NamedTuple):
    """A row of `run_events`."""

    event_id: int
    run_id: str
    status: str
    actor: str
    at: str
    detail: str | None

    @property
    def is_note(self) -> bool:
        """Whether it enters no status, but keeps a report that came too late."""
        is_late = self.actor == "runner" and (self.detail or "").startswith(LATE)
        return is_late or self.actor == "queue"


class RunnerRow(NamedTuple):
    """A row of `runners`."""

    runner_id: str
    incarnation: str
    lease_until: str


class Change(NamedTuple):
    """What one transaction did to one run; by hand when it has no writer."""

    run_id: str
    old: Row | None
    new: Row | None
    events: list[Event]
    runners: dict[str, RunnerRow]
    """As they were before it."""
    writer: Process | None

    @property
    def moves(self) -> list[Event]:
        return [event for event in self.events if not event.is_note]

    @property
    def path(self) -> list[str]:
        """The statuses that the run went through."""
        first = [self.old.status] if self.old else []
        return first + [event.status for event in self.moves]

    def __str__(self) -> str:
        path = [self.old.status if self.old else "-", *(event.status for event in self.events)]
        last = self.new.status if self.new else "gone"
        if not self.events or path[-1] != last:
            path.append(last)
        owner = self.new.runner_id if self.new else None
        actors = "/".join(event.actor for event in self.events) or "nobody"
        return f"{self.run_id} {' > '.join(path)} by {actors}" + (f", of {owner}" if owner else "")


class Observer:
    """Takes the pictures, and keeps the last one and what is known from the earlier ones."""

    def __init__(self, path: Path, world: World) -> None:
        self._world = world
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._version: Any = None
        self._newest = 0
        self.runs: dict[str, Row] = {}
        self.runners: dict[str, RunnerRow] = {}
        self.owners: dict[tuple[str, str | None], Process] = {}
        """The process that made each claim."""
        self.stops: dict[str, str] = {}
        """When the stop of a run was asked for."""
        self.ended_by: dict[str, str | None] = {}
        """The actor that ended a run; None for one that was ended by hand."""

    def close(self) -> None:
        self._connection.close()

    def look(self, writer: Process | None) -> list[Change]:
        """Take a picture; return what changed since the last one, which `writer` did."""
        version = self._connection.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return []
        self._version = version
        before, runners = self.runs, self.runners
        self.runs = {row.run_id: row for row in self._all(Row, "runs")}
        self.runners = {row.runner_id: row for row in self._all(RunnerRow, "runners")}
        events: dict[str, list[Event]] = defaultdict(list)
        for event in self._all(Event, "run_events", f"event_id > {self._newest}"):
            events[event.run_id].append(event)
        # Asked each time, for the numbers of events that were deleted are given again.
        newest = self._connection.execute("SELECT max(event_id) FROM run_events").fetchone()
        self._newest = newest[0] or 0
        changes = []
        for run_id in sorted(before.keys() | self.runs.keys()):
            old, new = before.get(run_id), self.runs.get(run_id)
            if old != new or run_id in events:
                change = Change(run_id, old, new, events[run_id], runners, writer)
                changes.append(change)
                self._remember(change)
        return changes

    def _all(self, kind: Any, table: str, where: str = "true") -> Iterator[Any]:
        columns = ", ".join(kind._fields)
        rows = self._connection.execute(f"SELECT {columns} FROM {table} WHERE {where} ORDER BY 1")
        return map(kind._make, rows)

    def _remember(self, change: Change) -> None:
        if len(set(change.path)) > 1 or change.events or change.old is None or change.new is None:
            self._world.log(f"    {change}")
        for event in change.moves:
            if event.status == "claimed" and change.new and change.writer:
                self.owners[change.new.claim] = change.writer
            elif event.status == "stopping":
                self.stops[change.run_id] = event.at

        if change.new and change.new.status in ENDED:
            actors = [event.actor for event in change.moves] if change.writer else [None]
            self.ended_by.setdefault(change.run_id, actors[-1] if actors else None)

    def unknown(self, process: Process) -> list[tuple[str, str | None]]:
        """The claims that a process has made and does not know of."""
        known = {(claim.fence.run_id, claim.fence.claimed_at) for claim in process.runner.held}
        active = [row.claim for row in self.runs.values() if row.status in OWNED]
        return [one for one in active if one not in known and self.owners.get(one) is process]
