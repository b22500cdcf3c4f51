"""What you need to test your own runners against a real queue; see docs/testing.md.

A queue on a temporary file, a clock that you move, a process that crashes where you tell it to,
and a ledger that many processes write and a checker reads.
"""

from __future__ import annotations

from runqueue.testing.checking import BrokenPromise, Problem, Promise, Report, check
from runqueue.testing.crashing import Crashed, CrashPoint, DoomedQueue, NeverCrashed, crashing
from runqueue.testing.ledger import Entry, Ledger, Note
from runqueue.testing.places import MovableClock, temporary_queue

__all__ = [
    "BrokenPromise",
    "CrashPoint",
    "Crashed",
    "DoomedQueue",
    "Entry",
    "Ledger",
    "MovableClock",
    "NeverCrashed",
    "Note",
    "Problem",
    "Promise",
    "Report",
    "check",
    "crashing",
    "temporary_queue",
]
