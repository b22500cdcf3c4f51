"""Who is whose parent: walking a tree of sessions up and down, a level a statement.

A session's parent is the one that it was started with, else the one that a run of it names, for
whoever writes by hand may fill in either. Nobody keeps hands from making a circle, so each walk
ends where it comes to a session again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from runqueue import statements_family as statements
from runqueue.database import Store
from runqueue.errors import RunNotFound, SessionNotFound

MOST: Final = 10_000
"""Sessions of a tree after which a walk down ends; the limits allow 256 runs."""


class Line(NamedTuple):
    """A session and those above it, up to the root of its tree."""

    session_ids: list[str]
    is_circle: bool

    @property
    def root(self) -> str:
        return self.session_ids[-1]


def line_of(store: Store, session_id: str) -> Line:
    """Return a session and its ancestors, the nearest first. Raises SessionNotFound."""
    found: list[str] = []
    above: str | None = session_id
    while above is not None:
        if above in found:
            return Line(found, True)
        rows = store.run(statements.PARENT_OF, session_id=above)
        if not rows:
            if not found:
                raise SessionNotFound(f"session {session_id[:40]} does not exist")
            break  # a run names a parent that is gone
        found.append(above)
        above = rows[0][0]
    return Line(found, False)


def below(store: Store, root: str) -> dict[str, str | None]:
    """Return the sessions of the tree below `root`, level by level, each with its parent."""
    found: dict[str, str | None] = {root: None}
    level = [root]
    while level and len(found) < MOST:
        rows = store.run(statements.CHILDREN, session_ids=store.engine.as_list(level))
        known = set(level)
        level = []
        for session_id, parent_id in sorted(rows):
            if session_id not in found and parent_id in known:
                found[session_id] = parent_id
                level.append(session_id)
    return found


def session_id_of(store: Store, one: str) -> str:
    """Return the session of a run's id, or of its own. Raises RunNotFound or SessionNotFound."""
    if one.startswith("ses_"):
        if not store.run(statements.PARENT_OF, session_id=one):
            raise SessionNotFound(f"session {one[:40]} does not exist")
        return one
    rows = store.run(statements.SESSION_OF_RUN, run_id=one)
    if rows:
        return str(rows[0][0])
    if store.run(statements.PARENT_OF, session_id=one):  # written by hand under any id
        return one
    raise RunNotFound(f"run {one[:40]} does not exist")


def note(store: Store, run_ids: Iterable[str], detail: str, *, now: str) -> None:
    """Add what belongs to the history of runs, and is no change of their status."""
    listed = list(run_ids)
    if listed:
        store.change(statements.NOTE, run_ids=store.engine.as_list(listed), at=now, detail=detail)
