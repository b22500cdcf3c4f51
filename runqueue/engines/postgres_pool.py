"""Connections to PostgreSQL: borrowed for one verb, and set so that every plan is by an index."""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from contextlib import nullcontext, suppress
from typing import Any, Final

import peewee
from playhouse.pool import MaxConnectionsExceeded, PoolConnection, PooledDatabase

try:
    import psycopg
except ImportError:  # the extra `postgres` is not installed
    psycopg = None  # type: ignore[assignment]

POOL_SIZE: Final = 8
"""Connections that the threads of one process share; each borrows one for the time of a verb."""
POOL_AGE: Final = 600
"""Seconds after which a connection is replaced, so that those of a former primary run out."""
_SETTINGS: Final = {
    # Every verb is written for it, whatever the server's default is.
    "default_transaction_isolation": "read committed",
    # Plans are kept for a connection's life, and a table that is empty now may hold a million
    # runs before it is analysed: a plan by index is right for both.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "join_collapse_limit": "1",
    "jit": "off",
    # Else the server may think that a plan by the values is worth making at each execution, which
    # of a claim takes half a millisecond; and such a plan is one more that could be a bad one.
    "plan_cache_mode": "force_generic_plan",
    # Tells the triggers that this connection's changes are told to others after the commit.
    "runqueue.rings": "after commit",
}


# An acknowledged run must survive a crash, also where the rest of a server's data need not.
_APPLY: Final = """
    SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)
    UNION ALL
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off'"""


class _Driver(peewee.PostgresqlDatabase):
    """New connections, with our settings."""

    lock_timeout = 10.0
    _max_connections: int

    def _connect(self) -> Any:
        connection = super()._connect()  # type: ignore[misc]
        wanted = {**_SETTINGS, "lock_timeout": f"{self.lock_timeout * 1000:.0f}ms"}
        try:
            connection.execute(_APPLY, (list(wanted), list(wanted.values())))
        except BaseException:
            connection.close()
            raise
        return connection


class Database(PooledDatabase, _Driver):  # type: ignore[misc]
    """Connections that the threads of a process share; nobody holds one while an agent works."""

    def __init__(self, address: str, busy_timeout: float, **options: Any) -> None:
        self.lock_timeout = busy_timeout
        self._owners: dict[Any, threading.Thread] = {}
        self._connecting = 0
        super().__init__(
            address,
            prefer_psycopg3=True,
            max_connections=POOL_SIZE,
            stale_timeout=POOL_AGE,
            timeout=max(1, math.ceil(busy_timeout)),
            **options,
        )
        # What it guards is the thread's own; held while one thread waits for the server to
        # answer, it would keep all others from giving back the connections that they have.
        self._lock = nullcontext()

    def _is_closed(self, conn: Any) -> bool:
        # A server that ends a connection says so, and an idle connection has nothing else to
        # read: this asks the socket and not the server, which would cost a round trip a verb.
        if not conn.closed and _is_readable(conn.pgconn.socket):
            self._close_raw(conn)
        return bool(conn.closed)

    def _can_reuse(self, conn: Any) -> bool:
        return not self._is_closed(conn) and bool(self._adapter.is_connection_reusable(conn))

    def is_lost(self) -> bool:
        """Whether the server has ended the connection that this thread has."""
        return self._is_closed(self.connection())

    def _connect(self) -> Any:
        with self._pool_lock:
            if len(self._in_use) >= POOL_SIZE:
                self._take_back()
            connection = self._reused()
            if connection is None:
                if len(self._in_use) + self._connecting >= POOL_SIZE:
                    raise MaxConnectionsExceeded
                self._connecting += 1
        if connection is None:
            connection = self._made()
        self._owners[self.conn_key(connection)] = threading.current_thread()
        return connection

    def _reused(self) -> Any:
        """Return an idle connection, if there is a good one."""
        limit, self._max_connections = self._max_connections, -1  # to make none
        try:
            return super()._connect()
        except MaxConnectionsExceeded:
            return None
        finally:
            self._max_connections = limit

    def _made(self) -> Any:
        """Return a new connection; until the server answers, no other thread is held up."""
        connection = None
        try:
            connection = _Driver._connect(self)
        finally:
            with self._pool_lock:
                self._connecting -= 1
                if connection is None:
                    self._pool_available.notify()
                else:
                    moment = time.time()
                    entry = PoolConnection(moment, connection, moment)
                    self._in_use[self.conn_key(connection)] = entry
        return connection

    def _take_back(self) -> None:
        """Close what threads kept that have ended: nobody else would."""
        for key, thread in list(self._owners.items()):
            if not thread.is_alive():
                del self._owners[key]
                if (kept := self._in_use.pop(key, None)) is not None:
                    self._close_raw(kept.connection)

    def break_off(self) -> None:
        """End the calls of other threads that still wait for the server."""
        with self._pool_lock:
            for entry in list(self._in_use.values()):
                with (
                    suppress(OSError, psycopg.Error),
                    socket.socket(fileno=os.dup(entry.connection.fileno())) as handle,
                ):
                    handle.shutdown(socket.SHUT_RDWR)


def _is_readable(handle: int) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))
