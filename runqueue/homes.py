"""Where sessions live: moving their homes, and the agent frameworks' own ids of them."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Final, NamedTuple

from runqueue import demands, family, moves, statements
from runqueue import statements_homes as homes
from runqueue.database import Store, again
from runqueue.errors import (
    IllegalMove,
    InvalidRun,
    RunNotFound,
    SessionConflict,
    SessionNotFound,
    StaleClaim,
)
from runqueue.models import Run, Session
from runqueue.settings import MAX_FIELD
from runqueue.states import ACTIVE, RunType, Wake

MAX_EXECUTOR_ID: Final = 512
"""Limit of an agent framework's own id, in characters."""


class Moved(NamedTuple):
    """What became of a session whose home was moved or cleared."""

    session: Session
    runs: int
    """How many waiting runs follow it."""
    forgotten: str | None
    """The executor session id that went with a home that was cleared."""


@again
def rehome(
    store: Store,
    session_id: str,
    *,
    hostname: str | None = None,
    project_dir: str | None = None,
    executor_type: str | None = None,
    clear: bool = False,
    now: str,
) -> Moved:
    """Move a session's home, or clear it; the runs that wait follow, and so would a retry.

    None leaves a part of the home as it is, "" demands nothing of it. Raises SessionNotFound,
    IllegalMove while a run of the session is active, SessionConflict when another session of that
    host and executor type has its executor session id, or InvalidRun for what can be no home.
    """
    given = {"hostname": hostname, "project_dir": project_dir, "executor_type": executor_type}
    _check(given, clear)
    with store.transaction():
        # Before its session, as whoever binds an id locks them.
        known = None if clear else executor_session_id(store, session_id)
        if known is not None:
            store.lock(homes.LOCK_EXECUTOR, executor_session_id=known)
        session = _locked(store, session_id)
        if not clear and session.executor_session_id not in (None, known):  # bound meanwhile
            store.lock(homes.LOCK_EXECUTOR, executor_session_id=session.executor_session_id)
        for run_id, status, _ in store.run(statements.ACTIVE_OF_SESSION, session_id=session_id):
            raise IllegalMove(
                f"session {session_id} has a run that is {status}, {run_id}; its home can be "
                "moved when that has ended"
            )
        after = {} if clear else _after(session, given)
        store.change(
            homes.SET_HOME,
            session_id=session_id,
            hostname=after.get("hostname"),
            home_dir=after.get("project_dir"),
            executor_type=after.get("executor_type"),
            project_dir=_moved(session.project_dir, session.home_dir, after.get("project_dir")),
            # What a framework knows it knows at the place that is forgotten.
            executor_session_id=None if clear else session.executor_session_id,
        )
        moved = Session.from_row(store.run(statements.GET_SESSION, key=session_id)[0])
        _insist_on_lone_id(store, session, moved)
        runs = _have_follow(store, session, after, now)
        forgotten = session.executor_session_id if clear else None
        return Moved(moved, runs, forgotten)


def _insist_on_lone_id(store: Store, before: Session, after: Session) -> None:
    """Raise SessionConflict when another session has the framework's id at the new place."""
    executor_id, session_id = after.executor_session_id, after.session_id
    stays = (before.hostname, before.executor_type) == (after.hostname, after.executor_type)
    if executor_id is None or stays:  # doubles that others have left do not keep it from moving
        return
    values = {"session_id": session_id, "executor_session_id": executor_id}
    for (other,) in store.run(homes.WHO_HAS_EXECUTOR, **values):
        raise SessionConflict(
            f"session {session_id} cannot move there, where {other} has its executor session id "
            f"{executor_id}; bind either to another id, or to none, or clear the home"
        )


def _have_follow(store: Store, session: Session, after: dict[str, str], now: str) -> int:
    """Have the runs of a session demand its new home; return how many of them wait.

    Those that have ended follow too: another attempt has the content of one of them.
    """
    old, new, before = session.home_dir, after.get("project_dir"), session.home()
    waiting = store.run(homes.WAITING_IN_SESSION, session_id=session.session_id)
    ended = store.run(homes.ENDED_IN_SESSION, session_id=session.session_id)
    found = [(row, _rewritten(row[0], row[1], before, after)) for row in waiting]
    found += [(row, _without_old(row[1], before, after)) for row in ended]
    values = []
    for (run_id, text, place), wanted in found:
        # A run that was given a directory of its own keeps it.
        moved = _moved(place, old, new) if place == session.project_dir else place
        if (wanted, moved) != (text, place):
            values.append({"run_id": run_id, "demands": wanted, "project_dir": moved})
    if values:
        store.change_many(homes.FOLLOW_HOME, values)
        family.note(store, [one["run_id"] for one in values], homes.FOLLOWED, now=now)
    store.wake((Wake.WORK,))
    return len(waiting)


def has_followed(store: Store, run_id: str) -> bool:
    """Whether what a run demands of a place, and its directory, are no more what was asked for."""
    return bool(store.run(homes.HAS_FOLLOWED, run_id=run_id, detail=homes.FOLLOWED))


def _check(given: dict[str, str | None], clear: bool) -> None:
    if clear and any(value is not None for value in given.values()):
        raise InvalidRun("a home is moved or cleared, not both")
    if not clear and all(value is None for value in given.values()):
        raise InvalidRun("say where the home is to be, or that it is to be cleared")
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, str):
            raise InvalidRun(f"the {name} of a home must be a string, not {type(value).__name__}")
        demands.check_text(value, f"the {name} of a home")
        if len(value) > MAX_FIELD:
            raise InvalidRun(f"the {name} of a home is over the limit of {MAX_FIELD:,} characters")


def _locked(store: Store, session_id: str) -> Session:
    rows = store.run(statements.LOCK_SESSION, session_id=session_id)
    if not rows:
        raise SessionNotFound(f"session {session_id[:40]} does not exist")
    return Session.from_row(rows[0])


def _after(session: Session, given: dict[str, str | None]) -> dict[str, str]:
    """The home with what is given instead of what was there."""
    home = {**session.home(), **{key: value for key, value in given.items() if value is not None}}
    after = {key: value for key, value in home.items() if value}
    if "hostname" not in after:
        raise InvalidRun(
            f"session {session.session_id} would have no host; give --hostname, or clear its home"
            if session.hostname
            else f"session {session.session_id} has no home yet; give at least its hostname"
        )
    if len(demands.canonical(after).encode()) > demands.MAX_PLACE:
        raise InvalidRun(f"the home is over the limit of {demands.MAX_PLACE} bytes")
    return after


def _moved(directory: str | None, old: str | None, new: str | None) -> str | None:
    """Where a working directory is after its home was moved from `old` to `new`.

    What lies within the old one lies within the new one. A home that had no directory was where
    its session worked.
    """
    if new is None or new == old:
        return directory
    if directory is None or old is None:
        return new
    path = PurePath(directory)
    return str(PurePath(new) / path.relative_to(old)) if path.is_relative_to(old) else directory


def _rewritten(
    run_id: str, text: str | None, before: dict[str, str], after: dict[str, str]
) -> str | None:
    """The demands of a waiting run with its session's new home instead of the old one.

    Those that are its own stay; one that is as the old home was is taken for inherited.
    """
    try:
        wanted = demands.parse(text)
    except ValueError:  # malformed by hand: nobody claims it, and `why` says so
        return text
    merged = demands.canonical(demands.both(after, _own(wanted, before)))
    if len(merged.encode()) > demands.MAX_MERGED:  # written by hand, too
        raise InvalidRun(
            f"run {run_id} has demands that would be over the limit of {demands.MAX_MERGED} bytes "
            "with the new home; cancel it first"
        )
    return merged if merged != "{}" else None


def _without_old(text: str | None, before: dict[str, str], after: dict[str, str]) -> str | None:
    """The demands of a run that has ended, likewise; of one that had none of the old home, its own.

    It refuses no move: what is over the limit is left to whoever makes another attempt.
    """
    try:
        wanted = demands.parse(text)
    except ValueError:
        return text
    own = _own(wanted, before)
    if own == wanted:
        return text
    merged = demands.canonical(demands.both(after, own))
    if len(merged.encode()) > demands.MAX_MERGED:
        merged = demands.canonical(own)
    return merged if merged != "{}" else None


def _own(wanted: dict[str, Any], before: dict[str, str]) -> dict[str, Any]:
    """The demands that are not those of the old home."""
    own = dict(wanted)
    for key, value in before.items():
        if isinstance(own.get(key), list):
            own[key] = _one([item for item in own[key] if item != value])
        elif own.get(key) == value:
            del own[key]
    return own


def _one(items: list[Any]) -> Any:
    """Of two demands that contradicted each other one is left, as its caller gave it."""
    return items[0] if len(items) == 1 else items


def executor_session_id(store: Store, session_id: str) -> str | None:
    """Return the agent framework's own id of a session, None when none is known."""
    rows = store.run(homes.EXECUTOR_OF, session_id=session_id)
    return rows[0][0] if rows else None


@again
def bind(
    store: Store,
    session_id: str,
    executor_session_id: str | None,
    *,
    fence: moves.Fence | None = None,
) -> None:
    """Record the agent framework's own id of a session; None or "" forgets it.

    With a fence only its owner may. Raises SessionNotFound, SessionConflict when another session
    of the same host and executor type has the id, or one that may come to be there as neither or
    only one of the two has a home, StaleClaim, RunNotFound, or InvalidRun.
    """
    wanted = _check_executor(executor_session_id)
    with store.transaction():
        if wanted is not None:
            store.lock(homes.LOCK_EXECUTOR, executor_session_id=wanted)
        if fence is not None:
            _insist_on_owner(store, fence)
        values = {"session_id": session_id, "executor_session_id": wanted}
        if store.change(homes.BIND_EXECUTOR, **values):
            return
        if not store.run(statements.KEEP_SESSION, session_id=session_id):
            raise SessionNotFound(f"session {session_id[:40]} does not exist")
        others = store.run(homes.WHO_HAS_EXECUTOR, **values)
        other = others[0][0] if others else "another session"
        raise SessionConflict(
            f"session {session_id} cannot have the executor session id {wanted}, which is that of "
            f"{other}: two sessions of one conversation would fork its history"
        )


def _insist_on_owner(store: Store, fence: moves.Fence) -> None:
    store.lock(statements.LOCK_SESSION_OF_RUN, run_id=fence.run_id)
    rows = store.run(statements.RUN_STATE, run_id=fence.run_id)
    if not rows:
        raise RunNotFound(f"run {fence.run_id} does not exist any more")
    active = {status.value for status in ACTIVE}
    is_owner = rows[0][0] in active and rows[0][1:3] == (fence.runner_id, fence.claimed_at)
    if not is_owner:
        raise StaleClaim(
            f"runner {fence.runner_id} no longer owns run {fence.run_id}; stop working on it"
        )


def _check_executor(given: object) -> str | None:
    if given is None or given == "":
        return None
    what = "the executor session id"
    if not isinstance(given, str):
        raise InvalidRun(f"{what} must be a string, not {type(given).__name__}")
    demands.check_text(given, what)
    if len(given) > MAX_EXECUTOR_ID:
        raise InvalidRun(f"{what} is over the limit of {MAX_EXECUTOR_ID} characters")
    # It becomes a word of a command line, where it must not pass for an option, and a variable.
    if given[0] == "-" or not given.isprintable():
        raise InvalidRun(f"{what} must be text that can be printed, and not begin with -")
    return given


def keep(store: Store, runs: list[Run], place: demands.Capabilities, *, now: str) -> list[Run]:
    """Return those of claimed runs that a runner of this place may execute; send the others home.

    A run that another program inserted into a session that has a home demands nothing of it, and
    anybody claims it. It is put back then, with the demands that the queue would have given it.
    """
    unaware = {run.session_id for run in runs if _is_unaware(run)}
    if not unaware:
        return runs
    listed = store.engine.as_list(sorted(unaware))
    columns = homes.HOME_COLUMNS
    known = [Session.from_row(row, columns) for row in store.run(homes.HOMES, session_ids=listed)]
    elsewhere = {one.session_id: one.home() for one in known if demands.unmet(one.home(), place)}
    return [
        run
        for run in runs
        if not (_is_unaware(run) and run.session_id in elsewhere)
        or not _send_home(store, run, elsewhere[run.session_id], now)
    ]


def _is_unaware(run: Run) -> bool:
    """Whether a run resumes a session, and demands no host: each home has one."""
    if run.type != RunType.RESUME_SESSION.value or '"hostname":"' in (run.demands or ""):
        return False
    return not demands.parse(run.demands).get("hostname")


@again
def _send_home(store: Store, run: Run, home: dict[str, str], now: str) -> bool:
    """Put back a claimed run with its session's home; False when it has to stay as it is."""
    wanted = demands.canonical(demands.both(home, demands.parse(run.demands)))
    if len(wanted.encode()) > demands.MAX_MERGED:  # such texts come by hand only
        return False
    fence = moves.Fence(run.run_id, str(run.runner_id), str(run.claimed_at))
    try:
        with store.transaction():
            moves.make_owned(store, "release", fence, now=now)
            store.change(statements.SET_DEMANDS, run_id=run.run_id, demands=wanted)
    except IllegalMove:  # it is to be stopped, which its owner confirms
        return False
    except (StaleClaim, RunNotFound):
        pass
    return True
