"""The life of a run, as data: every status, and every move between two of them.

Nothing else in the package knows which status may follow which: the guarded updates, the
typed refusals, the documentation's diagram and the tests are all derived from `MOVES`.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple


class Status(str, Enum):
    """Where a run is in its life."""

    PENDING = "pending"
    """Waits for a runner that satisfies its demands."""
    CLAIMED = "claimed"
    """Belongs to a runner that has not begun to execute it."""
    RUNNING = "running"
    """Is being executed by its owner."""
    STOPPING = "stopping"
    """Somebody asked for a stop; the owner is ending the agent."""
    COMPLETED = "completed"
    """Ended with a result."""
    FAILED = "failed"
    """Ended with an error, expired, or lost with its runner."""
    STOPPED = "stopped"
    """Ended because somebody asked for it."""

    def __str__(self) -> str:
        return self.value


class RunType(str, Enum):
    """What a run does to its session."""

    START_SESSION = "START_SESSION"
    RESUME_SESSION = "RESUME_SESSION"

    def __str__(self) -> str:
        return self.value


class ExecutionMode(str, Enum):
    """How the caller learns of the end of a run."""

    SYNC = "sync"
    ASYNC_POLL = "async_poll"
    ASYNC_CALLBACK = "async_callback"

    def __str__(self) -> str:
        return self.value


class Actor(str, Enum):
    """Who made a move, as recorded in the run's timeline."""

    CALLER = "caller"
    RUNNER = "runner"
    DAEMON = "daemon"
    OPERATOR = "operator"
    QUEUE = "queue"
    """The queue itself: a note of what belongs to the run, which enters no status."""

    def __str__(self) -> str:
        return self.value


class Wake(str, Enum):
    """For whom something has changed."""

    WORK = "work"
    """There may be something to claim."""
    END = "end"
    """A run has ended."""
    STOP = "stop"
    """An owner has something to stop: a stop was asked for, or its claim was taken from it."""

    def __str__(self) -> str:
        return self.value


class Move(NamedTuple):
    """One legal change of status."""

    sources: frozenset[Status]
    target: Status
    stamp: str | None
    """The column that records when the move was made."""
    owned: bool
    """Whether only the owner, proved by (runner_id, claimed_at), may make it."""
    by: str
    """Who makes it, in the words of the documentation."""
    wakes: frozenset[Wake]
    """Who is to be told of it, once it is committed."""


_P, _C, _R, _S = Status.PENDING, Status.CLAIMED, Status.RUNNING, Status.STOPPING


_WORK, _END, _STOP = Wake.WORK, Wake.END, Wake.STOP


def _move(sources: set[Status], target: Status, stamp: str | None, by: str, *wakes: Wake) -> Move:
    return Move(frozenset(sources), target, stamp, by == "its owner", by, frozenset(wakes))


# The end of a run makes work, too: the next run of its session may be claimed.
MOVES: Final[dict[str, Move]] = {
    "claim": _move({_P}, _C, "claimed_at", "a runner that satisfies the demands"),
    "start": _move({_C}, _R, "started_at", "its owner"),
    "complete": _move({_R, _S}, Status.COMPLETED, "completed_at", "its owner", _WORK, _END),
    "fail": _move({_C, _R, _S}, Status.FAILED, "completed_at", "its owner", _WORK, _END),
    "confirm": _move({_S}, Status.STOPPED, "completed_at", "its owner", _WORK, _END),
    "release": _move({_C}, _P, None, "its owner, the daemon, an operator", _WORK, _STOP),
    "stop": _move({_C, _R}, _S, None, "anyone", _STOP),
    "cancel": _move({_P}, Status.STOPPED, "completed_at", "anyone", _WORK, _END),
    "expire": _move({_P}, Status.FAILED, "completed_at", "the daemon", _WORK, _END),
    "settle": _move({_S}, Status.STOPPED, "completed_at", "the daemon", _WORK, _END, _STOP),
    "lose": _move({_R}, Status.FAILED, "completed_at", "the daemon", _WORK, _END, _STOP),
}

ACTIVE: Final = frozenset({_C, _R, _S})
"""Statuses in which a run has an owner."""

TERMINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.STOPPED})
"""Statuses that no move leaves."""

LATE: Final = "late "
"""How the detail of a run's event begins that enters no status, but keeps a refused report."""


def diagram() -> str:
    """Return the Mermaid state diagram of `MOVES`."""
    lines = ["stateDiagram-v2", "    [*] --> pending: enqueue"]
    for name, move in MOVES.items():
        for source in Status:
            if source in move.sources:
                lines.append(f"    {source} --> {move.target}: {name}")
    lines += [f"    {status} --> [*]" for status in Status if status in TERMINAL]
    return "\n".join(lines) + "\n"


def table() -> str:
    """Return the rows of the documentation's table of `MOVES`."""
    return "".join(
        f"| {name} | {', '.join(status.value for status in Status if status in move.sources)} "
        f"| {move.target} | {move.by} |\n"
        for name, move in MOVES.items()
    )


if __name__ == "__main__":
    print(diagram() + "\n" + table(), end="")
