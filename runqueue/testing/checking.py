"""Holding the database against the ledger: is everything that was promised so?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Final, NamedTuple

from runqueue.models import Event, Run
from runqueue.queue import Queue
from runqueue.states import ACTIVE, MOVES, TERMINAL, Actor, Status
from runqueue.testing.ledger import Entry, Ledger, Note


def _changes() -> dict[tuple[Status, Status], bool]:
    """Each legal change of status, and whether its owner alone may make it."""
    changes: dict[tuple[Status, Status], bool] = {}
    for move in MOVES.values():
        for source in move.sources:
            change = source, move.target  # which may be that of another move, by anybody
            changes[change] = changes.get(change, True) and move.owned
    return changes


_CHANGES: Final = _changes()


class Promise(str, Enum):
    """What can be broken."""

    ACKNOWLEDGED = "no acknowledged run is lost"
    CLAIMED_ONCE = "a claim is given out once"
    EXECUTED_ONCE = "a run is executed at most once"
    ENDED_ONCE = "a run ends once"
    LEGAL = "a run makes legal moves only"
    KEPT = "what was answered is in the database"
    SESSION = "a session has one active run at a time"
    ORPHANS = "a dead runner leaves at most one run in each slot"
    RESOLVED = "nothing is left active"

    def __str__(self) -> str:
        return self.value


class Problem(NamedTuple):
    """One promise that was broken, and how."""

    promise: Promise
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.text}"


class BrokenPromise(AssertionError):
    """Database and ledger do not agree; `problems` says in what."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True)
class Report:
    """What a check saw."""

    runs: int
    """All that the database holds."""
    statuses: dict[Status, int]
    """How many of them are in each status that occurs."""
    notes: dict[Note, int]
    """How many notes there are of each kind that occurs."""
    claims: int
    """How many claims were made, by the database's history."""
    orphans: int
    """How many of them a runner with notes neither reported nor heard to be lost."""
    late: int
    """How many reports came too late and were kept."""
    torn: int
    """How many notes were torn by a kill."""


def check(queue: Queue, ledger: Ledger, *, slots: int = 1) -> Report:
    """Hold every run of the queue against the ledger, when all is quiet; return what was seen.

    A runner that died may leave up to `slots` claims behind. Raises BrokenPromise, which names
    every promise that was broken and the runs.
    """
    entries, torn = ledger.read()
    runs = queue.find()
    histories = {run.run_id: _history(queue, run) for run in runs}
    problems = [
        *_lost(entries, histories),
        *_claimed_twice(entries),
        *_executed_twice(entries),
        *_unknown(entries, histories),
    ]
    for run in runs:
        problems += _untrue(run, histories[run.run_id].moves)
    problems += _crowded(runs, histories)
    claims = _claims(histories)
    writers = {entry.runner_id for entry in entries}
    over = {entry.claim for entry in entries if entry.note in _OVER}
    orphans = {claim for claim in claims - over if claim[1] in writers}
    problems += _orphaned(entries, orphans, slots)
    if problems:
        raise BrokenPromise(problems)
    return Report(
        runs=len(runs),
        statuses=dict(Counter(run.status for run in runs)),
        notes=dict(Counter(entry.note for entry in entries)),
        claims=len(claims),
        orphans=len(orphans),
        late=sum(history.late for history in histories.values()),
        torn=torn,
    )


_OVER: Final = (Note.REPORTED, Note.REFUSED)


class _History(NamedTuple):
    moves: list[Event]
    late: int


def _history(queue: Queue, run: Run) -> _History:
    events = queue.timeline(run.run_id)
    moves = [event for event in events if not event.is_note]
    return _History(moves, len(events) - len(moves))


def _claims(histories: dict[str, _History]) -> set[tuple[str, str, str]]:
    return {
        (run_id, str(event.detail), event.at)
        for run_id, history in histories.items()
        for event in history.moves
        if event.status == Status.CLAIMED
    }


def _lost(entries: list[Entry], histories: dict[str, _History]) -> Iterator[Problem]:
    for entry in entries:
        if entry.note == Note.ACKNOWLEDGED and entry.run_id not in histories:
            yield Problem(Promise.ACKNOWLEDGED, f"run {entry.run_id} is not there")


def _claimed_twice(entries: list[Entry]) -> Iterator[Problem]:
    # The owner's name is left out: two runners with one instant are two owners all the same.
    given = Counter((e.run_id, e.claimed_at) for e in entries if e.note == Note.CLAIMED)
    for (run_id, claimed_at), times in given.items():
        if times > 1:
            told = f"the claim of run {run_id} at {claimed_at} was given out {times} times"
            yield Problem(Promise.CLAIMED_ONCE, told)


def _executed_twice(entries: list[Entry]) -> Iterator[Problem]:
    for note in (Note.STARTED, Note.DONE):
        times = Counter(entry.run_id for entry in entries if entry.note == note)
        for run_id, number in times.items():
            if number > 1:
                yield Problem(Promise.EXECUTED_ONCE, f"run {run_id} was {note} {number} times")


def _unknown(entries: list[Entry], histories: dict[str, _History]) -> Iterator[Problem]:
    """What a runner was told and the history of the run does not tell."""
    for entry in entries:
        if entry.run_id not in histories or entry.note in (Note.ACKNOWLEDGED, Note.REFUSED):
            continue
        own = _of_claim(histories[entry.run_id].moves, entry)
        wanted = {
            Note.CLAIMED: Status.CLAIMED,
            Note.STARTED: Status.RUNNING,
            Note.DONE: Status.RUNNING,
            Note.REPORTED: entry.status,
        }[entry.note]
        if wanted not in own:
            who = f"runner {entry.runner_id} noted {entry.note} {entry.status or ''}".strip()
            told = " ".join(own) or "nothing"
            yield Problem(Promise.KEPT, f"run {entry.run_id}: {who}, its claim's history is {told}")


def _of_claim(moves: list[Event], entry: Entry) -> list[str]:
    """The statuses that a run entered by one claim, up to the next one."""
    own: list[str] = []
    for event in moves:
        if event.status == Status.CLAIMED:
            if own:
                break
            if (event.detail, event.at) != (entry.runner_id, entry.claimed_at):
                continue
        elif not own:
            continue
        own.append(str(event.status))
    return own


def _untrue(run: Run, moves: list[Event]) -> Iterator[Problem]:
    """What is wrong with a run by itself."""
    told = f"run {run.run_id}: {' '.join(str(event.status) for event in moves)}"
    ends = sum(event.status in TERMINAL for event in moves)
    if ends != run.is_terminal:
        yield Problem(Promise.ENDED_ONCE, told)
    if run.is_active:
        yield Problem(Promise.RESOLVED, f"{told}, by runner {run.runner_id}")
    if moves[0].status != Status.PENDING or moves[-1].status != run.status:
        yield Problem(Promise.LEGAL, f"{told}, and it is {run.status}")
    for before, after in pairwise(moves):
        owned = _CHANGES.get((before.status, after.status))
        if owned is None or (owned and after.actor != Actor.RUNNER.value):
            step = f"from {before.status} to {after.status} by {after.actor}"
            yield Problem(Promise.LEGAL, f"{told}, {step}")


def _crowded(runs: list[Run], histories: dict[str, _History]) -> Iterator[Problem]:
    """Sessions of which two runs were active at once, by the order in which it was recorded."""
    sessions: dict[str, list[Event]] = defaultdict(list)
    for run in runs:
        # What was written by hand has no place in that order.
        recorded = [event for event in histories[run.run_id].moves if event.event_id is not None]
        sessions[run.session_id] += recorded
    for session_id, events in sessions.items():
        active: set[str] = set()
        for event in sorted(events, key=lambda event: int(event.event_id)):
            run_id = str(event.__data__["run"])
            if event.status not in ACTIVE:
                active.discard(run_id)
                continue
            active.add(run_id)
            if len(active) > 1:
                told = f"session {session_id}: {', '.join(sorted(active))}"
                yield Problem(Promise.SESSION, told)
                break


def _orphaned(
    entries: list[Entry], orphans: set[tuple[str, str, str]], slots: int
) -> Iterator[Problem]:
    lives: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        if entry.runner_id:
            lives[entry.runner_id].add(entry.pid)
    left: dict[str, list[str]] = defaultdict(list)
    for run_id, runner_id, _ in sorted(orphans):
        left[runner_id].append(run_id)
    for runner_id, run_ids in left.items():
        processes = len(lives[runner_id])
        if len(run_ids) > processes * slots:
            runs = ", ".join(run_ids)
            told = f"runner {runner_id}, {processes} times a process, left {len(run_ids)}: {runs}"
            yield Problem(Promise.ORPHANS, told)
