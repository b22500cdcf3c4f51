"""All orders in which the database calls of two callers can follow each other.

Each caller is a thread with a queue of its own. Before every call to the database it stops and
waits for its turn. A call that waits for a lock of the other does not come back: the turn goes on
without it, as on a real machine. What it would do next is no choice then, so that of the hundreds
of orders of ten steps only those are tried that differ: a dozen, more or less.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from runqueue import Queue
from tests.helpers import LONG

BLOCKED = 0.02
"""Seconds after which a call that has not come back waits for a lock; a call takes 1 ms."""
AGAIN = 0.001
"""Seconds that a call which waited for a lock is given to come back, when its turn is next."""
FREED = 0.005
"""Likewise, after the other has made a call, which may have freed the lock."""
CALLS = ("begin", "commit", "rollback", "execute_sql")


class Caller:
    """One of the two: a function, called step by step on a queue of its own."""

    def __init__(self, queue: Queue, function: Callable[[Queue], Any]) -> None:
        self.queue = queue
        self.result: Any = None
        self.error: BaseException | None = None
        self.steps = 0
        self._function = function
        self._may_go = threading.Semaphore(0)
        self._is_free = False
        self._arrived = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._call, name="test-caller", daemon=True)
        self._ours = threading.local()

    def start(self) -> None:
        for name in CALLS:
            self._guard(name)
        self._thread.start()
        self._await()

    def _guard(self, name: str) -> None:
        database = self.queue.database
        real = getattr(type(database), name)

        def stepwise(*args: Any, **kwargs: Any) -> Any:
            nested = getattr(self._ours, "nested", True)
            if nested:  # by another thread of the queue, or within a call that has its turn
                return real(database, *args, **kwargs)
            self._pause()
            self._ours.nested = True
            try:
                return real(database, *args, **kwargs)
            finally:
                self._ours.nested = False

        setattr(database, name, stepwise)

    def _pause(self) -> None:
        self._arrived.set()
        if not self._is_free:
            assert self._may_go.acquire(timeout=3 * LONG), "its turn never came"

    def _call(self) -> None:
        self._ours.nested = False
        try:
            self.result = self._function(self.queue)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            self._ours.nested = True
            self.queue.close()
            self._is_over.set()
            self._arrived.set()

    def step(self) -> None:
        """Let the caller make one call, if it is waiting for its turn."""
        if self._is_over.is_set() or not self._arrived.wait(AGAIN):
            return
        self.steps += 1
        self._arrived.clear()
        self._may_go.release()
        self._await()

    def _await(self) -> None:
        self._arrived.wait(BLOCKED)

    @property
    def is_over(self) -> bool:
        return self._is_over.is_set()

    def is_ready(self, timeout: float = 0.0) -> bool:
        """Whether it waits for its turn, or does within `timeout` seconds."""
        return self._arrived.wait(timeout) and not self.is_over

    def finish(self) -> None:
        """Let the caller go on by itself."""
        self._is_free = True
        self._may_go.release()

    def join(self) -> None:
        assert self._is_over.wait(3 * LONG), "two callers wait for each other for ever"
        for name in CALLS:
            delattr(self.queue.database, name)


def run(callers: list[Caller], order: tuple[int, ...]) -> None:
    """Let the callers go in an order, and then to their ends."""
    for caller in callers:
        caller.start()
    for turn in order:
        callers[turn].step()
    for caller in callers:
        caller.finish()
    for caller in callers:
        caller.join()


def explore(
    prepare: Callable[[], list[Caller]], most: int
) -> Iterator[tuple[tuple[int, ...], list[Caller]]]:
    """Let callers go in every order that differs; yield each with the callers at their ends.

    At most `most` orders, taken at random but always the same ones, where there are more.
    """
    chance = random.Random(0)
    begun: list[tuple[int, ...]] = [()]
    for _ in range(most):
        if not begun:
            return
        beginning = begun.pop(chance.randrange(len(begun)))
        callers = prepare()
        order, choices = _follow(callers, beginning)
        yield order, callers
        for place in range(len(beginning), len(order)):
            begun += [(*order[:place], other) for other in choices[place] if other != order[place]]


def _follow(
    callers: list[Caller], beginning: tuple[int, ...]
) -> tuple[tuple[int, ...], list[list[int]]]:
    """Go in this order first; return the order up to the ends, and who could go at each place."""
    order: list[int] = []
    choices: list[list[int]] = []
    for caller in callers:
        caller.start()
    deadline = time.monotonic() + 3 * LONG
    while not all(caller.is_over for caller in callers):
        assert time.monotonic() < deadline, "two callers wait for each other for ever"
        ready = [n for n, caller in enumerate(callers) if caller.is_ready(FREED)]
        if not ready:
            continue
        wanted = beginning[len(order)] if len(order) < len(beginning) else ready[0]
        turn = wanted if wanted in ready else ready[0]
        order.append(turn)
        choices.append(ready)
        callers[turn].step()
    for caller in callers:
        caller.join()
    return tuple(order), choices


def orders(first: int, second: int) -> Iterator[tuple[int, ...]]:
    """Every order of so many steps of the first caller and of the second."""
    for chosen in combinations(range(first + second), first):
        yield tuple(0 if place in chosen else 1 for place in range(first + second))


def steps_of(queue: Queue, function: Callable[[Queue], Any]) -> int:
    """Return how many calls a caller makes when it is alone."""
    caller = Caller(queue, function)
    caller.start()
    while not caller._is_over.is_set():
        caller.step()
    caller.join()
    return caller.steps
