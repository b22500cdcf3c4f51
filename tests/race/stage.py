"""Two callers with a queue and a runner each, and somebody who prepares what they meet."""

from __future__ import annotations

from contextlib import ExitStack

import runqueue
from runqueue import Queue
from runqueue.settings import Settings
from tests.helpers import MovableClock


class TwoCallers:
    """On one database; `director` belongs to neither of them."""

    def __init__(self, url: str, clock: MovableClock, stack: ExitStack) -> None:
        def open_queue() -> Queue:
            opened = runqueue.connect(url, clock=clock, settings=Settings(lease=3600))
            return stack.enter_context(opened)

        self.clock = clock
        self.director = open_queue()
        self.queues = [open_queue(), open_queue()]
        self.runners = [
            stack.enter_context(queue.runner(f"r{number}"))
            for number, queue in enumerate(self.queues)
        ]
