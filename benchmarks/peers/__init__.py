"""Other queues, each as its documentation says that it is fastest, at the same durability.

Each is in a module of its own, for any of them may not be installed here.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar

from benchmarks.places import Place

Handle = Callable[[str], None]


class Producer(ABC):
    """Enqueues jobs that do nothing, on a connection that is open already."""

    @abstractmethod
    def each(self, payloads: list[str]) -> None:
        """Enqueue one by one, each durable before the next."""

    def bulk(self, payloads: list[str]) -> None:
        """Enqueue all at once."""
        raise NotImplementedError


class Peer(ABC):
    """A queue."""

    name: ClassVar[str]
    package: ClassVar[str]
    """The distribution that it comes in."""
    keeps_claims: ClassVar[bool]
    """Whether a job whose worker dies is still there, and known to have been taken."""
    how: ClassVar[str]
    """The settings that it is measured with."""
    has_bulk: ClassVar[bool] = True

    @abstractmethod
    def create(self, place: Place) -> None:
        """Make its tables."""

    @abstractmethod
    def producer(self, place: Place) -> AbstractContextManager[Producer]: ...

    @abstractmethod
    def work(self, place: Place, handle: Handle, over: threading.Event) -> None:
        """Within a worker process: give every payload to `handle`, until it is over."""
