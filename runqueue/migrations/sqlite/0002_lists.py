"""Lists by agent and by runner, and of sessions, read what they show and nothing else."""

from __future__ import annotations

from peewee import SqliteDatabase

INDEXES = {
    "idx_runs_agent_status_created": "runs (agent_name, status, created_at) "
    "WHERE agent_name IS NOT NULL",
    "idx_runs_runner_status_created": "runs (runner_id, status, created_at) "
    "WHERE runner_id IS NOT NULL",
    "idx_sessions_created": "sessions (created_at)",
}


def up(migrator: object, db: SqliteDatabase) -> None:
    # What it answered, the index by runner and status does as well.
    db.execute_sql("DROP INDEX idx_runs_owner")
    for name, definition in INDEXES.items():
        db.execute_sql(f"DROP INDEX IF EXISTS {name}")  # of a database that was adopted
        db.execute_sql(f"CREATE INDEX {name} ON {definition}")
