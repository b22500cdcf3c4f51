"""A process that uses SQLite in several threads may be forked: the child inherits no lock."""

from __future__ import annotations

import gc
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


def waits_for_others(patch: pytest.MonkeyPatch, forking: threading.Event) -> None:
    """Have the event set when a fork has to wait, which then ends only when it is told."""

    def hold(waiting: threading.Condition, is_so: Callable[[], bool], *_: Any) -> bool:
        while not is_so():
            forking.set()
            assert waiting.wait(LONG), "nobody tells that the thread has left"
        return True

    patch.setattr(threading.Condition, "wait_for", hold)


def test_a_fork_waits_for_a_thread_that_reads(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child would inherit a lock of SQLite's allocator, and wait for it for ever."""
    reading, forking = threading.Event(), threading.Event()
    order: list[str] = []

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
        waits_for_others(monkeypatch, forking)
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


def test_an_interrupted_fork_leaves_everything_open(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python goes on after what is done before a fork, whatever came of that."""
    engine = type(queue.store.engine)
    original = engine.hold_for_fork

    def interrupt(one: Any) -> None:
        original(one)
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(engine, "hold_for_fork", interrupt)
        with pytest.raises(KeyboardInterrupt):
            database._before_fork()
    database._after_fork_in_parent()
    with in_background(lambda: queue.enqueue("y"), queue) as added:
        assert added.result(LONG).status == "pending"


def test_who_is_in_a_transaction_may_begin_another_while_the_fork_waits_for_its_end(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever is in none waits: there would be no end of them."""
    begun, forking = threading.Event(), threading.Event()

    with runqueue.connect(f"sqlite:///{tmp_path / 'other.db'}") as other:

        def write() -> str:
            with queue.database.atomic():
                begun.set()
                assert forking.wait(LONG)
                return other.enqueue("within").status

        with in_background(write, queue, other) as written:
            assert begun.wait(LONG)
            with monkeypatch.context() as patched:
                waits_for_others(patched, forking)
                database._before_fork()
            with in_background(lambda: queue.enqueue("after"), queue) as later:
                assert written.result(LONG) == "pending"
                assert not later.done()
                database._after_fork_in_parent()
                assert later.result(LONG).status == "pending"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fork_does_not_wait_for_a_thread_that_is_no_more(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had begun is undone with its connection."""
    ended = threading.Thread(target=queue.database.begin)
    ended.start()
    ended.join(LONG)
    gc.collect()  # the connection
    with monkeypatch.context() as patched:
        patched.setattr(
            threading.Condition, "wait", lambda *_: pytest.fail("it waits for the thread")
        )
        with held():
            pass
    with in_background(lambda: queue.enqueue("y"), queue) as added:
        assert added.result(LONG).status == "pending"


def test_who_writes_to_two_files_is_a_writer_until_both_have_ended(
    queue: Queue, tmp_path: Path
) -> None:
    with runqueue.connect(f"sqlite:///{tmp_path / 'other.db'}") as other:
        with queue.database.atomic():
            queue.enqueue("y")
            with other.database.atomic():
                other.enqueue("y")
            assert threading.get_ident() in guard._writers
        assert threading.get_ident() not in guard._writers
