"""The queue as somebody sees it who watches: who is at work on what, and what waits."""

from __future__ import annotations

from typing import NamedTuple

from runqueue import listing, reading, silence, why
from runqueue.database import Store
from runqueue.models import Daemon, Run
from runqueue.reading import Overview, RunnerSummary
from runqueue.silence import Heard
from runqueue.states import ACTIVE


class Glance(NamedTuple):
    """What was seen at one time, though not within one transaction: it is there to be watched."""

    now: str
    overview: Overview
    daemons: list[Daemon]
    runners: list[RunnerSummary]
    active: list[Run]
    """The newest of them, the newest first."""
    heard: dict[str, Heard]
    """Of the active runs, by their ids."""
    waiting: list[tuple[Run, str]]
    """The pending runs that were added first, and what each of them waits for."""


def take(store: Store, *, now: str, active: int, waiting: int) -> Glance:
    """Look, at so many active and so many waiting runs."""
    at_work = reading.find(store, status=ACTIVE, limit=active, columns=reading.SUMMARY)
    names = listing.WAITING_COLUMNS
    oldest = [Run.from_row(row, names) for row in store.run(listing.WAITING, limit=waiting)]
    return Glance(
        now,
        reading.overview(store, now=now),
        why.live_daemons(store, now),
        reading.runners(store, now=now),
        at_work,
        silence.of_runs(store, at_work, now=now),
        [(run, why.what_for(store, run, now=now)) for run in oldest],
    )
