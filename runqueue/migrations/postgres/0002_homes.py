"""When agents were last heard of, and finding a session by the framework's own id of it."""

from __future__ import annotations

from importlib import import_module

from peewee import PostgresqlDatabase

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


def up(migrator: object, db: PostgresqlDatabase) -> None:
    for statement in STATEMENTS:
        db.execute_sql(statement)
