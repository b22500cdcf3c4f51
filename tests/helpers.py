"""What tests of every kind need: waiting, threads, another process, and SQL of any database."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

import runqueue
from runqueue import Claim, Queue, Run, Runner
from runqueue.database import Compiled
from runqueue.testing import MovableClock as MovableClock

T = TypeVar("T")

LONG = 10.0
"""Seconds after which something that should happen is taken not to happen."""
ROOT = Path(runqueue.__file__).resolve().parent.parent
MICROSECOND = 1e-6

OWNERS_VERBS: dict[str, Callable[[Claim], None]] = {
    "start": lambda claim: claim.start(),
    "complete": lambda claim: claim.complete("the result"),
    "fail": lambda claim: claim.fail("the error"),
    "confirm": lambda claim: claim.confirm_stop(),
    "release": lambda claim: claim.release(),
}
"""The owner's reports, by the names of their moves."""


def wait_until(predicate: Callable[[], object], timeout: float = LONG) -> None:
    """Return when the predicate holds; fail when it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@contextmanager
def in_background(function: Callable[[], T], *queues: Queue) -> Iterator[Future[T]]:
    """Call a function in a thread while the body is executed; yield its future result.

    The connections that the thread opens on these queues are closed at its end.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)
        finally:
            for queue in queues:
                queue.close()

    thread = threading.Thread(target=work, name="test-background", daemon=True)
    thread.start()
    try:
        yield future
    finally:
        thread.join(2 * LONG)


def together(
    queue: Queue, functions: Sequence[Callable[[], T]], others: Sequence[Queue] = ()
) -> list[T]:
    """Call the functions at the same time, each in its own thread; return what they return.

    The connections that the threads open on the queue, and on the others, are closed at their end.
    """
    barrier = threading.Barrier(len(functions))
    futures: list[Future[T]] = [Future() for _ in functions]

    def work(function: Callable[[], T], future: Future[T]) -> None:
        try:
            barrier.wait(LONG)
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)
        finally:
            for one in (queue, *others):
                one.close()

    threads = [
        threading.Thread(target=work, args=pair, name="test-together", daemon=True)
        for pair in zip(functions, futures, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LONG)
    return [future.result(timeout=0) for future in futures]


def in_another_process(url: str, code: str, *arguments: str) -> str:
    """Execute Python code in a process of its own; return what it prints.

    The code has `queue` on the database, with the system's clock, and its arguments in `args`.
    """
    head = "import os, sys, runqueue; url, *args = sys.argv[1:]; queue = runqueue.connect(url)\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code, url, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        timeout=3 * LONG,
        check=False,
    )
    return done.stdout.decode()


def execute_sql(queue: Queue, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Execute portable SQL, with `?` for each parameter, on the queue's connection."""
    database = queue.database
    cursor = database.execute_sql(sql.replace("?", database.param), parameters)
    return [tuple(row) for row in cursor.fetchall()] if cursor.description else []


def count(queue: Queue, table: str) -> int:
    """Return how many rows a table has."""
    return int(execute_sql(queue, f"SELECT count(*) FROM {table}")[0][0])


def is_empty(queue: Queue) -> bool:
    """Whether nothing at all was written to the queue."""
    return not any(count(queue, table) for table in ("sessions", "runs", "run_events"))


def row_of(queue: Queue, run: Run) -> tuple[Any, ...]:
    """Return everything that the database holds of a run."""
    return execute_sql(queue, "SELECT * FROM runs WHERE run_id = ?", run.run_id)[0]


def events_of(queue: Queue, run: Run) -> list[str]:
    """Return the statuses that were recorded of a run, the oldest first."""
    rows = execute_sql(
        queue, "SELECT status FROM run_events WHERE run_id = ? ORDER BY event_id", run.run_id
    )
    return [row[0] for row in rows]


def status_of(queue: Queue, run: Run) -> str:
    return str(queue.get(run.run_id).status)


def take(runner: Runner) -> Claim:
    """Claim the run that must be there."""
    claim = runner.claim(timeout=0)
    assert claim is not None, "there was nothing to claim"
    return claim


def start(runner: Runner) -> Claim:
    """Claim the run that must be there, and start it."""
    claim = take(runner)
    claim.start()
    return claim


def ids(runs: Sequence[Run | Claim]) -> list[str]:
    """Return the ids of runs, or of the runs that were claimed."""
    return [one.run.run_id if isinstance(one, Claim) else one.run_id for one in runs]


def make_commits_by(
    answer: Callable[[Callable[[], Any]], Any], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have `answer` called for every commit on a queue, with what makes it and returns its answer.

    A statement that holds all of a verb is a commit by itself, where there is no transaction.
    """
    database = queue.database
    commit, execute_sql = database.commit, database.execute_sql

    def execute_or_commit(sql: str, *args: Any) -> Any:
        if sql.startswith("WITH") and "INSERT" in sql and not database.in_transaction():
            return answer(lambda: execute_sql(sql, *args))
        return execute_sql(sql, *args)

    monkeypatch.setattr(database, "commit", lambda: answer(commit))
    monkeypatch.setattr(database, "execute_sql", execute_or_commit)


@contextmanager
def statements_of(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    sent: list[str] = []
    real = type(queue.store)._compile

    def compile_(store: Any, statement: Any) -> Any:
        compiled = real(store, statement)
        if threading.current_thread() is threading.main_thread():  # the runner has others
            sent.append(compiled.sql)
        return compiled

    with monkeypatch.context() as patch:
        patch.setattr(type(queue.store), "_compile", compile_)
        yield sent


def explained(queue: Queue, compiled: Compiled, form: str = "TEXT") -> list[Any]:
    """What PostgreSQL answers to EXPLAIN of a statement, with the plan that it keeps.

    Such a plan is made without the values, so none need to be given.
    """
    numbers = itertools.count(1)
    sql = re.sub("%s", lambda _: f"${next(numbers)}", compiled.sql)
    nothing = f"({', '.join(['NULL'] * len(compiled.template))})" if compiled.template else ""
    with queue.database.connection_context():
        queue.database.execute_sql(f"PREPARE tested AS {sql}")
        try:
            explain = f"EXPLAIN (FORMAT {form}) EXECUTE tested{nothing}"
            return [row[0] for row in queue.database.execute_sql(explain).fetchall()]
        finally:
            queue.database.execute_sql("DEALLOCATE tested")
