"""Checking what the follow-ups of ends promise: callbacks, attempts, and parents without a circle.

Only what a healthy database shows at no moment is reported, so an end that the next tick will tell
of is none. Everything is read page by page, each page a statement of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from runqueue import family
from runqueue import statements_check as statements
from runqueue.callback_prompt import parse_callback
from runqueue.database import Statement, Store

PAGE: Final = 500
"""Rows read at once."""


def problems(store: Store) -> Iterator[str]:
    """Yield what is wrong, one sentence each with what to do."""
    yield from _marks(store)
    yield from _waiting_callbacks(store)
    yield from _attempts(store)
    yield from _circles(store)


def _pages(store: Store, statement: Statement) -> Iterator[tuple[Any, ...]]:
    """Yield all rows of a statement whose first column is its key."""
    rows = store.run(statement, after="", limit=PAGE)
    while rows:
        yield from rows
        rows = store.run(statement, after=rows[-1][0], limit=PAGE)


def _marks(store: Store) -> Iterator[str]:
    for run_id, by in _pages(store, statements.WRONGLY_TOLD):
        yield (
            f"the parent of run {run_id} was not told of its end by run {by}, which is no callback "
            "of that session; set callback_run_id to null, and the next tick tells it"
        )
    for run_id, status, by in _pages(store, statements.TOLD_EARLY):
        yield (
            f"run {run_id} is {status}, and its next end will not be told, for run {by} told of an "
            "earlier one; set callback_run_id to null to have it told"
        )


def _waiting_callbacks(store: Store) -> Iterator[str]:
    """Compare the callbacks that wait with the marks of the children they tell of, both ways."""
    for (callback_id,) in _pages(store, statements.WAITING_CALLBACKS):
        run_ids = _told_by(store, callback_id)
        # Somebody may have written another prompt by hand, and children may be deleted.
        for at in range(0, len(run_ids), PAGE):
            listed = store.engine.as_list(run_ids[at : at + PAGE])
            for run_id, by in sorted(store.run(statements.MARKS, run_ids=listed)):
                if by != callback_id:
                    yield (
                        f"run {callback_id} tells of the end of run {run_id}, whose "
                        f"callback_run_id names {by or 'nobody'}; set it to {callback_id}"
                    )
    yield from _left_out(store)


def _left_out(store: Store) -> Iterator[str]:
    marked: list[tuple[str, str]] = []
    for run_id, by in _pages(store, statements.MARKED):
        marked.append((by, run_id))
        if len(marked) == PAGE:
            yield from _untold(store, marked)
            marked = []
    yield from _untold(store, marked)


def _untold(store: Store, marked: list[tuple[str, str]]) -> Iterator[str]:
    for callback_id, pairs in groupby(sorted(marked), key=itemgetter(0)):
        # Read after the marks: whatever is marked was added to it before.
        told = frozenset(_told_by(store, callback_id))
        for _, run_id in pairs:
            if told and run_id not in told:
                yield (
                    f"run {callback_id} does not tell of the end of run {run_id}, whose "
                    "callback_run_id names it; set that to null, and the next tick tells of it"
                )


def _told_by(store: Store, callback_id: str) -> list[str]:
    """Whose ends a callback tells of; a prompt may have a megabyte, so it is read by itself."""
    prompts = store.run(statements.PROMPT, run_id=callback_id)
    return [child.run_id for (text,) in prompts for child in parse_callback(text) or ()]


def _attempts(store: Store) -> Iterator[str]:
    for run_id, status, next_id in _pages(store, statements.WRONGLY_DUE):
        if next_id:
            yield (
                f"run {run_id} waits for another attempt though its next is there, {next_id}; "
                "set due_at of its row in run_attempts to null"
            )
        else:
            yield (
                f"run {run_id} waits for another attempt though it is {status}; the tick at that "
                "time takes it back, or set due_at in run_attempts and callback_run_id to null"
            )


def _circles(store: Store) -> Iterator[str]:
    after = ""
    while page := store.run(statements.PARENTS, after=after, limit=PAGE):
        after = page[-1][0]
        for session_id in _smallest_in_circles(store, page):
            # Again, for what was read level by level was not read at one moment.
            line = family.line_of(store, session_id)
            if line.is_circle:
                yield (
                    f"the parents of session {session_id} are in a circle of "
                    f"{len(line.session_ids)}; set parent_session_id of one of its sessions, and "
                    "of the runs of that session, to null"
                )


def _smallest_in_circles(store: Store, page: list[tuple[Any, ...]]) -> list[str]:
    """Return those of a page from which a walk up comes back, having met no smaller id.

    So each circle is found once, and a walk is short wherever it meets a smaller id soon.
    """
    found = []
    at = {session_id: parent for session_id, parent in page if parent}
    known: dict[str, str | None] = {}
    # By Brent: a walk that has got into a circle which it did not begin in ends at its landmark.
    landmarks = dict(at)
    steps, power = 0, 1
    while at:
        found += [session_id for session_id, above in at.items() if above == session_id]
        at = {session_id: above for session_id, above in at.items() if above > session_id}
        listed = store.engine.as_list(sorted(set(at.values())))
        known = dict(store.run(statements.PARENTS_OF, session_ids=listed)) if at else {}
        steps += 1
        if steps > power:
            landmarks, steps, power = dict(at), 1, 2 * power
        going_on = {session_id: known.get(above) for session_id, above in at.items()}
        at = {
            session_id: above
            for session_id, above in going_on.items()
            if above and (above != landmarks[session_id] or above == session_id)
        }
    return found
