"""One world: processes that take turns by a seed, on a real database, in virtual time.

Everything happens in one thread, and everything that chance decides is decided by the seed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from runqueue import clock, incarnation
from runqueue.moves import Fence
from runqueue.settings import Settings
from tests.sim.invariants import broken, replaced
from tests.sim.observer import Observer
from tests.sim.process import Died, Process, Steps, Task

EPOCH: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
DEEPEST: Final = 2
"""How many verbs, each in the middle of another, are under way at most."""
JUMPS: Final = (6.0, 12.0, 35.0, 35.0, 65.0)
"""Seconds: a tick missed, a grace over, a lease run out, a start deadline over."""
FLEET: Final[dict[str, dict[str, Any]]] = {
    "r1": {"hostname": "alpha", "tags": ["gpu"]},
    "r2": {"hostname": "beta"},
    "r3": {"hostname": "alpha"},
}
"""The runners, and what each can do."""
SPARE: Final = "r3"
"""The one whose work another can do."""
FAULTS: Final = {
    "away": 0.01,
    "unanswered": 0.015,
    "undone": 0.01,
    "dies": 0.006,
    "hangs": 0.004,
    "suspended": 0.02,
}
"""How likely each fault is at a call or a commit, in a world where it happens at all."""


class ThreadNotStarted:
    """A thread of the product whose work is a task of the simulation instead."""

    def __init__(self, **_: object) -> None:
        pass

    def start(self) -> None:
        pass

    join = start


class World:
    """The database, the clock, the processes, and the seed that decides."""

    def __init__(self, path: Path, seed: int, compiled: dict[Any, Any]) -> None:
        self.path, self.compiled = path, compiled
        self.rng = random.Random(seed)
        self.settings = Settings()
        self.moment = 0.0
        self.trace: list[str] = []
        self.found: list[str] = []
        """What was seen that must not be."""
        self.processes: list[Process] = []
        self.doomed: set[str] = set()
        """The sessions that somebody set out to delete."""
        self.executed: set[str] = set()
        """The runs that an agent was started for."""
        self.is_calm = False
        """Whether nothing fails any more, nobody adds work, and agents end at once."""
        self._stepping: list[Task] = []
        # Not every world has every fault: one that is frequent hides what the others do.
        self._odds = {name: odds * self.rng.choice((0, 1, 3)) for name, odds in FAULTS.items()}
        self._jumps = self.rng.choice((0.0, 0.02, 0.05))
        self._mixes = self.rng.choice((0.0, 0.2, 0.5))
        """How often somebody else goes on in the middle of a verb."""
        self.oddity = self.rng.choice((0.1, 0.4, 0.9))
        """How many owners do something else than `with claim`."""
        self._deaths_are_seen = self.rng.random() < 0.5
        self.observer = Observer(path, self)

    def now(self) -> datetime:
        """The clock of all processes."""
        self.moment += 1e-6  # no two looks at a clock show the same
        return EPOCH + timedelta(microseconds=round(self.moment * 1e6))

    def now_text(self, seconds: float = 0.0) -> str:
        moment = EPOCH + timedelta(microseconds=round((self.moment + seconds) * 1e6))
        return clock.to_text(moment)

    def log(self, text: str) -> None:
        self.trace.append(f"{self.moment:10.4f} {'  ' * (len(self._stepping) - 1)}{text}")

    def jump(self, why: str) -> None:
        """Let much time pass in which nobody does anything."""
        seconds = self.rng.choice(JUMPS)
        self.log(f"{why}: {seconds:g} s pass")
        self.moment += seconds

    def start(self, name: str, program: Callable[[Process], Steps]) -> Process:
        """Start a process of a name, the first or a further one."""
        number = sum(process.name.partition("#")[0] == name for process in self.processes) + 1
        process = Process(self, f"{name}#{number}")
        self.processes.append(process)
        process.spawn(program(process))
        return process

    def living(self, name: str) -> list[Process]:
        """The processes of a name that are there, were they to hang."""
        return [
            process
            for process in self.processes
            if process.name.startswith(f"{name}#") and not process.is_dead
        ]

    def observe(self, writer: Process | None) -> None:
        """Look at the database as a transaction left it."""
        runners = self.observer.runners
        changes = self.observer.look(writer)
        self.found += [*broken(changes, self), *replaced(runners, writer, self)]

    @property
    def acting_for(self) -> Fence | None:
        """The claim for which the task that goes on acts."""
        return self._stepping[-1].fence if self._stepping else None

    def happens(self, fault: str) -> bool:
        """Whether a fault is due here and now."""
        return not self.is_calm and self.rng.random() < self._odds[fault]

    def fate_of_commit(self, process: Process) -> str:
        """What goes wrong with a commit; nothing, usually."""
        for fault in ("unanswered", "undone", "dies"):
            if self.happens(fault):
                if fault == "dies":
                    fault = self.rng.choice(("dies before it", "dies after it"))
                process.log(f"a commit: {fault}")
                return fault
        return ""

    def step(self) -> None:
        """Let somebody go on, or time pass."""
        if not self.is_calm and self.rng.random() < self._jumps:
            self.jump("nobody is scheduled")
        if self.happens("suspended"):
            process = self.rng.choice([one for one in self.processes if not one.is_dead])
            process.suspended_until = self.moment + self.rng.choice(JUMPS)
            process.log(f"is suspended until {process.suspended_until:.4f}")
        if not self._ready():
            self.moment = min(self._goes_on_at(task) for task in self._idle())
        self._go_on(self.rng.choice(self._ready()))

    def interleave(self) -> None:
        """Let somebody go on in the middle of the step of another."""
        if len(self._stepping) == DEEPEST or self.rng.random() >= self._mixes:
            return
        if ready := self._ready(within=1.0):
            self._go_on(self.rng.choice(ready))

    def a_while(self, shortest: float, longest: float) -> float:
        """How many seconds somebody waits who looks again and again; longer once all is calm."""
        return self.rng.uniform(shortest, longest) * (3 if self.is_calm else 1)

    def sleep(self, seconds: float) -> None:
        """What `time.sleep` is to the product: others go on meanwhile."""
        self.moment += seconds
        self.interleave()

    def _idle(self) -> list[Task]:
        return [
            task for process in self.processes for task in process.tasks if not task.is_stepping
        ]

    def _goes_on_at(self, task: Task) -> float:
        return task.wake if self.is_calm else max(task.wake, task.process.suspended_until)

    def _ready(self, within: float = 0.0) -> list[Task]:
        limit = self.moment + within
        return [task for task in self._idle() if self._goes_on_at(task) <= limit]

    def _go_on(self, task: Task) -> None:
        """Let a task do its next step, in which others may be let go on in turn."""
        self._stepping.append(task)
        self.moment += self.rng.uniform(0.0002, 0.02)
        process = task.process
        task.is_stepping = True
        is_over = True
        try:
            task.wake = self.moment + next(task.steps)
            is_over = process.is_dead
        except (StopIteration, Died):
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody handles it
            self.found.append(f"{process.name} met {type(error).__name__}: {error}")
        finally:
            task.is_stepping = False
            self._stepping.pop()
        if is_over:
            with suppress(Died):
                task.steps.close()
            process.tasks.remove(task)
        self.observe(process)
        if process.is_dead and not process.tasks:
            process.queue.close()

    def close(self) -> None:
        """Leave nothing open."""
        for process in self.processes:
            process.end()
            process.queue.close()
        self.observer.close()

    def _is_dead(self, text: str) -> bool:
        """What a runner can see of its predecessor: all or nothing, as on another machine."""
        process = self.process_of(text)
        return self._deaths_are_seen and process is not None and process.is_dead

    def process_of(self, text: str) -> Process | None:
        """The process of an incarnation."""
        for process in self.processes:
            if process.runner is not None and process.runner.incarnation == text:
                return process
        return None

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """Decide, instead of the machine, on time, chance, threads and process ids."""
        token = SimpleNamespace(token_hex=lambda size: self.rng.randbytes(size).hex())
        time = SimpleNamespace(monotonic=lambda: self.moment, sleep=self.sleep)
        names = {name: getattr(threading, name) for name in ("Lock", "Event", "local")}
        threads = SimpleNamespace(**names, Thread=ThreadNotStarted)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("runqueue.ids.os", SimpleNamespace(urandom=self.rng.randbytes))
            for module in ("runner", "incarnation"):
                patch.setattr(f"runqueue.{module}.secrets", token)
            for module in ("runner", "claims", "daemon", "database"):
                patch.setattr(f"runqueue.{module}.time", time)
            for module in ("runner", "claims", "backoff", "database"):
                patch.setattr(f"runqueue.{module}.random", self.rng)
            patch.setattr("runqueue.runner.threading", threads)
            patch.setattr(incarnation, "current", lambda: f"sim/{token.token_hex(4)}")
            patch.setattr(incarnation, "is_dead", self._is_dead)
            yield
