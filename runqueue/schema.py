"""Creating, adopting and upgrading the schema, once, whoever comes first.

The lock is the database's own: all steps run in one IMMEDIATE transaction, so that of many
processes that start at once one migrates and the others find the work done; a crash in the
middle leaves the file as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from playhouse.migrations import MigrationError
from playhouse.migrations import Runner as MigrationRunner

from runqueue.database import Store, translated_errors
from runqueue.errors import ConfigurationError
from runqueue.sqlite import APPLICATION_ID

DIRECTORY: Final = Path(__file__).parent / "migrations"
HISTORY: Final = "runqueue_migrations"

VERSION: Final = max(int(path.name[:4]) for path in DIRECTORY.glob("[0-9]*.py"))
"""The number of the newest step: the schema that this version of runqueue works with."""


def version_of(store: Store) -> int:
    """Return the schema's version, 0 for a database that is empty or to be adopted.

    Raises ConfigurationError for a database of another program or of a newer runqueue.
    """
    with translated_errors():
        database = store.database
        application = database.execute_sql("PRAGMA application_id").fetchone()[0]
        version = int(database.execute_sql("PRAGMA user_version").fetchone()[0])
        if application != APPLICATION_ID:
            tables = set(database.get_tables())
            if application or (tables and not {"runs", "sessions"} <= tables):
                raise ConfigurationError(
                    f"{store.url} is a database of another program; give runqueue its own"
                )
            return 0
    if version > VERSION:
        raise ConfigurationError(
            f"{store.url} was written by a newer runqueue (schema {version}, this one knows "
            f"{VERSION}); upgrade runqueue"
        )
    return version


def upgrade(store: Store) -> list[str]:
    """Bring the database to `VERSION`; return the names of the steps that were applied."""
    if version_of(store) == VERSION:
        return []
    with translated_errors():
        database = store.database
        # Persistent, and not possible inside a transaction.
        database.execute_sql("PRAGMA journal_mode = wal")
        # Rebuilding a table must not cascade, and the pragma is ignored inside a transaction.
        database.execute_sql("PRAGMA foreign_keys = OFF")
        try:
            with database.atomic("IMMEDIATE"):
                if version_of(store) == VERSION:
                    return []
                steps: list[str] = MigrationRunner(database, str(DIRECTORY), HISTORY).up()
                if not steps or int(steps[-1][:4]) != VERSION:
                    # An empty directory is no reason to call an empty database upgraded.
                    raise ConfigurationError(f"the migrations in {DIRECTORY} cannot be read")
                if broken := database.execute_sql("PRAGMA foreign_key_check").fetchall():
                    raise ConfigurationError(
                        f"{store.url} has {len(broken)} rows that refer to rows that do not exist"
                    )
                database.execute_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute_sql(f"PRAGMA user_version = {VERSION}")
                return steps
        except MigrationError as error:
            raise ConfigurationError(f"{store.url} cannot be upgraded: {error}") from error
        finally:
            database.execute_sql("PRAGMA foreign_keys = ON")
