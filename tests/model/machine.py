"""Verbs in any order, made on a queue and on its model, and compared after each."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import peewee
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from runqueue import (
    Queue,
    RunNotFound,
    RunqueueError,
    StaleClaim,
    reading,
    retention,
)
from tests.helpers import MICROSECOND, MovableClock, execute_sql, ids
from tests.model.model import ACTIVE, LATE, TERMINAL, Model, Row, seconds_between

RUNNERS: dict[str, Row] = {
    "plain": {"hostname": "here", "executor_type": None, "tags": []},
    "gpu": {"hostname": "here", "executor_type": None, "tags": ["gpu"]},
    "both": {"hostname": "there", "executor_type": "shell", "tags": ["big", "gpu"]},
}
TABLES = ("run_events", "runs", "sessions", "runners")
REQUESTS = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["x", "y"])},
    optional={
        "demands": st.sampled_from([{"tags": ["gpu"]}, {"tags": ["big", "gpu"]}]),
        "priority": st.sampled_from([-1, 1]),
        "timeout": st.sampled_from([0, 5, 40]),
    },
)
BATCHES = st.lists(REQUESTS, min_size=1, max_size=3)
SECONDS = st.sampled_from([1, 5, 11, 31, 61, 301])
STATUSES = ("pending", *ACTIVE, *TERMINAL)
REPORTS = st.sampled_from(["start", "complete", "fail", "confirm", "release"])
SCRIPTS = st.sampled_from(
    [
        *((), (), ("start",), ("start",), ("start", "complete"), ("start", "fail"), ("fail",)),
        *(("release",), ("start", "complete", "fail"), ("start", "fail", "complete")),
    ]
)
"""What a runner does with what it claims, one report after the other."""


class Rollback(Exception):
    """Undoes a transaction of the caller's."""


@contextlib.contextmanager
def rolled_back(queue: Queue) -> Iterator[None]:
    try:
        with queue.database.atomic():
            yield
            raise Rollback
    except Rollback:
        pass


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the type of the error that it raises."""
    try:
        return call()
    except RunqueueError as error:
        return type(error)


def rarely(machine: Machine) -> bool:
    """For rules that undo much, or show little: else too few sequences get anywhere."""
    return machine.steps % 4 == 0


def without_expiry(text: str | None) -> str | None:
    """The model does not say why nobody claimed a run."""
    return "expired" if text and text.startswith("expired: ") else text


class Machine(RuleBasedStateMachine):
    """A queue that may do anything, as long as the model does the same."""

    runs: Bundle[str] = Bundle("runs")
    """Ids, also of runs that are gone."""
    claims: Bundle[Row] = Bundle("claims")
    """Of the model, with the product's under `real`; also stale ones."""
    processes: Bundle[Row] = Bundle("processes")
    """Runners that live, also such as were replaced or removed and do not know it."""

    def __init__(self, connect: Callable[[], Queue], clock: MovableClock, dead: set[str]) -> None:
        super().__init__()
        self.connect, self.clock, self.dead = connect, clock, dead
        self.queue = connect()
        for table in TABLES:
            execute_sql(self.queue, f"DELETE FROM {table}")
        self.model = Model()
        self.requests: dict[str, Row] = {}
        """What each run was enqueued with."""
        self.session_of: dict[str, str] = {}
        self.opened: list[Row] = []
        self.by_hand: set[str] = set()
        """Runs that somebody wrote to: what their columns say need not fit together."""
        self.ended: dict[str, Any] = {}
        """The rows of runs that had ended by the last look."""
        self.steps = 0

    def teardown(self) -> None:
        for process in self.opened:
            process["real"].close()
            process["queue"].close()
        self.queue.close()

    def now(self) -> str:
        """Return the time of this step, which no other step has."""
        self.clock.advance(10 * MICROSECOND)
        return self.clock.text()

    def both(self, expected: Callable[[], Any], real: Callable[[], Any]) -> Any:
        """Make a verb on both; return its value, or the type of the error that both raise."""
        wanted, found = outcome(expected), outcome(real)
        if isinstance(wanted, type) or isinstance(found, type):
            assert found is wanted
        return found

    # Callers

    def add(self, requests: list[Row], session_id: str | None = None) -> list[str]:
        now = self.now()
        if session_id is not None:
            requests = [{**request, "session_id": session_id} for request in requests]
        if session_id is not None and session_id not in self.model.sessions:
            error = outcome(lambda: self.queue.enqueue_many(requests))
            assert error is outcome(lambda: self.model.check_session(session_id))
            return []
        if len(requests) == 1:
            added = [self.queue.enqueue(**requests[0])]
        else:
            added = self.queue.enqueue_many(requests)
        for index, (run, request) in enumerate(zip(added, requests, strict=True)):
            # A batch is a microsecond apart, so that it is served as it was given.
            at = self.clock.text(index * MICROSECOND)
            self.model.enqueue(run.run_id, run.session_id, at, request)
            self.requests[run.run_id] = request
            self.session_of[run.run_id] = run.session_id
        assert all(run.created_at >= now for run in added)
        return ids(added)

    @initialize(target=runs, requests=st.lists(REQUESTS, min_size=4, max_size=6), more=BATCHES)
    def fill(self, requests: list[Row], more: list[Row]) -> Any:
        """Something to work on, for Hypothesis leaves rules out of a sequence, also `enqueue`."""
        first = self.add(requests)
        return multiple(*first, *self.add(more, self.session_of[first[0]]))

    @rule(target=runs, requests=BATCHES)
    def enqueue(self, requests: list[Row]) -> Any:
        return multiple(*self.add(requests))

    @rule(target=runs, requests=BATCHES, run_id=runs)
    def resume(self, requests: list[Row], run_id: str) -> Any:
        return multiple(*self.add(requests, self.session_of[run_id]))

    @rule(run_id=runs, prompt=st.sampled_from([None, "another"]))
    def enqueue_again(self, run_id: str, prompt: str | None) -> None:
        """The same id: with the same content it adds nothing, and with another it is refused."""
        request = self.requests.get(run_id)
        if request is None:  # it was retried, or written by hand
            return
        now = self.now()
        request = {**request, "prompt": prompt or request["prompt"]}
        session_id = request.get("session_id")
        if run_id in self.model.runs:
            self.both(
                lambda: self.model.check_again(run_id, request["prompt"]),
                lambda: self.queue.enqueue(**request, run_id=run_id),
            )
        elif session_id is not None and session_id not in self.model.sessions:
            self.both(
                lambda: self.model.check_session(session_id),
                lambda: self.queue.enqueue(**request, run_id=run_id),
            )
        else:
            run = self.queue.enqueue(**request, run_id=run_id)
            assert run.run_id == run_id
            self.model.enqueue(run_id, run.session_id, now, request)
            self.requests[run_id], self.session_of[run_id] = request, run.session_id
            self.by_hand.discard(run_id)
            self.ended.pop(run_id, None)

    @precondition(rarely)
    @rule(requests=BATCHES, run_id=runs)
    def change_and_roll_back(self, requests: list[Row], run_id: str) -> None:
        """A caller's transaction that fails leaves nothing of what the verbs did in it."""
        self.now()
        with rolled_back(self.queue):
            outcome(lambda: self.queue.enqueue(**requests[0], session_id=self.session_of[run_id]))
            self.queue.enqueue_many(requests)
            outcome(lambda: self.queue.stop(run_id))

    @rule(run_id=runs, verb=st.sampled_from(["stop", "stop", "cancel", "release"]))
    def ask(self, run_id: str, verb: str) -> None:
        now = self.now()
        actor = "operator" if verb == "release" else "caller"
        self.both(
            lambda: self.model.ask(verb, run_id, now, actor),
            lambda: getattr(self.queue, verb)(run_id),
        )

    @rule(target=runs, run_id=runs)
    def retry(self, run_id: str) -> Any:
        now = self.now()
        made = self.both(lambda: self.model.check_retry(run_id), lambda: self.queue.retry(run_id))
        if isinstance(made, type):
            return multiple()
        self.model.retry(run_id, made.run_id, now)
        self.session_of[made.run_id] = made.session_id
        return made.run_id

    @precondition(rarely)
    @rule(run_id=runs, force=st.booleans())
    def delete_session(self, run_id: str, force: bool) -> None:
        session_id = self.session_of[run_id]
        expected = outcome(lambda: self.model.delete_session(session_id, force=force))
        found = outcome(lambda: self.queue.delete_session(session_id, force=force))
        assert found == expected

    @precondition(rarely)
    @rule(age=st.sampled_from([0, 20, 100]))
    def prune(self, age: int) -> None:
        self.now()
        assert self.queue.prune(age) == self.model.prune(self.clock.text(-age))

    # Runners

    def claim_on(self, process: Row, limit: int) -> list[Row]:
        """Claim on both, and return the claims if both made the same."""
        now = self.now()
        made = self.model.claim(process["id"], limit, now) if self.may_claim(process) else []
        real = process["real"].claim_many(limit) if limit > 1 else [process["real"].claim(0)]
        real = [claim for claim in real if claim is not None]
        assert ids(real) == [claim["run_id"] for claim in made]
        for claim, itself in zip(made, real, strict=True):
            claim.update(real=itself, process=process)
            process["held"][claim["run_id"]] = claim
        return made

    def may_claim(self, process: Row) -> bool:
        row = self.model.runners.get(process["id"])
        if not self.is_known(process) or row is None or row["state"] != "online":
            process["is_draining"] = True
        return not process["is_draining"]

    def is_known(self, process: Row) -> bool:
        row = self.model.runners.get(process["id"])
        return row is not None and row["incarnation"] == process["real"].incarnation

    @rule(target=claims, process=processes, limit=st.integers(1, 4), script=SCRIPTS)
    def claim(self, process: Row, limit: int, script: tuple[str, ...]) -> Any:
        made = self.claim_on(process, limit)
        for claim in made:
            for verb in script:
                self.report(claim, verb, "a")
        return multiple(*made)

    @precondition(rarely)
    @rule(target=claims, process=processes, limit=st.integers(1, 2))
    def claim_and_roll_back(self, process: Row, limit: int) -> Any:
        """What was claimed in a transaction that failed was never claimed."""
        before = copy.deepcopy(self.model)
        with rolled_back(process["queue"]):
            made = self.claim_on(process, limit)
        self.model = before
        return multiple(*made)

    def end(self, claim: Row) -> None:
        claim["is_over"] = True
        held = claim["process"]["held"]
        if held.get(claim["run_id"]) is claim:
            del held[claim["run_id"]]

    def report_on(self, claim: Row, verb: str, text: str) -> Any:
        """Report on both; return the type of the error if both refuse it."""
        now = self.now()
        said = {"complete": {"result": text}, "fail": {"error": text}}.get(verb, {})
        real = claim["real"]
        calls = {
            "start": real.start,
            "complete": lambda: real.complete(text),
            "fail": lambda: real.fail(text),
            "confirm": real.confirm_stop,
            "release": real.release,
        }
        has = claim["process"]["has"]
        refusal = self.both(
            lambda: self.model.report(verb, claim, now, has=has, **said), calls[verb]
        )
        if refusal is StaleClaim:
            self.model.keep_late(verb, claim, now, text if said else None)
        return refusal

    def report(self, claim: Row, verb: str, text: str) -> None:
        refusal = self.report_on(claim, verb, text)
        if refusal in (StaleClaim, RunNotFound) or (refusal is None and verb != "start"):
            self.end(claim)

    @rule(
        target=claims,
        claim=claims,
        asked=st.sampled_from([None, None, "stop", "release"]),
        verbs=st.lists(REPORTS, min_size=1, max_size=3),
        text=st.sampled_from(["a", "b"]),
    )
    def report_in_turn(self, claim: Row, asked: str | None, verbs: list[str], text: str) -> Any:
        """Also after a stop, and when the run was given back and claimed again."""
        if asked is not None:
            self.ask(claim["run_id"], asked)
        made = []
        if asked == "release" and claim["process"]["real"].is_open:
            made = self.claim_on(claim["process"], 9)
        is_to_end = self.model.is_to_end(claim)
        if is_to_end or not claim["process"]["was_told"]:
            assert claim["real"].stop_requested == is_to_end
        for verb in verbs:
            self.report(claim, verb, text)
        return multiple(*made)

    @rule(claim=claims, verb=REPORTS)
    def report_and_roll_back(self, claim: Row, verb: str) -> None:
        """A report in a transaction that failed was never made; a refusal stays one.

        But what would have been kept of it was undone, too, and may be kept later.
        """
        before = copy.deepcopy(self.model)
        with rolled_back(claim["process"]["queue"]):
            refusal = self.report_on(claim, verb, "undone")
        self.model = before
        if refusal is RunNotFound or (refusal is StaleClaim and verb not in LATE):
            self.end(claim)

    @rule(first=claims, second=claims)
    def finish(self, first: Row, second: Row) -> None:
        """Claims are completed together, but for those that are lost; what needs it is started."""
        now, runner = self.now(), first["process"]["real"]
        together = [first]
        if second["run_id"] != first["run_id"] and second["process"] is first["process"]:
            together.append(second)
        refused = [claim for claim in together if not self.completes(claim, now)]
        found = runner.finish_many([(claim["real"], "r") for claim in together])
        assert found == [claim["real"] for claim in refused]
        for claim in refused:
            if claim["run_id"] in self.model.runs:
                self.model.keep_late("complete", claim, now, "r")
        for claim in together:
            self.end(claim)

    def completes(self, claim: Row, now: str) -> bool:
        has = claim["process"]["has"]
        try:
            if self.model.find(claim["run_id"])["status"] == "claimed":
                self.model.report("start", claim, now, has=has)
            self.model.report("complete", claim, now, has=has, result="r")
        except (StaleClaim, RunNotFound):
            return False
        return True

    @initialize(target=processes)
    def open_all(self) -> Any:
        return multiple(*(self.open(runner_id) for runner_id in RUNNERS))

    def open(self, runner_id: str) -> Row | None:
        now, has = self.now(), RUNNERS[runner_id]
        runner = self.queue.runner(runner_id, **has)
        refusal = self.both(
            lambda: self.model.register(runner_id, runner.incarnation, has, now, self.dead),
            runner.open,
        )
        if refusal is not None:
            return None
        process = {"id": runner_id, "has": has, "real": runner, "queue": self.queue, "held": {}}
        process |= {"is_draining": False, "was_told": False}
        self.opened.append(process)
        return process

    @rule(target=processes, runner_id=st.sampled_from(list(RUNNERS)))
    def start_runner(self, runner_id: str) -> Any:
        """Also while another of this id lives: it is refused until that one's lease is over."""
        process = self.open(runner_id)
        return multiple() if process is None else process

    @rule(target=processes, process=consumes(processes), is_killed=st.booleans())
    def restart(self, process: Row, is_killed: bool) -> Any:
        """What a killed process reported just before may still arrive."""
        if is_killed:
            self.dead.add(process["real"].incarnation)
            process["real"].is_open = False
        else:
            self.leave(process)
        return self.start_runner(process["id"])

    def leave(self, process: Row) -> None:
        now, runner_id = self.now(), process["id"]
        process["real"].close()
        if self.is_known(process):
            reason = f"runner {runner_id} ended without reporting"
            self.model.resolve(runner_id, now, "runner", reason)
            del self.model.runners[runner_id]

    @precondition(rarely)
    @rule(process=consumes(processes))
    def kill(self, process: Row) -> None:
        """Nobody knows of it before its lease is over: it was on another machine."""
        process["real"].is_open = False

    @rule(process=processes)
    def beat(self, process: Row) -> None:
        now = self.now()
        assert process["real"]._beat() == self.is_known(process)
        if not self.is_known(process):
            process.update(was_told=True, is_draining=True)
            return
        row = self.model.runners[process["id"]]
        process["was_told"] |= row["lease_until"] <= now
        process["is_draining"] |= row["state"] == "draining"
        self.model.beat(process["id"], now)

    @precondition(rarely)
    @rule(runner_id=st.sampled_from(list(RUNNERS)))
    def drain(self, runner_id: str) -> None:
        self.both(
            lambda: self.model.check_runner(runner_id).update(state="draining"),
            lambda: retention.drain_runner(self.queue.store, runner_id),
        )

    @precondition(rarely)
    @rule(runner_id=st.sampled_from(list(RUNNERS)), force=st.booleans())
    def remove(self, runner_id: str, force: bool) -> None:
        now = self.now()
        self.both(
            lambda: self.model.remove(runner_id, now, force=force),
            lambda: retention.remove_runner(self.queue.store, runner_id, now=now, force=force),
        )

    # Time, and others who write

    @rule(seconds=SECONDS, beats=st.booleans())
    def let_time_go_by(self, seconds: int, beats: bool) -> None:
        self.clock.advance(seconds)
        for process in self.opened:
            if beats and process["real"].is_open:
                self.beat(process)

    @rule(
        which=st.integers(0, 5), early=st.booleans(), rescues=st.sampled_from([True, True, False])
    )
    def sweep_at_a_deadline(self, which: int, early: bool, rescues: bool) -> None:
        """One of those that come next, on the microsecond or one before it."""
        coming = self.model.deadlines(self.clock.text())
        if coming:
            left = seconds_between(self.clock.text(), coming[which % len(coming)])
            self.clock.advance(left - early * MICROSECOND)
        self.sweep(self.clock.text(), rescues)

    @rule()
    def sweep_now(self) -> None:
        self.sweep(self.now(), True)

    def sweep(self, now: str, rescues: bool) -> None:
        counts = self.queue.sweep(rescues=rescues)._asdict()
        assert counts == self.model.sweep(now, rescues=rescues)

    @rule(run_id=runs, status=st.sampled_from(STATUSES))
    def write_status(self, run_id: str, status: str) -> None:
        """An UPDATE by hand is the last word, but for a second active run of a session."""
        if run_id not in self.model.runs:
            return
        self.by_hand.add(run_id)
        self.ended.pop(run_id, None)
        sql = "UPDATE runs SET status = ? WHERE run_id = ?"
        assert self.is_accepted(sql, status, run_id) == self.model.by_hand(run_id, status)

    @rule(target=runs, run_id=runs)
    def write_run(self, run_id: str) -> Any:
        """An INSERT of the given columns makes a normal run, in a session that is there."""
        now, session_id = self.now(), self.session_of[run_id]
        new_id = f"run_{self.steps:012x}"
        sql = (
            "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
            "VALUES (?, ?, 'START_SESSION', 'by hand', 'pending', ?)"
        )
        is_accepted = self.is_accepted(sql, new_id, session_id, now)
        assert is_accepted == (session_id in self.model.sessions)
        if not is_accepted:
            return multiple()
        self.model.insert(new_id, session_id, now, prompt="by hand")
        self.session_of[new_id] = session_id
        return new_id

    def is_accepted(self, sql: str, *parameters: Any) -> bool:
        try:
            execute_sql(self.queue, sql, *parameters)
        except peewee.IntegrityError:
            return False
        return True

    @precondition(rarely)
    @rule()
    def reconnect(self) -> None:
        """A caller that begins anew; runners keep what they have."""
        self.queue.close()
        self.queue = self.connect()

    # What holds after each step

    @invariant()
    def is_what_the_model_is(self) -> None:
        self.steps += 1
        query = "SELECT * FROM runs"
        cursor = self.queue.database.execute_sql(query)
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        self.check_runs(rows)
        self.check_sessions()
        self.check_terminal_is_final(rows)
        self.check_history()
        self.check_runners()
        # In turn, for to ask all of it about all runs after each step takes too long.
        if self.steps % 3 == 0:
            self.check_counts()
        elif self.model.runs:
            self.check_what_is_told(list(self.model.runs)[self.steps % len(self.model.runs)])

    def check_runs(self, rows: list[Row]) -> None:
        assert {row["run_id"] for row in rows} == self.model.runs.keys()
        for row in rows:
            run = self.model.runs[row["run_id"]]
            found = {**row, "error": without_expiry(row["error"])}
            found["demands"] = json.loads(row["demands"] or "{}")
            assert {name: found[name] for name in run} == run
            if run["status"] == "pending":
                assert row["waiting"] == int(not self.model.is_next(run))
            if run["run_id"] not in self.by_hand:
                check_columns(row)
        busy = [row["session_id"] for row in rows if row["status"] in ACTIVE]
        assert len(busy) == len(set(busy))

    def check_sessions(self) -> None:
        sql = "SELECT session_id, hostname, executor_type FROM sessions"
        homes = {}
        for session_id, *places in execute_sql(self.queue, sql):
            named = zip(("hostname", "executor_type"), places, strict=True)
            homes[session_id] = {key: value for key, value in named if value}
        assert homes == self.model.sessions

    def check_terminal_is_final(self, rows: list[Row]) -> None:
        ended = {row["run_id"]: row for row in rows if row["status"] in TERMINAL}
        for run_id in self.ended.keys() & self.model.runs.keys():
            assert ended.get(run_id) == self.ended[run_id]
        self.ended = ended

    def check_history(self) -> None:
        sql = "SELECT run_id, at, status, actor, detail FROM run_events ORDER BY event_id"
        found: dict[str, list[Any]] = {run_id: [] for run_id in self.model.runs}
        for run_id, at, status, actor, detail in execute_sql(self.queue, sql):
            found[run_id].append((at, status, actor, without_expiry(detail)))
        assert found == self.model.history

    def check_runners(self) -> None:
        sql = "SELECT runner_id, incarnation, state, lease_until FROM runners"
        rows = {row[0]: row[1:] for row in execute_sql(self.queue, sql)}
        names = ("incarnation", "state", "lease_until")
        assert rows == {
            runner_id: tuple(row[name] for name in names)
            for runner_id, row in self.model.runners.items()
        }
        for process in self.opened:
            if process["real"].is_open:
                held = {claim["real"] for claim in process["held"].values()}
                assert set(process["real"].held) == held

    def check_counts(self) -> None:
        counts = dict.fromkeys(STATUSES, 0)
        for run in self.model.runs.values():
            counts[run["status"]] += 1
        overview = reading.overview(self.queue.store, now=self.clock.text())
        assert overview.runs == counts
        alive = [row["lease_until"] > self.clock.text() for row in self.model.runners.values()]
        assert overview.runners == sum(alive)
        assert overview.dead_runners == len(alive) - sum(alive)

    def check_what_is_told(self, run_id: str) -> None:
        assert self.queue.why(run_id).status == self.model.runs[run_id]["status"]
        events = self.queue.timeline(run_id)
        told = [(one.at, one.status.value, one.actor, without_expiry(one.detail)) for one in events]
        assert told == self.model.timeline(run_id)
        session_id = self.session_of[run_id]
        assert self.queue.session_status(session_id) == self.model.session_status(session_id)


def check_columns(row: Row) -> None:
    """What is set follows from the status, whatever the model thinks."""
    status = row["status"]
    assert (row["runner_id"] is None) == (row["claimed_at"] is None)
    assert (row["completed_at"] is not None) == (status in TERMINAL)
    if status in ACTIVE:
        assert row["claimed_at"] is not None
    if status == "pending":
        assert row["claimed_at"] is None
    if status in ("pending", "claimed"):
        assert row["started_at"] is None
    if status == "running":
        assert row["started_at"] is not None
    if status == "failed":
        assert row["error"] is not None
    if status not in ("failed", "stopped"):
        assert row["error"] is None
    assert (row["result"] is not None) == (status == "completed")
