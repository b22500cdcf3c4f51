"""When agents were last heard of.

An agent that is silent is not dead: it may think, or wait. So its silence is shown to people, and
nothing is ever done because of it. What is known comes with the heartbeats of its runner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from runqueue import statements_homes
from runqueue.database import Store
from runqueue.models import Output, Run, seconds_between
from runqueue.moves import Fence
from runqueue.states import Status

BATCH: Final = 500
"""Runs that are asked for in one query."""
AT_WORK: Final = (Status.RUNNING, Status.STOPPING)


class Heard(NamedTuple):
    """When the agent of a run was last heard of."""

    at: str | None
    """The time of its last output, None before the first."""
    silent_for: float | None
    """Seconds since then, or since its start; None for a run that is not being executed."""

    def __str__(self) -> str:
        """Say it in words; nothing of a run that is not being executed."""
        if self.silent_for is None:
            return ""
        since = _in_words(self.silent_for)
        return f"last output {since} ago" if self.at else f"no output since its start {since} ago"


def tell(store: Store, heard: Mapping[Fence, str]) -> None:
    """Write when the agents of one's own runs were last heard of; a lost one is left out."""
    with store.transaction():
        store.change_many(
            statements_homes.TELL_OUTPUT,
            [{**fence._asdict(), "output_at": at} for fence, at in sorted(heard.items())],
        )


def of_runs(store: Store, runs: Iterable[Run], *, now: str) -> dict[str, Heard]:
    """Return of each run, by its id, when its agent was last heard of."""
    listed = list(runs)
    ids = [run.run_id for run in listed]
    times: dict[str, str] = {}
    for first in range(0, len(ids), BATCH):
        some = Output.run.in_(ids[first : first + BATCH])
        times.update(store.query(Output.select(Output.run, Output.output_at).where(some)))
    return {run.run_id: _heard(run, times.get(run.run_id), now) for run in listed}


def of_run(store: Store, run: Run, *, now: str) -> Heard:
    """Return when the agent of a run was last heard of."""
    rows = store.run(statements_homes.OUTPUT_OF, run_id=run.run_id)
    return _heard(run, rows[0][0] if rows else None, now)


def _heard(run: Run, at: str | None, now: str) -> Heard:
    # What is older than the start was said in an earlier life of the run.
    if at is not None and run.started_at is not None and at < run.started_at:
        at = None
    since = (at or run.started_at) if run.status in AT_WORK else None
    return Heard(at, None if since is None else max(0.0, seconds_between(since, now)))


def _in_words(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
