"""Creating, adopting and upgrading the schema, once, whoever comes first.

The lock is the database's own, and all steps run in one transaction: of many processes that
start at once one migrates and the others find the work done; a crash in the middle leaves the
database as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from playhouse.migrations import MigrationError
from playhouse.migrations import Runner as MigrationRunner

from runqueue.database import Store
from runqueue.engines.base import HISTORY
from runqueue.errors import ConfigurationError

_MIGRATIONS: Final = Path(__file__).parent / "migrations"

VERSION: Final = 4
"""The number of the newest step, on every database: the schema that this version works with."""


def version_of(store: Store) -> int:
    """Return the schema's version, 0 for a database that is empty or to be adopted.

    Raises ConfigurationError for a database of another program or of a newer runqueue.
    """
    with store.ready():
        version = store.engine.schema_version()
    if version > VERSION:
        raise ConfigurationError(
            f"{store.url} was written by a newer runqueue (schema {version}, this one knows "
            f"{VERSION}); upgrade runqueue"
        )
    return version


def upgrade(store: Store, *, create: bool = True) -> list[str]:
    """Bring the database to `VERSION`; return the names of the steps that were applied.

    Raises ConfigurationError when it has no schema and `create` is false.
    """
    version = version_of(store)
    if version == VERSION:
        return []
    if version == 0 and not create and store.engine.is_shared:
        raise ConfigurationError(
            f"there is no runqueue in {store.url}; make it with: runqueue --db {store.url} db init"
        )
    directory = _MIGRATIONS / store.engine.name
    with store.ready():
        try:
            with store.engine.migrating():
                if version_of(store) == VERSION:
                    return []
                steps: list[str] = MigrationRunner(store.database, str(directory), HISTORY).up()
                if not steps or int(steps[-1][:4]) != VERSION:
                    # An empty directory is no reason to call an empty database upgraded.
                    raise ConfigurationError(f"the migrations in {directory} cannot be read")
                store.engine.stamp(VERSION)
                return steps
        except MigrationError as error:
            raise ConfigurationError(f"{store.url} cannot be upgraded: {error}") from error
