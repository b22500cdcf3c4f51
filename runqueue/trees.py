"""Trees of sessions: looking at one, and stopping all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from runqueue import family, follow, moves, reading, statements, statements_family
from runqueue.database import Store, again
from runqueue.errors import SessionNotFound
from runqueue.models import Run, Session
from runqueue.states import Actor, Status, Wake


class Tree(NamedTuple):
    """A session with its runs, and the trees of its children."""

    session: Session
    status: str
    """Derived from its runs."""
    depth: int
    """0 for the session that the tree begins with."""
    runs: list[Run]
    """The oldest first, without prompts, results and errors."""
    children: list[Tree]

    def walk(self) -> Iterator[Tree]:
        """Yield this and everything below it, each parent before its children."""
        rest = [self]  # a list, for a chain that somebody made by hand may be any number deep
        while rest:
            tree = rest.pop()
            yield tree
            rest += reversed(tree.children)


def of(store: Store, one: str) -> Tree:
    """Return the whole tree of a run or session. Raises RunNotFound or SessionNotFound."""
    root = family.line_of(store, family.session_id_of(store, one)).root
    parents = family.below(store, root)
    listed = store.engine.as_list(list(parents))
    sessions = {
        session.session_id: session
        for session in Session.from_rows(
            store.run(statements_family.SESSIONS_OF, session_ids=listed)
        )
    }
    runs: dict[str, list[Run]] = {session_id: [] for session_id in sessions}
    for row in store.run(statements_family.RUNS_OF, session_ids=listed):
        run = Run.from_row(row, statements_family.SUMMARY)
        if run.session_id in runs:
            runs[run.session_id].append(run)
    return _grown(store, root, parents, sessions, runs)


def _grown(
    store: Store,
    root: str,
    parents: dict[str, str | None],
    sessions: dict[str, Session],
    runs: dict[str, list[Run]],
) -> Tree:
    depths: dict[str, int] = {}
    trees: dict[str, Tree] = {}
    # A parent comes before its children, level by level, so that no depth is too deep to build.
    for session_id, parent_id in parents.items():
        if session_id not in sessions:  # deleted meanwhile
            continue
        depths[session_id] = depths.get(parent_id or "", -1) + 1
        status = reading.session_status(store, session_id)
        tree = Tree(sessions[session_id], status, depths[session_id], runs[session_id], [])
        trees[session_id] = tree
        if parent_id is not None and parent_id in trees:
            trees[parent_id].children.append(tree)
    if root not in trees:
        raise SessionNotFound(f"session {root[:40]} does not exist any more")
    return trees[root]


@again
def stop(
    store: Store,
    one: str,
    *,
    below: bool,
    now: str,
    actor: Actor,
    reason: str | None,
) -> list[Run]:
    """Stop all runs of a tree in one transaction; return them.

    Raises RunNotFound or SessionNotFound.
    """
    with store.transaction():
        session_id = family.session_id_of(store, one)
        root = session_id if below else family.line_of(store, session_id).root
        session_ids = _locked_tree(store, root)
        listed = store.engine.as_list(session_ids)
        live = store.run(statements_family.LIVE_OF, session_ids=listed)
        # Before anything ends: what ends by this stop resumes none that is stopped by it.
        store.change(statements_family.SILENCE, session_ids=listed)
        rows = store.run(statements_family.WAITING_ATTEMPTS, session_ids=listed)
        waiting = [run_id for run_id, _ in rows]
        # Their parents hear of the ends that they had, unless they are stopped with them.
        told_outside = [run_id for run_id, parent in rows if parent and parent not in session_ids]
        if waiting:
            store.wake((Wake.END,))  # for whoever waits for the last attempt
            store.change(statements_family.UNSCHEDULE, run_ids=store.engine.as_list(waiting))
            family.note(store, waiting, "no other attempt is made: its tree was stopped", now=now)
        told = f"with the tree of session {root}"
        told = f"{told}: {reason}" if reason else told
        stopped = [run_id for run_id, status in live if status != Status.STOPPING.value]
        for run_id in stopped:
            moves.stop_or_cancel(store, run_id, now=now, actor=actor, reason=told)
        for run_id in told_outside:
            store.change(statements_family.MARK_AGAIN, run_id=run_id)
        follow.after(store, None, told_outside, now=now, actor=actor)
        return [_summary(store, run_id) for run_id in (*stopped, *waiting)]


def _locked_tree(store: Store, root: str) -> list[str]:
    """Return the sessions of a tree, which are locked so that none is added meanwhile."""
    session_ids = list(family.below(store, root))
    while store.engine.locks_rows:
        # A child before its parent, as whoever ends a run of it locks them.
        for session_id in reversed(session_ids):
            store.run(statements.LOCK_SESSION, session_id=session_id)
        found = list(family.below(store, root))
        if set(found) <= set(session_ids):
            return found
        session_ids = found
    return session_ids


def _summary(store: Store, run_id: str) -> Run:
    rows: list[tuple[Any, ...]] = store.run(statements.GET_RUN, key=run_id)
    return Run.from_row(rows[0])
