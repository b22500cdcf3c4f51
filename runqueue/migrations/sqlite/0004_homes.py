"""When agents were last heard of, and finding a session by the framework's own id of it."""

from __future__ import annotations

from importlib import import_module

from peewee import SqliteDatabase

from runqueue.errors import ConfigurationError

is_time = import_module("runqueue.migrations.sqlite.0001_initial").is_time

STATEMENTS = (
    f"""CREATE TABLE run_output (
        run_id TEXT NOT NULL PRIMARY KEY REFERENCES runs (run_id) ON DELETE CASCADE,
        output_at TEXT NOT NULL {is_time("output_at")})""",
    # For writers that leave foreign keys off.
    "CREATE TRIGGER runs_delete_output AFTER DELETE ON runs "
    "BEGIN DELETE FROM run_output WHERE run_id = OLD.run_id; END",
    "CREATE INDEX idx_sessions_executor ON sessions (executor_session_id) "
    "WHERE executor_session_id IS NOT NULL",
)


def up(migrator: object, db: SqliteDatabase) -> None:
    if "run_output" in db.get_tables():
        raise ConfigurationError("this database has a table run_output that is not runqueue's")
    for statement in STATEMENTS:
        db.execute_sql(statement)
