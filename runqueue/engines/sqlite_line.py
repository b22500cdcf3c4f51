"""Where the processes that want to write to an SQLite file wait, one behind the other."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Final

try:
    import fcntl
except ImportError:  # not POSIX: whoever waits asks SQLite again and again
    fcntl: Any = None  # type: ignore[no-redef]

PATIENCE: Final = 0.25
"""Seconds after which somebody further ahead is taken to be frozen, and the line is left."""

QUICK_TRIES: Final = 4
"""Tries before waiting: most wait for one only who is soon done, and a thread must be started."""
QUICK_PAUSE: Final = (0.00005, 0.0003)
"""Shortest and longest pause, in seconds, after a quick try."""
_NONE: Final = -1


class _Places(threading.local):
    """Where this thread has the turn: for another file there it would wait behind itself."""

    def __init__(self) -> None:
        self.had: set[Path] = set()


_places: Final = _Places()


class Line:
    """A lock of the kernel's, which those who wait get one after the other.

    SQLite does not tell when its own lock is free: eight processes that ask again and again take
    as much of two processors as their work does, and who is next is a matter of luck. The line
    is a courtesy only; SQLite's lock alone decides who writes.

    The lock is a `flock` of the file's directory. It ends with the process that has it, needs no
    file of its own, and does not touch the locks on the file itself, all of which would end when
    any handle of it was closed. One thread of a process uses the line of a file at a time.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handle = _NONE
        self._is_had = False
        self._asked = threading.Condition()
        self._is_asking = False
        self._is_wanted = False

    def enter(self, limit: float) -> None:
        """Wait for one's turn, but not for more than some seconds."""
        if self._is_asking or self._directory in _places.had or not self._opens():
            return  # who is ahead does not move, and this process is waiting behind already
        try:
            if not self._gets_it_soon(limit) and limit > 0:
                self._wait_for(min(limit, PATIENCE))
        except OSError:
            return  # the file system has no such locks
        if self._is_had:
            _places.had.add(self._directory)

    def leave(self) -> None:
        """Let the next one in, if this one is in."""
        if self._is_had:
            self._is_had = False
            _places.had.discard(self._directory)
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give up the handle, unless this process waits; it is opened when it is needed again."""
        if self._handle != _NONE and not self._is_asking:
            self._handle = _NONE
            self._closing()

    def renewed(self) -> Line:
        """In the child of a fork: return one's own, and close what is the parent's.

        Or the child would keep the parent's turn beyond its death.
        """
        if self._handle != _NONE:
            self._closing()
        _places.had.clear()
        return Line(self._directory)

    def _opens(self) -> bool:
        if self._handle == _NONE and fcntl is not None:
            try:
                self._handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:  # a directory that one may enter need not be one that one may read
                return False
            self._closing = weakref.finalize(self, os.close, self._handle)
        return self._handle != _NONE

    def _gets_it_soon(self, limit: float) -> bool:
        for left in reversed(range(QUICK_TRIES if limit > 0 else 1)):
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if left:
                    time.sleep(random.uniform(*QUICK_PAUSE))
            else:
                self._is_had = True
                return True
        return False

    def _wait_for(self, seconds: float) -> None:
        with self._asked:
            # A flock knows no limit, so this is another thread's, who is left to wait.
            asker = threading.Thread(target=self._ask, name="runqueue-line", daemon=True)
            self._is_asking = self._is_wanted = True
            try:
                asker.start()
                self._asked.wait_for(lambda: not self._is_asking, seconds)
            except RuntimeError:
                pass  # no thread can be started any more
            finally:
                if asker.ident is None:
                    self._is_asking = self._is_wanted = False
                self._is_had = self._is_wanted and not self._is_asking
                self._is_wanted = False

    def _ask(self) -> None:
        is_there = True
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        except OSError:
            is_there = False
        with self._asked:
            if is_there and not self._is_wanted:
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            self._is_wanted = self._is_wanted and is_there
            self._is_asking = False
            self._asked.notify_all()
