"""A process of the simulation, and the places where it can fail or others can go on.

A process is a set of tasks, generators that yield the seconds until they want to go on. Between
any two calls of a verb to the database, where in truth others would run, tasks of others may be
stepped; there, too, the database may be away and the process may die. So may a commit: undone,
or done and unanswered.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peewee

import runqueue
from runqueue.engines.sqlite_turns import Database
from runqueue.moves import Fence

if TYPE_CHECKING:
    from tests.sim.world import World

Steps = Generator[float, None, Any]
"""What a task does: it yields the seconds until it wants to go on."""


class Died(BaseException):
    """A process ended in the middle of a call: kill -9, seen from inside."""


def lost() -> peewee.OperationalError:
    """What the driver says when its file does not answer; StorageLost to callers."""
    return peewee.OperationalError("disk I/O error")


class Link(Database):
    """A process's connection to the database: where its calls can fail and others can go on."""

    def __init__(self, path: Path, process: Process) -> None:
        super().__init__(path, busy_timeout=0.0)
        self.process = process
        self.pragma("synchronous", "off", permanent=True)

    def begin(self, lock_type: str | None = None) -> None:
        self.process.pause()
        super().begin(lock_type)

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        if not self.in_transaction():
            self.process.pause()
        return super().execute_sql(sql, params)

    def commit(self) -> Any:
        fate = self.process.world.fate_of_commit(self.process)
        if fate == "undone":
            raise lost()  # and Peewee rolls back
        if fate == "dies before it":
            self.rollback()
            self.process.die()
        done = super().commit()
        self.process.world.observe(self.process)
        if fate == "dies after it":
            self.process.die()
        if fate == "unanswered":
            raise lost()
        self.process.let_others_go()
        return done


class Process:
    """A process of the world, which lives until it dies or ends."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.runner: Any = None
        self.removes: str | None = None
        """The id that it is removing by force, whichever runner has it by then."""
        self.is_dead = False
        self.suspended_until = 0.0
        self.tasks: list[Task] = []
        self._is_ready = False
        self.link = Link(world.path, self)
        self.queue = runqueue.connect(self.link, settings=world.settings, clock=world.now)
        self.queue.store._compiled = world.compiled  # which takes longer than to execute it
        self._is_ready = True

    def spawn(self, steps: Steps, fence: Fence | None = None) -> None:
        """Begin a task; one that executes a claim says so by the fence of it."""
        self.tasks.append(Task(self, steps, fence, self.world.moment))

    def log(self, text: str) -> None:
        self.world.log(f"{self.name}: {text}")

    def pause(self) -> None:
        """Be about to call the database: die, find it away, or let others go first."""
        if not self._is_ready:
            return
        if self.is_dead:
            raise Died
        self.let_others_go()
        world = self.world
        if world.happens("dies"):
            self.log("dies")
            self.die()
        if world.happens("hangs"):
            world.jump(f"{self.name}: hangs in the middle of a verb")
        if world.happens("away"):
            self.log("finds the database away")
            raise lost()

    def let_others_go(self) -> None:
        self.world.interleave()
        if self.is_dead:
            raise Died

    def die(self) -> None:
        self.end()
        raise Died

    def end(self) -> None:
        """End at once; tasks that are in the middle of a call learn of it there."""
        self.is_dead = True
        if self.runner is not None:
            self.runner.is_open = False
        for task in self.tasks:
            if not task.is_stepping:
                with suppress(Died):  # whatever it would still say to the database
                    task.steps.close()
        self.tasks = [task for task in self.tasks if task.is_stepping]


class Task:
    """One thread of a process; `fence` is the claim that it acts for."""

    def __init__(self, process: Process, steps: Steps, fence: Fence | None, wake: float) -> None:
        self.process, self.steps, self.fence, self.wake = process, steps, fence, wake
        self.is_stepping = False
