"""The `runqueued` command: the daemon, in the foreground."""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from runqueue import settings
from runqueue.cli.base import (
    CONTEXT,
    Duration,
    db_option,
    name_variables,
    open_queue,
    parse_again,
    run,
    version_option,
)
from runqueue.cli.logs import configure, log_options
from runqueue.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from runqueue.daemon import Daemon
    from runqueue.queue import Queue
    from runqueue.reread import Files
    from runqueue.systemd.notify import Manager

log = logging.getLogger("runqueue.daemon")


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
@click.option(
    "--patience",
    type=Duration(),
    help="End with 75 when no sweep has succeeded for so long.  "
    "[default: at the start at once, then never]",
)
@log_options
@version_option
@click.pass_context
def daemon(ctx: click.Context, /, **options: Any) -> None:
    """Keep time for a queue: expire, settle and rescue runs until SIGTERM or SIGINT."""
    from runqueue.backoff import patiently
    from runqueue.daemon import LONGEST_START, Daemon
    from runqueue.reread import Files
    from runqueue.signals import ENDING, on_signals
    from runqueue.systemd.notify import Manager

    configure(options["log_level"], options["log_format"], "runqueued")
    manager, files, ended = Manager(), Files(), threading.Event()
    sweeping: list[Daemon] = []

    def reload() -> None:
        with ctx.scope(cleanup=False):
            _reload(manager, files, sweeping)

    acts: dict[int, Callable[[], None]] = dict.fromkeys(ENDING, ended.set)
    if manager.is_there:
        # Elsewhere it is the end of a terminal, and of what was started on it.
        acts[signal.SIGHUP] = reload
        # A watchdog's SIGABRT then says where it hung.
        faulthandler.enable()
    with on_signals(acts):
        with manager.patient(LONGEST_START):
            manager.status("opening the database, and upgrading it if need be")
            queue = patiently(
                lambda: _open(options), options["patience"] or 0.0, ended, _tell_waiting
            )
        if queue is None:
            return
        sweeping.append(Daemon(queue, manager=manager, **_goes_by(options)))
        sweeping[0].run(ended)


def _open(options: dict[str, Any]) -> Queue:
    from runqueue.daemon import BUSY_TIMEOUT

    return open_queue(create=True, busy_timeout=BUSY_TIMEOUT, settings=_settings(options))


def _tell_waiting(error: StorageError) -> None:
    log.warning("the daemon waits for its database: %s", error)


def _settings(options: dict[str, Any]) -> settings.Settings:
    return settings.Settings(
        lease=options["lease"],
        stop_grace=options["stop_grace"],
        start_deadline=options["start_deadline"],
    )


def _goes_by(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "interval": options["interval"],
        "keep": options["keep"] or None,
        "keep_runs": options["keep_runs"],
        "patience": options["patience"],
    }


def _reload(manager: Manager, files: Files, sweeping: list[Daemon]) -> None:
    """Read the settings again and go by them; ones that cannot be used change nothing."""
    manager.reloading()
    try:
        changed = files.again()
        again = parse_again()
    except (ConfigurationError, click.UsageError) as error:
        said = error.format_message() if isinstance(error, click.UsageError) else str(error)
        log.error("reloaded nothing, for the settings cannot be used: %s", said)
    else:
        options = again.params
        configure(options["log_level"], options["log_format"], "runqueued")
        if again.meta.get("db") != click.get_current_context().meta.get("db"):
            log.warning("another database is named now; that takes a restart")
        for one in sweeping:
            one.adopt(_settings(options), **_goes_by(options))
        log.info("reloaded; changed: %s", " ".join(changed) or "nothing")
    for one in sweeping:
        one.tell_ready()


name_variables(daemon)


def main() -> None:
    """Entry point of the `runqueued` command."""
    sys.exit(run(daemon))


if __name__ == "__main__":
    main()
