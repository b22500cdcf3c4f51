"""Asking the database until it answers: what every process of the simulation does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from runqueue.errors import (
    IllegalMove,
    InvalidRun,
    RunnerConflict,
    RunnerNotFound,
    RunNotFound,
    SessionNotFound,
    StaleClaim,
    StorageError,
)
from tests.sim.process import Process, Steps

REFUSALS: Final = (RunNotFound, SessionNotFound, RunnerNotFound, StaleClaim, IllegalMove)


def insist(process: Process, verb: Callable[[], Any], what: str) -> Steps:
    """Repeat a verb while the database is away; a refusal is an answer, too."""
    while True:
        try:
            answer = verb()
            process.log(what)
            return answer
        except StorageError as error:
            process.log(f"{what}: {type(error).__name__}")
        except (*REFUSALS, RunnerConflict) as refusal:
            process.log(f"{what}: {type(refusal).__name__}")
            return None
        except InvalidRun as refusal:
            if "contradicts" not in str(refusal):  # the home of the session; nothing else is wrong
                raise
            process.log(f"{what}: {type(refusal).__name__}")
            return None
        yield process.world.rng.uniform(0.1, 1.0)
