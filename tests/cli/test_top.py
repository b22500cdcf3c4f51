"""The command `top`: what it shows, that it fits, and that the terminal is given back."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.cells import cell_len

from runqueue import Queue, errors, glance, reading
from runqueue.cli import top
from runqueue.cli.top import Size
from runqueue.daemon import Daemon
from tests.cli.conftest import LONG, Ended

BEGIN, END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def test_it_says_who_is_there_what_is_executed_and_what_waits(
    rq: Callable[..., Ended], queue: Queue
) -> None:
    """Away from a terminal once, with nothing that drives one."""
    Daemon(queue, interval=1.0, keep=None).tick()
    with queue.runner("worker") as runner:
        run = queue.enqueue("secret", agent_name="writer")
        claim = runner.claim(timeout=5)
        assert claim is not None
        claim.start()
        behind = queue.enqueue("secret", session_id=run.session_id)
        lonely = queue.enqueue("secret", demands={"tags": ["gpu"]})
        ended = rq("top")
        claim.complete("secret")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines[0].startswith(queue.store.url)
    assert ended.lines[1].startswith("2 pending  0 claimed  1 running")
    assert ended.lines[2].startswith("daemon on ")
    at = {line.split()[0]: line for line in ended.lines if line and not line[0].isdigit()}
    assert "online" in at["worker"]
    assert at["worker"].endswith(f"1       {run.run_id}")
    assert "running" in at[run.run_id]
    assert "no output since its start" in at[run.run_id]
    assert "its session is busy" in at[behind.run_id]
    assert 'tags ["gpu"]' in at[lonely.run_id]
    assert ended.out.index(behind.run_id) < ended.out.index(lonely.run_id)
    assert "\x1b" not in ended.out
    assert "secret" not in ended.out


def test_an_empty_queue_without_a_daemon_is_shown_as_such(
    rq: Callable[..., Ended], queue: Queue
) -> None:
    """With the sentence that the other commands have."""
    ended = rq("top", "--once")
    assert ended.code == 0
    assert ended.lines[2] == reading.NO_DAEMON
    assert [line for line in ended.lines if line.startswith("0 ") and "pending runs" in line]


def test_a_dead_runner_with_runs_is_among_the_first(
    rq: Callable[..., Ended], queue: Queue, other: sqlite3.Connection
) -> None:
    """And those that have nothing to do are the last."""
    queue.enqueue("x")
    with queue.runner("busy") as runner, queue.runner("aaa"):
        claim = runner.claim(timeout=5)
        assert claim is not None
        other.execute("UPDATE runners SET lease_until = '2026-01-01T00:00:00.000000Z'")
        lines = rq("top").lines
        claim.release()
    order = [line.split()[:2] for line in lines if line.startswith(("busy", "aaa"))]
    assert order == [["busy", "dead"], ["aaa", "dead"]]


@pytest.fixture
def seen(queue: Queue) -> Iterator[glance.Glance]:
    """A queue with more of everything than fits."""
    for _ in range(30):
        queue.enqueue("x", agent_name="名" * 100)
    with queue.runner("worker" * 20) as runner:
        claims = runner.claim_many(10, timeout=5)
        yield glance.take(queue.store, now=queue.now(), active=500, waiting=20)
        for claim in claims:
            claim.release()


@pytest.mark.parametrize("rows", [1, 3, 10, 11, 24, 40])
@pytest.mark.parametrize("columns", [1, 20, 80, 200])
def test_the_view_fits_the_terminal(seen: glance.Glance, columns: int, rows: int) -> None:
    """Each line its width, also with letters that take two columns; and from 12 rows on, all."""
    lines = top.view(seen, "sqlite:////tmp/" + "x" * 300, Size(columns, rows))
    plain = [re.sub("\x1b\\[[01]m", "", line) for line in lines]
    assert max(map(cell_len, plain)) <= columns
    if rows >= 12:
        assert len(lines) <= rows
        assert len(lines) == min(rows, 12 + 1 + 10 + 20)


def test_the_rows_are_shared_so_that_none_is_left(seen: glance.Glance) -> None:
    """Tables with few rows leave theirs to the others; what is not shown is counted."""
    assert top._shares([1, 50, 50], 21) == [1, 10, 10]
    assert top._shares([50, 0, 3], 10) == [7, 0, 3]
    assert top._shares([5, 5, 5], -3) == [0, 0, 0]
    assert "20 pending runs, the oldest first, 5 shown" in "\n".join(
        top.view(seen, "url", Size(None, 12 + 1 + 5 + 5))
    )


def test_a_lost_database_is_said_and_the_last_view_stays() -> None:
    """And it goes on once it is back."""
    answers: list[Any] = ["first", errors.StorageLost("the server is away"), "second"]
    shown: list[tuple[Any, str]] = []

    def look() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    top.watch(look, lambda *what: shown.append(what), lambda: not answers)
    away = "the server is away; looking again"
    assert shown == [("first", ""), ("first", away), ("second", "")]


def test_what_does_not_pass_by_itself_ends_it() -> None:
    """A damaged database is told by the exit code, as by every command."""

    def look() -> Any:
        raise errors.StorageDamaged("it is damaged")

    with pytest.raises(errors.StorageDamaged):
        top.watch(look, lambda *_: None, lambda: True)


class Terminal:
    """A terminal of our own, on which the command is watched."""

    def __init__(self, url: str, *argv: str) -> None:
        self.said = ""
        self.ours, self.theirs = pty.openpty()
        self.modes = termios.tcgetattr(self.theirs)
        self.resize(20, 100)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runqueue", "--db", url, "top", *argv],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, words: str) -> None:
        """Read until the command has said something, after what was waited for before."""
        deadline = time.monotonic() + LONG
        while words not in self.said:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.ours], [], [], left)[0], f"{words!r} is not said"
            self.said += os.read(self.ours, 65536).decode()
        self.said = self.said.partition(words)[2]

    def ends(self) -> int:
        """Return the exit code, once the terminal was given back as it was."""
        self.until(END)
        code = self.process.wait(LONG)
        assert termios.tcgetattr(self.theirs) == self.modes
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(url: str) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*argv: str) -> Terminal:
        started.append(Terminal(url, *argv))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_it_redraws_in_place_until_it_is_interrupted(
    terminal: Callable[..., Terminal], queue: Queue
) -> None:
    """A change is seen at the next look; Ctrl-C is how one leaves it: 0, and nothing is said."""
    screen = terminal("--interval", "0.1")
    screen.until(BEGIN)
    screen.until("\x1b[2;1H0 pending")
    queue.enqueue("x")
    screen.until("\x1b[2;1H1 pending")
    screen.process.send_signal(signal.SIGINT)
    assert screen.ends() == 0
    assert "Traceback" not in screen.said


def test_q_and_enter_end_it(terminal: Callable[..., Terminal], queue: Queue) -> None:
    """Anything else that is typed does not."""
    screen = terminal("--interval", "600")
    screen.until("0 pending")
    os.write(screen.ours, b"x\n")
    screen.until("\x1b[2;1H0 pending")
    os.write(screen.ours, b"q\n")
    assert screen.ends() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back_also_to_whoever_ends_it_otherwise(
    terminal: Callable[..., Terminal], queue: Queue, number: int
) -> None:
    """Its cursor and what was on it are there again."""
    screen = terminal("--interval", "600")
    screen.until("0 pending")
    screen.process.send_signal(number)
    assert screen.ends() == 0


def test_another_size_is_drawn_at_once(terminal: Callable[..., Terminal], queue: Queue) -> None:
    """And not at the next look, which may be ten minutes away."""
    screen = terminal("--interval", "600")
    screen.until("0 pending  0 claimed")
    screen.resize(20, 12)
    screen.process.send_signal(signal.SIGWINCH)
    screen.until("\x1b[2;1H0 pending  …\x1b[K")
    screen.process.send_signal(signal.SIGINT)
    assert screen.ends() == 0


def test_a_database_that_cannot_be_used_any_more_ends_it_with_the_terminal_restored(
    terminal: Callable[..., Terminal], queue: Queue, other: sqlite3.Connection
) -> None:
    """The sentence is on the screen that was there before."""
    screen = terminal("--interval", "0.1")
    screen.until("0 pending")
    other.execute("ALTER TABLE daemons RENAME TO gone")
    assert screen.ends() == 1
    screen.until("Error: ")
