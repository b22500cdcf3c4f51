"""Commands about the queue as a whole and its database."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from runqueue.cli import render
from runqueue.cli.base import Duration, db_option, open_queue
from runqueue.errors import ConfigurationError, StorageDamaged
from runqueue.settings import KEEP


@click.command()
@render.output_option
@db_option
def status(output: str) -> None:
    """Show the queue at a glance."""
    from runqueue import reading

    queue = open_queue()
    overview = reading.overview(queue.store, now=queue.now())
    if output != "table":
        row = {"database": queue.store.url, **overview._asdict()}
        render.emit_one(row, output, key="database")
        return
    for name, count in overview.runs.items():
        click.echo(f"{name:<10} {count:>8,}")
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
    """Make, upgrade, check and back up the database."""


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
