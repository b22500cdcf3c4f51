"""When agents were last heard of, and finding a session by the framework's own id of it."""

from __future__ import annotations

from importlib import import_module

from peewee import PostgresqlDatabase

from runqueue.errors import ConfigurationError

first = import_module("runqueue.migrations.postgres.0001_initial")

STATEMENTS = (
    f"""CREATE TABLE run_output (
        run_id {first.TEXT} NOT NULL PRIMARY KEY REFERENCES runs (run_id) ON DELETE CASCADE,
        output_at {first.TEXT} NOT NULL {first.is_time("output_at")})""",
    # Its rows change with the heartbeats; with room on their pages, no index has to follow.
    "ALTER TABLE run_output SET (fillfactor = 50, autovacuum_vacuum_threshold = 50)",
    # Of hashes, for what a framework takes for an id may be longer than a row of another index.
    "CREATE INDEX idx_sessions_executor ON sessions USING hash (executor_session_id) "
    "WHERE executor_session_id IS NOT NULL",
)

# What roles were given before goes on working: a runner that starts a run asks for the framework's
# id, and operators look. All else is given by `runqueue db grants`, executed again.
RIGHTS = """
    SELECT format('GRANT SELECT (executor_type, executor_session_id) ON sessions TO %%I', rolname)
        FROM pg_attribute, aclexplode(attacl) AS acl JOIN pg_roles ON pg_roles.oid = acl.grantee
        WHERE attrelid = 'sessions'::regclass AND attname = 'hostname'
        AND privilege_type = 'SELECT'
    UNION ALL
    SELECT format('GRANT SELECT, INSERT, UPDATE ON run_output TO %%I', rolname)
        FROM pg_class, aclexplode(relacl) AS acl JOIN pg_roles ON pg_roles.oid = acl.grantee
        WHERE pg_class.oid = 'runs'::regclass AND privilege_type = 'INSERT'
        AND acl.grantee <> relowner"""


def up(migrator: object, db: PostgresqlDatabase) -> None:
    if "run_output" in db.get_tables():
        raise ConfigurationError("the database has a table run_output that is not runqueue's")
    for statement in STATEMENTS:
        db.execute_sql(statement)
    for (right,) in db.execute_sql(RIGHTS, ()).fetchall():
        db.execute_sql(right.replace("%", "%%"))
