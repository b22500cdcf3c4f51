"""Three roles on a real PostgreSQL: each can do what is its own, and nothing more."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import runqueue
from runqueue import Queue, errors, grants, retention, silence, statements, statements_homes
from runqueue.cli import cli
from runqueue.cli.base import run as run_command
from runqueue.daemon import Daemon
from runqueue.database import Statement
from runqueue.models import Row, Run, Runner
from runqueue.settings import Settings
from tests import postgres
from tests.helpers import (
    MovableClock,
    events_of,
    execute_sql,
    explained,
    ids,
    in_background,
    start,
    status_of,
    take,
    wait_until,
)

psycopg = pytest.importorskip("psycopg")

TABLES = (*("run_output", "run_attempts", "run_events", "runs", "sessions", "runners", "daemons"),)
SECURITY = Path(__file__).resolve().parents[2] / "docs" / "security.md"
ODD = """ "o'n\\e" $$ %s ü"""
"""What must be quoted in an identifier, a text, a DO block, a format string or a URL."""


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Place:
    """A database whose schema belongs to an owner, with an operator and two teams of runners."""

    def __init__(self, server: postgres.Server, database: str, schema: str, prefix: str) -> None:
        self.server = server
        self.database = database
        self.schema = schema
        self.prefix = prefix
        self.clock = MovableClock()
        self.owner, self.operator = self.role("owner"), self.role("operator")
        self.group, self.one, self.two = self.role("runner"), self.role("one"), self.role("two")

    def role(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def url(self, role: str = "postgres") -> str:
        path = identifier(self.schema).replace("\\", "\\\\").replace(" ", "\\ ")
        options = quote(f"-c search_path={path}", safe="")
        return f"{self.server.url(self.database, role)}&options={options}"

    def execute(self, sql: str, role: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute SQL as a role, each statement committed."""
        with psycopg.connect(self.url(role), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def changed(self, sql: str, role: str) -> int:
        """Execute one statement as a role; return how many rows it changed."""
        with psycopg.connect(self.url(role), autocommit=True) as connection:
            return int(connection.execute(sql.encode()).rowcount)

    def everything(self) -> list[Any]:
        return [self.execute(f"SELECT * FROM {table} ORDER BY 1") for table in TABLES]

    def make(self) -> None:
        """The steps of docs/security.md."""
        if self.schema != "public":
            self.execute(f"CREATE SCHEMA {identifier(self.schema)}")
        self.execute(grants.sql("owner", self.owner))
        self.let_in(self.owner)
        runqueue.connect(self.url(self.owner)).close()
        for _ in range(2):  # again is no harm
            self.execute(grants.sql("owner", self.owner))
            self.execute(grants.sql("operator", self.operator))
            self.execute(grants.sql("runner", self.group))
            self.execute(grants.sql("runner", self.two))
        # One team is a member of the role that was printed, the other is such a role itself.
        self.execute(f"CREATE ROLE {identifier(self.one)} IN ROLE {identifier(self.group)}")
        for role in (self.operator, self.one, self.two):
            self.let_in(role)

    def let_in(self, role: str) -> None:
        self.execute(f"ALTER ROLE {identifier(role)} LOGIN")

    def remove(self) -> None:
        self.server.drop_database(self.database)
        for (role,) in self.server.execute("SELECT rolname FROM pg_roles"):
            if role.startswith(self.prefix):
                self.server.execute(f"DROP ROLE {identifier(role)}")


@pytest.fixture(scope="module", params=["public", "schema" + ODD], ids=["public", "odd names"])
def made(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place that the tests of this module use in turn."""
    server = postgres.shared()
    is_public = request.param == "public"
    database, prefix = ("grants", "grants_") if is_public else ("grants" + ODD, "role" + ODD)
    server.create_database(database)
    place = Place(server, database, request.param, prefix)
    try:
        place.make()
        yield place
    finally:
        place.remove()


@pytest.fixture
def place(made: Place) -> Iterator[Place]:
    """The place with empty tables."""
    made.clock = MovableClock()
    yield made
    made.execute(";".join(f"DELETE FROM {table}" for table in TABLES))


@pytest.fixture
def connect(place: Place) -> Iterator[Callable[[str], Queue]]:
    """Opens queues as a role, with a clock that the test moves."""
    with contextlib.ExitStack() as stack:

        def open_queue(role: str) -> Queue:
            queue = runqueue.connect(place.url(role), settings=Settings(), clock=place.clock)
            return stack.enter_context(queue)

        yield open_queue


@pytest.fixture
def operator(place: Place, connect: Callable[[str], Queue]) -> Queue:
    return connect(place.operator)


@pytest.fixture(params=["one", "two"], ids=["member", "itself"])
def team(request: pytest.FixtureRequest, place: Place) -> str:
    """A runner's role, of both kinds."""
    role: str = getattr(place, request.param)
    return role


def add(queue: Queue, *prompts: str) -> list[runqueue.Run]:
    """Enqueue runs that are served in this order, though the clock stands still."""
    return queue.enqueue_many({"prompt": prompt} for prompt in prompts)


# --- a runner's life


def test_a_runner_can_do_all_that_runners_do(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """Register, claim, start, complete, fail, confirm a stop, release, sign off."""
    runs = add(operator, *(f"prompt {number}" for number in range(4)))
    queue = connect(team)
    with queue.runner("worker", tags=["gpu"]) as runner:
        runner._beat()
        done, failed, stopped, released = [take(runner) for _ in runs]
        assert done.run.prompt == "prompt 0"
        for claim in (done, failed, stopped):
            claim.start()
        done.complete("the result")
        done.complete("the result")  # its first answer may have been lost
        failed.fail("the error")
        operator.stop(stopped.run.run_id)
        assert stopped.stop_requested
        stopped.confirm_stop()
        released.release()
        with pytest.raises(errors.StaleClaim):
            released.complete()
        assert place.execute("SELECT DISTINCT claimed_by FROM runs ORDER BY 1") == [
            (team,),
            (None,),
        ]
    statuses = [status_of(operator, run) for run in runs]
    assert statuses == ["completed", "failed", "stopped", "pending"]
    assert operator.get(runs[0].run_id).result == "the result"
    assert events_of(operator, runs[2]) == [
        *("pending", "claimed", "running", "stopping", "stopped"),
    ]
    assert operator.session(runs[0].session_id).hostname == runner.hostname
    assert place.execute("SELECT runner_id FROM runners") == []


def test_the_claim_loop_sees_work_and_stops_and_drains(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """The loop of `for claim in runner` with the wakes of other processes."""
    queue = connect(team)
    began = threading.Event()
    with queue.runner("worker") as runner:

        def work() -> list[str]:
            seen = []
            for claim in runner:
                with claim as run:
                    seen.append(run.prompt)
                    if run.prompt == "to be stopped":
                        began.set()
                        wait_until(lambda claim=claim: claim.stop_requested)
            return seen

        with in_background(work, queue) as future:
            first = operator.enqueue("first")
            assert operator.wait(first.run_id, timeout=10).status == "completed"
            second = operator.enqueue("to be stopped")
            assert began.wait(10)
            operator.stop(second.run_id)
            assert operator.wait(second.run_id, timeout=10).status == "stopped"
            retention.drain_runner(operator.store, "worker")
            runner._beat()
            assert future.result(timeout=10) == ["first", "to be stopped"]


def test_batches_are_claimed_and_finished(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """`claim_many` and `finish_many`, each in one transaction, with a claim that was lost."""
    add(operator, *"01234")
    with connect(team).runner("worker") as runner:
        claims = runner.claim_many(10)
        assert len(claims) == 5
        operator.release(claims[0].run.run_id)
        assert runner.finish_many([(claim, "done") for claim in claims]) == claims[:1]
    assert len(operator.find(status="completed")) == 4


def test_a_late_result_is_kept_as_long_as_the_run_is_the_roles(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """What the daemon failed is still the role's; what another has claimed, it cannot see."""
    lost, given = add(operator, "lost", "given")
    with connect(team).runner("worker") as runner:
        first, second = start(runner), take(runner)
        operator.release(given.run_id)
        place.clock.advance(31)
        operator.sweep()
        other = place.two if team == place.one else place.one
        with connect(other).runner("another") as successor:
            take(successor)
            for claim, refusal in ((first, errors.StaleClaim), (second, errors.RunNotFound)):
                with pytest.raises(refusal):
                    claim.complete("a poem")
            assert operator.timeline(lost.run_id)[-1].detail.endswith("of runner worker: a poem")
            assert operator.timeline(given.run_id)[-1].detail == "another"


def test_a_claim_whose_answer_was_lost_is_found_again(
    operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """By the rights that the runner's role has."""
    run = operator.enqueue("x")
    with connect(team).runner("worker") as runner:
        found = take(runner)
        runner._forget(found)
        runner._lost_at.add(str(found.run.claimed_at))
        assert take(runner).fence == found.fence
    assert status_of(operator, run) == "pending"


def test_a_restart_with_the_same_id_takes_over(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """What the one before held is resolved, by the rights of the role that registered it."""
    runs = add(operator, "0", "1")
    queue = connect(team)
    before = queue.runner("worker")
    before.open()
    start(before), take(before)
    place.clock.advance(3600)
    with connect(team).runner("worker") as runner:
        assert [status_of(operator, run) for run in runs] == ["failed", "pending"]
        assert operator.get(runs[0].run_id).error == "runner worker was restarted"
        assert take(runner).run.run_id == runs[1].run_id
        before.close()
    assert status_of(operator, runs[1]) == "pending"


def test_a_runner_that_ends_resolves_what_it_did_not_report(
    operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """Closing needs no more than the rights to its own runs."""
    runs = add(operator, "0", "1", "2")
    with connect(team).runner("worker") as runner:
        start(runner), take(runner)
        stopped = start(runner)
        operator.stop(stopped.run.run_id)
    assert [status_of(operator, run) for run in runs] == ["failed", "pending", "stopped"]


def test_a_sessions_home_is_handed_on_to_its_pending_runs(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """Whoever starts a session's first run binds it, and its next runs follow."""
    first = operator.enqueue("first")
    place.clock.advance(1)
    second = operator.enqueue("second", session_id=first.session_id)
    with connect(team).runner("worker", hostname="here", executor_type="x") as runner:
        start(runner).complete()
        assert '"hostname":"here"' in str(operator.get(second.run_id).demands)
        assert start(runner).run.run_id == second.run_id


def test_a_run_inserted_by_hand_is_sent_to_its_sessions_home(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """By a role that may release what it has claimed; and an operator moves it, with a note."""
    first = operator.enqueue("first")
    queue = connect(team)
    with queue.runner("home", hostname="here", project_dir="/here") as home:
        start(home).complete()
    execute_sql(
        operator,
        "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) VALUES "
        "('run_by_hand', ?, 'RESUME_SESSION', 'x', 'pending', '2025-01-01T00:00:00Z')",
        first.session_id,
    )
    with queue.runner("away", hostname="there", project_dir="/there") as away:
        assert away.claim(timeout=0) is None
        wanted = '{"hostname":"here","project_dir":"/here"}'
        assert operator.get("run_by_hand").demands == wanted
        assert operator.rehome(first.session_id, hostname="there", project_dir="").runs == 1
        assert take(away).run.run_id == "run_by_hand"


def test_a_runner_binds_the_sessions_that_it_works_in_and_no_others(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """The framework's own id, by the claim or from within the run; later runs receive it."""
    mine, other = add(operator, "mine", "other")
    queue = connect(team)
    with queue.runner("worker") as runner:
        claim = start(runner)
        assert claim.executor_session_id is None
        claim.bind_session("conversation-1")
        queue.bind_session(mine.session_id, "conversation-2")
        assert claim.executor_session_id == "conversation-2"
        with pytest.raises(errors.ConfigurationError, match="the role lacks a right"):
            queue.bind_session(other.session_id, "conversation-3")
        second = start(runner)
        with pytest.raises(errors.SessionConflict, match=mine.session_id):
            second.bind_session("conversation-2")
        claim.complete()
        with pytest.raises(errors.ConfigurationError, match="the role lacks a right"):
            queue.rehome(mine.session_id, hostname="elsewhere")
    assert operator.session(mine.session_id).executor_session_id == "conversation-2"
    assert operator.session(other.session_id).executor_session_id is None
    assert operator.rehome(mine.session_id, hostname="elsewhere").runs == 0


def test_a_runner_tells_when_its_own_agents_were_heard_of(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """Again and again; and sees nothing of those of others."""
    add(operator, "x")
    other = place.one if team == place.two else place.two
    with connect(team).runner("worker") as runner:
        claim = start(runner)
        for seconds in (10, 20):
            place.clock.advance(seconds)
            claim.note_output()
            runner._beat()
            (heard,) = silence.of_runs(operator.store, operator.find(), now=operator.now()).values()
            assert heard.silent_for == pytest.approx(0, abs=5)
        assert len(place.execute("SELECT run_id FROM run_output", team)) == 1
        assert place.execute("SELECT run_id FROM run_output", other) == []
        assert place.changed("UPDATE run_output SET output_at = output_at", other) == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            place.execute(
                "INSERT INTO run_output SELECT 'run_x', '2026-01-01T00:00:00.000000Z'", other
            )
        claim.complete()


def test_a_runners_role_takes_over_the_lease_of_a_daemon(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """It reads what a daemon wants, and nothing else about it."""
    operator.settings = Settings(lease=7.0)
    Daemon(operator, interval=1.0, keep=None)._work()
    with connect(team).runner("worker") as runner:
        assert runner._lease == 7.0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        place.execute("SELECT hostname FROM daemons", team)


# --- two teams on one queue


def test_the_order_of_a_session_holds_across_roles(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """The triggers see all runs of a session, whoever's right it is to see them."""
    runs = [operator.enqueue("0")]
    for prompt in "12":
        place.clock.advance(1)
        runs.append(operator.enqueue(prompt, session_id=runs[0].session_id))
    with (
        connect(place.one).runner("one", hostname="x") as one,
        connect(place.two).runner("two", hostname="x") as two,
    ):
        first = start(one)
        assert two.claim_many(9) == []
        assert place.execute("SELECT waiting FROM runs ORDER BY created_at") == [(0,), (1,), (1,)]
        first.complete("0")
        second = start(two)
        assert second.run.run_id == runs[1].run_id
        assert one.claim_many(9) == []
        second.complete("1")
        assert ids(one.claim_many(9)) == [runs[2].run_id]
    assert not runqueue.reading.problems(operator.store)


def test_what_another_role_holds_or_has_finished_cannot_be_seen_or_changed(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """No prompt, result, event or session of it, nor the runner."""
    held, finished, pending = add(operator, "secret 0", "secret 1", "secret 2")
    with connect(place.one).runner("one") as runner:
        claim = start(runner)
        start(runner).complete("secret result")
        before = place.everything()
        seen = place.execute("SELECT run_id, prompt, result FROM runs", place.two)
        assert seen == [(pending.run_id, "secret 2", None)]
        assert place.execute("SELECT runner_id FROM runners", place.two) == []
        for run in (held, finished):
            for change in ("error = 'x'", "status = 'pending', runner_id = NULL", "demands = NULL"):
                sql = f"UPDATE runs SET {change} WHERE run_id = '{run.run_id}'"
                assert place.changed(sql, place.two) == 0
        for sql in (
            "UPDATE runners SET lease_until = '2999-01-01T00:00:00.000000Z'",
            "UPDATE runners SET state = 'draining' WHERE runner_id = 'one'",
            "DELETE FROM runners",
        ):
            assert place.changed(sql, place.two) == 0
        for run in (held, finished, pending):
            sql = f"UPDATE sessions SET hostname = 'x' WHERE session_id = '{run.session_id}'"
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                place.execute(sql, place.two)
        for run in (held, finished, pending):
            event = f"('{run.run_id}', '2026-01-01T00:00:00.000000Z', 'running', 'runner')"
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                place.execute(
                    f"INSERT INTO run_events (run_id, at, status, actor) VALUES {event}", place.two
                )
        assert place.everything() == before
        theirs = connect(place.two)
        with pytest.raises(errors.RunNotFound):
            theirs.get(held.run_id)
        with pytest.raises(errors.RunNotFound):
            theirs.stop(held.run_id)
        claim.complete()


def test_the_id_of_a_runner_that_is_gone_opens_nothing_of_its_runs(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """A runner's id is a name that anybody may take; what counts is the role that claimed."""
    run = operator.enqueue("secret")
    with connect(place.one).runner("worker") as runner:
        start(runner).complete("secret")
    sql = "SELECT result FROM runs"
    with connect(place.two).runner("worker"):
        assert place.execute(sql, place.two) == []
        assert place.changed("UPDATE runs SET runner_id = 'worker'", place.two) == 0
    assert place.execute(sql, place.one) == [("secret",)]
    assert operator.get(run.run_id).runner_id == "worker"


def test_the_id_of_another_roles_runner_is_taken(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """Dead or alive: until it is forgotten, or an operator removes it."""
    before = connect(place.one).runner("worker")
    before.open()
    place.clock.advance(3600)
    other = connect(place.two)
    with pytest.raises(errors.RunnerConflict, match="registered by another role"):
        other.runner("worker").open()
    retention.remove_runner(operator.store, "worker", now=operator.now(), force=False)
    with other.runner("worker") as runner:
        assert runner.is_open
        before.close()
        assert place.execute("SELECT registered_by FROM runners") == [(place.two,)]


def test_a_run_that_was_set_back_by_hand_goes_to_the_role_that_claims_it(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """Also when the id of the runner stayed in the row, and is that of the next one."""
    run = operator.enqueue("x")
    with connect(place.one).runner("worker") as runner:
        start(runner).complete("x")
    place.execute("UPDATE runs SET status = 'pending'")
    place.clock.advance(1)
    with connect(place.two).runner("worker") as runner:
        start(runner).complete("y")
    assert operator.get(run.run_id).result == "y"
    assert place.execute("SELECT claimed_by FROM runs") == [(place.two,)]


def test_no_role_claims_in_the_name_of_another_roles_runner(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """The database refuses an owner that the role did not register."""
    operator.enqueue("x")
    claim = (
        "UPDATE runs SET status = 'claimed', runner_id = '{}', "
        "claimed_at = '2026-01-01T00:00:00.000000Z'"
    )
    with connect(place.one).runner("one"):
        for runner_id in ("one", "nobody"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                place.execute(claim.format(runner_id), place.two)
        assert place.changed(claim.format("one"), place.one) == 1


def test_a_role_cannot_change_what_it_has_finished(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """Its own result is readable, and final."""
    operator.enqueue("x")
    with connect(team).runner("worker") as runner:
        start(runner).complete("the result")
        assert place.execute("SELECT result FROM runs", team) == [("the result",)]
        assert place.changed("UPDATE runs SET result = 'another'", team) == 0
        assert place.changed("UPDATE runs SET status = 'pending'", team) == 0


# --- what a runner's role is refused

REFUSED = (
    *("CREATE TABLE x (y int)", "DROP TABLE runs", "ALTER TABLE runs ADD x int"),
    *("ALTER TABLE runs DISABLE ROW LEVEL SECURITY", "ALTER TABLE runs DISABLE TRIGGER ALL"),
    *("CREATE INDEX x ON runs (prompt)", "CREATE POLICY x ON runs USING (true)"),
    *(f"TRUNCATE {table}" for table in TABLES),
    *(f"DELETE FROM {table}" for table in TABLES if table != "runners"),
    "INSERT INTO runs (run_id, session_id, type, prompt, created_at) "
    "SELECT 'run_x', session_id, type, 'x', created_at FROM runs",
    "INSERT INTO sessions (session_id, created_at) VALUES ('x', '2026-01-01T00:00:00Z')",
    "INSERT INTO runners (runner_id, registered_by) VALUES ('x', 'y')",
    "INSERT INTO run_events (run_id, at, status, actor) "
    "SELECT run_id, created_at, status, 'operator' FROM runs",
    *(
        f"UPDATE runs SET {column} = {column}"
        for column in (
            *("run_id", "session_id", "type", "prompt", "created_at", "timeout_at", "priority"),
            *("waiting", "claimed_by", "parent_session_id", "agent_name", "project_dir"),
        )
    ),
    *("UPDATE runners SET registered_by = 'x'", "UPDATE runners SET runner_id = 'x'"),
    *("UPDATE sessions SET session_id = 'x'", "UPDATE sessions SET executor_session_id = 'x'"),
    *("UPDATE daemons SET lease = 1", "UPDATE run_events SET detail = 'x'"),
    *("SELECT * FROM run_events", "SELECT agent_name FROM sessions", "SELECT * FROM daemons"),
    *("DELETE FROM runqueue_migrations", "SELECT runqueue_order_session('x', 'y')"),
    *(
        "BEGIN; LOCK TABLE runs IN EXCLUSIVE MODE",
        "SET row_security = off; SELECT prompt FROM runs",
    ),
    "COPY runs (run_id) FROM STDIN",
)


@pytest.mark.parametrize("sql", REFUSED)
def test_a_runners_role_is_refused(
    place: Place, operator: Queue, connect: Callable[[str], Queue], sql: str
) -> None:
    """By the server, whatever program it uses; nothing changes."""
    add(operator, "held", "pending")
    with connect(place.one).runner("worker") as runner:
        start(runner)
        before = place.everything()
        for role in (place.one, place.two):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                place.execute(sql, role)
        assert place.everything() == before


def test_a_runners_role_gets_one_sentence_for_a_verb_that_is_not_its_own(
    connect: Callable[[str], Queue], place: Place, operator: Queue
) -> None:
    """ConfigurationError, for a retry cannot help."""
    operator.enqueue("x")
    queue = connect(place.one)
    for verb in (
        lambda: queue.enqueue("x"),
        lambda: queue.prune(0.0),
        lambda: queue.timeline(operator.find()[0].run_id),
        lambda: retention.delete_session(queue.store, operator.find()[0].session_id, force=True),
    ):
        with pytest.raises(errors.ConfigurationError, match="the role lacks a right"):
            verb()


# --- the operator and the owner


def test_an_operator_can_do_everything_with_rows(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """Enqueue, look, stop, retry, sweep, rescue, prune, delete, and a daemon's whole work."""
    runs = operator.enqueue_many({"prompt": prompt, "timeout": 60} for prompt in "0123")
    before = connect(place.one).runner("worker")
    before.open()
    start(before).complete("the result")
    start(before)
    assert operator.why(runs[1].run_id).summary.startswith("running on worker")
    assert [event.status for event in operator.timeline(runs[0].run_id)][-1] == "completed"
    operator.stop(runs[2].run_id)
    operator.retry(runs[0].run_id)
    place.clock.advance(7200)
    daemon = Daemon(operator, interval=1.0, keep=None)
    daemon._work()
    assert [status_of(operator, run) for run in runs] == [
        *("completed", "failed", "stopped", "failed"),
    ]
    assert operator.get(runs[1].run_id).error == "runner worker was lost: its lease ran out"
    place.clock.advance(2 * 86_400)
    daemon._tidy()
    assert place.execute("SELECT runner_id FROM runners") == []
    daemon._sign_off()
    assert operator.delete_session(runs[3].session_id) == 1
    operator.sweep()
    assert operator.prune(0.0) == 4
    assert not any(place.everything()[:3])
    before.close()


OPERATOR_REFUSED = (
    *("CREATE TABLE x (y int)", "DROP TABLE runs", "ALTER TABLE runs ADD x int"),
    *("ALTER TABLE runs DISABLE ROW LEVEL SECURITY", "CREATE POLICY x ON runs USING (true)"),
    *("TRUNCATE runs CASCADE", "DELETE FROM run_events", "UPDATE run_events SET detail = 'x'"),
    *("DELETE FROM runqueue_migrations", "DROP FUNCTION runqueue_on_change() CASCADE"),
)


@pytest.mark.parametrize("sql", OPERATOR_REFUSED)
def test_an_operator_is_refused_the_schema_and_the_history(
    place: Place, operator: Queue, sql: str
) -> None:
    """Rows are its business; tables, policies and what was recorded are not."""
    operator.enqueue("x")
    before = place.everything()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        place.execute(sql, place.operator)
    assert place.everything() == before


def test_the_owner_sees_everything_and_owns_what_there_is(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """Row-level security is not for the owner of a table."""
    run = operator.enqueue("x")
    with connect(place.one).runner("worker") as runner:
        start(runner).complete("y")
    queue = connect(place.owner)
    assert queue.get(run.run_id).result == "y"
    assert not runqueue.reading.problems(queue.store)
    place.execute("CREATE TABLE extra (y int); DROP TABLE extra", place.owner)
    owners = place.execute(
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class "
        "WHERE relnamespace = quote_ident(current_schema())::regnamespace"
    )
    owners += place.execute(
        "SELECT DISTINCT pg_get_userbyid(proowner) FROM pg_proc "
        "WHERE pronamespace = quote_ident(current_schema())::regnamespace"
    )
    assert owners == [(place.owner,)] * 2


def test_what_a_superuser_made_becomes_the_owners(made: Place) -> None:
    """The roles may come later than the queue, and its runs stay."""
    name = made.database + " late"
    made.server.create_database(name)
    place = Place(made.server, name, "public", made.prefix + "late ")
    try:
        with runqueue.connect(place.url()) as queue:
            run = queue.enqueue("x")
        place.execute(grants.sql("owner", place.owner))
        place.execute(grants.sql("runner", place.one))
        place.let_in(place.owner)
        place.let_in(place.one)
        with runqueue.connect(place.url(place.one)) as queue, queue.runner("worker") as runner:
            start(runner).complete("y")
        with runqueue.connect(place.url(place.owner)) as queue:
            assert queue.get(run.run_id).result == "y"
            place.execute("ALTER TABLE runs ADD extra int", place.owner)
    finally:
        place.server.drop_database(name)
        for role in (place.owner, place.one):
            place.server.execute(f"DROP ROLE {identifier(role)}")


# --- the SQL


def test_the_sql_takes_away_what_another_role_of_ours_had(place: Place) -> None:
    """A role that was an operator and is to be a runner is no operator any more."""
    role = place.role("changing")

    def rights() -> list[Any]:
        return [
            place.execute(
                "SELECT table_name, column_name, privilege_type "
                "FROM information_schema.column_privileges "
                f"WHERE grantee = {quoted(role)} ORDER BY 1, 2, 3"
            ),
            place.execute(
                "SELECT tablename, policyname, cmd, qual FROM pg_policies "
                f"WHERE {quoted(role)} = ANY (roles) ORDER BY 1, 2"
            ),
        ]

    def quoted(text: str) -> str:
        return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"

    try:
        found = []
        for kind in ("runner", "operator", "operator", "runner"):
            place.execute(grants.sql(kind, role))
            found.append(rights())
        assert found[0] == found[3]
        assert found[1] == found[2]
        assert found[0] != found[1]
    finally:
        place.execute(f"DROP OWNED BY {identifier(role)}; DROP ROLE {identifier(role)}")


def test_a_role_that_would_see_everything_anyway_is_refused(place: Place) -> None:
    """Rights for a runner would say nothing about a role that no policy holds for."""
    role = place.role("mighty")
    for what in ("SUPERUSER", "BYPASSRLS", f"IN ROLE {identifier(place.owner)}"):
        place.execute(f"CREATE ROLE {identifier(role)} {what}")
        try:
            with pytest.raises(psycopg.errors.RaiseException, match="choose another"):
                place.execute(grants.sql("runner", role))
        finally:
            place.execute(f"DROP ROLE {identifier(role)}")


def test_rights_on_a_queue_that_is_not_there_are_refused(place: Place) -> None:
    """Whole: no role is left over."""
    role = place.role("early")
    with psycopg.connect(place.server.url("template1"), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.RaiseException, match="there is no runqueue"):
            connection.execute(grants.sql("runner", role).encode())
    assert (role,) not in place.execute("SELECT rolname FROM pg_roles")


@pytest.mark.parametrize(
    "name", ["", " ", "public", "none", "pg_x", "a\nb", "a\x1b[1m", "\ud800", "x" * 56, "ü" * 28]
)
def test_a_name_that_cannot_be_a_roles_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above all "public", which even in quotes is everybody; exit code 2."""
    with pytest.raises(ValueError, match="role"):
        grants.sql("runner", name)
    assert run_command(cli, ["db", "grants", "runner", "--to", name]) == 2
    assert capsys.readouterr().out == ""


# --- the command


def test_the_command_prints_the_sql_and_needs_no_database(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On standard output alone, whatever the URL is."""
    for role in grants.ROLES:
        for url in (f"sqlite:///{tmp_path}/no/queue.db", "postgresql://nobody@127.0.0.1:1/none"):
            assert run_command(cli, ["--db", url, "db", "grants", role]) == 0
            said = capsys.readouterr()
            assert (said.out, said.err) == (grants.sql(role), "")
            assert "PASSWORD" not in said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["runners"], ["Owner"], []])
def test_a_role_that_does_not_exist_is_2(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """With the three on standard error."""
    assert run_command(cli, ["db", "grants", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "owner|operator|runner" in said.err or "'owner', 'operator', 'runner'" in said.err


def test_a_role_without_any_right_is_78(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence that names what it lacks; it does not try to make a queue of its own."""
    role = place.role("nobody")

    def refused(*command: str) -> bool:
        assert run_command(cli, ["--db", place.url(role), *command]) == 78
        said = capsys.readouterr()
        return said.out == "" and re.fullmatch(r"Error: .*\n", said.err) is not None

    place.execute(f"CREATE ROLE {identifier(role)} LOGIN")
    try:
        assert refused("list")
        schema = identifier(place.schema)
        place.execute(f"GRANT USAGE ON SCHEMA {schema} TO {identifier(role)}")
        with pytest.raises(errors.ConfigurationError, match="the role lacks a right"):
            runqueue.connect(place.url(role))
        assert refused("list")
        assert refused("db", "init")
        assert refused("enqueue", "x")
    finally:
        place.execute(f"DROP OWNED BY {identifier(role)}; DROP ROLE {identifier(role)}")


def test_a_runners_role_does_not_try_to_upgrade(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old schema is the owner's to upgrade."""
    assert run_command(cli, ["--db", place.url(place.one), "db", "upgrade"]) == 0
    place.execute("UPDATE runqueue_migrations SET name = '0000_' || name")
    try:
        assert run_command(cli, ["--db", place.url(place.one), "status"]) == 78
    finally:
        place.execute("UPDATE runqueue_migrations SET name = substr(name, 6)")
    assert re.fullmatch(r"Error: .*\n", capsys.readouterr().err)


# --- the plans

OF_A_RUNNER: dict[str, Statement] = {
    **{
        name: getattr(statements_homes, name)
        for name in ("BIND_EXECUTOR", "EXECUTOR_OF", "TELL_OUTPUT", "OUTPUT_OF")
    },
    **{f"CLAIMS[{depth}]": one for depth, one in statements.CLAIMS.items()},
    **{f"OWNER_MOVES[{name}]": one for name, one in statements.OWNER_MOVES.items()},
    **{f"RESCUES[{one.name}]": one.of_runner for one in statements.RESCUES},
    **{
        name: getattr(statements, name)
        for name in (
            *("DEMAND_TEXTS", "RUN_STATE", "OWNED", "BIND_SESSION", "RESUME_SESSION"),
            *("PENDING_OF_SESSION", "SET_DEMANDS", "LOCK_SESSIONS", "LOCK_SESSIONS_OF_RUNNER"),
        )
    },
}
BY_TEXT = [*(f"CLAIMS[{depth}]" for depth in statements.CLAIMS), "DEMAND_TEXTS"]
"""The statements that seek runs by what they demand."""


def plan_of(queue: Queue, statement: Statement) -> str:
    return "\n".join(explained(queue, statement.compile(queue.database)))


def sought(plan: str) -> set[str]:
    """What a plan looks up in indexes."""
    plan = re.sub(r"(\b(?:runs_|sessions_|InitPlan )|\$)\d+", r"\1", plan)
    return set(re.findall(r"Index Cond: (.*)", plan))


@pytest.fixture(params=["never analysed", "analysed", "analysed when empty"])
def filled(request: pytest.FixtureRequest, place: Place) -> Place:
    """Thousands of sessions and runs, of which the planner knows more or less."""
    if request.param == "analysed when empty":
        place.execute("ANALYZE")
    place.execute(
        "INSERT INTO sessions (session_id, created_at) "
        "SELECT 'ses_' || n, '2026-01-01T00:00:00.000000Z' FROM generate_series(1, 3000) n;"
        "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
        "SELECT 'run_' || n, 'ses_' || n, 'START_SESSION', 'x', "
        "CASE WHEN n > 1000 THEN 'pending' ELSE 'completed' END, '2026-01-01T00:00:00.000000Z' "
        "FROM generate_series(1, 3000) n"
    )
    if request.param == "analysed":
        place.execute("ANALYZE")
    return place


@pytest.mark.parametrize(
    "names",
    [
        [name for name in OF_A_RUNNER if name not in BY_TEXT],
        BY_TEXT,
    ],
    ids=["by key", "by demand text"],
)
def test_the_policies_keep_no_index_from_being_used(
    filled: Place, operator: Queue, connect: Callable[[str], Queue], team: str, names: list[str]
) -> None:
    """A runner's role looks up all that an operator does, and reads no table as a whole."""
    queue = connect(team)
    for name in names:
        plan = plan_of(queue, OF_A_RUNNER[name])
        assert sought(plan) >= sought(plan_of(operator, OF_A_RUNNER[name])), (name, plan)
        scanned = set(re.findall(r"Seq Scan on (\w+)", plan)) - {"runners", "daemons"}
        assert not scanned, (name, plan)
        assert "hashed" not in plan, (name, plan)


# --- the document


def test_the_document_names_the_commands_and_copies_no_sql() -> None:
    """What is printed is the truth; a copy of it would grow old."""
    text = SECURITY.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    printed = set(re.findall(r"runqueue db grants (\w+)", text))
    assert printed == set(grants.ROLES)
    shown = re.findall(r"^    runqueue (db grants .*?) \|", text, re.MULTILINE)
    assert len(shown) == 3
    assert [run_command(cli, words.split()) for words in shown] == [0, 0, 0]
    assert not re.search(r"GRANT \w+.* ON|CREATE POLICY|ENABLE ROW", text)
    for role in grants.ROLES:
        assert f"runqueue_{role}" in text


def test_the_document_names_each_column_that_a_runners_role_can_change() -> None:
    """And each that it can read of all sessions; whoever grants one more must tell."""
    text = SECURITY.read_text(encoding="utf-8")
    told = [
        columns
        for right, table, columns in grants._COLUMNS
        if (right, table) in (("UPDATE", "runs"), ("UPDATE", "sessions"), ("SELECT", "sessions"))
    ]
    assert len(told) == 3
    assert [name for names in told for name in names if f"`{name}`" not in text] == []


def test_a_runners_role_is_given_every_column_that_a_claim_returns() -> None:
    """The names are spelled here and there, and must stay the same."""
    given = {table: columns for right, table, columns in grants._COLUMNS if right == "SELECT"}
    assert set(given["runs"]) == {*_names(Run), "claimed_by"}
    assert set(given["runners"]) == {*_names(Runner), "registered_by"}


def _names(model: type[Row]) -> set[str]:
    return {field.column_name for field in model._meta.sorted_fields}


# --- what follows an end


def _family(operator: Queue, queue: Queue, place: Place, **terms: Any) -> tuple[Any, Any, Any]:
    """A parent at work, and a child at work that is to tell it; and the runner of both."""
    parent = operator.enqueue("parent")
    runner = queue.runner("worker")
    runner.open()
    start(runner)
    place.clock.advance(1)
    operator.enqueue(
        "child", parent_session_id=parent.session_id, execution_mode="async_callback", **terms
    )
    return parent, start(runner), runner


def test_a_child_that_a_runners_role_ends_is_told_of_at_the_next_tick(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """That role adds no runs; whoever sweeps does, once."""
    parent, child, runner = _family(operator, connect(team), place)
    child.complete("the result")
    assert operator.get(child.run.run_id).status == "completed"
    assert [run.tells for run in operator.find(session_id=parent.session_id)] == [None]
    assert operator.sweep().told == 1
    assert operator.sweep().told == 0
    callback, _ = operator.find(session_id=parent.session_id)
    (end,) = runqueue.parse_callback(callback.prompt)
    assert end.result == "the result"
    runner.close()


@pytest.mark.parametrize("delay", [0, 5])
def test_a_runners_role_asks_for_another_attempt_and_a_sweep_makes_it(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str, delay: float
) -> None:
    """After the delay that was asked for; the parent hears of the last one."""
    parent, child, runner = _family(operator, connect(team), place, retries=1, retry_delay=delay)
    child.fail("busy", retry=True)
    if delay:
        assert operator.sweep().retried == 0
        place.clock.advance(delay)
    assert operator.sweep().retried == 1
    _, second = operator.attempts(child.run.run_id)
    assert [run.tells for run in operator.find(session_id=parent.session_id)] == [None]
    last = start(runner)
    assert last.run.run_id == second.run_id
    last.fail("busy", retry=True)
    assert operator.sweep().told == 1
    runner.close()


def test_a_runners_role_asks_for_no_attempt_of_what_was_to_be_stopped(
    place: Place, operator: Queue, connect: Callable[[str], Queue], team: str
) -> None:
    """It cannot see the history; whoever sweeps can."""
    parent, child, runner = _family(operator, connect(team), place, retries=1)
    operator.stop(child.run.run_id)
    child.fail("busy", retry=True)
    operator.sweep()
    assert len(operator.attempts(child.run.run_id)) == 1
    callback, _ = operator.find(session_id=parent.session_id)
    assert callback.tells == 1
    runner.close()


def test_a_runners_role_cannot_ask_for_attempts_of_others(
    place: Place, operator: Queue, connect: Callable[[str], Queue]
) -> None:
    """Nor change what was asked for its own."""
    *_, runner = _family(operator, connect(place.one), place, retries=1)
    due = "UPDATE run_attempts SET due_at = '2026-01-01T00:00:00.000000Z'"
    assert place.changed(due, place.two) == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        place.execute("UPDATE run_attempts SET retries = 99", place.one)
    assert place.changed(due, place.one) == 1
    runner.close()
