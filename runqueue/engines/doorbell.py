"""Hearing what other processes commit: one thread for a process, as long as somebody waits."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
import weakref
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, Final

from runqueue.backoff import pauses
from runqueue.bell import Bell

log = logging.getLogger("runqueue.doorbell")

LOOK_ROUND: Final = 5.0
"""Seconds after which the thread sees that a watcher is gone that did not say so."""
SHORTEST_POLL: Final = 0.001
"""Seconds, the unit of poll(2): a shorter wait would be made as long."""
LINGER: Final = 0.5
"""Seconds for which the thread is kept when nobody needs it, for somebody may soon again."""


class Doorbell(ABC):
    """Rings a process's own bell for what others have committed; a kind of database does how."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Condition()
        self._watchers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._in_haste: weakref.WeakSet[Any] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._connection: Any = None
        self._wake_up: int | None = None
        self._reader: int | None = None
        self._lingers = True

    def listen_for(self, watcher: object, *, is_in_haste: bool = True) -> None:
        """Ring the bell for what other processes tell, as long as `watcher` exists.

        Where being told at once costs every writer, one that is not in haste is told a little
        later.
        """
        with self._lock:
            self._watchers.add(watcher)
            if is_in_haste:
                self._in_haste.add(watcher)
            self._start_or_wake()

    def forget(self, watcher: object) -> None:
        """Nobody needs to hear anything for `watcher` any more."""
        with self._lock:
            self._watchers.discard(watcher)
            self._in_haste.discard(watcher)
            self._start_or_wake()

    def close(self, timeout: float = 1.0) -> None:
        """End the thread, unless somebody listens; it begins again when it is needed."""
        with self._lock:
            thread = self._thread
            self._lingers = False
            self._start_or_wake()
            self._lock.wait_for(lambda: self._thread is None or self._is_needed(), timeout)
            is_over = self._thread is None
        if thread is not None and is_over:
            thread.join(timeout)  # it has a connection to close

    def abandon(self) -> Any:
        """Forget everything in the child of a fork; return the connection, the parent's."""
        connection = self._connection
        for end in (self._wake_up, self._reader):
            if end is not None:
                os.close(end)
        self._forget()
        return connection

    def _is_needed(self) -> bool:
        return bool(len(self._watchers))

    def _start_or_wake(self) -> None:
        if self._thread is None:
            if not self._is_needed():
                return
            self._lingers = True
            self._reader, self._wake_up = os.pipe()
            os.set_blocking(self._wake_up, False)
            self._thread = threading.Thread(
                target=self._serve, args=(self._reader,), name="runqueue-doorbell", daemon=True
            )
            self._thread.start()
        elif self._wake_up is not None:
            with suppress(OSError):  # it is awake already
                os.write(self._wake_up, b".")

    def _serve(self, reader: int) -> None:
        waits = pauses()
        try:
            while True:
                self._connection = None
                try:
                    if self._serve_connection(reader):
                        return
                except Exception as error:  # noqa: BLE001 - whatever it is, others must be heard
                    log.debug("the doorbell is silent: %s", type(error).__name__)
                    if self._connection is not None:
                        waits = pauses()
                wait_for([reader], next(waits))
                if self._is_over():
                    return
        finally:
            os.close(reader)

    @abstractmethod
    def _serve_connection(self, reader: int) -> bool:
        """Hear on one connection, which is to be noted; return True when `_is_over` said so.

        `reader` can be read when there is something new to do, or nothing any more.
        """

    def _linger(self) -> float:
        return LINGER if self._lingers else 0.0

    def _is_over(self) -> bool:
        """Whether nobody needs the doorbell; the thread ends then."""
        with self._lock:
            if self._is_needed():
                return False
            self._thread = None
            if self._wake_up is not None:
                os.close(self._wake_up)
            self._wake_up = self._reader = None  # the reader is the thread's to close
            self._lock.notify_all()
            return True


def wait_for(handles: list[int], timeout: float) -> list[int]:
    """Return those that can be read, or none after `timeout` seconds."""
    if 0 < timeout < SHORTEST_POLL:
        time.sleep(timeout)
        timeout = 0
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    return [handle for handle, _ in poll.poll(max(0.0, timeout) * 1000)]
