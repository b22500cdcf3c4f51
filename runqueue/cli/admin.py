"""Commands about the queue as a whole and its database."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runqueue import grants
from runqueue.cli import render
from runqueue.cli.base import Duration, db_option, open_queue
from runqueue.errors import ConfigurationError, StorageDamaged
from runqueue.settings import KEEP

if TYPE_CHECKING:
    from runqueue.reading import Overview


@click.command()
@click.option("--exact", is_flag=True, help="Count all that has ended, which may take a while.")
@click.option(
    "--check", "checks", is_flag=True, help="For monitors: one line, and exit code 1 if not well."
)
@click.option(
    "--max-wait",
    "longest_wait",
    type=Duration(),
    help="With --check: how long the oldest pending run may have waited.  [default: any time]",
)
@click.option(
    "--min-runners",
    "least_runners",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="With --check: how many runners must be alive.",
)
@render.output_option
@db_option
def status(
    exact: bool, checks: bool, longest_wait: float | None, least_runners: int, output: str
) -> int | None:
    """Show the queue at a glance, or check that it is well.

    Of what has ended, up to 100,000 runs of each status are counted; more is shown with a plus.

    With --check the exit code is 0 when it is, 1 when no daemon is alive or a limit is passed,
    75 when the database cannot be reached, and 78 when it cannot be used.
    """
    from runqueue import reading

    if not checks and (longest_wait is not None or least_runners):
        raise click.UsageError("--max-wait and --min-runners are limits of --check; give it too")
    queue = open_queue()
    overview = reading.overview(queue.store, now=queue.now(), exact=exact)
    if checks:
        ailments = reading.ailments(
            overview, longest_wait=longest_wait, least_runners=least_runners
        )
        return _tell_health(overview, ailments, queue.store.url, output)
    _show(overview, queue.store.url, output)
    return None


def _tell_health(overview: Overview, ailments: list[str], url: str, output: str) -> int:
    if output != "table":
        row = {"database": url, "ok": not ailments, "problems": ailments, **overview._asdict()}
        render.emit_one(row, output, key="database")
    elif ailments:
        render.echo(f"not well: {'; '.join(ailments)}")
    else:
        runs = overview.runs
        render.echo(
            f"ok: {runs['pending']:,} pending, {runs['running']:,} running, "
            f"{overview.runners} runners, {overview.daemons} daemons"
        )
    return 1 if ailments else 0


def _show(overview: Overview, url: str, output: str) -> None:
    if output != "table":
        row = {"database": url, **overview._asdict()}
        render.emit_one(row, output, key="database")
        return
    for name, count in overview.runs.items():
        more = "+" if name in overview.at_least else ""
        click.echo(f"{name:<10} {count:>8,}{more}")
    oldest = overview.oldest_pending_seconds
    click.echo("")
    if oldest is not None:
        click.echo(f"the oldest pending run has waited {render.age(oldest)}")
    dead = f", {overview.dead_runners} dead" if overview.dead_runners else ""
    click.echo(f"runners    {overview.runners} alive{dead}")
    click.echo(
        f"daemons    {overview.daemons} alive"
        if overview.daemons
        else "daemons    none alive: nothing expires, and no dead runner's run is rescued"
    )


@click.command()
@click.option(
    "--older-than",
    type=Duration(),
    default=KEEP,
    show_default="30d",
    help="How long ago a run must have ended.",
)
@db_option
def prune(older_than: float) -> None:
    """Delete runs that ended long ago, and sessions that then have none."""
    click.echo(f"{open_queue().prune(older_than):,} runs pruned")


@click.group()
def db() -> None:
    """Make, upgrade, check, back up and move the database, and share it."""


@db.command()
@db_option
def init() -> None:
    """Create the database, or upgrade the one that is there; print its URL."""
    render.echo(open_queue(create=True).store.url)


@db.command()
@db_option
def upgrade() -> None:
    """Bring the database to this version's schema."""
    from runqueue import schema

    queue = open_queue()
    render.echo(f"{queue.store.url} has schema {schema.version_of(queue.store)}")


@db.command()
@db_option
def check() -> None:
    """Check that the database is whole and its runs are consistent."""
    from runqueue import reading

    queue = open_queue()
    problems = reading.problems(queue.store)
    for problem in problems:
        render.echo(problem, err=True)
    if problems:
        raise StorageDamaged(f"{queue.store.url} has {len(problems)} problems")
    render.echo(f"{queue.store.url} is sound")


@db.command()
@click.argument("target", type=click.Path(path_type=Path))
@db_option
def backup(target: Path) -> None:
    """Copy the database to the new file TARGET while it is in use."""
    queue = open_queue()
    try:
        # Only for its owner from the first moment on: it holds every prompt.
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise ConfigurationError(f"{target} exists already; a backup overwrites nothing") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be created: {error.strerror}") from None
    try:
        queue.store.back_up(str(target))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    render.echo(target)


@db.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option(
    "--wait", is_flag=True, help="Let all runners drain first, and wait until no run is active."
)
@click.option("--timeout", type=Duration(), help="How long --wait may take.  [default: forever]")
def move(source: str, target: str, wait: bool, timeout: float | None) -> None:
    """Move the whole queue to the empty database TO, whatever kind it is.

    Both are URLs. The old database stays readable, and refuses every change from then on, so
    that nobody goes on writing to the old place. Interrupted at any moment the queue is still
    where it was, or the same command ends the move.
    """
    from runqueue import moving
    from runqueue.queue import connect

    if timeout is not None and not wait:
        raise click.UsageError("--timeout is how long --wait may take; give both")
    patience = None if not wait else math.inf if timeout is None else timeout
    with connect(source, create=False) as old, connect(target) as new:
        for column in moving.lost_columns(old.store):
            render.echo(f"{column} is a column of another program; it stays behind", err=True)
        with _progress() as report:
            moving.move(old.store, new.store, patience=patience, report=report)
        render.echo(f"moved to {new.store.url}; set RUNQUEUE_DB to it for all who use the queue")
        render.echo(f"{old.store.url} can still be read, and refuses every change")


@contextmanager
def _progress() -> Iterator[Callable[[Any], None]]:
    """Tell of a move's steps on standard error: as bars on a terminal, else line by line."""
    told = ""

    def tell(step: Any) -> None:
        nonlocal told
        is_done = step.table and step.done == step.total
        line = _SAYS[step.name]
        line += f" {step.table}: {step.total:,} rows" if step.table else ""
        if line != told and (is_done or not step.table):
            told = line
            render.echo(line, err=True)

    if not sys.stderr.isatty():
        yield tell
        return

    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def draw(step: Any) -> None:
            name = f"{_SAYS[step.name]} {step.table}".strip()
            if name not in tasks:
                # What has no rows to count is done with when it is told.
                tasks[name] = progress.add_task(name, total=step.total or 1)
            done = step.done if step.total else 1
            progress.update(tasks[name], completed=done)

        yield draw


_SAYS: Final = {
    "drain": "waiting for active runs to end",
    "copy": "copied",
    "verify": "verified",
    "commit": "committing",
    "close": "closing the old database",
    "open": "opening the new database",
}


@db.command(name="grants")
@click.argument("role", type=click.Choice(grants.ROLES))
@click.option(
    "--to",
    "name",
    metavar="NAME",
    show_default="runqueue_ROLE",
    help="The PostgreSQL role; made, without a login, when there is none.",
)
def show_grants(role: str, name: str | None) -> None:
    """Print the SQL that gives a PostgreSQL role the rights of ROLE.

    The owner makes and upgrades the schema; an operator is a daemon, a caller or a person; a
    runner claims and reports. Nothing is executed here: give it to psql, as a superuser.
    """
    try:
        text = grants.sql(role, name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--to") from None
    sys.stdout.write(text)


@click.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the database in this file.")
def demo(keep: Path | None) -> int:
    """Watch real runs being claimed, executed, timed out and stopped, for half a minute."""
    from runqueue import demo as show

    code: int = show.main(keep)
    return code


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    For bash: eval "$(runqueue completion bash)" in ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    context = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.command, {}, "runqueue", "_RUNQUEUE_COMPLETE").source()
    sys.stdout.write(f"{script}\n")


COMMANDS = (status, prune, db, demo, completion)
