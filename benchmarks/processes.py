"""Worker processes that are told what to do, and tell what they measured, by a pipe."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Final

LONG: Final = 120.0
"""Seconds after which an answer that should come is taken not to come."""
# A fresh interpreter each: a fork would share the parent's connections.
_SPAWN: Final = multiprocessing.get_context("spawn")


class Worker:
    """A process that executes `target(pipe, *arguments)`; it ends when its pipe says so."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def tell(self, message: Any) -> None:
        self._pipe.send(message)

    @staticmethod
    def first(workers: Sequence[Worker], timeout: float = LONG) -> Worker:
        """Return the first of these that has something to tell."""
        ready = wait([worker._pipe for worker in workers], timeout)
        if not ready:
            raise TimeoutError(f"{len(workers)} workers told nothing for {timeout:g} s")
        return next(worker for worker in workers if worker._pipe is ready[0])

    def has_told(self) -> bool:
        """Whether there is something to hear, if only that the worker has ended."""
        return self._pipe.poll()

    def hear(self, timeout: float = LONG) -> Any:
        """Return the next message; a worker that failed has none."""
        if not self._pipe.poll(timeout):
            raise TimeoutError(f"worker {self.pid} told nothing for {timeout:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"worker {self.pid} ended; what it said is above") from None


def when_told(pipe: Connection, call: Callable[[], None]) -> None:
    """Within a worker: call it from another thread at the next message, or the parent's end."""

    def listen() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
        call()

    threading.Thread(target=listen, daemon=True).start()
