"""The `runqueued` command: the daemon, in the foreground."""

from __future__ import annotations

import sys
import threading

import click

from runqueue import settings
from runqueue.cli.base import (
    CONTEXT,
    Duration,
    db_option,
    name_variables,
    open_queue,
    run,
    version_option,
)

LEVELS = click.Choice(["debug", "info", "warning", "error"])


@click.command(name="runqueued", context_settings=CONTEXT)
@db_option
@click.option(
    "--interval",
    type=Duration(0.05),
    default=settings.INTERVAL,
    show_default=True,
    help="Seconds between two sweeps.",
)
@click.option(
    "--lease",
    type=Duration(0.5),
    default=settings.LEASE,
    show_default=True,
    help="Seconds without a heartbeat after which a runner is dead.",
)
@click.option(
    "--stop-grace",
    type=Duration(),
    default=settings.STOP_GRACE,
    show_default=True,
    help="Seconds that a runner has to confirm a stop.",
)
@click.option(
    "--start-deadline",
    type=Duration(1.0),
    default=settings.START_DEADLINE,
    show_default=True,
    help="Seconds after which a claim that was not started is released.",
)
@click.option(
    "--keep",
    type=Duration(),
    default=settings.KEEP,
    show_default="30d",
    help="How long finished runs are kept; 0 keeps them for ever.",
)
@click.option(
    "--keep-runs",
    type=click.IntRange(0),
    help="How many finished runs are kept at most, those that were added last.",
)
@click.option("--log-level", type=LEVELS, default="info", show_default=True)
@version_option
def daemon(
    interval: float,
    lease: float,
    stop_grace: float,
    start_deadline: float,
    keep: float,
    keep_runs: int | None,
    log_level: str,
) -> None:
    """Keep time for a queue: expire, settle and rescue runs until SIGTERM or SIGINT."""
    from runqueue.cli.logs import configure
    from runqueue.daemon import BUSY_TIMEOUT, Daemon
    from runqueue.signals import on_ending

    configure(log_level)
    ended = threading.Event()
    with on_ending(ended.set):
        queue = open_queue(
            create=True,
            busy_timeout=BUSY_TIMEOUT,
            settings=settings.Settings(
                lease=lease, stop_grace=stop_grace, start_deadline=start_deadline
            ),
        )
        Daemon(queue, interval=interval, keep=keep or None, keep_runs=keep_runs).run(ended)


name_variables(daemon)


def main() -> None:
    """Entry point of the `runqueued` command."""
    sys.exit(run(daemon))


if __name__ == "__main__":
    main()
