"""Who wants to write to an SQLite file waits behind the others, but never for a frozen one."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import runqueue
from runqueue.engines import sqlite_line
from runqueue.engines.sqlite_line import Line
from tests.helpers import LONG, in_background

SHORT = 0.02


@contextmanager
def kept(place: Path) -> Iterator[None]:
    """Somebody else has the turn, and does not move."""
    other = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(other)


def is_taken(place: Path) -> bool:
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    one = Line(tmp_path)
    yield one
    end_of_asking(one)
    one.leave()
    one.close()


def asking(one: Line) -> threading.Event:
    """Return what tells that it is going to wait in the kernel."""
    begun, ask = threading.Event(), one._ask

    def begin() -> None:
        begun.set()
        ask()

    one._ask = begin  # type: ignore[method-assign]
    return begun


def end_of_asking(one: Line) -> None:
    with one._asked:
        assert one._asked.wait_for(lambda: not one._is_asking, LONG)


def test_one_has_the_turn_until_it_leaves(line: Line, tmp_path: Path) -> None:
    line.enter(LONG)
    assert is_taken(tmp_path)
    line.leave()
    assert not is_taken(tmp_path)


def test_who_waits_gets_the_turn_of_who_leaves(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not left behind by the thread that waited for it."""
    monkeypatch.setattr(sqlite_line, "PATIENCE", LONG)
    waits = asking(line)
    with kept(tmp_path):
        waiting = threading.Thread(target=line.enter, args=(LONG,))
        waiting.start()
        assert waits.wait(LONG)
    waiting.join(LONG)
    assert is_taken(tmp_path)
    line.leave()
    assert not is_taken(tmp_path)


def test_behind_a_frozen_one_nobody_waits_twice(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or each of its transactions would take as long, as long as the other is frozen."""
    monkeypatch.setattr(sqlite_line, "PATIENCE", SHORT)
    with kept(tmp_path):
        line.enter(LONG)
        assert line._is_asking
        line.leave()
        with monkeypatch.context() as refused:
            refused.setattr(fcntl, "flock", lambda *_: pytest.fail("it asks again"))
            line.enter(LONG)
        line.leave()
        line.close()
        assert line._is_asking
        assert is_taken(tmp_path)


def test_who_has_given_up_does_not_keep_others_out_later(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn comes in the end, when nobody wants it any more."""
    monkeypatch.setattr(sqlite_line, "PATIENCE", SHORT)
    with kept(tmp_path):
        line.enter(LONG)
    end_of_asking(line)
    assert not is_taken(tmp_path)
    line.enter(LONG)
    assert is_taken(tmp_path)


def test_an_interrupted_wait_gives_up(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C must not leave a turn behind that nobody uses."""

    def interrupt(*_: Any) -> bool:
        raise KeyboardInterrupt

    with kept(tmp_path):
        with monkeypatch.context() as interrupted:
            interrupted.setattr(line._asked, "wait_for", interrupt)
            with pytest.raises(KeyboardInterrupt):
                line.enter(LONG)
        line.leave()
    end_of_asking(line)
    assert not is_taken(tmp_path)


def test_nobody_waits_behind_itself(line: Line, tmp_path: Path) -> None:
    """A thread that writes to two files of one directory within each other has the turn."""
    other = Line(tmp_path)
    other.enter(LONG)
    line.enter(LONG)
    assert not line._is_asking
    line.leave()
    assert is_taken(tmp_path)
    other.leave()
    assert not is_taken(tmp_path)
    line.enter(LONG)
    assert is_taken(tmp_path)
    other.close()


@pytest.mark.parametrize("failure", ["no thread", "no such lock", "may not be read"])
def test_where_there_is_no_line_everybody_goes_on(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """The line is a courtesy: SQLite's own lock decides who writes."""

    def fails(*_: Any) -> int:
        if failure == "no thread":
            raise RuntimeError("can't start new thread")
        raise OSError(errno.EACCES if failure == "may not be read" else errno.ENOLCK, "no")

    with kept(tmp_path), monkeypatch.context() as broken:
        if failure == "no thread":
            broken.setattr(threading.Thread, "start", fails)
        elif failure == "no such lock":
            broken.setattr(fcntl, "flock", fails)
        else:
            broken.setattr(os, "open", fails)
        line.enter(LONG)
        line.leave()
    assert not line._is_asking
    assert not is_taken(tmp_path)


def test_a_run_is_added_although_somebody_in_the_line_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_line, "PATIENCE", SHORT)
    with runqueue.connect(f"sqlite:///{tmp_path / 'queue.db'}") as queue:
        with kept(tmp_path):
            runs = [queue.enqueue("one"), queue.enqueue("another")]
        assert {run.run_id for run in queue.find()} == {run.run_id for run in runs}
        end_of_asking(queue.database._line)


def test_threads_and_processes_of_one_file_write_in_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two queues stand for two processes: neither knows of the other but by the file."""
    monkeypatch.setattr(sqlite_line, "PATIENCE", LONG)
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    with runqueue.connect(url) as one, runqueue.connect(url) as other:
        waits = asking(other.database._line)
        with ExitStack() as stack:
            with one.database.atomic():
                one.enqueue("first")
                added = stack.enter_context(in_background(lambda: other.enqueue("next"), other))
                assert waits.wait(LONG)
                assert not added.done()
            assert added.result(LONG).prompt == "next"
        assert not is_taken(tmp_path)
        assert sorted(run.prompt for run in one.find()) == ["first", "next"]


def test_the_child_of_a_fork_does_not_keep_the_parents_turn(tmp_path: Path) -> None:
    """Not even of a parent that forks within its own transaction, and dies."""
    with runqueue.connect(f"sqlite:///{tmp_path / 'queue.db'}") as queue:
        with queue.database.atomic():
            queue.enqueue("x")
            handle = queue.database._line._handle
            assert os.path.samestat(os.fstat(handle), os.stat(tmp_path))
            if (child := os.fork()) == 0:
                try:
                    os.fstat(handle)
                except OSError:
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            assert is_taken(tmp_path)
        assert not is_taken(tmp_path)
