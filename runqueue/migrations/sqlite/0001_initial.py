"""The first schema; a database that has the given `runs` beside a `sessions` is adopted.

Adoption rebuilds both tables (SQLite cannot add a CHECK to a table) and keeps every row and
every column that was there, so that the programs which wrote them find what they left.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone

from peewee import SqliteDatabase

from runqueue.errors import ConfigurationError

STATUSES = ("pending", "claimed", "running", "stopping", "completed", "failed", "stopped")
ACTIVE = "('claimed', 'running', 'stopping')"
TYPES = ("START_SESSION", "RESUME_SESSION")
MODES = ("sync", "async_poll", "async_callback")
GIVEN = (
    *("run_id", "session_id", "type", "agent_name", "prompt", "project_dir"),
    *("parent_session_id", "execution_mode", "demands", "status", "runner_id", "error"),
    *("created_at", "claimed_at", "started_at", "completed_at", "timeout_at"),
)
RUN_TIMES = ("created_at", "claimed_at", "started_at", "completed_at", "timeout_at")
SESSION_TIMES = ("created_at", "last_resumed_at")
TEXTS = (
    *("run_id", "session_id", "agent_name", "prompt", "project_dir", "parent_session_id"),
    *("runner_id", "error", "result"),
)
REQUIRED = ("run_id", "session_id", "type", "prompt", "created_at")


def one_of(column: str, values: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"CONSTRAINT {column}_known CHECK ({column} IN ({listed}))"


def is_time(column: str, value: str = "") -> str:
    """UTC with up to six decimals, ending in Z or +00:00; anything else would sort wrongly."""
    value = value or column
    digit = "[0-9]"
    date = f"{digit * 4}-{digit * 2}-{digit * 2}"
    shape = f"{date}T{digit * 2}:{digit * 2}:{digit * 2}"
    moment = f"substr({value}, 1, 19)"
    rest = f"replace(substr({value}, 20), '+00:00', 'Z')"
    return (
        f"CONSTRAINT {column}_utc CHECK ({column} IS NULL OR ("
        # What is on no calendar comes back as another moment, or as none. The shape comes
        # first, for 'now' is a time to strftime, and then it is not deterministic.
        f"CASE WHEN {moment} GLOB '{shape}' "
        f"THEN strftime('%Y-%m-%dT%H:%M:%S', {moment}, '+0 days') IS {moment} ELSE 0 END "
        f"AND ({rest} = 'Z' OR "
        f"({rest} GLOB '.[0-9]*Z' AND length({rest}) <= 8 "
        f"AND substr({rest}, 2, length({rest}) - 2) NOT GLOB '*[^0-9]*'))))"
    )


def is_time_or_naive(column: str) -> str:
    """Also without a zone, as programs wrote it whose table was adopted; taken for UTC."""
    has_zone = f"({column} GLOB '*Z' OR {column} GLOB '*+[0-9][0-9]:[0-9][0-9]')"
    return is_time(column, f"(CASE WHEN {has_zone} THEN {column} ELSE {column} || 'Z' END)")


def is_object(column: str) -> str:
    return (
        f"CONSTRAINT {column}_object CHECK ({column} IS NULL "
        f"OR CASE WHEN typeof({column}) = 'text' AND json_valid({column}) "
        f"THEN json_type({column}) = 'object' ELSE 0 END)"
    )


def is_text(*columns: str) -> str:
    """A column of type TEXT keeps a blob as it is, and no comparison with a text finds it."""
    checks = " AND ".join(f"typeof({column}) IN ('text', 'null')" for column in columns)
    return f",\n        CONSTRAINT {columns[0]}_text CHECK ({checks})"


def runs_table(name: str, extra: str = "") -> str:
    return f"""CREATE TABLE {name} (
        run_id TEXT NOT NULL PRIMARY KEY,
        session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
        type TEXT NOT NULL {one_of("type", TYPES)},
        agent_name TEXT,
        prompt TEXT NOT NULL,
        project_dir TEXT,
        parent_session_id TEXT,
        execution_mode TEXT NOT NULL DEFAULT 'sync' {one_of("execution_mode", MODES)},
        demands TEXT {is_object("demands")},
        status TEXT NOT NULL DEFAULT 'pending' {one_of("status", STATUSES)},
        runner_id TEXT,
        error TEXT,
        created_at TEXT NOT NULL {is_time("created_at")},
        claimed_at TEXT {is_time("claimed_at")},
        started_at TEXT {is_time("started_at")},
        completed_at TEXT {is_time("completed_at")},
        timeout_at TEXT {is_time("timeout_at")},
        priority INTEGER NOT NULL DEFAULT 0
            CONSTRAINT priority_integer CHECK (typeof(priority) = 'integer'),
        result TEXT,
        waiting INTEGER NOT NULL DEFAULT 0 CHECK (waiting IN (0, 1)){extra}{is_text(*TEXTS)})"""


def sessions_table(name: str, extra: str = "", default: str = "") -> str:
    return f"""CREATE TABLE {name} (
        session_id TEXT NOT NULL PRIMARY KEY,
        created_at TEXT NOT NULL{default} {is_time_or_naive("created_at")},
        agent_name TEXT,
        project_dir TEXT,
        parent_session_id TEXT REFERENCES sessions (session_id) ON DELETE SET NULL,
        execution_mode TEXT NOT NULL DEFAULT 'sync' {one_of("execution_mode", MODES)},
        hostname TEXT,
        executor_type TEXT,
        executor_session_id TEXT,
        last_resumed_at TEXT {is_time_or_naive("last_resumed_at")},
        home_dir TEXT{extra}{is_text("session_id", "agent_name", "project_dir", "hostname")})"""


OTHER_TABLES = (
    f"""CREATE TABLE runners (
        runner_id TEXT NOT NULL PRIMARY KEY,
        incarnation TEXT NOT NULL,
        hostname TEXT,
        project_dir TEXT,
        executor_type TEXT,
        tags TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(tags)),
        properties TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(properties)),
        registered_at TEXT NOT NULL {is_time("registered_at")},
        heartbeat_at TEXT NOT NULL {is_time("heartbeat_at")},
        state TEXT NOT NULL DEFAULT 'online' {one_of("state", ("online", "draining"))},
        lease_until TEXT NOT NULL {is_time("lease_until")})""",
    f"""CREATE TABLE run_events (
        event_id INTEGER NOT NULL PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
        at TEXT NOT NULL {is_time("at")},
        status TEXT NOT NULL {one_of("status", STATUSES)},
        actor TEXT NOT NULL,
        detail TEXT)""",
    f"""CREATE TABLE daemons (
        daemon_id TEXT NOT NULL PRIMARY KEY,
        hostname TEXT NOT NULL,
        started_at TEXT NOT NULL {is_time("started_at")},
        tick_at TEXT NOT NULL {is_time("tick_at")},
        alive_until TEXT NOT NULL {is_time("alive_until")},
        lease REAL NOT NULL)""",
)

INDEXES = {
    "idx_runs_session_id": "runs (session_id)",
    "idx_runs_status": "runs (status)",
    "idx_runs_runner_id": "runs (runner_id)",
    "idx_runs_status_created": "runs (status, created_at)",
    # A claim seeks the oldest run of each demand text that its runner can serve. The constant
    # first columns here and below let SQLite's planner prefer these to idx_runs_status_created.
    "idx_runs_ready": "runs (waiting, coalesce(demands, ''), priority DESC, created_at, run_id) "
    "WHERE status = 'pending' AND waiting = 0",
    "idx_runs_session_pending": "runs (session_id, priority DESC, created_at, run_id) "
    "WHERE status = 'pending'",
    "idx_runs_timeout": "runs (status, timeout_at) "
    "WHERE status = 'pending' AND timeout_at IS NOT NULL",
    "idx_runs_owner": f"runs (runner_id) WHERE status IN {ACTIVE}",
    "idx_run_events_run_id": "run_events (run_id, event_id)",
    "idx_sessions_parent": "sessions (parent_session_id) WHERE parent_session_id IS NOT NULL",
}
# One active run a session: two agents on one conversation would fork its history.
UNIQUE_INDEXES = {"idx_runs_one_active": f"runs (session_id) WHERE status IN {ACTIVE}"}


def order_session(session: str, run: str) -> str:
    """Statements that mark which pending run of a session may be claimed: its first, if idle.

    Only a session's first pending run can be unmarked, so looking at the run that changed and
    at the first two is enough, however many wait.
    """
    first = (
        f"SELECT run_id FROM runs WHERE session_id = {session} AND status = 'pending' "
        "ORDER BY priority DESC, created_at, run_id"
    )
    busy = f"EXISTS (SELECT 1 FROM runs WHERE session_id = {session} AND status IN {ACTIVE})"
    return f"""
        UPDATE runs SET waiting = 1 WHERE waiting = 0 AND status = 'pending'
            AND (run_id = {run} OR run_id IN ({first} LIMIT 2))
            AND session_id = {session} AND ({busy} OR run_id <> ({first} LIMIT 1));
        UPDATE runs SET waiting = 0 WHERE waiting = 1 AND status = 'pending'
            AND run_id = ({first} LIMIT 1) AND NOT {busy};"""


def pending_in(session: str, but: str = "''") -> str:
    return (
        f"EXISTS (SELECT 1 FROM runs WHERE session_id = {session} AND status = 'pending' "
        f"AND run_id <> {but})"
    )


def normal(column: str) -> str:
    rest = f"replace(replace(substr({column}, 21), '+00:00', ''), 'Z', '')"
    decimals = f"CASE WHEN substr({column}, 20, 1) = '.' THEN {rest} ELSE '' END"
    return f"substr({column}, 1, 19) || '.' || substr(({decimals}) || '000000', 1, 6) || 'Z'"


def normalise_times(table: str, key: str, when: str, columns: tuple[str, ...]) -> str:
    """A trigger that gives times written by others the 27 characters that sort and compare."""
    short = " OR ".join(f"substr(NEW.{column}, 27) <> 'Z'" for column in columns)
    sets = ", ".join(f"{column} = {normal(f'NEW.{column}')}" for column in columns)
    return (
        f"{when} ON {table} WHEN {short} "
        f"BEGIN UPDATE {table} SET {sets} WHERE {key} = NEW.{key}; END"
    )


NO_SESSION = (
    "WHEN NOT EXISTS (SELECT 1 FROM sessions WHERE session_id = NEW.session_id) "
    "BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed'); END"
)
BUSY_NEW = f"EXISTS (SELECT 1 FROM runs WHERE session_id = NEW.session_id AND status IN {ACTIVE})"

TRIGGERS = {
    # The stock shell leaves foreign keys off; these hold for every writer.
    "runs_session_insert": f"BEFORE INSERT ON runs {NO_SESSION}",
    "runs_session_update": f"BEFORE UPDATE OF session_id ON runs {NO_SESSION}",
    "sessions_rename": """BEFORE UPDATE OF session_id ON sessions
        WHEN NEW.session_id <> OLD.session_id
            AND (EXISTS (SELECT 1 FROM runs WHERE session_id = OLD.session_id)
                OR EXISTS (SELECT 1 FROM sessions WHERE parent_session_id = OLD.session_id))
        BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed'); END""",
    "runs_rename": """BEFORE UPDATE OF run_id ON runs
        WHEN NEW.run_id <> OLD.run_id
            AND EXISTS (SELECT 1 FROM run_events WHERE run_id = OLD.run_id)
        BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed'); END""",
    "sessions_delete": """AFTER DELETE ON sessions BEGIN
        DELETE FROM runs WHERE session_id = OLD.session_id;
        UPDATE sessions SET parent_session_id = NULL WHERE parent_session_id = OLD.session_id;
        END""",
    "run_events_update": "BEFORE UPDATE ON run_events "
    "BEGIN SELECT RAISE(ABORT, 'run_events is only ever added to'); END",
    "runs_delete_events": "AFTER DELETE ON runs BEGIN "
    "DELETE FROM run_events WHERE run_id = OLD.run_id; END",
    "runs_order_insert": f"""AFTER INSERT ON runs
        WHEN {pending_in("NEW.session_id", "NEW.run_id")}
            OR (NEW.status = 'pending' AND {BUSY_NEW})
        BEGIN {order_session("NEW.session_id", "NEW.run_id")} END""",
    # The first WHEN leaves out the claim of a session's first run and the moves from active to
    # active, after which nothing is to be marked.
    "runs_order_update": f"""AFTER UPDATE OF status, priority, created_at ON runs
        WHEN NOT (OLD.status = 'pending' AND OLD.waiting = 0 AND NEW.status IN {ACTIVE})
            AND NOT (OLD.status IN {ACTIVE} AND NEW.status IN {ACTIVE})
            AND {pending_in("NEW.session_id")}
        BEGIN {order_session("NEW.session_id", "NEW.run_id")} END""",
    "runs_order_move": f"""AFTER UPDATE OF session_id ON runs
        BEGIN {order_session("OLD.session_id", "NEW.run_id")}
            {order_session("NEW.session_id", "NEW.run_id")} END""",
    "runs_order_delete": f"""AFTER DELETE ON runs
        WHEN OLD.status IN ('pending', 'claimed', 'running', 'stopping')
            AND {pending_in("OLD.session_id")}
        BEGIN {order_session("OLD.session_id", "OLD.run_id")} END""",
    "runs_times_insert": normalise_times("runs", "run_id", "AFTER INSERT", RUN_TIMES),
    # Only what orders and expires runs: a trigger on the columns that every move stamps would
    # make every move slower.
    "runs_times_update": normalise_times(
        "runs",
        "run_id",
        "AFTER UPDATE OF created_at, timeout_at",
        ("created_at", "timeout_at"),
    ),
    "sessions_times_insert": normalise_times(
        "sessions", "session_id", "AFTER INSERT", SESSION_TIMES
    ),
}


def up(migrator: object, db: SqliteDatabase) -> None:
    tables = set(db.get_tables())
    if "runs" in tables:
        adopt(db, tables)
    else:
        db.execute_sql(sessions_table("sessions"))
        db.execute_sql(runs_table("runs"))
    for statement in OTHER_TABLES:
        db.execute_sql(statement)
    for name, definition in INDEXES.items():
        db.execute_sql(f"CREATE INDEX {name} ON {definition}")
    for name, definition in UNIQUE_INDEXES.items():
        db.execute_sql(f"CREATE UNIQUE INDEX {name} ON {definition}")
    if "runs" in tables:
        fail_surplus_events(db)
    for name, definition in TRIGGERS.items():
        db.execute_sql(f"CREATE TRIGGER {name} {definition}")


SURPLUS = "adopted together with a later run of the same session, which may have only one active"


def adopt(db: SqliteDatabase, tables: set[str]) -> None:
    columns = {column.name for column in db.get_columns("runs")}
    for name in GIVEN:
        if name not in columns:
            raise ConfigurationError(f"the table runs of this database has no column {name}")
    if "sessions" not in tables:
        raise ConfigurationError("this database has a table runs but no table sessions")
    if "session_id" not in {column.name for column in db.get_columns("sessions")}:
        raise ConfigurationError("the table sessions of this database has no column session_id")
    for table in ("runs", "sessions"):
        for _, name, *_, hidden in db.execute_sql(f"PRAGMA table_xinfo({table})").fetchall():
            if hidden:
                raise ConfigurationError(
                    f"the table {table} of this database has the generated column {name}; "
                    "drop it, for it cannot be kept"
                )
    for name in ("runners", "run_events", "daemons"):
        if name in tables:
            raise ConfigurationError(f"this database has a table {name} that is not runqueue's")
    kept = db.execute_sql(
        "SELECT type, name, sql FROM sqlite_master WHERE tbl_name IN ('runs', 'sessions') "
        "AND type IN ('index', 'trigger') AND sql IS NOT NULL"
    ).fetchall()
    # Renames must not rewrite other tables' references, nor fail over views, meanwhile.
    db.execute_sql("PRAGMA legacy_alter_table = ON")
    adopt_sessions(db)
    adopt_runs(db)
    for table in ("runs", "sessions"):
        db.execute_sql(f"DROP TABLE {table}")
        db.execute_sql(f"ALTER TABLE new_{table} RENAME TO {table}")
    db.execute_sql("PRAGMA legacy_alter_table = OFF")
    fail_surplus(db)
    for kind, name, sql in kept:
        if name not in INDEXES and name not in UNIQUE_INDEXES and name not in TRIGGERS:
            db.execute_sql(sql)
        elif kind == "trigger":
            raise ConfigurationError(f"this database has a trigger {name} that is not runqueue's")


NOW_BY_DEFAULT = " DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))"


def adopt_sessions(db: SqliteDatabase) -> None:
    old = [column.name for column in db.get_columns("sessions")]
    # A program whose sessions had no such column goes on writing them without.
    default = "" if "created_at" in old else NOW_BY_DEFAULT
    db.execute_sql(sessions_table("new_sessions", extra_columns(db, "sessions", old), default))
    rows = db.execute_sql("SELECT * FROM sessions").fetchall()
    oldest = dict(
        db.execute_sql(
            "SELECT session_id, min(created_at) FROM runs GROUP BY session_id"
        ).fetchall()
    )
    for row in rows:
        values = dict(zip(old, row, strict=True))
        if values["session_id"] is None:
            raise ConfigurationError("a session of this database has no session_id; delete it")
        where = f"session {values['session_id']}"
        created = values.get("created_at") or oldest.pop(values["session_id"], None)
        values["created_at"] = time_of(created or now(), where, "created_at")
        values["last_resumed_at"] = time_of(values.get("last_resumed_at"), where, "last_resumed_at")
        if values.get("execution_mode") not in MODES:
            values["execution_mode"] = "sync"
        if values.get("hostname"):
            values.setdefault("home_dir", values.get("project_dir"))
        insert(db, "new_sessions", values)
    known = {row[old.index("session_id")] for row in rows}
    for session_id, created in oldest.items():
        if session_id not in known:  # foreign keys were off: the run must keep a session
            created = time_of(created, f"session {session_id}", "created_at")
            insert(db, "new_sessions", {"session_id": session_id, "created_at": created})
    db.execute_sql(
        "UPDATE new_sessions SET parent_session_id = NULL WHERE parent_session_id NOT IN "
        "(SELECT session_id FROM new_sessions)"
    )


def adopt_runs(db: SqliteDatabase) -> None:
    old = [column.name for column in db.get_columns("runs")]
    db.execute_sql(runs_table("new_runs", extra_columns(db, "runs", old)))
    for row in db.execute_sql("SELECT * FROM runs").fetchall():
        values = dict(zip(old, row, strict=True))
        where = f"run {values['run_id']}"
        for name in REQUIRED:
            if values[name] is None:
                raise ConfigurationError(f"{where} has no {name}; correct it and try again")
        for name in RUN_TIMES:
            values[name] = time_of(values[name], where, name)
        known(values["type"], TYPES, where, "type")
        known(values["status"], STATUSES, where, "status")
        known(values["execution_mode"], MODES, where, "execution_mode")
        values["demands"] = demands_of(values["demands"], where)
        for name, default in (("priority", 0), ("waiting", 0)):
            if name in values and not isinstance(values[name], int):
                values[name] = default
        insert(db, "new_runs", values)


def fail_surplus(db: SqliteDatabase) -> None:
    later = "coalesce({0}.claimed_at, {0}.created_at) || {0}.run_id"
    db.execute_sql(
        f"UPDATE runs SET status = 'failed', completed_at = ?, error = ? WHERE status IN {ACTIVE} "
        f"AND EXISTS (SELECT 1 FROM runs AS o WHERE o.session_id = runs.session_id "
        f"AND o.status IN {ACTIVE} AND {later.format('o')} > {later.format('runs')})",
        (now(), SURPLUS),
    )
    db.execute_sql(
        f"""UPDATE runs SET waiting = 1 WHERE status = 'pending' AND (
            EXISTS (SELECT 1 FROM runs AS o WHERE o.session_id = runs.session_id
                AND o.status IN {ACTIVE})
            OR run_id <> (SELECT o.run_id FROM runs AS o
                WHERE o.session_id = runs.session_id AND o.status = 'pending'
                ORDER BY o.priority DESC, o.created_at, o.run_id LIMIT 1))"""
    )


def fail_surplus_events(db: SqliteDatabase) -> None:
    db.execute_sql(
        "INSERT INTO run_events (run_id, at, status, actor, detail) "
        "SELECT run_id, completed_at, status, 'operator', error FROM runs WHERE error = ?",
        (SURPLUS,),
    )


def extra_columns(db: SqliteDatabase, table: str, names: list[str]) -> str:
    """Definitions of the columns that are not ours; nullable, for our inserts do not name them."""
    ours = runs_table("x") if table == "runs" else sessions_table("x")
    mine = {line.split()[0] for line in ours.splitlines()[1:]}  # CONSTRAINT among them
    info = db.execute_sql(f"PRAGMA table_info({table})").fetchall()
    return "".join(
        f', "{name}" {kind}' + ("" if default is None else f" DEFAULT ({default})")
        for _, name, kind, _, default, _ in info
        if name in names and name not in mine
    )


def insert(db: SqliteDatabase, table: str, values: dict[str, object]) -> None:
    columns = ", ".join(f'"{name}"' for name in values)
    holes = ", ".join("?" * len(values))
    db.execute_sql(f"INSERT INTO {table} ({columns}) VALUES ({holes})", list(values.values()))


def known(value: object, values: tuple[str, ...], where: str, name: str) -> None:
    if value not in values:
        raise ConfigurationError(
            f"{where} has the {name} {str(value)[:40]!r}, which is not one of "
            f"{', '.join(values)}; correct it and try again"
        )


def time_of(value: object, where: str, name: str) -> str | None:
    """The time in our form; one without an offset is taken for UTC, as isoformat() wrote it."""
    if value is None or value == "":
        return None
    text = str(value).replace("Z", "+00:00")
    head, dot, rest = text.partition(".")
    if dot:  # Python 3.10 reads only three or six decimals
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        text = f"{head}.{digits[:6]:0<6}{rest[len(digits) :]}"
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return stamp(moment)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{where} has the {name} {str(value)[:40]!r}, which is not a time; "
            "correct it and try again"
        ) from None


def demands_of(value: object, where: str) -> object:
    if value is None or value == "":
        return None
    try:
        # NaN and Infinity are JSON to Python, and to nobody else.
        parsed = json.loads(str(value), parse_constant=refuse_constant)
        if isinstance(parsed, dict):
            return value
    except (ValueError, RecursionError):
        pass
    raise ConfigurationError(f"{where} has demands that are no JSON object; correct them and retry")


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def now() -> str:
    return stamp(datetime.now(timezone.utc))


def stamp(moment: datetime) -> str:
    text = moment.astimezone(timezone.utc).isoformat(timespec="microseconds")
    return text[:26] + "Z"
