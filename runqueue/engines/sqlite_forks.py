"""How a process that uses SQLite in several threads may still be forked."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")


class ForkGuard:
    """Keeps a process from being forked while another of its threads is within SQLite.

    The child has the forking thread only, and inherits what the others held: the file's lock,
    which SQLite takes for the child's own, and the mutexes of SQLite's allocator, for which a
    child would wait for ever ("How To Corrupt An SQLite Database File", 2.6, and POSIX `fork`).

    It knows of what our verbs do. Of a caller's own use of Peewee it sees the transactions and
    the beginning of each statement on a database that we opened.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget who is within: in the child of a fork they are not there."""
        self._writers = Counter[int]()
        self._inside: set[int] = set()
        self._left = threading.Condition()
        self._forker: int | None = None
        self._may_enter = threading.Event()
        self._may_enter.set()

    def begins_writing(self) -> None:
        """Note that this thread is in a transaction, until `ends_writing`, once for each."""
        self._writers[threading.get_ident()] += 1

    def ends_writing(self, thread: int) -> None:
        self._writers[thread] -= 1
        if self._writers[thread] <= 0:
            del self._writers[thread]
        self._tell()

    def is_writing(self) -> bool:
        """Whether this thread is in a transaction."""
        return threading.get_ident() in self._writers

    def is_inside(self) -> bool:
        """Whether this thread is within `inside`."""
        return threading.get_ident() in self._inside

    def inside(self, call: Callable[..., T], *args: Any) -> T:
        """Make a call into SQLite, not while the process is being forked."""
        me = threading.get_ident()
        # The forking thread itself would wait for what only it can end: in a signal's handler
        # while it waits, or in what others have registered to be done after the fork.
        if me in self._writers or me in self._inside or me == self._forker:
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
        if self._forker is not None:
            with self._left:
                self._left.notify_all()

    def hold(self, patience: float) -> None:
        """Wait until no other thread is within SQLite, and let none enter to read.

        Who is to write must be kept out before. Waits for at most some `patience` seconds.
        """
        me = self._forker = threading.get_ident()  # before looking: who leaves then will tell
        with self._left:
            # First who writes, which may take long, and may need others to be able to read.
            self._left.wait_for(lambda: not self._writers.keys() - {me}, patience)
            self._may_enter.clear()
            self._left.wait_for(lambda: not self._inside - {me}, patience)

    def go_on(self) -> None:
        """In the parent: end what `hold` began."""
        self._forker = None
        self._may_enter.set()


guard: Final = ForkGuard()
"""One for all databases of the process, for SQLite's mutexes are."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=guard.renew)
