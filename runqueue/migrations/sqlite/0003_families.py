"""Callbacks, attempts and the limits of trees.

Who had asked for a callback before there was any is not told now of what ended long ago.
"""

from __future__ import annotations

from peewee import SqliteDatabase

from runqueue.errors import ConfigurationError

TERMINAL = "('completed', 'failed', 'stopped')"
IS_CHILD = "execution_mode = 'async_callback' AND parent_session_id IS NOT NULL"

COLUMNS = {
    "runs": {
        "callback_run_id": "TEXT CONSTRAINT callback_run_id_text "
        "CHECK (typeof(callback_run_id) IN ('text', 'null'))",
        "attempt": "INTEGER CONSTRAINT attempt_positive "
        "CHECK (attempt IS NULL OR (typeof(attempt) = 'integer' AND attempt > 0))",
        "tells": "INTEGER CONSTRAINT tells_positive "
        "CHECK (tells IS NULL OR (typeof(tells) = 'integer' AND tells > 0))",
    },
    "sessions": {
        "tree_limits": "TEXT CONSTRAINT tree_limits_object CHECK (tree_limits IS NULL "
        "OR CASE WHEN typeof(tree_limits) = 'text' AND json_valid(tree_limits) "
        "THEN json_type(tree_limits) = 'object' ELSE 0 END)",
    },
}

ATTEMPTS = """CREATE TABLE run_attempts (
        run_id TEXT NOT NULL PRIMARY KEY REFERENCES runs (run_id) ON DELETE CASCADE,
        former_run_id TEXT,
        next_run_id TEXT,
        retries INTEGER NOT NULL DEFAULT 0 CHECK (typeof(retries) = 'integer' AND retries >= 0),
        delay REAL NOT NULL DEFAULT 0 CHECK (typeof(delay) = 'real' AND delay >= 0),
        on_lost INTEGER NOT NULL DEFAULT 0 CHECK (on_lost IN (0, 1)),
        lost INTEGER NOT NULL DEFAULT 0 CHECK (typeof(lost) = 'integer' AND lost >= 0),
        due_at TEXT CHECK (due_at IS NULL OR due_at GLOB
            '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].*Z'))"""

INDEXES = {
    # Of these a run that has ended and whose parent was told is in none: a tick that finds
    # nothing to do reads nothing. The first columns let the planner prefer them to the others.
    "idx_runs_untold": "runs (execution_mode, callback_run_id, run_id) "
    f"WHERE status IN {TERMINAL} AND {IS_CHILD} AND callback_run_id IS NULL",
    "idx_runs_tells": "runs (session_id, tells) WHERE status = 'pending' AND tells IS NOT NULL",
    "idx_runs_parent": "runs (parent_session_id) WHERE parent_session_id IS NOT NULL",
    "idx_runs_child": "runs (session_id, created_at) WHERE parent_session_id IS NOT NULL",
    "idx_run_attempts_due": "run_attempts (due_at) WHERE due_at IS NOT NULL",
}

TRIGGERS = {
    "run_attempts_delete": "AFTER DELETE ON runs "
    "BEGIN DELETE FROM run_attempts WHERE run_id = OLD.run_id; END",
    "run_attempts_rename": """BEFORE UPDATE OF run_id ON runs
        WHEN NEW.run_id <> OLD.run_id
            AND EXISTS (SELECT 1 FROM run_attempts WHERE run_id = OLD.run_id)
        BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed'); END""",
}


def up(migrator: object, db: SqliteDatabase) -> None:
    if "run_attempts" in db.get_tables():
        raise ConfigurationError("this database has a table run_attempts that is not runqueue's")
    for table, columns in COLUMNS.items():
        there = {column.name.lower() for column in db.get_columns(table)}
        for name, definition in columns.items():
            if name in there:
                raise ConfigurationError(
                    f"the table {table} of this database has a column {name} that is not "
                    "runqueue's; rename it"
                )
            db.execute_sql(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")
    db.execute_sql(ATTEMPTS)
    db.execute_sql(
        f"UPDATE runs SET callback_run_id = 'none' WHERE status IN {TERMINAL} AND {IS_CHILD}"
    )
    for name, definition in INDEXES.items():
        db.execute_sql(f"CREATE INDEX {name} ON {definition}")
    for name, definition in TRIGGERS.items():
        db.execute_sql(f"CREATE TRIGGER {name} {definition}")
