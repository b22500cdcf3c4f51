"""How a process that uses SQLite in several threads may still be forked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")


class ForkGuard:
    """Keeps a process from being forked while another of its threads is within SQLite.

    The child has the forking thread only, and inherits what the others held: the file's lock,
    which SQLite takes for the child's own, and the mutexes of SQLite's allocator, for which a
    child would wait for ever ("How To Corrupt An SQLite Database File", 2.6, and POSIX `fork`).
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget who is within: in the child of a fork they are not there."""
        self._writers: set[int] = set()
        self._inside: set[int] = set()
        self._left = threading.Condition()
        self._is_awaited = False
        self._may_enter = threading.Event()
        self._may_enter.set()

    def begins_writing(self) -> None:
        """Note that this thread is in a transaction, until `ends_writing`."""
        self._writers.add(threading.get_ident())

    def ends_writing(self) -> None:
        self._writers.discard(threading.get_ident())
        self._tell()

    def inside(self, call: Callable[..., T], *args: Any) -> T:
        """Make a call into SQLite, not while the process is being forked."""
        me = threading.get_ident()
        if me in self._writers or me in self._inside:
            return call(*args)
        self._inside.add(me)
        try:
            while not self._may_enter.is_set():
                self._inside.discard(me)  # or the fork would wait for this one that waits
                self._tell()
                self._may_enter.wait()
                self._inside.add(me)
            return call(*args)
        finally:
            self._inside.discard(me)
            self._tell()

    def _tell(self) -> None:
        if self._is_awaited:
            with self._left:
                self._left.notify_all()

    def hold(self, patience: float) -> None:
        """Wait until no other thread is within SQLite, and let none enter to read.

        Who is to write must be kept out before. Waits for at most some `patience` seconds.
        """
        self._is_awaited = True  # before looking who is there: who leaves after that will tell
        mine = {threading.get_ident()}
        with self._left:
            # First who writes, which may take long, and may need others to be able to read.
            self._left.wait_for(lambda: not self._writers - mine, patience)
            self._may_enter.clear()
            self._left.wait_for(lambda: not self._inside - mine, patience)

    def go_on(self) -> None:
        """In the parent: end what `hold` began."""
        self._is_awaited = False
        self._may_enter.set()


guard: Final = ForkGuard()
"""One for all databases of the process, for SQLite's mutexes are."""
