"""Callbacks, attempts and the limits of trees; see SQLite's step of this name."""

from __future__ import annotations

from peewee import PostgresqlDatabase

from runqueue.errors import ConfigurationError

TERMINAL = "('completed', 'failed', 'stopped')"
IS_CHILD = "execution_mode = 'async_callback' AND parent_session_id IS NOT NULL"
TEXT = 'TEXT COLLATE "C"'
TIME = "'^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z$'"

STEPS = (
    f"""ALTER TABLE runs
        ADD COLUMN callback_run_id {TEXT},
        ADD COLUMN attempt INTEGER CONSTRAINT attempt_positive CHECK (attempt > 0),
        ADD COLUMN tells INTEGER CONSTRAINT tells_positive CHECK (tells > 0)""",
    f"""ALTER TABLE sessions ADD COLUMN tree_limits {TEXT}
        CONSTRAINT tree_limits_object CHECK (json_typeof(tree_limits::json) = 'object')""",
    f"""CREATE TABLE run_attempts (
        run_id {TEXT} NOT NULL PRIMARY KEY REFERENCES runs (run_id) ON DELETE CASCADE,
        former_run_id {TEXT},
        next_run_id {TEXT},
        retries INTEGER NOT NULL DEFAULT 0 CHECK (retries >= 0),
        delay DOUBLE PRECISION NOT NULL DEFAULT 0 CHECK (delay >= 0),
        on_lost INTEGER NOT NULL DEFAULT 0 CHECK (on_lost IN (0, 1)),
        lost INTEGER NOT NULL DEFAULT 0 CHECK (lost >= 0),
        due_at {TEXT} CHECK (due_at ~ {TIME}))""",
    f"""UPDATE runs SET callback_run_id = 'none' WHERE status IN {TERMINAL} AND {IS_CHILD}""",
)

INDEXES = {
    # In the form IS TRUE these fit no statement but the one that is meant.
    "idx_runs_untold": f"runs (run_id) WHERE (status IN {TERMINAL}) IS TRUE AND {IS_CHILD} "
    "AND callback_run_id IS NULL",
    "idx_runs_tells": "runs (session_id) WHERE (status = 'pending') IS TRUE AND tells IS NOT NULL",
    "idx_runs_parent": "runs (parent_session_id) WHERE parent_session_id IS NOT NULL",
    "idx_runs_child": "runs (session_id, created_at) WHERE parent_session_id IS NOT NULL",
    "idx_run_attempts_due": "run_attempts (due_at) WHERE due_at IS NOT NULL",
}

# What roles were given before goes on working: a claim returns the new columns to runners, and
# whoever adds runs may add attempts. All else is given by `runqueue db grants`, executed again.
RIGHTS = """
    SELECT format('GRANT SELECT (callback_run_id, attempt, tells) ON runs TO %%I', rolname)
        FROM pg_attribute, aclexplode(attacl) AS acl JOIN pg_roles ON pg_roles.oid = acl.grantee
        WHERE attrelid = 'runs'::regclass AND attname = 'waiting' AND privilege_type = 'SELECT'
    UNION ALL
    SELECT format('GRANT SELECT, INSERT, UPDATE, DELETE ON run_attempts TO %%I', rolname)
        FROM pg_class, aclexplode(relacl) AS acl JOIN pg_roles ON pg_roles.oid = acl.grantee
        WHERE pg_class.oid = 'runs'::regclass AND privilege_type = 'INSERT'
        AND acl.grantee <> relowner"""


NEW = {"runs": ("callback_run_id", "attempt", "tells"), "sessions": ("tree_limits",)}


def up(migrator: object, db: PostgresqlDatabase) -> None:
    if "run_attempts" in db.get_tables():
        raise ConfigurationError("the database has a table run_attempts that is not runqueue's")
    for table, names in NEW.items():
        there = {column.name for column in db.get_columns(table)}
        for name in names:
            if name in there:
                raise ConfigurationError(
                    f"the table {table} has a column {name} that is not runqueue's; rename it"
                )
    for statement in STEPS:
        db.execute_sql(statement)
    for name, definition in INDEXES.items():
        db.execute_sql(f"CREATE INDEX {name} ON {definition}")
    for (right,) in db.execute_sql(RIGHTS, ()).fetchall():
        db.execute_sql(right.replace("%", "%%"))
