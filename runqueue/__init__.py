"""A durable work queue for agent runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from runqueue._version import __version__

if TYPE_CHECKING:
    from runqueue.callback_prompt import ChildEnd, parse_callback
    from runqueue.claims import Claim
    from runqueue.errors import (
        ConfigurationError,
        IllegalMove,
        InvalidRun,
        RunnerConflict,
        RunnerNotFound,
        RunNotFound,
        RunqueueError,
        SessionConflict,
        SessionNotFound,
        StaleClaim,
        StorageBusy,
        StorageDamaged,
        StorageError,
        StorageFull,
        StorageLost,
        WaitTimeout,
    )
    from runqueue.models import Event, Run, Session
    from runqueue.queue import Queue, connect
    from runqueue.runner import Runner
    from runqueue.states import ACTIVE, TERMINAL, ExecutionMode, RunType, Status
    from runqueue.sweeper import Sweep
    from runqueue.trees import Tree
    from runqueue.why import Explanation

_HOMES = {
    "claims": ("Claim",),
    "errors": (
        *("RunqueueError", "InvalidRun", "RunNotFound", "SessionNotFound", "RunnerNotFound"),
        *("StaleClaim", "IllegalMove", "RunnerConflict", "SessionConflict", "WaitTimeout"),
        *("ConfigurationError", "StorageError", "StorageBusy", "StorageFull", "StorageLost"),
        "StorageDamaged",
    ),
    "models": ("Run", "Session", "Event"),
    "queue": ("Queue", "connect"),
    "runner": ("Runner",),
    "states": ("Status", "RunType", "ExecutionMode", "ACTIVE", "TERMINAL"),
    "sweeper": ("Sweep",),
    "trees": ("Tree",),
    "why": ("Explanation",),
    "callback_prompt": ("ChildEnd", "parse_callback"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ACTIVE",
    "TERMINAL",
    "ChildEnd",
    "Claim",
    "ConfigurationError",
    "Event",
    "ExecutionMode",
    "Explanation",
    "IllegalMove",
    "InvalidRun",
    "Queue",
    "Run",
    "RunNotFound",
    "RunType",
    "Runner",
    "RunnerConflict",
    "RunnerNotFound",
    "RunqueueError",
    "Session",
    "SessionConflict",
    "SessionNotFound",
    "StaleClaim",
    "Status",
    "StorageBusy",
    "StorageDamaged",
    "StorageError",
    "StorageFull",
    "StorageLost",
    "Sweep",
    "Tree",
    "WaitTimeout",
    "__version__",
    "connect",
    "parse_callback",
]


def __getattr__(name: str) -> Any:
    # Peewee takes 80 ms to import, which `runqueue --help` and completion must not wait for.
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'runqueue' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"runqueue.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
