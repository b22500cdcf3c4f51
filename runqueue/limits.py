"""Limits of trees: agents that start agents must come to an end.

A tree begins with a session that has no parent, whose limits are those of whoever enqueues it,
narrowed by what they ask for. What is below it inherits them and may narrow them further, never
widen them. They are checked in the transaction that adds a run which has a parent, with the root
locked, so that two who add at once are counted one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from runqueue import family, settings, statements, statements_family
from runqueue.database import Store
from runqueue.errors import IllegalMove, InvalidRun
from runqueue.models import Session
from runqueue.states import Status


class Limits(NamedTuple):
    """Of a session and what is below it in its tree; None where nothing is asked for."""

    depth: int | None = None
    """Levels below it that may have sessions."""
    children: int | None = None
    """Children of one session that may be pending or active at the same time."""
    runs: int | None = None
    """Runs of it and of all sessions below it together, those that have ended too."""

    def narrowed(self, other: Limits) -> Limits:
        """Return the narrower of each."""
        pairs = (set(pair) - {None} for pair in zip(self, other, strict=True))
        return Limits(*(min(pair, default=None) for pair in pairs))  # type: ignore[type-var]

    def as_text(self) -> str | None:
        """Return what is stored; None when nothing is asked for."""
        asked = {name: value for name, value in self._asdict().items() if value is not None}
        return json.dumps(asked, separators=(",", ":")) if asked else None


DEFAULT: Final = Limits(settings.MAX_DEPTH, settings.MAX_CHILDREN, settings.MAX_TREE_RUNS)
NONE: Final = Limits()
_NAMES: Final = {"depth": "max_depth", "children": "max_children", "runs": "max_tree_runs"}


def of_settings(config: settings.Settings) -> Limits:
    return Limits(config.max_depth, config.max_children, config.max_tree_runs)


def check(depth: object, children: object, runs: object) -> Limits:
    """Return the limits that a caller asks for. Raises InvalidRun."""
    if depth is None and children is None and runs is None:
        return NONE
    asked = Limits(depth, children, runs)  # type: ignore[arg-type]
    for name, value in asked._asdict().items():
        if value is None:
            continue
        least = 1 if name == "runs" else 0  # the run itself is one
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise InvalidRun(f"{_NAMES[name]} must be a whole number from {least} on")
    return asked


def parse(text: str | None) -> Limits:
    """Return stored limits; what somebody wrote by hand and is none asks for nothing."""
    try:
        found: Mapping[str, Any] = json.loads(text or "{}")
        return check(*(found.get(name) for name in Limits._fields))
    except (ValueError, AttributeError, RecursionError):
        return NONE


def of_root(asked: Limits, ceiling: Limits) -> Limits:
    """Return what is stored for a session that begins a tree. Raises InvalidRun."""
    _refuse_wider(asked, ceiling, "that is set")
    limits = ceiling.narrowed(asked)
    return limits if limits != DEFAULT else NONE


def of_resumed(session: Session, asked: Limits) -> Limits:
    """Return what is stored for a session whose limits are narrowed later. Raises InvalidRun."""
    given = parse(session.tree_limits)
    _refuse_wider(asked, _or_default(given), f"of session {session.session_id}")
    return given.narrowed(asked)


def check_child(
    store: Store, parent_id: str, asked: Limits, ceiling: Limits, resumed: Session | None
) -> None:
    """Refuse one more run below a parent when a limit says so.

    Belongs in the transaction that adds it. Raises InvalidRun, SessionNotFound, or IllegalMove
    when the parent is being stopped.
    """
    line = _locked_line(store, parent_id)
    if line.is_circle:
        raise InvalidRun(f"the parents of session {parent_id} are in a circle; correct them")
    if resumed is not None and resumed.session_id in line.session_ids:
        raise InvalidRun(
            f"session {resumed.session_id} cannot have the parent {parent_id}, which is "
            + ("itself" if parent_id == resumed.session_id else "below it: a circle of parents")
        )
    given = _given(store, line)
    # What is set here may narrow what the tree began with, and cannot widen it.
    given[line.root] = given[line.root].narrowed(_below_default(ceiling))
    inherited = NONE
    for one in given.values():
        inherited = inherited.narrowed(one)
    _refuse_wider(asked, inherited, f"of session {parent_id}")
    _refuse_stopping(store, parent_id)
    _refuse_deeper(line, given)
    _refuse_more_children(store, parent_id, inherited, resumed)
    _refuse_more_runs(store, line, given)


def _locked_line(store: Store, parent_id: str) -> family.Line:
    """Return the parent and its ancestors, with the root locked."""
    line = family.line_of(store, parent_id)
    while store.engine.locks_rows:
        store.run(statements.LOCK_SESSION, session_id=line.root)
        # A statement sees what was committed before it began, so look again with the lock.
        again = family.line_of(store, parent_id)
        if again.root == line.root or again.is_circle:
            return again
        line = again
    return line


def _given(store: Store, line: family.Line) -> dict[str, Limits]:
    """Return what each session of a line was given, the nearest first."""
    listed = store.engine.as_list(line.session_ids)
    stored = dict(store.run(statements_family.LIMITS_OF, session_ids=listed))
    given = {session_id: parse(stored.get(session_id)) for session_id in line.session_ids}
    # What the root was given is all there is to begin with: it may be wider than the default.
    given[line.root] = _or_default(given[line.root])
    return given


def _below_default(ceiling: Limits) -> Limits:
    """Those of the limits that are set which are narrower than usual."""
    pairs = zip(ceiling, DEFAULT, strict=True)
    return Limits(*(None if own is None or own >= (usual or 0) else own for own, usual in pairs))


def _or_default(given: Limits) -> Limits:
    pairs = zip(given, DEFAULT, strict=True)
    return Limits(*(usual if own is None else own for own, usual in pairs))


def _refuse_wider(asked: Limits, limits: Limits, whose: str) -> None:
    for name, wanted in asked._asdict().items():
        limit = getattr(limits, name)
        if wanted is not None and wanted > limit:
            raise InvalidRun(f"{_NAMES[name]} {wanted} would widen the limit of {limit} {whose}")


def _refuse_stopping(store: Store, parent_id: str) -> None:
    for run_id, status, _ in store.run(statements.ACTIVE_OF_SESSION, session_id=parent_id):
        if status == Status.STOPPING.value:
            raise IllegalMove(
                f"session {parent_id} gets no more children: its run {run_id} is being stopped"
            )


def _refuse_deeper(line: family.Line, given: dict[str, Limits]) -> None:
    for levels, session_id in enumerate(line.session_ids, 1):
        limit = given[session_id].depth
        if limit is not None and levels > limit:
            raise InvalidRun(
                f"a child of session {line.session_ids[0]} would be {levels} levels below session "
                f"{session_id}, whose limit is {limit}"
            )


def _refuse_more_children(
    store: Store, parent_id: str, limits: Limits, resumed: Session | None
) -> None:
    rows = store.run(statements_family.LIVE_CHILDREN, session_id=parent_id)
    others = {row[0] for row in rows} - {resumed and resumed.session_id}
    if limits.children is not None and len(others) >= limits.children:
        raise InvalidRun(
            f"session {parent_id} has {len(others)} live children, and its limit is "
            f"{limits.children}; wait until one has ended"
        )


def _refuse_more_runs(store: Store, line: family.Line, given: dict[str, Limits]) -> None:
    parents = family.below(store, line.root)
    for session_id, limits in given.items():
        if limits.runs is None:
            continue
        counted = store.engine.as_list(_within(parents, session_id))
        rows = store.run(statements_family.COUNT_RUNS, session_ids=counted, limit=limits.runs)
        if rows[0][0] >= limits.runs:
            raise InvalidRun(
                f"session {session_id} and what is below it have {limits.runs} runs or more, "
                "which is its limit"
            )


def _within(parents: dict[str, str | None], session_id: str) -> list[str]:
    """Return a session and those below it, of a tree that lists each parent before its children."""
    found = {session_id}
    for one, parent_id in parents.items():
        if parent_id in found:
            found.add(one)
    return list(found)
