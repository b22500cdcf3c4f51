"""A ledger: what processes say that they did, in a file beside the database.

Each note is one line of JSON, appended by one write, so that any number of processes share the
file and one that is killed at any instruction leaves at most one torn line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

from runqueue.claims import Claim
from runqueue.models import Run
from runqueue.runner import Runner
from runqueue.states import Status

BEGINS: Final = '{"note": '
"""How each line begins: what begins so and is no JSON was torn, all else is no note."""


class Note(str, Enum):
    """What a process says."""

    OPENED = "opened"
    """The runner is registered; nothing was claimed yet."""
    ACKNOWLEDGED = "acknowledged"
    """`enqueue` has returned this run."""
    CLAIMED = "claimed"
    """`claim` has returned this claim."""
    STARTED = "started"
    """`start` has returned; the work begins."""
    DONE = "done"
    """The work is done, and not reported yet."""
    REPORTED = "reported"
    """A report has returned; `status` is what the run became by it."""
    REFUSED = "refused"
    """A verb was refused, for the claim was lost."""

    def __str__(self) -> str:
        return self.value


class Entry(NamedTuple):
    """One note, and whose."""

    note: Note
    pid: int
    run_id: str | None = None
    runner_id: str | None = None
    claimed_at: str | None = None
    status: str | None = None

    @property
    def claim(self) -> tuple[str, str, str]:
        """What names a claim: the run, its owner and the time."""
        return str(self.run_id), str(self.runner_id), str(self.claimed_at)


class Ledger:
    """A file of notes that any number of processes append to; a fork may go on with it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close the file; the notes stay."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def opened(self, runner: Runner) -> None:
        """Note that a runner is registered, before its first claim."""
        self._note(Note.OPENED, runner_id=runner.runner_id)

    def acknowledged(self, runs: Run | Iterable[Run]) -> None:
        """Note what `enqueue`, `enqueue_many` or `retry` has returned."""
        for run in [runs] if isinstance(runs, Run) else runs:
            self._note(Note.ACKNOWLEDGED, run_id=run.run_id)

    def claimed(self, claim: Claim) -> None:
        """Note a claim, as soon as it was returned."""
        self._note(Note.CLAIMED, **claim.fence._asdict())

    def started(self, claim: Claim) -> None:
        """Note that the start was reported, before the work begins."""
        self._note(Note.STARTED, **claim.fence._asdict())

    def done(self, claim: Claim) -> None:
        """Note that the work is done, before it is reported."""
        self._note(Note.DONE, **claim.fence._asdict())

    def reported(self, claim: Claim, status: Status | str) -> None:
        """Note that a report has returned, and what the run is by it; pending by a release."""
        self._note(Note.REPORTED, **claim.fence._asdict(), status=Status(status).value)

    def refused(self, claim: Claim) -> None:
        """Note that a verb of the claim raised StaleClaim, or RunNotFound."""
        self._note(Note.REFUSED, **claim.fence._asdict())

    def _note(self, note: Note, **values: str) -> None:
        text = json.dumps({"note": note.value, "pid": os.getpid(), **values})
        # What was torn before it must not swallow it.
        line = f"\n{text}\n".encode()
        if os.write(self._file, line) != len(line):
            raise OSError(f"a note was not written whole to {self.path}")

    def read(self) -> tuple[list[Entry], int]:
        """Return all notes in their order, and how many lines were torn.

        Raises ValueError for a line that was never a note.
        """
        entries, torn = [], 0
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            try:
                values: dict[str, Any] = json.loads(line) if line else {}
                if line:
                    entries.append(Entry(**{**values, "note": Note(values["note"])}))
            except (ValueError, TypeError, KeyError):
                if not (line.startswith(BEGINS) or BEGINS.startswith(line)):
                    raise ValueError(f"line {number} of {self.path} is no note") from None
                torn += 1
        return entries, torn
