"""Why a run is where it is: the answer to "why is my run not running?"."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from runqueue import attempts, clock, demands, enqueue, silence, statements, statements_family
from runqueue.database import Store
from runqueue.errors import RunNotFound
from runqueue.models import Daemon, Event, Run, Runner, Session, seconds_between
from runqueue.reading import NO_DAEMON
from runqueue.states import Status

COMPARED: Final = 1_000
"""Different demands that are compared with runners when nobody asks for one run."""
LOWEST: Final = -(2**31)
"""No priority is lower."""


class Explanation(NamedTuple):
    """Why a run is in its status: one sentence, and what stands behind it."""

    run_id: str
    status: Status
    summary: str
    details: tuple[str, ...] = ()


def explain(store: Store, run_id: str, *, now: str) -> Explanation:
    """Say why a run is in its status. Raises RunNotFound."""
    run = enqueue.find(store, run_id)
    if run is None:
        raise RunNotFound(f"run {run_id} does not exist")
    if run.status == Status.PENDING:
        return _pending(store, run, now)
    if run.is_terminal:
        return _ended(store, run)
    if run.is_active:
        return _active(store, run, now)
    return Explanation(run_id, run.status, f"its status, {run.status!r}, is none that there is")


def unclaimed(store: Store, run_id: str, text: str, waiting: bool, *, now: str) -> str:
    """Say, without a full stop, why no runner has claimed a pending run."""
    if waiting:
        return _behind(store, run_id)
    try:
        wanted = demands.parse(text)
    except ValueError as error:
        return f"its {error}"
    runners = live_runners(store, now)
    if not runners:
        return "no runner is alive"
    compared = _compare(wanted, runners)
    ready = [runner for runner, missing in compared if not missing]
    online = [runner for runner in ready if runner.state == "online"]
    if online:
        return f"{_count(online, 'runner')} could serve it, but all were busy"
    if ready:
        return f"{_count(ready, 'runner')} could serve it, but all are draining"
    closest = min(compared, key=lambda pair: len(pair[1]))
    nobody = [
        key for key in wanted if all(key in {one.key for one in missing} for _, missing in compared)
    ]
    if nobody:
        unmet = " and ".join(f"{key} {json.dumps(wanted[key])}" for key in nobody)
        return f"no live runner meets the demand {unmet}"
    lacks = ", ".join(map(str, closest[1]))
    return f"no live runner meets all demands; closest is {closest[0].runner_id}, unmet: {lacks}"


class Unserved(NamedTuple):
    """Pending runs that no live runner can serve."""

    runs: int
    is_all: bool
    """Whether all demands were compared; of very many only the first are."""
    reason: str
    """Why nobody serves the first of them."""


def unserved(store: Store, *, now: str) -> Unserved:
    """Return how many runs wait, though their turn has come, for a runner that is not there."""
    texts = [row[0] for row in store.run(statements.DEMAND_TEXTS)]
    online = [runner for runner in live_runners(store, now) if runner.state == "online"]
    lonely = [text for text in texts[:COMPARED] if not _is_served(text, online)]
    everything = {"priority": LOWEST, "created_at": clock.FOREVER}
    runs = sum(store.run(statements.AHEAD, text=text, **everything)[0][0] for text in lonely)
    reason = unclaimed(store, "", lonely[0], False, now=now) if lonely else ""
    return Unserved(runs, len(texts) <= COMPARED, reason)


def _is_served(text: str, runners: list[Runner]) -> bool:
    try:
        wanted = demands.parse(text)
    except ValueError:
        return False
    return any(not missing for _, missing in _compare(wanted, runners))


def live_runners(store: Store, now: str) -> list[Runner]:
    return Runner.from_rows(store.run(statements.LIVE_RUNNERS, now=now))


def live_daemons(store: Store, now: str) -> list[Daemon]:
    return Daemon.from_rows(store.run(statements.LIVE_DAEMONS, now=now))


def _compare(
    wanted: dict[str, Any], runners: list[Runner]
) -> list[tuple[Runner, list[demands.Unmet]]]:
    compared = []
    for runner in runners:
        try:
            compared.append((runner, demands.unmet(wanted, runner.capabilities())))
        except ValueError:  # somebody wrote the row by hand: it can serve nothing
            compared.append((runner, [demands.Unmet(key, wanted[key], None) for key in wanted]))
    return compared


def _behind(store: Store, run_id: str) -> str:
    run = enqueue.find(store, run_id)
    if run is None:
        return "its session was busy"
    for active, status, runner_id in store.run(
        statements.ACTIVE_OF_SESSION, session_id=run.session_id
    ):
        return f"its session is busy with {active}, {status} on {runner_id or 'an unknown runner'}"
    for (first,) in store.run(statements.FIRST_OF_SESSION, session_id=run.session_id):
        if first != run_id:
            return f"{first} comes before it in its session"
        return "its session was busy, and the daemon has not yet seen that it is not"
    return "its session was busy"


def _pending(store: Store, run: Run, now: str) -> Explanation:
    text = run.demands or ""
    details = []
    if not run.waiting:
        details = _per_runner(store, text, now)
        ahead = store.run(
            statements.AHEAD, text=text, priority=run.priority, created_at=run.created_at
        )[0][0]
        if ahead:
            details.append(f"{ahead} runs with the same demands go first")
    if run.timeout_at:
        left = seconds_between(now, run.timeout_at)
        details.append(
            f"expires in {left:.0f} s" if left > 0 else f"past its timeout for {-left:.0f} s"
        )
    if not live_daemons(store, now):
        details.append(NO_DAEMON)
    reason = what_for(store, run, now=now)
    return Explanation(run.run_id, run.status, f"pending: {reason}", tuple(details))


def what_for(store: Store, run: Run, *, now: str) -> str:
    """Say, without a full stop, what a pending run waits for."""
    reason = unclaimed(store, run.run_id, run.demands or "", bool(run.waiting), now=now)
    if reason.endswith("all were busy"):
        return reason.replace("but all were busy", "and it is waiting for one to be free")
    return reason


def _per_runner(store: Store, text: str, now: str) -> list[str]:
    try:
        wanted = demands.parse(text)
    except ValueError:
        return []
    lines = []
    for runner, missing in _compare(wanted, live_runners(store, now)):
        lacks = "; ".join(map(str, missing)) or "meets all demands"
        state = "" if runner.state == "online" else f" ({runner.state})"
        lines.append(f"{runner.runner_id}{state}: {lacks}")
    return lines


def _active(store: Store, run: Run, now: str) -> Explanation:
    runners = {runner.runner_id: runner for runner in live_runners(store, now)}
    owner = run.runner_id or "an unknown runner"
    details = []
    if run.runner_id not in runners:
        details.append(f"{owner} is not alive; the daemon will resolve this run")
        if not live_daemons(store, now):
            details.append("no daemon is alive to do so: start runqueued")
    if heard := str(silence.of_run(store, run, now=now)):
        details.append(heard)
    since = {
        Status.CLAIMED: run.claimed_at,
        Status.RUNNING: run.started_at,
        Status.STOPPING: _stopped_at(store, run.run_id),
    }[run.status]
    seconds = f" for {seconds_between(since, now):.0f} s" if since else ""
    doing = {
        Status.CLAIMED: f"claimed by {owner}{seconds}, not started yet",
        Status.RUNNING: f"running on {owner}{seconds}",
        Status.STOPPING: f"stopping{seconds}: {owner} is ending the agent",
    }[run.status]
    return Explanation(run.run_id, run.status, doing, tuple(details))


def _stopped_at(store: Store, run_id: str) -> str | None:
    events = Event.from_rows(store.run(statements.EVENTS, run_id=run_id))
    return next((event.at for event in events if event.status == Status.STOPPING), None)


def _ended(store: Store, run: Run) -> Explanation:
    details = []
    one = attempts.of(store, run.run_id) if run.is_terminal else None
    if one is not None and one.due_at:
        details.append(f"another attempt is due at {one.due_at}")
    elif one is not None and one.next_run_id:
        details.append(f"the next attempt is {one.next_run_id}")
    if run.callback_run_id not in (None, statements_family.NOBODY):
        details.append(f"session {run.parent_session_id} is told of it by {run.callback_run_id}")
    when = f" at {run.completed_at}" if run.completed_at else ""
    error = f": {run.error}" if run.error else ""
    summary = f"{run.status}{when}{error}"
    return Explanation(run.run_id, run.status, summary, tuple(details))


def _count(items: list[Any], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def home_of(session: Session, runners: list[Runner]) -> tuple[dict[str, str], list[str]]:
    """Return a session's home and the ids of the given runners that are there."""
    home = session.home()
    there = [runner.runner_id for runner, missing in _compare(dict(home), runners) if not missing]
    return home, there if home else []
