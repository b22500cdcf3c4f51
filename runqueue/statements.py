"""Every statement of the hot path, as a Peewee expression with holes, compiled once.

A status is assigned in `_move` alone, and always with the guard that `MOVES` gives it: the rows
that the statement returns are the verdict. Statuses stand in the SQL as literals, for neither
planner uses a partial index when its condition is a parameter.

On PostgreSQL many transactions write at once. Whatever changes which run of a session is next
holds the lock of the session's row, and takes it before that of the run: so two that meet wait
for one another in one order, and none waits in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import and_
from typing import Any, Final

from peewee import JOIN, SQL, Case, NodeList, Select, Value, fn

from runqueue.database import Hole, Statement
from runqueue.engines.base import Either
from runqueue.models import Attempt, Daemon, Event, Row, Run, Runner, Session
from runqueue.states import ACTIVE, MOVES, TERMINAL, Actor, ExecutionMode, Status


def hole(name: str) -> Value:
    """A value that each call gives by this name."""
    return Value(Hole(name), converter=False)


def literal(value: str) -> SQL:
    return SQL(f"'{value}'")


def _spelled(statuses: Iterable[Status]) -> list[SQL]:
    """The statuses in the order of the enum, as the partial indexes spell them."""
    wanted = set(statuses)
    return [literal(status) for status in Status if status in wanted]


def _is_one_of(run: Any, statuses: Iterable[Status]) -> Any:
    """Whether a run has one of these statuses; may be answered by an index of statuses."""
    return run.status.in_(_spelled(statuses))


def _for_index(condition: Any, form: SQL) -> Either:
    """A condition in the form in which it stands in the partial indexes that are meant.

    Statuses come and go by thousands, so what PostgreSQL's planner last heard of how many there
    are is wrong: it would take the index of statuses for one row, and find all of them. In this
    form no index fits but those.
    """
    return Either(sqlite=condition, postgres=NodeList((condition, form)))


_OF_ALL: Final = SQL("IS TRUE")
_OF_SESSION: Final = SQL("IS NOT FALSE")


def _is_pending(run: Any, form: SQL = _OF_ALL) -> Any:
    return _for_index(run.status == literal(Status.PENDING), form)


def _is_active(run: Any, form: SQL = _OF_ALL) -> Any:
    return _for_index(_is_one_of(run, ACTIVE), form)


def hidden(column: Any) -> Any:
    """The column, in a form that no index has: for a row that is to be found by its key."""
    return NodeList((column, SQL("|| ''")), parens=True)


def _is_still(run: Any, statuses: Iterable[Status]) -> Any:
    """Likewise, for a run that is found by its key: no index fits."""
    spelled = _spelled(statuses)
    return Either(sqlite=run.status.in_(spelled), postgres=hidden(run.status).in_(spelled))


def demand_text(run: Any) -> Any:
    """The demands of a run as one comparable text: the key of the index of ready runs."""
    # PostgreSQL holds COALESCE for something that may tell others what it is given. Under
    # row-level security it would come after the policy, and no index could answer it.
    return Either(
        sqlite=fn.COALESCE(run.demands, SQL("''")),
        postgres=Case(None, [(run.demands.is_null(), SQL("''"))], run.demands),
    )


def insert(model: type[Row], *columns: str) -> Statement:
    """INSERT a row of these columns, each from the hole of its name."""
    fields = {column.name: column for column in model._meta.sorted_fields}

    def build() -> Any:
        values = {fields[name]: hole(fields[name].column_name) for name in columns}
        # Not Model.insert: it would add the defaults of columns that are not named.
        return model._meta.table.insert(
            {field.column: value for field, value in values.items()}
        ).on_conflict(action="nothing")

    return Statement(build)


# Any, for Peewee's stubs know of no clause but `FOR UPDATE`.
NO_KEY: Final[Any] = "FOR NO KEY UPDATE"
"""Keeps other writers of a row out, but not those who only refer to it."""
TO_DELETE: Final[Any] = "FOR UPDATE"
"""Keeps those out, too."""


def locked(query: Any, lock: Any = NO_KEY) -> Either:
    """The query, with its rows locked where rows can be."""
    return Either(sqlite=query, postgres=query.for_update(lock))


def _any_of(query: Any) -> Any:
    """The operand of `=` that is true for each row of a query, which is executed once.

    PostgreSQL may execute the query of an `IN` again for each row of the outer one, and then
    a LIMIT and a SKIP LOCKED give other rows each time: one such claim took 300 runs.
    """
    return fn.ANY(fn.ARRAY(query))


def _only(value: Any) -> Any:
    """The operand of `=` that is this value, for a join by a key.

    A planner that believes a table to be empty takes reading all of its key for as cheap as
    looking one up, as long as the two sides could also be merged; these cannot.
    """
    return NodeList((SQL("ANY (ARRAY["), value, SQL("])")))


def _with_session(query: Any, run: Any) -> Any:
    """The query with the session of each run beside it, and that session, to be locked."""
    session = Session.alias("session")
    return query.join(session, on=(session.session_id == _only(run.session))), session


def _exists(query: Any) -> Any:
    """Whether a query has a row, asked for each row of the outer one.

    In this form, for PostgreSQL may answer an EXISTS by reading the whole table once.
    """
    return NodeList((query.limit(SQL("1")), SQL("IS NOT NULL")), parens=True)


def this_run() -> Any:
    """The run of the hole `run_id`; where rows are locked, with its session locked first."""
    this = Run.alias("this")
    query, session = _with_session(this.select(this.run_id), this)
    query = query.where(this.run_id == hole("run_id")).for_update(NO_KEY, of=session)
    return Run.run_id == Either(sqlite=hole("run_id"), postgres=query)


def get(model: type[Row]) -> Statement:
    """SELECT one row by its primary key, hole `key`."""
    return Statement(lambda: model.select().where(model._meta.primary_key == hole("key")))


SESSION_COLUMNS: Final = (
    *("session_id", "created_at", "agent_name", "project_dir", "parent_session", "execution_mode"),
)
RUN_COLUMNS: Final = (
    *("run_id", "session", "type", "agent_name", "prompt", "project_dir", "parent_session_id"),
    *("execution_mode", "demands", "created_at", "timeout_at", "priority"),
)
EVENT_COLUMNS: Final = ("run", "at", "status", "actor", "detail")
INSERT_SESSION: Final = insert(Session, *SESSION_COLUMNS)
INSERT_RUN: Final = insert(Run, *RUN_COLUMNS)
INSERT_EVENT: Final = insert(Event, *EVENT_COLUMNS)


def _copied(model: type[Row], columns: Sequence[str], source: Any, values: Iterable[Any]) -> Any:
    """Add a row of these columns for each row of a source, of which the values are told."""
    fields = model._meta.fields
    return model.insert_from(Select((source,), values), [fields[name] for name in columns])


def _events(source: Any, *values: Any) -> Any:
    return _copied(Event, EVENT_COLUMNS, source, values)


def _texts(name: str) -> SQL:
    """An array of texts, as one value."""
    return SQL("%s::text[]", [Hole(name)])


def _insert_events() -> Any:
    """The same event of each run that is listed in `run_ids`."""
    listed = Either(
        sqlite=fn.json_each(hole("run_ids")),
        postgres=fn.unnest(_texts("run_ids")),
    )
    run_id = Either(sqlite=SQL("listed.value"), postgres=SQL("listed"))
    source = listed.alias("listed")
    return _events(source, run_id, *(hole(name) for name in EVENT_COLUMNS[1:]))


INSERT_EVENTS: Final = Statement(_insert_events)


def _listed(*names: str) -> Any:
    """Rows that are given as one array for each of their columns, in the hole of its name."""
    arrays = [
        SQL("%s::int[]", [Hole(name)]) if name == "priority" else _texts(name) for name in names
    ]
    # All of them. Of a limit that is not known the server expects a tenth, which is one row; with
    # ten it would rather read all of a table that is small when the plan is made.
    every = SQL("(SELECT 9223372036854775807)")
    return Select((fn.unnest(*arrays),), (SQL("*"),)).limit(every).cte("listed", columns=names)


def _new_runs() -> Any:
    """Add runs, the sessions that they start and their events: all of them, or none.

    An id that is there already is an error here, for with an ON CONFLICT the others would be added.
    """
    run, session = (
        [model._meta.fields[name].column_name for name in names]
        for model, names in ((Run, RUN_COLUMNS), (Session, SESSION_COLUMNS))
    )
    listed = _listed(*run)
    sessions = _copied(
        Session, SESSION_COLUMNS, listed, [getattr(listed.c, name) for name in session]
    )
    runs = _copied(Run, RUN_COLUMNS, listed, [getattr(listed.c, name) for name in run])
    event = (listed.c.run_id, listed.c.created_at, literal(Status.PENDING), literal(Actor.CALLER))
    return _events(listed, *event, SQL("NULL")).with_cte(
        listed, sessions.cte("new_session"), runs.cte("new_run")
    )


NEW_RUNS: Final = Statement(_new_runs)
"""Where a statement can hold several writes: plain runs, each column an array."""


INSERT_RUNNER: Final = insert(
    Runner,
    *("runner_id", "incarnation", "hostname", "project_dir", "executor_type", "tags"),
    *("properties", "registered_at", "heartbeat_at", "lease_until"),
)
INSERT_DAEMON: Final = insert(
    Daemon, "daemon_id", "hostname", "started_at", "tick_at", "alive_until", "lease"
)

GET_RUN: Final = get(Run)
GET_SESSION: Final = get(Session)

RUN_STATE: Final = Statement(
    lambda: Run.select(
        Run.status, Run.runner_id, Run.claimed_at, Run.result, Run.error, Run.session
    ).where(Run.run_id == hole("run_id"))
)
RUN_STATUS: Final = Statement(lambda: Run.select(Run.status).where(Run.run_id == hole("run_id")))
EVENTS: Final = Statement(
    lambda: (
        Event.select()
        .where(Event.run == hole("run_id"))
        # Of an empty table PostgreSQL would read the primary key, which has this order.
        .order_by(Either(sqlite=Event.event_id, postgres=Event.event_id + 0))
    )
)


def _keep_late() -> Any:
    """Add an event that enters no status: the run keeps the one that it has."""
    late = Run.select(
        Run.run_id, hole("at"), Run.status, literal(Actor.RUNNER), hole("detail")
    ).where(Run.run_id == hole("run_id"))
    return Event.insert_from(late, [getattr(Event, name) for name in EVENT_COLUMNS])


KEEP_LATE: Final = Statement(_keep_late)


def _move(name: str, where: Any, *returning: Any, **sets: Any) -> Any:
    """The guarded UPDATE of one move: the only place that assigns a status."""
    move = MOVES[name]
    values: dict[Any, Any] = {Run.status: literal(move.target)}
    if move.stamp:
        values[getattr(Run, move.stamp)] = hole("now")
    values.update({getattr(Run, column): value for column, value in sets.items()})
    update = Run.update(values).where(_is_still(Run, move.sources), where)
    return update.returning(*returning) if returning else update


def _told_by(name: str, *columns: Any) -> tuple[Any, ...]:
    """What a move returns: of an end also, at last, what says whether something follows it.

    As it stands in the row: SQLite 3.40 answers an IS NULL in RETURNING wrongly.
    """
    return (*columns, *_FOLLOWED) if MOVES[name].target in TERMINAL else columns


_FOLLOWED: Final = (Run.execution_mode, Run.parent_session_id, Run.attempt, Run.callback_run_id)


def _by_anyone(name: str, **sets: Any) -> Statement:
    told = _told_by(name, Run.session)
    return Statement(lambda: _move(name, Run.run_id == hole("run_id"), *told, **sets))


def _fence() -> Any:
    runner_id = hole("runner_id")
    # A plan that was made for an empty table and kept would read all runs of the runner.
    is_its_own = Either(
        sqlite=(Run.runner_id == runner_id), postgres=(hidden(Run.runner_id) == runner_id)
    )
    return is_its_own & (Run.claimed_at == hole("claimed_at"))


def _with_event(name: str, moved: Any, detail: Any = SQL("NULL")) -> Any:  # noqa: B008
    """The events of an owner's moves, whose runs another part of the statement returns."""
    move = MOVES[name]
    of_all = (hole("now"), literal(move.target), literal(Actor.RUNNER), detail)
    return _events(moved, moved.c.run_id, *of_all)


def _told(name: str, update: Any, *columns: Any, **detail: Any) -> Either:
    """An owner's move that returns these columns, with its event where a statement can hold both.

    Elsewhere the event is a statement of its own.
    """
    moved = update.returning(*dict.fromkeys((*columns, Run.run_id))).cte("moved")
    event = _with_event(name, moved, **detail).cte("event")
    returned = [getattr(moved.c, column.column_name) for column in columns]
    return Either(
        sqlite=update.returning(*columns),
        postgres=Select((moved,), returned).with_cte(moved, event),
    )


def _by_owner(name: str, *conditions: Callable[[], Any], **sets: Any) -> Statement:
    told = _told_by(name, Run.session)

    def build() -> Any:
        where = reduce(and_, (condition() for condition in (this_run, _fence, *conditions)))
        return _told(name, _move(name, where, **sets), *told)

    return Statement(build)


def _is_followed_by_nothing() -> Any:
    """Whether all that is to be done at an end is to record it."""
    return Run.attempt.is_null() & ~_is_child(Run)


def _is_child(run: Any) -> Any:
    """Whether a session is to be told of the run's end."""
    is_asked_for = run.execution_mode == literal(ExecutionMode.ASYNC_CALLBACK)
    return is_asked_for & run.parent_session_id.is_null(False)


def _gives_no_home() -> Any:
    """Whether a start has no run to give its session's home to, as far as it sees.

    The session, hole `session_id`, has one already, or no run waits in it.
    """
    session = Session.alias("home")
    home = session.select(session.hostname).where(session.session_id == hole("session_id"))
    waits = Run.alias("waits")
    pending = waits.select(waits.run_id).where(
        waits.session == hole("session_id"), _is_pending(waits, _OF_SESSION)
    )
    return _exists(home) | ~_exists(pending)


def _start(*conditions: Any) -> Any:
    """Begin; where a statement can hold several writes, the session is bound or resumed, too.

    There it also returns whether it was bound.
    """
    update = _move("start", reduce(and_, (this_run(), _fence(), *conditions)))
    moved = update.returning(Run.run_id, Run.session).cte("moved")
    is_its = Session.session_id == Select((moved,), (moved.c.session_id,))
    bound = _bind(is_its).returning(Session.session_id).cte("bound")
    resumed = _resume(is_its & Session.hostname.is_null(False)).cte("resumed")
    count = Select((bound,), (fn.COUNT(SQL("*")),))
    parts = (moved, _with_event("start", moved).cte("event"), bound, resumed)
    return Either(
        sqlite=update.returning(Run.session),
        postgres=Select((moved,), (moved.c.session_id, count)).with_cte(*parts),
    )


def _bind(where: Any) -> Any:
    """Give a session its home, once: the place of the runner that first starts a run of it."""
    return Session.update(
        {
            Session.hostname: hole("hostname"),
            Session.executor_type: hole("executor_type"),
            Session.home_dir: hole("project_dir"),
            Session.project_dir: fn.COALESCE(Session.project_dir, hole("project_dir")),
            Session.last_resumed_at: hole("now"),
        }
    ).where(where, Session.hostname.is_null())


def _resume(where: Any) -> Any:
    return Session.update({Session.last_resumed_at: hole("now")}).where(where)


def _by_owner_of_many(name: str, *sets: str) -> Statement:
    """Likewise for many claims, whose sessions are locked; how many it changed is told.

    On SQLite it is executed for each; elsewhere each hole is an array, and the events are added.
    """

    def build() -> Any:
        given = {column: hole(column) for column in sets}
        single = _move(name, (Run.run_id == hole("run_id")) & _fence(), **given)
        listed = _listed("run_id", "claimed_at", *sets)
        is_its_own = (
            (Run.run_id == listed.c.run_id)
            & (Run.claimed_at == listed.c.claimed_at)
            & (hidden(Run.runner_id) == hole("runner_id"))
        )
        given = {column: getattr(listed.c, column) for column in sets}
        moved = _move(name, is_its_own, **given).from_(listed).returning(Run.run_id).cte("moved")
        return Either(sqlite=single, postgres=_with_event(name, moved).with_cte(listed, moved))

    return Statement(build)


_UNOWNED: Final = {"runner_id": None, "claimed_at": None}

OWNER_MOVES: Final = {
    "start": Statement(_start),
    "complete": _by_owner("complete", result=hole("result")),
    "fail": _by_owner("fail", error=hole("error")),
    "confirm": _by_owner("confirm"),
    "release": _by_owner("release", **_UNOWNED),
}
LONE_MOVES: Final = {
    **OWNER_MOVES,
    "start": Statement(lambda: _start(_gives_no_home())),
    "complete": _by_owner("complete", _is_followed_by_nothing, result=hole("result")),
    "fail": _by_owner("fail", _is_followed_by_nothing, error=hole("error")),
    "confirm": _by_owner("confirm", _is_followed_by_nothing),
}
"""Likewise, where the statement is all of the transaction: nothing follows it."""
START_MANY: Final = _by_owner_of_many("start")
COMPLETE_MANY: Final = _by_owner_of_many("complete", "result")
FREE_MOVES: Final = {
    "stop": _by_anyone("stop"),
    "cancel": _by_anyone("cancel"),
    "release": _by_anyone("release", **_UNOWNED),
}


def _is_ready(run: Any) -> Any:
    return (
        _is_pending(run)
        & (run.waiting == SQL("0"))
        & ((run.timeout_at > hole("now")) | run.timeout_at.is_null())
    )


def _is_still_ready(run: Any) -> Any:
    """Likewise, for a run that is found by its key: no index fits."""
    return (
        _is_still(run, (Status.PENDING,))
        & (run.waiting + SQL("0") == SQL("0"))
        & ((run.timeout_at > hole("now")) | run.timeout_at.is_null())
    )


def _first_ready() -> Any:
    """The first ready run among those whose demand text is listed in `texts`.

    One seek of the index of ready runs per text finds the oldest of each, and the best of
    those is taken: the cost does not depend on how many runs wait, or for whom. By SQLite's own
    number of its row, which every index has, it is found without the index of ids.
    """
    text = fn.json_each(hole("texts")).alias("text")
    run, best = Run.alias("run"), Run.alias("best")
    oldest = (
        run.select(SQL("run.rowid"))
        .where(_is_ready(run), demand_text(run) == SQL("text.value"))
        .order_by(run.priority.desc(), run.created_at, run.run_id)
        .limit(SQL("1"))
    )
    return (
        Select((text,), (best.run_id,))
        .join(best, on=(SQL("best.rowid") == oldest))
        .order_by(best.priority.desc(), best.created_at, best.run_id)
        .limit(SQL("1"))
    )


def _first_unlocked(depth: SQL, most: SQL) -> Any:
    """Up to `limit` of the first ready runs that nobody else is changing, locked.

    The first `depth` runs of each text are looked at, for others may hold the first ones. The
    first of all of these, up to `most`, are locked in a query outside, which looks again whether
    what it locked is ready: to find and to lock some of each text would cost more than the rest.
    """
    text = fn.unnest(_texts("texts")).alias("text")
    one, run = Run.alias("one"), Run.alias("run")
    first = (
        one.select(one.run_id, one.priority, one.created_at)
        .where(_is_ready(one), demand_text(one) == SQL("text"))
        .order_by(one.priority.desc(), one.created_at, one.run_id)
        .limit(depth)
        .alias("first")
    )
    candidates = (
        Select((text,), (first.c.run_id, first.c.priority, first.c.created_at, SQL("text")))
        .join(first, JOIN.LATERAL, on=SQL("true"))
        .order_by(first.c.priority.desc(), first.c.created_at, first.c.run_id)
        .limit(most)
        .alias("candidate")
    )
    # In this order, for it is the one in which they are joined: the candidates first.
    query = Select((candidates,), (run.run_id,)).join(
        run, on=(run.run_id == _only(candidates.c.run_id))
    )
    query, session = _with_session(query, run)
    return (
        # Its demands may have been changed while it was looked for: its session's home was moved.
        query.where(_is_still_ready(run), hidden(demand_text(run)) == candidates.c.text)
        .order_by(candidates.c.priority.desc(), candidates.c.created_at, candidates.c.run_id)
        .limit(hole("limit"))
        .for_update(NO_KEY, of=(run, session), skip_locked=True)
    )


def _is_online() -> Any:
    """Whether the runner may claim: it is registered as this process, and not draining."""
    state = Runner.select(Runner.state).where(
        Runner.runner_id == hole("runner_id"), Runner.incarnation == hole("incarnation")
    )
    return state == literal("online")


def _claim(depth: SQL, most: SQL) -> Any:
    """Take a ready run whose demand text is listed in `texts`; where rows are locked, `limit`."""
    pick = Either(sqlite=_first_ready(), postgres=_any_of(_first_unlocked(depth, most)))
    # A run that somebody set back to pending by hand begins anew.
    afresh = {"error": None, "result": None, "started_at": None, "completed_at": None}
    columns = [getattr(Run, name) for name in CLAIM_COLUMNS]
    is_picked = (Run.run_id == pick) & _is_online()
    update = _move("claim", is_picked, runner_id=hole("runner_id"), **afresh)
    return _told("claim", update, *columns, detail=hole("runner_id"))


CLAIM_COLUMNS: Final = tuple(
    field.name for field in Run._meta.sorted_fields if field.name != "result"
)
# Literals, for a plan that is made for any depth reads the whole table.
CLAIMS: Final = {
    1: Statement(lambda: _claim(SQL("1"), SQL("16"))),
    4: Statement(lambda: _claim(SQL("4"), SQL("16"))),
    16: Statement(lambda: _claim(SQL("16"), SQL("64"))),
    64: Statement(lambda: _claim(SQL("64"), SQL("256"))),
    1024: Statement(lambda: _claim(SQL("1024"), SQL("4096"))),
}
"""The claim, by how many runs of each text it looks at."""


def _demand_texts() -> Any:
    """The distinct demand texts of ready runs, by skipping through their index."""
    first = Run.alias("first")
    after = Run.alias("after")

    def seek(run: Any, *where: Any) -> Any:
        return (
            run.select(demand_text(run).alias("text"))
            .where(_is_pending(run), run.waiting == SQL("0"), *where)
            .order_by(demand_text(run))
            .limit(SQL("1"))
        )

    # A subselect, for SQLite takes no ORDER BY in the first part of a UNION.
    start = Select((seek(first).alias("start"),), (SQL("start.text"),))
    texts = start.cte("texts", recursive=True, columns=("text",))
    following = seek(after, demand_text(after) > texts.c.text)
    step = Select((texts,), (following,)).where(texts.c.text.is_null(False))
    texts = start.union_all(step).cte("texts", recursive=True, columns=("text",))
    return Select((texts,), (texts.c.text,)).where(texts.c.text.is_null(False)).with_cte(texts)


DEMAND_TEXTS: Final = Statement(_demand_texts)


BIND_SESSION: Final = Statement(lambda: _bind(Session.session_id == hole("session_id")))
RESUME_SESSION: Final = Statement(lambda: _resume(Session.session_id == hole("session_id")))
LOCK_SESSION: Final = Statement(
    lambda: locked(Session.select().where(Session.session_id == hole("session_id")))
)
LOCK_SESSION_TO_DELETE: Final = Statement(
    lambda: locked(Session.select().where(Session.session_id == hole("session_id")), "FOR UPDATE")
)


KEEP_SESSION: Final = Statement(
    lambda: locked(
        Session.select(Session.session_id).where(Session.session_id == hole("session_id")),
        "FOR KEY SHARE",
    )
)
"""As a foreign key does: nobody deletes the session before the transaction ends."""


def _sessions(lock: Any, **options: Any) -> Statement:
    def build() -> Any:
        listed = Select((fn.unnest(_texts("session_ids")).alias("listed"),), (SQL("listed"),))
        # In one order, so that two who lock several do not wait for each other.
        return (
            Session.select(Session.session_id)
            .where(Session.session_id == _any_of(listed))
            .order_by(Session.session_id)
            .for_update(lock, **options)
        )

    return Statement(build)


LOCK_SESSIONS: Final = _sessions(NO_KEY)
"""For `Store.lock`: the sessions listed in `session_ids`."""
LOCK_SESSIONS_TO_DELETE: Final = _sessions(TO_DELETE, skip_locked=True)
"""Likewise; those that somebody is using are left out."""
LOCK_SESSION_OF_RUN: Final = Statement(
    lambda: (
        Session.select(Session.session_id)
        .where(Session.session_id == Run.select(Run.session).where(Run.run_id == hole("run_id")))
        .for_update(NO_KEY)
    )
)
"""Likewise: the session of a run."""
LOCK_SESSIONS_OF_RUNNER: Final = Statement(
    lambda: (
        Session.select(Session.session_id)
        .where(
            Session.session_id
            == _any_of(
                Run.select(Run.session).where(Run.runner_id == hole("runner_id"), _is_active(Run))
            )
        )
        .order_by(Session.session_id)
        .for_update(NO_KEY)
    )
)
"""Likewise: the sessions that a runner has a run of."""
PENDING_OF_SESSION: Final = Statement(
    lambda: Run.select(Run.run_id, Run.demands).where(
        Run.session == hole("session_id"), _is_pending(Run, _OF_SESSION)
    )
)


def is_listed(column: Any, name: str = "session_ids") -> Any:
    """Whether a column has one of the texts in the hole `name`."""
    listed = fn.json_each(hole(name)).alias("listed")
    texts = fn.unnest(_texts(name)).alias("listed")
    return Either(
        sqlite=column.in_(Select((listed,), (SQL("listed.value"),))),
        postgres=(column == _any_of(Select((texts,), (SQL("listed"),)))),
    )


BIND_SESSIONS: Final = Statement(
    lambda: _bind(is_listed(Session.session_id)).returning(Session.session_id)
)
"""Those listed in `session_ids` that have no home yet."""
RESUME_SESSIONS: Final = Statement(lambda: _resume(is_listed(Session.session_id)))


def _pending_of_sessions() -> Any:
    listed, run = fn.json_each(hole("session_ids")).alias("listed"), Run.alias("run")
    is_pending = _is_pending(run, _OF_SESSION)
    columns = (run.run_id, run.demands)
    return Either(
        # CROSS, or SQLite begins with all pending runs.
        sqlite=Select((listed,), columns)
        .join(run, JOIN.CROSS)
        .where(run.session == SQL("listed.value"), is_pending),
        postgres=run.select(*columns).where(is_listed(run.session), is_pending),
    )


PENDING_OF_SESSIONS: Final = Statement(_pending_of_sessions)
SET_DEMANDS: Final = Statement(
    lambda: Run.update({Run.demands: hole("demands")}).where(
        Run.run_id == hole("run_id"), _is_still(Run, (Status.PENDING,))
    )
)

BEAT: Final = Statement(
    lambda: Runner.update(
        {Runner.heartbeat_at: hole("now"), Runner.lease_until: hole("lease_until")}
    ).where(Runner.runner_id == hole("runner_id"), Runner.incarnation == hole("incarnation"))
)
LEASE_WANTED: Final = Statement(
    lambda: Daemon.select(fn.MIN(Daemon.lease)).where(Daemon.alive_until > hole("now"))
)
RUNNER_STATE: Final = Statement(
    lambda: Runner.select(Runner.state, Runner.lease_until).where(
        Runner.runner_id == hole("runner_id"), Runner.incarnation == hole("incarnation")
    )
)
OWNED: Final = Statement(
    lambda: Run.select(Run.run_id, Run.claimed_at, Run.status).where(
        Run.runner_id == hole("runner_id"), _is_active(Run)
    )
)
NOT_STARTED: Final = Statement(
    lambda: Run.select(*(getattr(Run, name) for name in CLAIM_COLUMNS)).where(
        Run.runner_id == hole("runner_id"),
        _is_active(Run),
        _is_still(Run, (Status.CLAIMED, Status.STOPPING)),
        Run.started_at.is_null(),
        Run.claimed_at.is_null(False),
    )
)
"""The claims of a runner that it has not begun to execute."""
TAKE_OVER: Final = Statement(
    lambda: Runner.update(
        {
            getattr(Runner, name): hole(name)
            for name in ("incarnation", "hostname", "project_dir", "executor_type", "tags")
        }
        | {
            Runner.properties: hole("properties"),
            Runner.registered_at: hole("registered_at"),
            Runner.heartbeat_at: hole("heartbeat_at"),
            Runner.lease_until: hole("lease_until"),
            Runner.state: literal("online"),
        }
    ).where(Runner.runner_id == hole("runner_id"))
)
LOCK_RUNNER: Final = Statement(
    lambda: locked(Runner.select().where(Runner.runner_id == hole("runner_id")))
)
DRAIN_RUNNER: Final = Statement(
    lambda: Runner.update({Runner.state: literal("draining")}).where(
        Runner.runner_id == hole("runner_id")
    )
)
DELETE_RUNNER: Final = Statement(
    lambda: Runner.delete().where(
        Runner.runner_id == hole("runner_id"), Runner.incarnation == hole("incarnation")
    )
)


def _is_busy(run: Any) -> Any:
    active = Run.alias("active")
    return _exists(
        active.select(SQL("1")).where(
            active.session == run.session, _is_active(active, _OF_SESSION)
        )
    )


def _first_of(run: Any) -> Any:
    """The pending run of the session of `run` that is to be claimed next."""
    first = Run.alias("first")
    return (
        first.select(first.run_id)
        .where(first.session == run.session, _is_pending(first, _OF_SESSION))
        .order_by(first.priority.desc(), first.created_at, first.run_id)
        .limit(SQL("1"))
    )


def _is_stuck(run: Any) -> Any:
    """Marked as waiting though no other run of its session goes first."""
    return (
        _is_pending(run, _OF_SESSION)
        & (run.waiting == SQL("1"))
        & ~_is_busy(run)
        & (run.run_id == _first_of(run))
    )


def _is_ahead(run: Any) -> Any:
    """Not marked as waiting though another run of its session goes first."""
    is_unmarked = _is_pending(run) & (run.waiting == SQL("0"))
    return is_unmarked & (_is_busy(run) | (run.run_id != _first_of(run)))


HEAL: Final = Statement(lambda: Select(columns=(fn.runqueue_heal(),)))
"""All of the following at once, where rows are locked; returns how many runs were wrong."""
STUCK: Final = Statement(lambda: Run.select(Run.run_id, Run.session).where(_is_stuck(Run)))
AHEAD_OF_TURN: Final = Statement(lambda: Run.select(Run.run_id, Run.session).where(_is_ahead(Run)))
UNMARK: Final = Statement(
    lambda: Run.update({Run.waiting: SQL("0")}).where(Run.run_id == hole("run_id"), _is_stuck(Run))
)
MARK: Final = Statement(
    lambda: Run.update({Run.waiting: SQL("1")}).where(Run.run_id == hole("run_id"), _is_ahead(Run))
)


def _forget_runners() -> Any:
    owned = Run.select(SQL("1")).where(Run.runner_id == Runner.runner_id, _is_active(Run))
    return Runner.delete().where(Runner.lease_until < hole("before"), ~_exists(owned))


FORGET_RUNNERS: Final = Statement(_forget_runners)
BEAT_DAEMON: Final = Statement(
    lambda: Daemon.update(
        {
            Daemon.tick_at: hole("tick_at"),
            Daemon.alive_until: hole("alive_until"),
            Daemon.lease: hole("lease"),
        }
    ).where(Daemon.daemon_id == hole("daemon_id"))
)
DELETE_DAEMON: Final = Statement(
    lambda: Daemon.delete().where(
        (Daemon.daemon_id == hole("daemon_id")) | (Daemon.alive_until < hole("long_ago"))
    )
)


def _is_gone(run: Any) -> Any:
    """The owner of a run is dead: its lease ran out, or it never registered and is silent.

    An owner that never registered (somebody wrote the claim by hand) is given one lease from
    the last thing that it is known to have done.
    """
    registered = Runner.select(SQL("1")).where(Runner.runner_id == run.runner_id)
    alive = Runner.select(SQL("1")).where(
        Runner.runner_id == run.runner_id, Runner.lease_until > hole("now")
    )
    last_sign = fn.COALESCE(run.started_at, run.claimed_at, run.created_at)
    return ~_exists(alive) & (_exists(registered) | (last_sign <= hole("lease_ago")))


def _is_grace_over(run: Any) -> Any:
    """No stop was recorded recently enough; a status written by hand has no record at all."""
    recent = Event.select(SQL("1")).where(
        Event.run == run.run_id,
        Event.status == literal(Status.STOPPING),
        Event.at > hole("grace_ago"),
        # No runner asks for a stop; the late report of a former owner is no asking.
        Event.actor != literal(Actor.RUNNER),
    )
    return ~_exists(recent)


def _is_never_started(run: Any) -> Any:
    return fn.COALESCE(run.claimed_at, run.created_at) <= hole("deadline_ago")


def _sentence(*parts: Any) -> Any:
    text = parts[0]
    for part in parts[1:]:
        text = text.concat(part)
    return text


_OWNER: Final = fn.COALESCE(Run.runner_id, literal("unknown"))


class Rescue:
    """One move that the daemon makes on the runs of dead or silent owners.

    `due` looks whether there is any, without taking the write lock; `move` makes the move on
    all of them that nobody else is changing; `of_runner` makes it on the runs of one runner,
    whatever its lease, for the reason that its caller gives.
    """

    def __init__(self, name: str, condition: Any, **sets: Any) -> None:
        self.name = name
        known = {"error": hole("error")} if "error" in sets else sets
        self.due = Statement(lambda: self._those(Run, condition(Run)).limit(SQL("1")))
        self.move = Statement(lambda: _move(name, self._due(condition), *self._returned(), **sets))
        is_its = (Run.runner_id == hole("runner_id")) & _is_active(Run)
        self.of_runner = Statement(lambda: _move(name, is_its, *self._returned(), **known))

    def _those(self, run: Any, condition: Any) -> Any:
        sources = MOVES[self.name].sources
        return run.select(run.run_id).where(_is_one_of(run, sources), condition)

    def _due(self, condition: Any) -> Any:
        due = Run.alias("due")
        query, session = _with_session(due.select(due.run_id), due)
        query = query.where(_is_one_of(due, MOVES[self.name].sources), condition(due))
        query = query.for_update(NO_KEY, of=(due, session), skip_locked=True)
        return Either(sqlite=condition(Run), postgres=(Run.run_id == _any_of(query)))

    def _returned(self) -> tuple[Any, ...]:
        return _told_by(self.name, Run.run_id, Run.error)


RESCUES: Final = (
    Rescue(
        "settle",
        lambda run: _is_gone(run) | _is_grace_over(run),
        error=_sentence(literal("stop presumed, not confirmed by runner "), _OWNER),
    ),
    Rescue(
        "lose",
        _is_gone,
        error=_sentence(literal("runner "), _OWNER, literal(" was lost: its lease ran out")),
    ),
    Rescue("release", lambda run: _is_gone(run) | _is_never_started(run), **_UNOWNED),
)


def _is_due() -> Any:
    return _is_pending(Run) & (Run.timeout_at <= hole("now"))


DUE: Final = Statement(
    lambda: (
        Run.select(demand_text(Run), Run.waiting, fn.MIN(Run.run_id))
        .where(_is_due())
        .group_by(demand_text(Run), Run.waiting)
    )
)


def _expire() -> Any:
    some = Run.alias("some")
    is_due = (
        _is_pending(some)
        & (some.timeout_at <= hole("now"))
        & (demand_text(some) == hole("text"))
        & (some.waiting == hole("waiting"))
    )
    query, session = _with_session(some.select(some.run_id), some)
    batch = Either(
        sqlite=Run.run_id.in_(some.select(some.run_id).where(is_due).limit(hole("limit"))),
        postgres=Run.run_id
        == _any_of(
            query.where(is_due)
            .limit(hole("limit"))
            .for_update(NO_KEY, of=(some, session), skip_locked=True)
        ),
    )
    told = _told_by("expire", Run.run_id, Run.error)
    return _move("expire", batch & _is_due(), *told, error=hole("error"))


EXPIRE: Final = Statement(_expire)

LIVE_RUNNERS: Final = Statement(
    lambda: Runner.select().where(Runner.lease_until > hole("now")).order_by(Runner.runner_id)
)
LIVE_DAEMONS: Final = Statement(
    lambda: Daemon.select().where(Daemon.alive_until > hole("now")).order_by(Daemon.daemon_id)
)
OLDEST_PENDING: Final = Statement(
    lambda: Run.select(fn.MIN(Run.created_at)).where(Run.status == literal(Status.PENDING))
)


def _prune() -> Any:
    """Delete a batch of finished runs; their events go with them."""
    old = Run.alias("old")
    batch = (
        old.select(old.run_id)
        .where(
            _is_one_of(old, TERMINAL),
            # Nothing is completed before it is created: this bound is the index's.
            old.created_at < hole("created_before"),
            fn.COALESCE(old.completed_at, old.created_at) < hole("ended_before"),
            # Nothing more follows its end.
            old.attempt.is_null() | ~_exists(_waited_for(old)),
            ~_is_child(old) | old.callback_run_id.is_null(False),
        )
        .limit(hole("limit"))
    )
    of_batch = Either(
        sqlite=Run.run_id.in_(batch),
        postgres=Run.run_id == _any_of(batch.for_update(TO_DELETE, skip_locked=True)),
    )
    return Run.delete().where(of_batch).returning(Run.session, Run.parent_session_id)


def _waited_for(run: Any) -> Any:
    # By its key, and not by reading the index of all that is waited for.
    is_due = hidden(Attempt.due_at).is_null(False)
    return Attempt.select(SQL("1")).where(Attempt.run == run.run_id, is_due)


PRUNE: Final = Statement(_prune)


def _nth_finished() -> Any:
    """When the run was added before which `newer` other finished ones were added later."""

    def newest(status: Status) -> Any:
        run = Run.alias(status.value)
        first = (
            run.select(run.created_at)
            .where(_is_one_of(run, (status,)))
            .order_by(run.created_at.desc())
            .limit(hole("newer") + SQL("1"))
            .alias(f"newest_{status.value}")
        )
        return Select((first,), (first.c.created_at,))

    first, *others = (newest(status) for status in Status if status in TERMINAL)
    for other in others:
        first = first.union_all(other)
    every = first.alias("every")
    return (
        Select((every,), (every.c.created_at,))
        .order_by(every.c.created_at.desc())
        .limit(SQL("1"))
        .offset(hole("newer"))
    )


NTH_FINISHED: Final = Statement(_nth_finished)


def _is_empty() -> Any:
    """Whether a session has no run, and will be told of the end of no child."""
    runs = Run.select(SQL("1")).where(Run.session == Session.session_id)
    child = Run.alias("child")
    children = child.select(SQL("1")).where(
        child.parent_session_id == Session.session_id,
        _is_child(child),
        child.callback_run_id.is_null() | _exists(_waited_for(child)),
    )
    return ~_exists(runs) & ~_exists(children)


DELETE_EMPTY_SESSION: Final = Statement(
    lambda: Session.delete().where(Session.session_id == hole("session_id"), _is_empty())
)
DELETE_EMPTY_SESSIONS: Final = Statement(
    lambda: Session.delete().where(is_listed(Session.session_id), _is_empty())
)
"""Likewise, of those listed in `session_ids`."""
DELETE_SESSION: Final = Statement(
    lambda: Session.delete().where(Session.session_id == hole("session_id"))
)
ACTIVE_OF_SESSION: Final = Statement(
    lambda: Run.select(Run.run_id, Run.status, Run.runner_id).where(
        Run.session == hole("session_id"), _is_active(Run, _OF_SESSION)
    )
)
FIRST_OF_SESSION: Final = Statement(
    lambda: (
        Run.select(Run.run_id)
        .where(Run.session == hole("session_id"), _is_pending(Run, _OF_SESSION))
        .order_by(Run.priority.desc(), Run.created_at, Run.run_id)
        .limit(SQL("1"))
    )
)
WAS_STARTED: Final = Statement(
    lambda: (
        Run.select(SQL("1"))
        .where(Run.session == hole("session_id"), Run.started_at.is_null(False))
        .limit(SQL("1"))
    )
)
STATUSES_OF_SESSION: Final = Statement(
    lambda: (
        Run.select(Run.status, fn.COUNT(SQL("*")), fn.MAX(Run.created_at))
        .where(Run.session == hole("session_id"))
        .group_by(Run.status)
    )
)
STATUSES_OF_SESSIONS: Final = Statement(
    lambda: (
        Run.select(Run.session, Run.status, fn.COUNT(SQL("*")), fn.MAX(Run.created_at))
        .where(is_listed(Run.session))
        .group_by(Run.session, Run.status)
    )
)
"""Likewise of those listed in `session_ids`, after the session's id."""
AHEAD: Final = Statement(
    lambda: Run.select(fn.COUNT(SQL("*"))).where(
        _is_pending(Run),
        Run.waiting == SQL("0"),
        demand_text(Run) == hole("text"),
        (Run.priority > hole("priority"))
        | ((Run.priority == hole("priority")) & (Run.created_at < hole("created_at"))),
    )
)
