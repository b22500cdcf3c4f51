"""What the queue should hold, as plain dicts: the contract in the fewest words that say it.

Nothing here is taken from the product but the types of its errors. Every verb either changes
the dicts or raises what the product is to raise, and then it has changed nothing. A run is a
dict of its columns, a claim a dict of what proves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from runqueue import IllegalMove, InvalidRun, RunNotFound, SessionNotFound, StaleClaim
from runqueue.errors import RunnerConflict, RunnerNotFound

LEASE, GRACE, START_DEADLINE, DEMANDS_TIMEOUT = 30, 11, 60, 300
"""Seconds; the grace with the daemon's allowance for the owner's word."""
ACTIVE = ("claimed", "running", "stopping")
TERMINAL = ("completed", "failed", "stopped")
MOVES = {
    "start": (("claimed",), "running"),
    "complete": (("running", "stopping"), "completed"),
    "fail": (("claimed", "running", "stopping"), "failed"),
    "confirm": (("stopping",), "stopped"),
    "release": (("claimed",), "pending"),
    "stop": (("claimed", "running"), "stopping"),
    "cancel": (("pending",), "stopped"),
}
LATE = {"complete": "late result", "fail": "late failure", "confirm": "late confirmation"}
UNOWNED = {"runner_id": None, "claimed_at": None}
GIVEN_BACK = "its owner is gone or did not start it"

Row = dict[str, Any]


def later(text: str, seconds: float) -> str:
    moment = datetime.fromisoformat(text[:26]) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="microseconds") + "Z"


def seconds_between(earlier: str, later: str) -> float:
    moments = [datetime.fromisoformat(text[:26]) for text in (earlier, later)]
    return (moments[1] - moments[0]).total_seconds()


def order(run: Row) -> tuple[int, str, str]:
    return -run["priority"], run["created_at"], run["run_id"]


class Model:
    """A queue whose every verb is evidently right."""

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, str]] = {}
        """The home of each session, empty until a run of it is started."""
        self.runs: dict[str, Row] = {}
        self.history: dict[str, list[tuple[str, str, str, str | None]]] = {}
        self.attempts: dict[str, int] = {}
        """Which attempt a run is, if it was not the only one."""
        """Of each run: when, the status, who, and the detail of what was recorded."""
        self.runners: dict[str, Row] = {}

    # Runs and their sessions

    def find(self, run_id: str) -> Row:
        if run_id not in self.runs:
            raise RunNotFound
        return self.runs[run_id]

    def of_session(self, session_id: str, *statuses: str) -> list[Row]:
        runs = [run for run in self.runs.values() if run["session_id"] == session_id]
        return [run for run in runs if not statuses or run["status"] in statuses]

    def check_session(self, session_id: str) -> None:
        if session_id not in self.sessions:
            raise SessionNotFound

    def insert(self, run_id: str, session_id: str, now: str, **columns: Any) -> Row:
        """Add a pending run that nothing is recorded of; a session that is not there is made."""
        self.sessions.setdefault(session_id, {})
        self.runs[run_id] = {
            **dict.fromkeys(("error", "result", "started_at", "completed_at", "timeout_at")),
            **UNOWNED,
            "run_id": run_id,
            "session_id": session_id,
            "type": "START_SESSION",
            "demands": {},
            "status": "pending",
            "created_at": now,
            "priority": 0,
            **columns,
        }
        self.history[run_id] = []
        return self.runs[run_id]

    def enqueue(self, run_id: str, session_id: str, now: str, request: Row) -> None:
        """Add the run of a request that was accepted."""
        tags = request.get("demands", {})
        timeout = request.get("timeout", DEMANDS_TIMEOUT if tags else None)
        self.insert(
            run_id,
            session_id,
            now,
            type="RESUME_SESSION" if "session_id" in request else "START_SESSION",
            prompt=request["prompt"],
            priority=request.get("priority", 0),
            timeout_at=None if timeout is None else later(now, timeout),
            demands={**self.sessions.get(session_id, {}), **tags},
        )
        self.record(run_id, now, "caller")

    def check_again(self, run_id: str, prompt: str) -> None:
        """Accept a run_id that is there already with the same content only."""
        if self.runs[run_id]["prompt"] != prompt:
            raise InvalidRun

    def check_retry(self, run_id: str) -> None:
        if self.find(run_id)["status"] not in TERMINAL:
            raise IllegalMove

    def retry(self, run_id: str, new_id: str, now: str) -> None:
        old = self.runs[run_id]
        was_started = any(run["started_at"] for run in self.of_session(old["session_id"]))
        columns = {name: old[name] for name in ("prompt", "priority")}
        if old["timeout_at"]:
            timeout = seconds_between(old["created_at"], old["timeout_at"])
            columns["timeout_at"] = later(now, timeout)
        columns["demands"] = {**self.sessions[old["session_id"]], **old["demands"]}
        columns["type"] = "RESUME_SESSION" if was_started else "START_SESSION"
        self.insert(new_id, old["session_id"], now, **columns)
        number = self.attempts.get(run_id, 1) + 1
        self.attempts[new_id] = number
        self.record(new_id, now, "caller", f"retry of {run_id}, attempt {number}")
        self.record(run_id, now, "queue", f"attempt {number} is run {new_id}")

    def record(self, run_id: str, now: str, actor: str, detail: str | None = None) -> None:
        self.history[run_id].append((now, self.runs[run_id]["status"], actor, detail))

    def enter(
        self, run: Row, status: str, now: str, actor: str, detail: str | None = None, **columns: Any
    ) -> None:
        run.update(status=status, **columns)
        if status in TERMINAL:
            run["completed_at"] = now
        self.record(run["run_id"], now, actor, detail)

    def ask(self, verb: str, run_id: str, now: str, actor: str) -> None:
        """Make a move that needs no claim; a stop of a run that nobody owns cancels it."""
        run = self.find(run_id)
        if verb == "stop" and run["status"] in ("pending", "stopping"):
            if run["status"] == "pending":
                self.enter(run, "stopped", now, actor)
            return
        sources, target = MOVES[verb]
        if run["status"] not in sources:
            raise IllegalMove
        self.enter(run, target, now, actor, **(UNOWNED if verb == "release" else {}))

    def by_hand(self, run_id: str, status: str) -> bool:
        """Set a status as SQL does; False where the database refuses a second active run."""
        run = self.runs[run_id]
        others = [one for one in self.of_session(run["session_id"], *ACTIVE) if one is not run]
        if status in ACTIVE and others:
            return False
        run["status"] = status
        return True

    def delete_session(self, session_id: str, *, force: bool) -> int:
        self.check_session(session_id)
        if self.of_session(session_id, *ACTIVE) and not force:
            raise IllegalMove
        gone = [run["run_id"] for run in self.of_session(session_id)]
        self.forget(gone)
        del self.sessions[session_id]
        return len(gone)

    def prune(self, before: str) -> int:
        old = [
            run
            for run in self.runs.values()
            if run["status"] in TERMINAL
            and run["created_at"] < before
            and (run["completed_at"] or run["created_at"]) < before
        ]
        self.forget([run["run_id"] for run in old])
        for session_id in {run["session_id"] for run in old}:
            if not self.of_session(session_id):
                del self.sessions[session_id]
        return len(old)

    def forget(self, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            del self.runs[run_id], self.history[run_id]

    # Claims

    def is_next(self, run: Row) -> bool:
        """Whether a run is the one that its session offers."""
        session_id = run["session_id"]
        pending = sorted(self.of_session(session_id, "pending"), key=order)
        return not self.of_session(session_id, *ACTIVE) and run in pending[:1]

    def claim(self, runner_id: str, limit: int, now: str) -> list[Row]:
        """Take the first runs that a registered runner serves; return the claims."""
        has = self.runners[runner_id]["has"]
        ready = [
            run
            for run in self.runs.values()
            if self.is_next(run)
            and (run["timeout_at"] is None or run["timeout_at"] > now)
            and all(_is_met(wanted, has.get(key)) for key, wanted in run["demands"].items())
        ]
        taken = sorted(ready, key=order)[:limit]
        for run in taken:
            run.update(runner_id=runner_id, claimed_at=now, started_at=None, completed_at=None)
            run.update(error=None, result=None)
            self.enter(run, "claimed", now, "runner", runner_id)
        return [
            {"run_id": run["run_id"], "runner_id": runner_id, "claimed_at": now, "is_over": False}
            for run in taken
        ]

    def is_owner(self, claim: Row) -> bool:
        run = self.find(claim["run_id"])
        return all(run[name] == claim[name] for name in ("runner_id", "claimed_at"))

    def is_to_end(self, claim: Row) -> bool:
        """Whether the agent that executes a claim is to be ended."""
        if claim["run_id"] not in self.runs or not self.is_owner(claim):
            return True
        return self.runs[claim["run_id"]]["status"] not in ("claimed", "running")

    def report(
        self, verb: str, claim: Row, now: str, *, has: Row, result: Any = None, error: Any = None
    ) -> None:
        """Make an owner's move, or accept it as the one that was made; `has` is its runner's."""
        run = self.find(claim["run_id"])
        sources, target = MOVES[verb]
        said = {"result": result, "error": error}
        is_repeated = run["status"] == target and all(run[name] == said[name] for name in said)
        if self.is_owner(claim) and run["status"] in sources:
            columns = {name: value for name, value in said.items() if value is not None}
            if verb == "start":
                columns["started_at"] = now
            self.enter(
                run, target, now, "runner", **(UNOWNED if verb == "release" else {}), **columns
            )
        elif not (self.is_owner(claim) and is_repeated):
            if self.is_owner(claim) and run["status"] in ACTIVE:
                raise IllegalMove
            raise StaleClaim
        if verb == "start":
            self.bind(run["session_id"], has)

    def keep_late(self, verb: str, claim: Row, now: str, text: str | None) -> None:
        """Record a report that was refused as stale; once, for the claim is over then."""
        if verb in LATE and not claim["is_over"]:
            said = f"{LATE[verb]} of runner {claim['runner_id']}"
            self.record(claim["run_id"], now, "runner", f"{said}: {text}" if text else said)

    def bind(self, session_id: str, has: Row) -> None:
        """Give a session its home, once, and the runs of it that wait."""
        if not self.sessions[session_id]:
            home = {key: has[key] for key in ("hostname", "executor_type") if has[key]}
            self.sessions[session_id] = home
            for run in self.of_session(session_id, "pending"):
                run["demands"] = {**home, **run["demands"]}

    # Runners

    def register(
        self, runner_id: str, incarnation: str, has: Row, now: str, dead: set[str]
    ) -> None:
        """Add a runner, in the place of a predecessor that is dead."""
        if (found := self.runners.get(runner_id)) is not None:
            if found["lease_until"] > now and found["incarnation"] not in dead:
                raise RunnerConflict
            self.resolve(runner_id, now, "runner", f"runner {runner_id} was restarted")
        self.runners[runner_id] = {"incarnation": incarnation, "has": has, "state": "online"}
        self.beat(runner_id, now)

    def beat(self, runner_id: str, now: str) -> None:
        self.runners[runner_id]["lease_until"] = later(now, LEASE)

    def check_runner(self, runner_id: str) -> Row:
        if runner_id not in self.runners:
            raise RunnerNotFound
        return self.runners[runner_id]

    def remove(self, runner_id: str, now: str, *, force: bool) -> None:
        if self.check_runner(runner_id)["lease_until"] > now and not force:
            raise RunnerConflict
        self.resolve(runner_id, now, "operator", f"runner {runner_id} was removed")
        del self.runners[runner_id]

    def resolve(self, runner_id: str, now: str, actor: str, reason: str) -> None:
        """Resolve the runs of a runner that is gone for this reason."""
        for run in self.runs.values():
            if run["runner_id"] == runner_id and run["status"] in ACTIVE:
                self.rescue(run, now, actor, reason, reason)

    # The daemon

    def is_gone(self, run: Row, now: str) -> bool:
        """Whether the owner of a run is dead; one that never registered is given one lease."""
        if (runner := self.runners.get(run["runner_id"])) is not None:
            return bool(runner["lease_until"] <= now)
        sign = run["started_at"] or run["claimed_at"] or run["created_at"]
        return bool(sign <= later(now, -LEASE))

    def is_rescued(self, run: Row, now: str) -> bool:
        asked = [
            at
            for at, status, _, detail in self.history[run["run_id"]]
            if status == "stopping" and not str(detail).startswith("late ")
        ]
        is_over = {
            "claimed": (run["claimed_at"] or run["created_at"]) <= later(now, -START_DEADLINE),
            "running": False,
            "stopping": not any(at > later(now, -GRACE) for at in asked),
        }
        return self.is_gone(run, now) or is_over[run["status"]]

    def rescue(self, run: Row, now: str, actor: str, presumed: str, lost: str) -> str:
        if run["status"] == "claimed":
            self.enter(run, "pending", now, actor, GIVEN_BACK, **UNOWNED)
            return "released"
        if run["status"] == "running":
            self.enter(run, "failed", now, actor, lost, error=lost)
            return "lost"
        self.enter(run, "stopped", now, actor, presumed, error=presumed)
        return "settled"

    def sweep(self, now: str, *, rescues: bool) -> dict[str, int]:
        counts = dict.fromkeys(("expired", "settled", "lost", "released"), 0)
        for run in self.runs.values():
            if run["status"] == "pending" and run["timeout_at"] and run["timeout_at"] <= now:
                self.enter(run, "failed", now, "daemon", "expired", error="expired")
                counts["expired"] += 1
        for run in self.runs.values() if rescues else ():
            if run["status"] in ACTIVE and self.is_rescued(run, now):
                owner = run["runner_id"] or "unknown"
                presumed = f"stop presumed, not confirmed by runner {owner}"
                lost = f"runner {owner} was lost: its lease ran out"
                counts[self.rescue(run, now, "daemon", presumed, lost)] += 1
        return counts

    def deadlines(self, now: str) -> list[str]:
        """The times to come at which a sweep has something to do, or might have."""
        times = {runner["lease_until"] for runner in self.runners.values()}
        for run in self.runs.values():
            if run["status"] == "pending" and run["timeout_at"]:
                times.add(run["timeout_at"])
            if run["status"] == "claimed" and run["claimed_at"]:
                times.add(later(run["claimed_at"], START_DEADLINE))
            if run["status"] == "stopping" and self.history[run["run_id"]]:
                times.add(later(self.history[run["run_id"]][-1][0], GRACE))
        return sorted(time for time in times if time > now)

    # What can be asked

    def timeline(self, run_id: str) -> list[tuple[str | None, str, str, str | None]]:
        """The history, completed with what somebody wrote by hand."""
        run = self.runs[run_id]
        events: list[Any] = list(self.history[run_id])
        if not events or events[0][1] != "pending":
            events.insert(0, (run["created_at"], "pending", "sql", None))
        last = max(place for place, event in enumerate(events) if not _is_note(*event))
        if events[last][1] != run["status"]:
            at = run["completed_at"] if run["status"] in TERMINAL else None
            events.insert(last + 1, (at, run["status"], "sql", None))
        return events

    def session_status(self, session_id: str) -> str:
        self.check_session(session_id)
        runs = self.of_session(session_id)
        for statuses in (ACTIVE, ("pending",)):
            for run in self.of_session(session_id, *statuses):
                return str(run["status"])
        return str(max(runs, key=lambda run: run["created_at"])["status"]) if runs else "empty"


def _is_note(at: str | None, status: str, actor: str, detail: str | None) -> bool:
    return actor == "queue" or (actor == "runner" and (detail or "").startswith("late "))


def _is_met(wanted: Any, has: Any) -> bool:
    return set(wanted) <= set(has) if isinstance(wanted, list) else wanted == has
