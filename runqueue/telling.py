"""What a daemon tells people about its queue: how much there is to do, and what it decided."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from peewee import SQL, Select, fn

from runqueue.database import Store
from runqueue.models import Event, Run
from runqueue.states import Actor, Status

MANY: Final = 10_000
"""From here on runs are not counted: telling must cost the same however many there are."""
TOLD: Final = 200
"""How many decisions of one sweep are told one by one."""
COUNTED: Final = (Status.PENDING, Status.CLAIMED, Status.RUNNING, Status.STOPPING)


def at_hand(store: Store) -> str:
    """Return how many runs wait and are at work, as words."""
    counts = {status: _count(store, status) for status in COUNTED}
    shown = [
        f"{count:,}{'+' if count == MANY else ''} {status.value}"
        for status, count in counts.items()
        if count or status in (Status.PENDING, Status.RUNNING)
    ]
    return ", ".join(shown)


def _count(store: Store, status: Status) -> int:
    some = Run.select(SQL("1")).where(Run.status == status.value).limit(MANY).alias("some")
    return int(store.query(Select((some,), (fn.COUNT(SQL("*")),)))[0][0])


class Decision(NamedTuple):
    """What a daemon made of a run."""

    run_id: str
    session_id: str
    status: str
    detail: str | None


def last_event(store: Store) -> int:
    """Return the newest event's number, 0 when nothing ever happened."""
    return int(store.query(Event.select(fn.MAX(Event.event_id)))[0][0] or 0)


def decisions(store: Store, after: int) -> list[Decision]:
    """Return what daemons decided since an event, the oldest first, at most `TOLD`."""
    columns: tuple[Any, ...] = (Run.run_id, Run.session, Event.status, Event.detail)
    query = (
        Event.select(*columns)
        .join(Run)
        .where(Event.event_id > after, Event.actor == Actor.DAEMON.value)
        .order_by(Event.event_id)
        .limit(TOLD)
    )
    return [Decision(*row) for row in store.query(query)]
