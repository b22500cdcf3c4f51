"""Whether a PostgreSQL server is fit for a queue; nothing is changed.

All of it can be asked on a standby, and by a role that may only read.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final

import peewee

from runqueue import clock
from runqueue.engines.postgres_pool import POOL_SIZE
from runqueue.findings import Check, Finding, fail, ok, warn

SKEW: Final = 2.0
"""Seconds that a host's clock may be off."""
OLD: Final = 60.0
"""Seconds after which an open transaction is in the way."""
FEW: Final = POOL_SIZE + 1
"""Connections that one more process may want."""

_KEPT: Final = """
    SELECT name, reset_val FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')"""
_WRITABLE: Final = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')"
_RIGHTS: Final = """
    SELECT current_user, has_table_privilege(t, 'INSERT'), has_any_column_privilege(t, 'UPDATE'),
        row_security_active(t)
    FROM (SELECT to_regclass('runs')) AS s (t) WHERE t IS NOT NULL"""
# Of other roles' sessions one may see little, and then not even what kind they are.
_OLDEST: Final = """
    SELECT pid, usename, extract(epoch FROM clock_timestamp() - xact_start)::float8
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_type = 'client backend' AND xact_start IS NOT NULL
    ORDER BY xact_start LIMIT 1"""
_HIDDEN: Final = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query = '<insufficient privilege>'"""
_LEFT: Final = """
    SELECT current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int
        - (SELECT count(*) FROM pg_stat_activity
            WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
        )::int,
        current_setting('max_connections')::int"""


def checks(database: peewee.Database, server_time: Callable[[], datetime]) -> tuple[Check, ...]:
    """Return the checks of a server that is connected."""
    return (
        ("server", partial(_server, database)),
        ("durability", partial(_durability, database)),
        ("writable", partial(_writable, database)),
        ("rights", partial(_rights, database)),
        ("clock", partial(_clock, server_time)),
        ("transactions", partial(_transactions, database)),
        ("connections", partial(_connections, database)),
    )


def _server(database: peewee.Database) -> Finding:
    # That it is new enough is known by whoever asks for the schema.
    (version,) = _row(database, "SHOW server_version")
    return ok(f"PostgreSQL {version}")


def _durability(database: peewee.Database) -> Finding:
    found = dict(database.execute_sql(_KEPT).fetchall())
    off = sorted(name for name, value in found.items() if value == "off")
    if "fsync" in off:
        return fail(
            "fsync is off: a crash of the server's machine damages the database",
            "set fsync = on in postgresql.conf and reload the server",
        )
    if "full_page_writes" in off:
        return warn(
            "full_page_writes is off: a page that was half written in a crash is not restored",
            "set full_page_writes = on, unless the file system writes whole pages by itself",
        )
    if off:
        return warn(
            "synchronous_commit is off: on our connections it is on, but what other programs add "
            "may be lost in a crash",
            "set synchronous_commit = on for the server, the database or the role",
        )
    return ok(", ".join(f"{name} {value}" for name, value in sorted(found.items())))


def _writable(database: peewee.Database) -> Finding:
    is_standby, read_only = _row(database, _WRITABLE)
    if is_standby:
        return fail(
            "the server is a standby: a queue there can be looked at, and nothing else",
            "use the URL of the primary, or name all hosts in it",
        )
    if read_only == "on":
        return fail(
            "transactions are read-only here",
            "set default_transaction_read_only = off for the server, the database or the role",
        )
    return ok("the server is a primary and takes writes")


def _rights(database: peewee.Database) -> Finding:
    found = database.execute_sql(_RIGHTS).fetchone()
    if found is None:
        return ok("there are no tables yet")
    role, adds, changes, is_partial = found
    part = ", and sees only a part of the rows" if is_partial else ""
    if adds:
        return ok(f"{role} may add runs{part}")
    if changes:
        return ok(f"{role} may claim runs and add none{part}")
    return warn(
        f"{role} may only look{part}",
        "for a daemon, a caller or a runner give it rights, as runqueue db grants prints them",
    )


def _clock(server_time: Callable[[], datetime]) -> Finding:
    asked = clock.system_clock()
    moment = server_time()
    answered = clock.system_clock()
    skew = (asked + (answered - asked) / 2 - moment).total_seconds()
    seen = f"this host's is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    if abs(skew) > SKEW:
        return warn(f"{seen}, by which the queue goes", "have both hosts' clocks set by NTP")
    return ok(seen)


def _transactions(database: peewee.Database) -> Finding:
    (unseen,) = _row(database, _HIDDEN)
    rest = f"; {unseen} sessions of other roles cannot be seen by this one" if unseen else ""
    oldest = database.execute_sql(_OLDEST).fetchone()
    if oldest is None:
        return ok(f"none is open{rest}")
    pid, role, seconds = oldest
    seen = f"the oldest is open for {seconds:.0f} s, by {role} in process {pid}{rest}"
    if seconds > OLD:
        return warn(
            f"{seen}: dead rows stay, and slow every claim",
            f"end what left it open, or: SELECT pg_terminate_backend({pid})",
        )
    return ok(seen)


def _connections(database: peewee.Database) -> Finding:
    left, most = _row(database, _LEFT)
    seen = f"{left} of {most} are left"
    if left < FEW:
        return warn(
            f"{seen}, and a process may want {FEW}",
            "raise max_connections, or end what is connected and not needed",
        )
    return ok(seen)


def _row(database: peewee.Database, sql: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = database.execute_sql(sql).fetchone()
    return row
