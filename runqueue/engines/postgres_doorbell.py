"""Telling other processes of a PostgreSQL database that something changed, and hearing it.

A NOTIFY takes a lock of the whole server until its transaction has been committed. In the
transaction of every writer it would make them commit one after the other; here one thread for a
process sends what its writers have committed, many changes in one short transaction that waits
for no disk.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from contextlib import closing
from typing import Any, Final

from runqueue.bell import Bell
from runqueue.engines.doorbell import LOOK_ROUND, Doorbell, wait_for
from runqueue.states import Wake

try:
    import psycopg
except ImportError:  # the extra `postgres` is not installed
    psycopg = None  # type: ignore[assignment]

CHANNEL: Final = "runqueue"
GAP: Final = 0.002
"""Seconds between two notifications of one process, however many changes it makes."""


_doorbells: weakref.WeakSet[PostgresDoorbell] = weakref.WeakSet()


@atexit.register
def _ring_out() -> None:
    """Send what a process that ends has committed: its threads end in the middle of it."""
    for doorbell in list(_doorbells):
        doorbell.close()


class PostgresDoorbell(Doorbell):
    """One connection for telling and hearing."""

    def __init__(self, conninfo: str, bell: Bell) -> None:
        self._conninfo = conninfo
        super().__init__(bell)
        _doorbells.add(self)

    def _forget(self) -> None:
        super()._forget()
        self._to_send: set[Wake] = set()
        self._is_sending = False
        self._closings = 0

    def _is_needed(self) -> bool:
        return bool(self._to_send) or super()._is_needed()

    def send(self, kinds: set[Wake]) -> None:
        """Tell other processes, soon."""
        with self._lock:
            if kinds <= self._to_send:
                return
            self._to_send |= kinds
            self._start_or_wake()

    def close(self, timeout: float = 1.0) -> None:
        """Return when what was to be sent has been sent, or the server does not take it.

        Ends the thread, unless somebody listens; it begins again when it is needed.
        """
        with self._lock:
            self._lingers = False
            self._start_or_wake()
            self._lock.wait_for(
                lambda: self._thread is None or not (self._to_send or self._is_sending), timeout
            )
            self._to_send.clear()  # if the server is away, nobody is there to be told
            self._closings += 1

    def _serve_connection(self, reader: int) -> bool:
        """Send and hear; return True when nobody needs it any more."""
        with closing(psycopg.connect(self._conninfo, autocommit=True)) as connection:
            self._connection = connection
            return self._serve_on(connection, reader)

    def _serve_on(self, connection: Any, reader: int) -> bool:
        own = connection.info.backend_pid
        connection.add_notify_handler(lambda notice: self._hear(notice, own))
        connection.execute("SET synchronous_commit = off")
        is_listening = False
        idle_since = time.monotonic()
        while True:
            if not is_listening and len(self._watchers):
                connection.execute("LISTEN runqueue")
                is_listening = True
                self._bell.ring()  # what was told before this is not heard again
            if self._send(connection):
                idle_since = time.monotonic()
                time.sleep(GAP)
                continue
            if is_listening and len(self._watchers):
                idle_since = time.monotonic()
                left = LOOK_ROUND
            else:
                left = idle_since + self._linger() - time.monotonic()
                if left <= 0 and self._is_over():
                    return True
            for ready in wait_for([reader, connection.fileno()], max(left, 0.01)):
                if ready == reader:
                    os.read(reader, 4096)
                else:
                    connection.pgconn.consume_input()
                    while notice := connection.pgconn.notifies():
                        payload = notice.extra.decode(errors="replace")
                        self._hear_payload(notice.be_pid, payload, own)

    def _send(self, connection: Any) -> bool:
        with self._lock:
            kinds, self._to_send = self._to_send, set()
            self._is_sending = bool(kinds)
            closings = self._closings
        if not kinds:
            return False
        try:
            connection.execute(
                "SELECT pg_notify(%s, %s)", (CHANNEL, " ".join(sorted(map(str, kinds))))
            )
        except BaseException:
            with self._lock:
                if self._closings == closings:  # else whoever closed it has given up on them
                    self._to_send |= kinds
            raise
        finally:
            with self._lock:
                self._is_sending = False
                self._lock.notify_all()
        return True

    def _hear(self, notice: Any, own: int) -> None:
        self._hear_payload(notice.pid, notice.payload, own)

    def _hear_payload(self, pid: int, payload: str, own: int) -> None:
        if pid != own:  # what this process did was rung here at once
            known = {kind.value for kind in Wake}
            self._bell.ring({Wake(kind) for kind in payload.split() if kind in known})
