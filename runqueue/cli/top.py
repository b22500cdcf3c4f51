"""The command that shows a queue while it works."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from runqueue.cli import render
from runqueue.cli.base import Duration, db_option, interrupt, open_queue
from runqueue.errors import StorageError

if TYPE_CHECKING:
    from runqueue.glance import Glance
    from runqueue.models import Run

INTERVAL: Final = 2.0
"""Seconds between two looks."""
ACTIVE: Final = 500
"""Active runs that are read, to know what each runner executes."""
ROWS: Final = 20
"""Rows of each table where no terminal says how many there is room for."""

_BEGIN: Final = "\x1b[?1049h\x1b[?25l"
_END: Final = "\x1b[?25h\x1b[?1049l"
_BOLD: Final = ("\x1b[1m", "\x1b[0m")


class Size(NamedTuple):
    """The room that there is; None where there is no terminal."""

    columns: int | None = None
    rows: int | None = None


class Table(NamedTuple):
    """A table of the view."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    total: int
    """Rows that there are, also those that were not read."""


@click.command()
@click.option(
    "--interval",
    type=Duration(0.1),
    default=INTERVAL,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, print it and end.")
@db_option
def top(interval: float, once: bool) -> int:
    """Watch the queue: who is alive, what is executed, and what waits.

    Ends with Ctrl-C, or with q and Enter. Where standard output is no terminal it looks once.
    """
    from runqueue import glance

    queue = open_queue()

    def look() -> Glance:
        most = _size().rows or ROWS
        return glance.take(queue.store, now=queue.now(), active=ACTIVE, waiting=min(most, ROWS))

    if once or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        for line in view(look(), queue.store.url, Size(_size().columns)):
            click.echo(line)
        return 0

    def show(seen: Glance | None, trouble: str) -> None:
        size = _size()
        _draw(view(seen, queue.store.url, size, trouble), size.rows or ROWS)

    try:
        with _screen() as pause:
            watch(look, show, lambda: pause(interval))
    except KeyboardInterrupt:  # that is how one leaves it
        pass
    return 0


def watch(
    look: Callable[[], Glance],
    show: Callable[[Glance | None, str], None],
    pause: Callable[[], bool],
) -> None:
    """Look and show, again and again, until a pause says that it is the end.

    While the database is away, show what was seen last.
    """
    seen = None
    while True:
        trouble = ""
        try:
            seen = look()
        except StorageError as error:
            if not error.retryable:
                raise
            trouble = f"{error}; looking again"
        show(seen, trouble)
        if pause():
            return


@contextmanager
def _screen() -> Iterator[Callable[[float], bool]]:
    """Take the terminal, and give it back as it was; yield how to wait for the next look."""
    listens = [sys.stdin.fileno()] if sys.stdin.isatty() else []
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)

    def pause(seconds: float) -> bool:
        """Return early when the terminal has another size; return whether it is the end."""
        ready, _, _ = select.select([reader, *listens], [], [], seconds)
        if reader in ready:
            os.read(reader, 64)
        if listens and listens[0] in ready:
            typed = os.read(listens[0], 1024)
            if not typed:  # nobody can type any more
                listens.clear()
            return typed.strip().lower() == b"q"
        return False

    handlers: dict[int, Any] = {
        signal.SIGWINCH: lambda *_: None,  # the interpreter then writes into the pipe
        signal.SIGTERM: interrupt,
        signal.SIGHUP: interrupt,
    }
    fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, act) for number, act in handlers.items()}
    try:
        _write(_BEGIN)
        yield pause
    finally:
        _write(_END)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        os.close(reader)
        os.close(writer)


def _size() -> Size:
    if not sys.stdout.isatty():
        return Size()
    columns, rows = shutil.get_terminal_size()
    with suppress(OSError):
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return Size(columns or 80, rows or 24)


def _draw(lines: Sequence[str], rows: int) -> None:
    # Each line by its place, and each erased behind its end: nothing flickers, nothing scrolls.
    placed = (f"\x1b[{number};1H{line}\x1b[K" for number, line in enumerate(lines[:rows], 1))
    _write(f"{''.join(placed)}\x1b[J" if len(lines) < rows else "".join(placed))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def view(seen: Glance | None, url: str, size: Size, trouble: str = "") -> list[str]:
    """Return the lines of the view, which fit the room that there is."""
    lines = [f"{url}  {seen.now[:19].replace('T', ' ')} UTC" if seen else url]
    if trouble:
        lines.append(trouble)
    if seen is None:
        return [render.cut(line, size.columns) for line in lines]
    lines += [*_head(seen)]
    tables = [_runners(seen), _active(seen), _waiting(seen)]
    # A title, the columns' names and an empty line above each.
    room = None if size.rows is None else size.rows - len(lines) - 3 * len(tables)
    shares = _shares([len(table.rows) for table in tables], room)
    lines = [render.cut(line, size.columns) for line in lines]
    for table, share in zip(tables, shares, strict=True):
        lines += ["", *_lines(table, share, size)]
    return lines


def _head(seen: Glance) -> Iterator[str]:
    from runqueue.models import seconds_between
    from runqueue.reading import NO_DAEMON

    runs, more = seen.overview.runs, seen.overview.at_least
    yield "  ".join(f"{runs[name]:,}{'+' if name in more else ''} {name}" for name in runs)
    for daemon in seen.daemons:
        age = render.age(seconds_between(daemon.tick_at, seen.now))
        yield f"daemon on {daemon.hostname}: told of a sweep {age} ago"
    if not seen.daemons:
        yield NO_DAEMON


def _lines(table: Table, share: int, size: Size) -> list[str]:
    shown = table.rows[:share]
    part = f", {len(shown)} shown" if len(shown) < table.total else ""
    title = render.cut(f"{table.total:,} {table.title}{part}", size.columns)
    lines = [f"{_BOLD[0]}{title}{_BOLD[1]}" if size.columns else title]
    if shown:
        aligned = render.aligned(shown, table.columns, size.columns)
        lines += [render.cut(line, size.columns) for line in aligned]
    return lines


def _shares(wanted: Sequence[int], room: int | None) -> list[int]:
    """Return how many rows each table gets: those that want few leave theirs to the others."""
    if room is None:
        return [ROWS] * len(wanted)
    shares = [0] * len(wanted)
    room = max(0, room)
    for done, index in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        shares[index] = min(wanted[index], room // (len(wanted) - done))
        room -= shares[index]
    return shares


def _runners(seen: Glance) -> Table:
    from runqueue.models import seconds_between

    executes: dict[str, list[str]] = {}
    for run in seen.active:
        executes.setdefault(run.runner_id or "", []).append(run.run_id)
    rows = []
    # Those at work first, and the dead ones before those that have nothing to do.
    for one in sorted(seen.runners, key=lambda one: (not one.active, one.is_alive)):
        runner = one.runner
        heartbeat = f"{render.age(seconds_between(runner.heartbeat_at, seen.now))} ago"
        state = runner.state if one.is_alive else "dead"
        doing = " ".join(executes.get(runner.runner_id, ()))
        rows.append((runner.runner_id, state, runner.hostname, heartbeat, one.active, doing))
    columns = ("runner_id", "state", "hostname", "heartbeat", "active", "executes")
    return Table("runners", columns, rows, len(rows))


def _active(seen: Glance) -> Table:
    from runqueue.models import seconds_between

    def row(run: Run) -> tuple[Any, ...]:
        since = run.started_at or run.claimed_at
        age = render.age(seconds_between(since, seen.now)) if since else ""
        heard = str(seen.heard[run.run_id])
        return (run.run_id, run.status.value, age, run.runner_id, run.agent_name, heard)

    runs = seen.overview.runs
    count = runs["claimed"] + runs["running"] + runs["stopping"]
    columns = ("run_id", "status", "for", "runner_id", "agent_name", "heard")
    return Table("active runs", columns, [*map(row, seen.active)], max(count, len(seen.active)))


def _waiting(seen: Glance) -> Table:
    from runqueue.models import seconds_between

    rows = [
        (run.run_id, render.age(seconds_between(run.created_at, seen.now)), run.agent_name, why)
        for run, why in seen.waiting
    ]
    columns = ("run_id", "for", "agent_name", "waits because")
    return Table("pending runs, the oldest first", columns, rows, seen.overview.runs["pending"])
