"""A process that uses SQLite in several threads may be forked: the child inherits no lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import runqueue
from runqueue import Queue, database
from runqueue.engines.sqlite_forks import guard
from tests.helpers import LONG, in_background


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with runqueue.connect(f"sqlite:///{tmp_path / 'queue.db'}") as one:
        one.enqueue("x")
        yield one


@contextmanager
def held() -> Iterator[None]:
    """What surrounds a fork, in the parent."""
    database._before_fork()
    try:
        yield
    finally:
        database._after_fork_in_parent()


def kept_out(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what tells that a thread waits to be let in."""
    waits, wait = threading.Event(), guard._may_enter.wait

    def tell() -> bool:
        waits.set()
        return wait()

    monkeypatch.setattr(guard._may_enter, "wait", tell)
    return waits


def test_a_fork_waits_for_a_thread_that_reads(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child would inherit a lock of SQLite's allocator, and wait for it for ever."""
    reading, forking = threading.Event(), threading.Event()
    order: list[str] = []

    def hold(waiting: threading.Condition, is_so: Callable[[], bool], *_: Any) -> bool:
        while not is_so():
            forking.set()
            assert waiting.wait(LONG), "nobody tells that the thread has left"
        return True

    def pause() -> int:
        reading.set()
        forking.wait(LONG)
        order.append("read")
        return 1

    def read() -> list[tuple[Any, ...]]:
        queue.database.connection().create_function("pause", 0, pause)
        return queue.store.engine.rows("SELECT pause()", ())

    with in_background(read, queue) as found:
        assert reading.wait(LONG)
        monkeypatch.setattr(threading.Condition, "wait_for", hold)
        if (child := os.fork()) == 0:
            os._exit(0)
        order.append("forked")
        assert os.waitpid(child, 0)[1] == 0
        forking.set()
        assert found.result(LONG) == [(1,)]
    assert order == ["read", "forked"]
    assert queue.enqueue("by the parent").status == "pending"


@pytest.mark.parametrize("use", ["read", "connect", "close"])
def test_nobody_gets_in_while_the_process_is_forked(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """And whoever waits keeps nothing that a thread may need which is in already."""
    waits = kept_out(monkeypatch)
    is_open = threading.Event()

    def work() -> None:
        if use != "connect":
            queue.database.connect()
        is_open.set()
        assert entering.wait(LONG)
        {"read": queue.find, "connect": queue.database.connect, "close": queue.database.close}[
            use
        ]()

    entering = threading.Event()
    with in_background(work, queue) as used:
        assert is_open.wait(LONG)
        with held():
            entering.set()
            assert waits.wait(LONG)
            assert not used.done()
            assert queue.database._lock.acquire(timeout=LONG)
            queue.database._lock.release()
        used.result(LONG)


def test_the_thread_that_forks_may_look_meanwhile(queue: Queue) -> None:
    """A handler of a signal does, or what others do after a fork: it would wait for itself."""
    with held():
        assert len(queue.find()) == 1


@pytest.mark.parametrize("step", ["hold_for_fork", "wait_for_fork"])
def test_an_interrupted_fork_leaves_everything_open(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Python goes on after what is done before a fork, whatever came of that."""
    engine = type(queue.store.engine)
    original = getattr(engine, step)

    def interrupt(one: Any) -> None:
        original(one)
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(engine, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            database._before_fork()
    database._after_fork_in_parent()
    with in_background(lambda: queue.enqueue("y"), queue) as added:
        assert added.result(LONG).status == "pending"


def test_all_writers_are_waited_for_before_readers_are_kept_out(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes to one file may have to read another before it can end."""
    steps: list[str] = []
    with runqueue.connect(f"sqlite:///{tmp_path / 'other.db'}"):
        for name in ("hold_for_fork", "wait_for_fork"):
            step = getattr(type(queue.store.engine), name)

            def noted(engine: Any, name: str = name, step: Any = step) -> None:
                steps.append(name)
                step(engine)

            monkeypatch.setattr(type(queue.store.engine), name, noted)
        with held():
            pass
    number = len(steps) // 2
    assert number >= 2
    assert steps == ["hold_for_fork"] * number + ["wait_for_fork"] * number


def test_who_writes_to_two_files_is_a_writer_until_both_have_ended(
    queue: Queue, tmp_path: Path
) -> None:
    with runqueue.connect(f"sqlite:///{tmp_path / 'other.db'}") as other:
        with queue.database.atomic():
            queue.enqueue("y")
            with other.database.atomic():
                other.enqueue("y")
            assert guard.is_writing()
        assert not guard.is_writing()
