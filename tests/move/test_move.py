"""A queue moves to another database whole, once, and whatever interrupts it."""

from __future__ import annotations

import os
import pty
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest

import runqueue
from runqueue import (
    ConfigurationError,
    IllegalMove,
    Queue,
    RunqueueError,
    StorageError,
    WaitTimeout,
    moving,
    reading,
)
from runqueue.moving import Step
from tests import postgres
from tests.helpers import LONG, ROOT, ids, in_background, start, take
from tests.move.conftest import everything

ODD = "naïve 日本語 🚀 \\x00 \\N \\. %s {} ' \" \t\r\n \u202e end"
TABLES = (*("sessions", "runs", "run_events", "run_attempts", "run_output", "runners", "daemons"),)
STEPS = ("copy", "verify", "commit", "close", "open")


class Planted(Exception):
    """What a test lets happen in the middle of a move."""


def stop_at(name: str, table: str = "") -> Callable[[Step], None]:
    """Fail when a move comes to a step."""

    def report(step: Step) -> None:
        if step.name == name and table in ("", step.table):
            raise Planted

    return report


def fill(queue: Queue) -> list[str]:
    """Put something of everything into a queue; return the ids in the order of service."""
    with queue.runner("worker", tags=["gpu"]) as runner:
        for act in ("complete", "fail"):
            queue.enqueue(ODD, agent_name="writer", priority=9)
            claim = start(runner)
            claim.note_output()
            runner._beat()
            getattr(claim, act)(ODD)
    first = queue.enqueue("first of a session", parent_session_id=claim.run.session_id)
    late = queue.enqueue("late", session_id=first.session_id, priority=-3)
    second = queue.enqueue("second of it", session_id=first.session_id)
    urgent = queue.enqueue("urgent", priority=7, demands={"tags": ["gpu"]}, timeout=90_000)
    hurried = queue.enqueue("overtakes the second", session_id=first.session_id, priority=1)
    gone = queue.enqueue("stopped", retries=2)
    queue.stop(gone.run_id)
    return ids([urgent, hurried, first, second, late])


def is_open(queue: Queue) -> bool:
    """Whether the queue takes a run, which is taken out again."""
    try:
        run = queue.enqueue("x")
    except ConfigurationError:
        return False
    queue.delete_session(run.session_id)
    return True


# --- what arrives


def test_every_row_arrives_and_the_queue_goes_on(pair: tuple[Queue, Queue]) -> None:
    """All tables are equal, and the runs are served in their order, by marks and priorities."""
    old, new = pair
    order = fill(old)
    before = everything(old)
    assert all(before[table] for table in ("sessions", "runs", "run_events", "run_output"))
    copied = moving.move(old.store, new.store)
    assert everything(new) == before
    assert {one.table: one.rows for one in copied} == {
        table: len(rows) for table, rows in before.items()
    }
    assert reading.problems(new.store) == []
    served = []
    with new.runner("at the new place", tags=["gpu"]) as runner:
        while (claim := runner.claim(timeout=0)) is not None:
            claim.start()
            claim.complete("done")
            served.append(claim.run.run_id)
    assert served == order
    assert [event.status for event in new.timeline(order[0])] == [
        *("pending", "claimed", "running", "completed")
    ]


def test_an_empty_queue_moves(pair: tuple[Queue, Queue]) -> None:
    """Nothing arrives, and the new place is open."""
    old, new = pair
    assert {one.rows for one in moving.move(old.store, new.store)} == {0}
    assert is_open(new)
    assert not is_open(old)


def test_there_and_back_again_is_the_same(
    new_url: Callable[[str], str], opened: Callable[[str], Queue]
) -> None:
    """Through PostgreSQL and back into a file, with the same checksums."""
    places = [opened(new_url(kind)) for kind in ("sqlite", "postgres", "sqlite")]
    fill(places[0])
    before = everything(places[0])
    there = moving.move(places[0].store, places[1].store)
    back = moving.move(places[1].store, places[2].store)
    assert there == back
    assert everything(places[2]) == before


def test_a_parent_may_come_after_its_child(pair: tuple[Queue, Queue]) -> None:
    """Sessions refer to each other in any order, that of their ids too."""
    old, new = pair
    child, parent = sorted(old.enqueue("x").session_id for _ in range(2))
    old.database.execute_sql(
        "UPDATE sessions SET parent_session_id = ? WHERE session_id = ?".replace(
            "?", old.database.param
        ),
        (parent, child),
    )
    moving.move(old.store, new.store)
    assert new.session(child).parent_session_id == parent


def test_a_prompt_of_a_mebibyte_arrives(pair: tuple[Queue, Queue]) -> None:
    """To the last character."""
    old, new = pair
    prompt = "€" * (1_048_576 // 3)
    run = old.enqueue(prompt)
    moving.move(old.store, new.store)
    assert new.get(run.run_id).prompt == prompt


def test_events_go_on_after_those_that_were_there(pair: tuple[Queue, Queue]) -> None:
    """No number is given twice, and the order of a timeline is kept."""
    old, new = pair
    run = old.enqueue("x")
    moving.move(old.store, new.store)
    new.stop(run.run_id)
    assert [event.status for event in new.timeline(run.run_id)] == ["pending", "stopped"]


def test_columns_of_other_programs_are_named_before_they_are_left(
    new_url: Callable[[str], str], rq: Callable[..., Any]
) -> None:
    """An adopted database's own columns stay behind, and the command says which."""
    old, new = new_url("sqlite"), new_url("postgres")
    with closing(sqlite3.connect(old.removeprefix("sqlite:///"))) as theirs:
        theirs.executescript(
            """
            CREATE TABLE sessions (
                session_id TEXT PRIMARY KEY, session_name TEXT, status TEXT, created_at TEXT);
            CREATE TABLE runs (
                run_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, type TEXT NOT NULL,
                agent_name TEXT, prompt TEXT NOT NULL, project_dir TEXT, parent_session_id TEXT,
                execution_mode TEXT NOT NULL DEFAULT 'sync', demands TEXT, status TEXT NOT NULL,
                runner_id TEXT, error TEXT, created_at TEXT NOT NULL, claimed_at TEXT,
                started_at TEXT, completed_at TEXT, timeout_at TEXT, tenant TEXT);
            INSERT INTO sessions VALUES ('ses_1', 'a name', 'idle', '2025-01-01T00:00:00');
            INSERT INTO runs (run_id, session_id, type, prompt, status, created_at, tenant)
            VALUES ('run_1', 'ses_1', 'START_SESSION', 'hello', 'pending',
                '2025-01-01T00:00:00Z', 'acme');
            CREATE TABLE audit (what TEXT);
            CREATE TRIGGER theirs AFTER UPDATE ON runs BEGIN INSERT INTO audit VALUES ('x'); END;
            """
        )
    ended = rq("db", "move", old, new)
    assert ended.code == 0, ended.err
    for column in ("sessions.session_name", "sessions.status", "runs.tenant"):
        assert f"{column} is a column of another program" in ended.err.partition("copied")[0]
    with runqueue.connect(new) as queue:
        assert take_from(queue) == ["run_1"]


def take_from(queue: Queue) -> list[str]:
    with queue.runner("taker") as runner:
        return ids([take(runner)])


def test_triggers_and_indexes_of_others_at_the_target_are_kept(
    new_url: Callable[[str], str], opened: Callable[[str], Queue]
) -> None:
    """All that the database had it has again; a trigger does not fire, for a copy is no event."""
    old, new = opened(new_url("sqlite")), opened(new_url("sqlite"))
    execute = new.database.execute_sql
    execute("CREATE TABLE audit (what TEXT)")
    execute("CREATE TRIGGER theirs AFTER INSERT ON runs BEGIN INSERT INTO audit VALUES (1); END")
    execute("CREATE INDEX their_index ON runs (agent_name) WHERE error IS NULL")
    before = execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
    old.enqueue("x")
    moving.move(old.store, new.store)
    assert execute("SELECT * FROM audit").fetchall() == []
    assert execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall() == before


# --- what is refused


@pytest.mark.parametrize("table", ["sessions", "runs", "runners", "daemons"])
def test_a_target_with_rows_is_refused(
    pair: tuple[Queue, Queue], rq: Callable[..., Any], table: str
) -> None:
    """In any table; both stay as they were, and the sentence names one."""
    old, new = pair
    run = old.enqueue("x")
    if table in ("sessions", "runs"):
        new.enqueue("there first")
        table = "sessions"
    elif table == "runners":
        with new.runner("there first"):
            pass
        new.database.execute_sql(
            "INSERT INTO runners (runner_id, incarnation, registered_at, heartbeat_at, "
            "lease_until) SELECT 'x', 'y', created_at, created_at, created_at "
            "FROM (SELECT '2026-01-01T00:00:00.000000Z' AS created_at) a"
        )
    else:
        time = "2026-01-01T00:00:00.000000Z"
        new.database.execute_sql(
            f"INSERT INTO daemons VALUES ('d', 'h', '{time}', '{time}', '{time}', 30)"
        )
    before = everything(new)
    with pytest.raises(ConfigurationError, match=f"is not empty, its table {table}"):
        moving.move(old.store, new.store)
    assert everything(new) == before
    assert is_open(old)
    assert old.get(run.run_id).status == "pending"


def test_a_database_is_not_moved_to_itself(pair: tuple[Queue, Queue]) -> None:
    """Whatever URL it is opened by."""
    old, _ = pair
    url = old.store.engine.address
    same = (
        url.replace("sqlite:////", "sqlite:////./") if "sqlite" in url else f"{url}&user=postgres"
    )
    with runqueue.connect(same) as again:
        with pytest.raises(ConfigurationError, match="is the database that is to be moved"):
            moving.move(old.store, again.store)
    assert is_open(old)


@pytest.mark.parametrize("status", ["claimed", "running", "stopping"])
def test_active_runs_are_refused(pair: tuple[Queue, Queue], status: str) -> None:
    """The run is named, and how to wait for it; both stay as they were."""
    old, new = pair
    run = old.enqueue("x")
    with old.runner("worker") as runner:
        claim = take(runner)
        if status != "claimed":
            claim.start()
        if status == "stopping":
            old.stop(run.run_id)
        with pytest.raises(IllegalMove, match=f"{run.run_id} is {status}.*--wait"):
            moving.move(old.store, new.store)
        assert not any(everything(new).values())
        assert is_open(old)
        if status == "claimed":
            claim.start()
        if status != "stopping":
            claim.complete("done")
        else:
            claim.confirm_stop()


def test_waiting_drains_the_runners_and_then_moves(pair: tuple[Queue, Queue]) -> None:
    """A runner at work ends its run and claims no other; then everything arrives."""
    old, new = pair
    run, behind = old.enqueue("x"), old.enqueue("y")
    with old.runner("worker") as runner:
        claim = start(runner)
        told: list[Step] = []

        def report(step: Step) -> None:
            if step.name == "drain" and not told:
                # The runner is asked by now, and goes on with what it has.
                assert reading.runners(old.store, now=old.now())[0].runner.state == "draining"
                claim.complete("done")
                runner.close()
            told.append(step)

        moving.move(old.store, new.store, patience=LONG, report=report)
        assert told[0].name == "drain"
    assert new.get(run.run_id).status == "completed"
    assert new.get(behind.run_id).status == "pending"


def test_waiting_is_woken_by_the_end_of_the_run(pair: tuple[Queue, Queue]) -> None:
    """And not by looking again, for which it is told to have no time."""
    old, new = pair
    old.enqueue("x")
    # When it signs off it may be refused, as is everybody at the old place.
    with suppress(ConfigurationError), old.runner("worker") as runner:
        claim = start(runner)
        waits = threading.Event()
        move = lambda: moving.move(  # noqa: E731
            old.store, new.store, patience=LONG, report=lambda _: waits.set()
        )
        with in_background(move, old, new) as future:
            assert waits.wait(LONG)
            claim.complete("done")
            assert future.result(LONG)


def test_patience_ends(pair: tuple[Queue, Queue], rq: Callable[..., Any]) -> None:
    """The run is named, nothing was moved, and the exit code is that of a wait."""
    old, new = pair
    run = old.enqueue("x")
    with old.runner("worker") as runner:
        claim = start(runner)
        with pytest.raises(WaitTimeout, match=run.run_id):
            moving.move(old.store, new.store, patience=0)
        ended = rq(
            "db",
            "move",
            old.store.engine.address,
            new.store.engine.address,
            "--wait",
            "--timeout",
            "0",
        )
        assert ended.code == 5
        claim.complete("done")
    assert is_open(old)


# --- the old place


def test_the_old_place_is_read_as_ever(pair: tuple[Queue, Queue], rq: Callable[..., Any]) -> None:
    """By the verbs that look, by every command, and by a connection that is made anew."""
    old, new = pair
    order = fill(old)
    moving.move(old.store, new.store)
    before = everything(old)
    url = old.store.engine.address
    with runqueue.connect(url) as again:
        assert again.get(order[0]).status == "pending"
        assert again.why(order[0])
        assert again.timeline(order[0])
    for words in (
        ("list",),
        ("show", order[0]),
        ("why", order[0]),
        ("timeline", order[0]),
        ("status",),
        ("sessions", "list"),
        ("runners", "list"),
        ("db", "check"),
    ):
        assert rq("--db", url, *words).code == 0, words
    assert everything(old) == before


def test_the_old_place_refuses_every_change(
    pair: tuple[Queue, Queue], rq: Callable[..., Any]
) -> None:
    """By every verb and command, with one sentence that says where the queue is now."""
    old, new = pair
    order = fill(old)
    moving.move(old.store, new.store)
    before = everything(old)
    sentence = f"{old.store.url} was moved to {new.store.url}"
    for act in (
        lambda: old.enqueue("x"),
        lambda: old.stop(order[0]),
        lambda: old.delete_session(old.get(order[0]).session_id),
        lambda: take_from(old),
        lambda: moving.move(old.store, new.store),
    ):
        with pytest.raises(ConfigurationError) as caught:
            act()
        assert str(caught.value) == sentence
    for words in (("enqueue", "x"), ("stop", order[0])):
        ended = rq("--db", old.store.engine.address, *words)
        assert (ended.code, ended.out) == (78, "")
        assert ended.err == f"Error: {sentence}\n"
    assert everything(old) == before


@pytest.mark.parametrize("table", TABLES)
def test_the_old_place_refuses_sql_too(pair: tuple[Queue, Queue], table: str) -> None:
    """The database itself does it, for every table."""
    old, new = pair
    fill(old)
    time = "'2026-01-01T00:00:00.000000Z'"
    old.database.execute_sql(f"INSERT INTO daemons VALUES ('d', 'h', {time}, {time}, {time}, 30)")
    old.database.execute_sql(
        "INSERT INTO runners (runner_id, incarnation, registered_at, heartbeat_at, lease_until) "
        f"VALUES ('r', 'i', {time}, {time}, {time})"
    )
    moving.move(old.store, new.store)
    by_run = dict.fromkeys(("run_output", "run_attempts"), "run_id")
    key = {"run_events": "event_id", **by_run}.get(table, f"{table[:-1]}_id")
    statements = [
        f"INSERT INTO {table} SELECT * FROM {table}",
        f"UPDATE {table} SET {key} = {key}",
        f"DELETE FROM {table}",
    ]
    if old.store.engine.name == "postgres":
        statements.append(f"TRUNCATE {table} CASCADE")
        errors: type[Exception] = psycopg.Error
        plain: Any = psycopg.connect(old.store.engine.address, autocommit=True)
    else:
        statements.append(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
        errors = sqlite3.Error
        plain = sqlite3.connect(old.store.url.removeprefix("sqlite:///"))
    with closing(plain):
        for statement in statements:
            with pytest.raises(errors, match="moved to"):
                plain.execute(statement)


def test_a_password_is_shown_and_kept_nowhere(
    new_url: Callable[[str], str], rq: Callable[..., Any]
) -> None:
    """Not in what is printed, nor in what the old database says of the new one."""
    with postgres.Server(listen=True) as server:
        old, new, further = new_url("sqlite"), server.url(), new_url("sqlite")
        assert f":{postgres.PASSWORD}@" in new
        with runqueue.connect(old) as queue:
            queue.enqueue("x")
        there = rq("db", "move", old, new)
        again = rq("db", "move", old, new)
        back = rq("db", "move", new, further)
        refused = rq("--db", new, "enqueue", "x")
        assert (there.code, again.code, back.code, refused.code) == (0, 78, 0, 78), there.err
        for ended in (there, again, back, refused):
            assert f":{postgres.PASSWORD}" not in ended.out + ended.err
        with closing(sqlite3.connect(old.removeprefix("sqlite:///"))) as file:
            kept = "".join(str(row) for row in file.execute("SELECT sql FROM sqlite_master"))
        assert "moved to postgresql://postgres@127.0.0.1" in kept
        assert f":{postgres.PASSWORD}" not in kept
        with closing(sqlite3.connect(further.removeprefix("sqlite:///"))) as file:
            kept = "".join(str(row) for row in file.execute("SELECT sql FROM sqlite_master"))
        assert "runqueue_clos" not in kept


# --- interruptions


@pytest.mark.parametrize("step", STEPS)
def test_a_move_that_is_interrupted_anywhere_can_be_made_again(
    pair: tuple[Queue, Queue], step: str
) -> None:
    """Until the old place is closed it is as it was; from then on the same move ends it."""
    old, new = pair
    fill(old)
    before = everything(old)
    with pytest.raises(Planted):
        moving.move(old.store, new.store, report=stop_at(step))
    assert everything(old) == before
    if step == "open":
        assert not is_open(old)
        assert everything(new) == before
    else:
        assert is_open(old)
        old.enqueue("meanwhile")
        before = everything(old)
    assert is_open(new) == (step in ("copy", "verify", "commit"))
    moving.move(old.store, new.store)
    assert everything(new) == before
    assert is_open(new)
    assert not is_open(old)


@pytest.mark.parametrize("table", TABLES)
def test_nothing_of_a_copy_is_there_before_all_is(pair: tuple[Queue, Queue], table: str) -> None:
    """Interrupted between any two tables, the target is empty."""
    old, new = pair
    fill(old)
    with pytest.raises(Planted):
        moving.move(old.store, new.store, report=stop_at("copy", table))
    assert not any(everything(new).values())


KILL = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
import runqueue
from runqueue import moving
old, new, at = sys.argv[1:4]
def report(step):
    if step.name == at and step.table in ("", "runs"):
        os.kill(os.getpid(), signal.SIGKILL)
with runqueue.connect(old) as source, runqueue.connect(new) as target:
    moving.move(source.store, target.store, report=report)
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_move_that_is_killed_anywhere_can_be_made_again(
    pair: tuple[Queue, Queue], step: str
) -> None:
    """With nobody there to clean up."""
    old, new = pair
    fill(old)
    before = everything(old)
    urls = [queue.store.engine.address for queue in pair]
    for queue in pair:
        queue.close()
    done = subprocess.run(
        [sys.executable, "-c", KILL, *urls, step, str(ROOT)], check=False, timeout=3 * LONG
    )
    assert done.returncode == -signal.SIGKILL
    assert everything(old) == before
    assert is_open(old) == (step != "open")
    moving.move(old.store, new.store)
    assert everything(new) == before
    assert is_open(new)


def test_half_a_move_says_how_it_is_ended(
    pair: tuple[Queue, Queue], rq: Callable[..., Any], new_url: Callable[[str], str]
) -> None:
    """The new place refuses everybody but the same move, with one sentence."""
    old, new = pair
    fill(old)
    with pytest.raises(Planted):
        moving.move(old.store, new.store, report=stop_at("close"))
    old_url, url = (queue.store.engine.address for queue in pair)
    ended = rq("--db", url, "enqueue", "x")
    assert (ended.code, ended.out) == (78, "")
    assert ended.err == (
        f"Error: {new.store.url} was being filled from {old.store.url} by a move that has not "
        "ended; run the same db move again\n"
    )
    assert rq("db", "move", url, new_url("sqlite")).code == 78
    with runqueue.connect(new_url("sqlite")) as other:
        with pytest.raises(ConfigurationError, match="was being filled from"):
            moving.move(other.store, new.store)
    assert rq("--db", url, "list").code == 0
    assert rq("db", "move", old_url, url).code == 0
    assert is_open(new)


def test_what_was_only_to_be_opened_is_not_copied_again(pair: tuple[Queue, Queue]) -> None:
    """The same move ends without a step but the last."""
    old, new = pair
    fill(old)
    with pytest.raises(Planted):
        moving.move(old.store, new.store, report=stop_at("open"))
    told: list[Step] = []
    assert moving.move(old.store, new.store, report=told.append) == []
    assert told == [Step("open")]
    assert is_open(new)


def test_ctrl_c_leaves_the_old_place_as_it_was(
    pair: tuple[Queue, Queue], rq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 130, from the middle of the copy."""
    old, new = pair
    fill(old)
    before = everything(old)
    real = moving._copy_table

    def interrupted(source: Any, target: Any, model: Any, report: Any) -> Any:
        copied = real(source, target, model, report)
        if copied.table == "runs":
            os.kill(os.getpid(), signal.SIGINT)
        return copied

    monkeypatch.setattr(moving, "_copy_table", interrupted)
    ended = rq("db", "move", *(queue.store.engine.address for queue in pair))
    assert ended.code == 130
    assert ended.out == ""
    assert everything(old) == before
    assert is_open(old)
    assert is_open(new)


def test_writers_are_kept_out_while_readers_go_on(pair: tuple[Queue, Queue]) -> None:
    """What is committed during a copy would be lost."""
    old, new = pair
    order = fill(old)
    url = old.store.engine.address
    met: list[Any] = []

    def report(step: Step) -> None:
        if step == Step("commit"):
            with runqueue.connect(url, busy_timeout=0.05) as other:
                met.append(other.get(order[0]).status)
                try:
                    other.enqueue("x")
                except RunqueueError as error:
                    met.append(type(error).__name__)

    moving.move(old.store, new.store, report=report)
    assert met == ["pending", "StorageBusy"]


# --- verification


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "UPDATE runs SET prompt = 'changed' WHERE run_id = (SELECT min(run_id) FROM runs)",
            "the rows of runs that arrived",
        ),
        (
            "DELETE FROM run_events WHERE event_id = (SELECT min(event_id) FROM run_events)",
            "rows of run_events were copied",
        ),
    ],
)
def test_what_arrives_otherwise_is_noticed(
    pair: tuple[Queue, Queue], statement: str, sentence: str
) -> None:
    """A changed or a missing row: nothing is moved."""
    old, new = pair
    fill(old)

    def report(step: Step) -> None:
        if (step.name, step.table) == ("verify", "sessions") and step.done == 0:
            new.database.execute_sql(statement)

    with pytest.raises(StorageError, match=sentence):
        moving.move(old.store, new.store, report=report)
    assert is_open(old)
    assert not any(everything(new).values())


@pytest.mark.parametrize("column", ["prompt", "result"])
def test_a_text_that_postgres_cannot_store_is_named(
    new_url: Callable[[str], str], opened: Callable[[str], Queue], column: str
) -> None:
    """One sentence with the run and the column, and nothing is moved."""
    old, new = opened(new_url("sqlite")), opened(new_url("postgres"))
    run = old.enqueue("x")
    old.database.execute_sql(f"UPDATE runs SET {column} = 'a' || char(0) || 'secret'")
    with pytest.raises(StorageError, match=f"run {run.run_id} .*0x00 in its {column}") as caught:
        moving.move(old.store, new.store)
    assert "secret" not in str(caught.value)
    assert is_open(old)
    assert not any(everything(new).values())


# --- the command


def test_the_command_tells_its_steps_and_what_to_do_next(
    pair: tuple[Queue, Queue], rq: Callable[..., Any]
) -> None:
    """Steps on standard error, line by line; two lines on standard output."""
    old, new = pair
    fill(old)
    ended = rq("db", "move", *(queue.store.engine.address for queue in pair))
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        f"moved to {new.store.url}; set RUNQUEUE_DB to it for all who use the queue",
        f"{old.store.url} can still be read, and refuses every change",
    ]
    for line in ("copied runs: 8 rows", "verified run_events: ", "opening the new database"):
        assert line in ended.err


def test_the_command_refuses_active_runs_with_4(
    pair: tuple[Queue, Queue], rq: Callable[..., Any]
) -> None:
    """And the line of a wrong command line with 2."""
    old, _ = pair
    urls = [queue.store.engine.address for queue in pair]
    run = old.enqueue("x")
    with old.runner("worker") as runner:
        claim = start(runner)
        ended = rq("db", "move", *urls)
        assert ended.code == 4
        assert run.run_id in ended.err
        claim.complete("done")
    assert rq("db", "move", urls[0]).code == 2
    assert rq("db", "move", *urls, "--timeout", "3").code == 2


def test_a_source_that_is_not_there_is_78(
    new_url: Callable[[str], str], rq: Callable[..., Any]
) -> None:
    """It is not made, to be found empty."""
    old = new_url("sqlite")
    assert rq("db", "move", old, new_url("sqlite")).code == 78
    assert not os.path.exists(old.removeprefix("sqlite:///"))


def test_a_terminal_sees_bars(
    new_url: Callable[[str], str], opened: Callable[[str], Queue]
) -> None:
    """One for each table, on standard error alone."""
    old, new = new_url("sqlite"), new_url("sqlite")
    fill(opened(old))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "runqueue", "db", "move", old, new],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    # Linux's way to say that the other side is closed is an error.
    with suppress(OSError):
        while data := os.read(ours, 65_536):
            said += data
    os.close(ours)
    out, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0, said
    assert len(out.splitlines()) == 2
    for name in ("copied runs", "verified run_events", "opening the new database", "100%"):
        assert name in said.decode()
