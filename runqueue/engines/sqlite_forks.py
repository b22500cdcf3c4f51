"""How a process that uses SQLite in several threads may still be forked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
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
        self._writers: dict[int, int] = {}
        self._inside: set[int] = set()
        self._left = threading.Condition()
        self._forker: int | None = None
        self._may_begin = threading.Event()
        self._may_enter = threading.Event()
        self.go_on()

    def begins_writing(self) -> None:
        """Note that this thread is in a transaction, until `ends_writing`, once for each.

        Not while the process is to be forked, but for a thread that is in one already: the
        fork waits for its end.
        """
        me = threading.get_ident()
        self._writers[me] = self._writers.get(me, 0) + 1
        while self._writers[me] == 1 and me != self._forker and not self._may_begin.is_set():
            self.ends_writing(me)
            self._may_begin.wait()
            self._writers[me] = 1

    def ends_writing(self, thread: int) -> None:
        left = self._writers.pop(thread, 0) - 1
        if left > 0:
            self._writers[thread] = left
        self._tell()

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
        """Wait until no other thread is within SQLite, and let none in.

        Waits for transactions, and then for what only reads, some `patience` seconds at most.
        """
        me = threading.get_ident()
        if self._forker == me:
            return  # for another database
        self._may_begin.clear()
        self._forker = me  # before looking who is there: who leaves after that will tell
        with self._left:
            # First who writes, which may take long, and may need others to be able to read.
            self._left.wait_for(lambda: not alive(self._writers) - {me}, patience)
            self._may_enter.clear()
            self._left.wait_for(lambda: not alive(self._inside) - {me}, patience)

    def go_on(self) -> None:
        """In the parent: end what `hold` began."""
        self._forker = None
        self._may_enter.set()
        self._may_begin.set()


def alive(threads: Iterable[int]) -> set[int]:
    """Those that did not end within a transaction, which is undone then."""
    there = {thread.ident for thread in threading.enumerate()}
    return {thread for thread in list(threads) if thread in there}


guard: Final = ForkGuard()
"""One for all databases of the process, for SQLite's mutexes are."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=guard.renew)
