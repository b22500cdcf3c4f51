"""Making runs: checking what a caller asks for, and inserting it whole.

A run is inserted with its demands in one statement, so that no runner ever sees it without
them; its session, the run and their event are one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from inspect import signature
from typing import Any, Final, NamedTuple

from runqueue import (
    attempts,
    clock,
    homes,
    ids,
    limits,
    moves,
    settings,
    statements,
    statements_family,
)
from runqueue import demands as matching
from runqueue.database import Store, again
from runqueue.errors import IllegalMove, InvalidRun, RunNotFound, SessionNotFound
from runqueue.limits import DEFAULT, NONE, Limits
from runqueue.models import COLUMNS, Run, Session
from runqueue.states import TERMINAL, Actor, ExecutionMode, RunType, Status, Wake

_MODES: Final = {mode.value: mode.value for mode in ExecutionMode}


class Request(NamedTuple):
    """What a caller wants to have run, checked."""

    prompt: str
    demands: matching.Demands
    session_id: str | None = None
    agent_name: str | None = None
    project_dir: str | None = None
    parent_session_id: str | None = None
    execution_mode: str = ExecutionMode.SYNC.value
    timeout: float | None = None
    priority: int = 0
    run_id: str | None = None
    terms: attempts.Terms = attempts.NO_TERMS
    limits: Limits = NONE
    """What was asked for its tree."""
    ceiling: Limits = DEFAULT
    """What is set for trees here."""

    @property
    def is_plain(self) -> bool:
        """Whether it starts a session of its own, under no given id, and refers to no other."""
        if self.session_id or self.parent_session_id or self.run_id or self.terms.retries:
            return False
        return self.limits == NONE and self.ceiling == DEFAULT


def check(
    prompt: str,
    *,
    session_id: str | None = None,
    agent_name: str | None = None,
    project_dir: str | None = None,
    parent_session_id: str | None = None,
    execution_mode: str = ExecutionMode.SYNC.value,
    demands: Any = None,
    timeout: float | None = None,
    priority: int = 0,
    run_id: str | None = None,
    retries: int = 0,
    retry_delay: float = 0.0,
    retry_lost: bool = False,
    max_depth: int | None = None,
    max_children: int | None = None,
    max_tree_runs: int | None = None,
    config: settings.Settings | None = None,
) -> Request:
    """Return the request. Raises InvalidRun, in one sentence, for what cannot become a run."""
    config = config or settings.Settings()
    _check_prompt(prompt, config.max_prompt)
    if not isinstance(execution_mode, str) or execution_mode not in _MODES:
        modes = ", ".join(mode.value for mode in ExecutionMode)
        raise InvalidRun(f"unknown execution mode {str(execution_mode)[:40]!r}; use {modes}")
    wanted = matching.validate(demands)
    if timeout is None:
        timeout = settings.DEMANDS_TIMEOUT if wanted else None
    elif not clock.is_duration(timeout):
        raise InvalidRun("the timeout must be a number of seconds that is not negative")
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= 2**31:
        raise InvalidRun("the priority must be a whole number below 2,147,483,648")
    return Request(
        prompt=prompt,
        session_id=_optional(session_id, "the session id"),
        agent_name=_optional(agent_name, "the agent's name"),
        project_dir=_optional(project_dir, "the project directory"),
        parent_session_id=_optional(parent_session_id, "the parent session's id"),
        execution_mode=_MODES[execution_mode],
        demands=wanted,
        timeout=timeout,
        priority=priority,
        run_id=None if run_id is None else ids.check_run_id(run_id),
        terms=attempts.check_terms(retries, retry_delay, retry_lost),
        limits=limits.check(max_depth, max_children, max_tree_runs),
        ceiling=limits.of_settings(config),
    )


def check_mapping(request: Mapping[str, Any], config: settings.Settings) -> Request:
    """Return the request that a mapping of the keywords of `check` describes."""
    if not isinstance(request, Mapping) or "prompt" not in request:
        raise InvalidRun("every run to enqueue must be a mapping with a prompt")
    unknown = set(request) - _KEYWORDS
    if unknown:
        raise InvalidRun(f"unknown keyword {sorted(map(str, unknown))[0][:40]!r} of a run")
    return check(**{**request, "config": config})


_KEYWORDS: Final = set(signature(check).parameters) - {"config"}


def _check_prompt(prompt: object, limit: int) -> None:
    if not isinstance(prompt, str):
        raise InvalidRun(f"the prompt must be a string, not {type(prompt).__name__}")
    if not prompt:
        raise InvalidRun("the prompt is empty")
    # A character is at least a byte: a giant is refused before it is copied to be measured.
    if len(prompt) > limit or (
        matching.check_text(prompt, "the prompt") and len(prompt.encode()) > limit
    ):
        raise InvalidRun(f"the prompt is over the limit of {limit:,} bytes")


def _optional(value: object, what: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidRun(f"{what} must be a string, not {type(value).__name__}")
    matching.check_text(value, what)
    if len(value) > settings.MAX_FIELD:
        raise InvalidRun(f"{what} is over the limit of {settings.MAX_FIELD:,} characters")
    return value


def add_many(store: Store, requests: list[Request], clock_text: Callable[[], str]) -> list[Run]:
    """Insert runs in one transaction."""
    if requests and all(request.is_plain for request in requests):
        with suppress(_NotAllError, InvalidRun):
            return _add_all(store, requests, clock_text)
    return _add_each(store, requests, clock_text)


class _NotAllError(Exception):
    """An id that was made up is there already, so nothing is added."""


@again
def _add_all(store: Store, requests: list[Request], clock_text: Callable[[], str]) -> list[Run]:
    """Insert runs that start sessions of their own, by the same few statements for any number."""
    with store.one_statement():
        now = clock_text()
        rows = [
            _values(request, ids.new_session_id(), RunType.START_SESSION, at)
            for request, at in zip(requests, _moments(now, len(requests)), strict=True)
        ]
        if store.engine.writes_in_one:
            store.change_listed(statements.NEW_RUNS, rows)
        else:
            for statement in (statements.INSERT_SESSION, statements.INSERT_RUN):
                if store.change_many(statement, rows) != len(rows):
                    raise _NotAllError
            first = {"status": Status.PENDING.value, "actor": Actor.CALLER.value, "detail": None}
            events = [{"run_id": row["run_id"], "at": row["created_at"], **first} for row in rows]
            store.change_many(statements.INSERT_EVENT, events)
        store.wake((Wake.WORK,))
    return [_as_run(row) for row in rows]


def _moments(now: str, number: int) -> Iterator[str]:
    """The times of a batch from now on.

    Runs are served in the order of their times: a microsecond apart, a batch is served as it was
    given, and not in the order of its random ids.
    """
    yield now
    if number > 1:
        first = clock.from_text(now)
        for index in range(1, number):
            yield clock.to_text(first + timedelta(microseconds=index))


@again
def _add_each(store: Store, requests: list[Request], clock_text: Callable[[], str]) -> list[Run]:
    with store.transaction():
        lock_sessions(store, [one.session_id for one in requests if one.session_id is not None])
        moments = list(_moments(clock_text(), len(requests)))
        added: dict[int, Run] = {}
        # Given ids are inserted in one order, for two batches of the same ids wait for each other.
        for index in sorted(range(len(requests)), key=lambda at: requests[at].run_id or ""):
            added[index] = add(store, requests[index], now=moments[index])
        return [added[index] for index in range(len(requests))]


def add(store: Store, request: Request, *, now: str, actor: Actor = Actor.CALLER) -> Run:
    """Insert a run, and the session that it starts unless it resumes one.

    The same run_id with the same content returns the run that is there already. Raises
    SessionNotFound, or InvalidRun for another content under the same run_id.
    """
    with store.transaction():
        if request.run_id is not None and (found := find(store, request.run_id)) is not None:
            return _same(store, found, request)
        if request.session_id is not None:
            # A session before its parent, as whoever ends a run of it locks them.
            session = _lock_session(store, request.session_id)
            _limit(store, request, session)
            request = _inherit(request, session)
            return _insert(store, request, session.session_id, RunType.RESUME_SESSION, now, actor)
        stored = _limit(store, request, None)
        session_id = _add_session(store, request, now)
        if stored != NONE:
            _store_limits(store, session_id, stored)
        run = _insert(store, request, session_id, RunType.START_SESSION, now, actor)
        if run.session_id != session_id:  # another process had the same run_id an instant before
            store.change(statements.DELETE_EMPTY_SESSION, session_id=session_id)
        return run


@again
def retry(store: Store, run_id: str, *, now: str, actor: Actor) -> Run:
    """Insert a new run with the content of one that has ended, in the same session.

    Raises RunNotFound, or IllegalMove for a run that has not ended.
    """
    with store.transaction():
        old = find(store, run_id)
        if old is None:
            raise RunNotFound(f"run {run_id} does not exist")
        if old.status not in TERMINAL:
            raise IllegalMove(f"run {run_id} is {old.status}; only one that has ended is retried")
        return attempts.make_by_hand(store, old, now=now, actor=actor)


def find(store: Store, run_id: str) -> Run | None:
    rows = store.run(statements.GET_RUN, key=run_id)
    return Run.from_row(rows[0]) if rows else None


def session_of(store: Store, session_id: str) -> Session:
    rows = store.run(statements.GET_SESSION, key=session_id)
    if not rows:
        raise SessionNotFound(f"session {session_id[:40]} does not exist")
    return Session.from_row(rows[0])


def _limit(store: Store, request: Request, resumed: Session | None) -> Limits:
    """Refuse what is over a limit of its tree; return the limits that the session is to have."""
    if request.parent_session_id is not None:
        _keep_parent(store, request.parent_session_id)
    parent_id = request.parent_session_id
    if parent_id is None and resumed is not None:
        parent_id = resumed.parent_session_id
    if parent_id is not None:
        limits.check_child(store, parent_id, request.limits, request.ceiling, resumed)
    if resumed is None:
        return request.limits if parent_id else limits.of_root(request.limits, request.ceiling)
    if request.limits != NONE:
        narrowed = limits.of_resumed(resumed, request.limits)
        _store_limits(store, resumed.session_id, narrowed)
    return NONE


def _store_limits(store: Store, session_id: str, stored: Limits) -> None:
    store.change(statements_family.SET_LIMITS, session_id=session_id, tree_limits=stored.as_text())


def _keep_parent(store: Store, session_id: str) -> None:
    """Raise SessionNotFound, or have the session stay until the run that names it is there."""
    if not store.run(statements.KEEP_SESSION, session_id=session_id):
        raise SessionNotFound(f"session {session_id[:40]} does not exist")


def lock_sessions(store: Store, session_ids: Iterable[str]) -> None:
    """Lock several sessions in one order, before runs of them are changed one after the other."""
    wanted = sorted(set(session_ids))
    if len(wanted) > 1:
        store.lock(statements.LOCK_SESSIONS, session_ids=store.engine.as_list(wanted))


def _lock_session(store: Store, session_id: str) -> Session:
    """Return a session that nobody deletes or binds before the run is in it."""
    rows = store.run(statements.LOCK_SESSION, session_id=session_id)
    if not rows:
        raise SessionNotFound(f"session {session_id[:40]} does not exist")
    return Session.from_row(rows[0])


def _same(store: Store, found: Run, request: Request) -> Run:
    """Return the run that is there, if it is what the request asks for."""
    resumes = request.session_id is not None
    given = {
        "session_id": request.session_id or found.session_id,
        "type": (RunType.RESUME_SESSION if resumes else RunType.START_SESSION).value,
        "agent_name": request.agent_name or (found.agent_name if resumes else None),
        "project_dir": request.project_dir or (found.project_dir if resumes else None),
        "parent_session_id": request.parent_session_id
        or (found.parent_session_id if resumes and _is_callback(request) else None),
        "execution_mode": request.execution_mode,
        "prompt": request.prompt,
        "priority": request.priority,
        "timeout_at": _timeout_at(request, found.created_at),
    }
    different = [name for name, value in given.items() if getattr(found, name) != value]
    had = matching.canonical(matching.parse(found.demands))
    # The session's home was added to them, at once or when another of its runs has bound it.
    home = session_of(store, found.session_id).home()
    asked = [request.demands, matching.both(home, request.demands)]
    if had not in map(matching.canonical, asked):
        different.append("demands")
    if different and _has_only_moved(store, found, request, different):
        return found
    if different:
        raise InvalidRun(
            f"run {found.run_id} exists already with another {' and '.join(different)}"
        )
    return found


def _has_only_moved(store: Store, found: Run, request: Request, different: list[str]) -> bool:
    """Whether a run differs from a request only by the place that its session has moved to."""
    had, asked = (
        matching.canonical({key: one[key] for key in one if key not in matching.PLACE})
        for one in (matching.parse(found.demands), request.demands)
    )
    return (
        {"demands", "project_dir"}.issuperset(different)
        and had == asked
        and homes.has_followed(store, found.run_id)
    )


def _timeout_at(request: Request, created_at: str) -> str | None:
    return None if request.timeout is None else clock.shift(created_at, request.timeout)


def _inherit(request: Request, session: Session) -> Request:
    """Return the request with what a run takes over from the session that it resumes."""
    # Else there would be nobody to tell.
    inherited = session.parent_session_id if _is_callback(request) else None
    return request._replace(
        agent_name=request.agent_name or session.agent_name,
        project_dir=request.project_dir or session.project_dir,
        demands=matching.merge(session.home(), request.demands),
        parent_session_id=request.parent_session_id or inherited,
    )


def _is_callback(request: Request) -> bool:
    return request.execution_mode == ExecutionMode.ASYNC_CALLBACK.value


def _add_session(store: Store, request: Request, now: str) -> str:
    while True:
        session_id = ids.new_session_id()
        added = store.change(
            statements.INSERT_SESSION,
            session_id=session_id,
            created_at=now,
            agent_name=request.agent_name,
            project_dir=request.project_dir,
            parent_session_id=request.parent_session_id,
            execution_mode=request.execution_mode,
        )
        if added:  # else 48 random bits have met an id that exists
            return session_id


def _insert(
    store: Store,
    request: Request,
    session_id: str,
    kind: RunType,
    now: str,
    actor: Actor,
) -> Run:
    values = _values(request, session_id, kind, now)
    while not store.change(statements.INSERT_RUN, **values):
        if request.run_id is not None and (found := find(store, request.run_id)) is not None:
            return _same(store, found, request)
        values["run_id"] = ids.new_run_id()
    run_id = values["run_id"]
    moves.record(store, moves.ENQUEUE, run_id, now=now, actor=actor)
    if request.terms.retries:
        attempts.begin(store, run_id, request.terms)
        values["attempt"] = 1
    return _as_run(values)


def _values(request: Request, session_id: str, kind: RunType, now: str) -> dict[str, Any]:
    return {
        "run_id": request.run_id or ids.new_run_id(),
        "session_id": session_id,
        "type": kind.value,
        "agent_name": request.agent_name,
        "prompt": request.prompt,
        "project_dir": request.project_dir,
        "parent_session_id": request.parent_session_id,
        "execution_mode": request.execution_mode,
        "demands": matching.canonical(request.demands) if request.demands else None,
        "created_at": now,
        "timeout_at": _timeout_at(request, now),
        "priority": request.priority,
    }


# `waiting` is the triggers' to decide and is not known here.
_KNOWN: Final = tuple(name for name in COLUMNS[Run] if name != "waiting")


def _as_run(values: dict[str, Any]) -> Run:
    values = {**values, "session": values["session_id"], "status": Status.PENDING}
    return Run.from_row([values.get(name) for name in _KNOWN], _KNOWN)
