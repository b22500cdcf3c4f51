"""The `runqueue-runner` command: a runner that executes a command for each run."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runqueue import settings
from runqueue.cli.base import (
    CONTEXT,
    Duration,
    Pairs,
    db_option,
    gather,
    name_variables,
    open_queue,
    run,
    version_option,
)
from runqueue.cli.daemon import LEVELS
from runqueue.errors import ConfigurationError, StorageLost

if TYPE_CHECKING:
    from runqueue.slots import Slots

log = logging.getLogger("runqueue.runner")


@click.command(name="runqueue-runner", context_settings=CONTEXT)
@db_option
@click.option("--runner-id", metavar="ID", help="Default: made of the host's name.")
@click.option(
    "--hostname",
    metavar="HOST",
    help="Where its sessions live, as in a container, whose own name does not last.  "
    "[default: this host's name]",
)
@click.option("--executor-type", metavar="TYPE", help="What kind of agent COMMAND is.")
@click.option("--tag", "tags", multiple=True, help="What this runner has; may be repeated.")
@click.option(
    "--property", "properties", multiple=True, type=Pairs(), metavar="K=V", help="Likewise."
)
@click.option(
    "--project-dir", metavar="DIR", help="The project that it serves, and its working directory."
)
@click.option(
    "--slots",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many runs to execute at once.",
)
@click.option(
    "--stop-grace",
    type=Duration(),
    default=settings.STOP_GRACE,
    show_default=True,
    help="Seconds between SIGTERM and SIGKILL when a run is stopped.",
)
@click.option(
    "--drain",
    type=Duration(),
    default=30.0,
    show_default=True,
    help="Seconds that runs may go on after SIGTERM or SIGINT; a second one ends them at once.",
)
@click.option(
    "--max-runtime",
    type=Duration(0.001),
    help="End a run that takes longer, as a stop would, and fail it.  [default: never]",
)
@click.option(
    "--lease",
    type=Duration(0.5),
    default=settings.LEASE,
    show_default=True,
    help="Seconds without a heartbeat after which it is dead; a daemon's --lease is preferred.",
)
@click.option(
    "--retry-exit",
    "retry_exits",
    multiple=True,
    type=click.IntRange(1, 255),
    metavar="CODE",
    help="An exit status of COMMAND after which a run may be retried; may be repeated.",
)
@click.option("--log-level", type=LEVELS, default="info", show_default=True)
@version_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def runner(
    runner_id: str | None,
    hostname: str | None,
    executor_type: str | None,
    tags: tuple[str, ...],
    properties: tuple[tuple[str, str], ...],
    project_dir: str | None,
    slots: int,
    stop_grace: float,
    drain: float,
    max_runtime: float | None,
    lease: float,
    retry_exits: tuple[int, ...],
    log_level: str,
    command: tuple[str, ...],
) -> None:
    """Execute COMMAND for each run that this runner can serve, until SIGTERM or SIGINT.

    The prompt is its standard input; RUNQUEUE_RUN_ID, RUNQUEUE_SESSION_ID, RUNQUEUE_RUN_TYPE,
    RUNQUEUE_AGENT_NAME, RUNQUEUE_DB and, once `runqueue sessions bind` has recorded it,
    RUNQUEUE_EXECUTOR_SESSION_ID are in its environment; the run's project directory is its
    working directory. Its standard output is the result; an exit status other than 0 fails
    the run, with the end of standard error as the reason. A run that was enqueued with retries
    is executed again after one of the --retry-exit.
    """
    from runqueue.cli.logs import configure
    from runqueue.signals import on_ending
    from runqueue.slots import Slots

    if shutil.which(command[0]) is None:
        raise ConfigurationError(f"there is no command {command[0]!r} to execute")
    if project_dir is not None and not Path(project_dir).is_dir():
        raise ConfigurationError(f"the project directory {project_dir} does not exist")
    configure(log_level)
    queue = open_queue(create=True, settings=settings.Settings(lease=lease, stop_grace=stop_grace))
    registered = queue.runner(
        runner_id,
        hostname=hostname,
        project_dir=project_dir,
        executor_type=executor_type,
        tags=tags,
        properties=gather(properties),
    )
    work = Slots(
        *(queue.store, registered, command),
        slots=slots,
        stop_grace=stop_grace,
        drain=drain,
        max_runtime=max_runtime,
        retry_exits=retry_exits,
    )

    def end() -> None:
        work.shut_down()
        watch = threading.Thread(target=_end_if_hanging, args=(work,), daemon=True)
        watch.start()

    # Before it is registered: whoever sees it there may send a signal at once.
    with on_ending(end), registered:
        log.info(
            "runner %s serves %s; slots: %d, tags: %s",
            registered.runner_id,
            queue.store.url,
            slots,
            " ".join(tags) or "none",
        )
        work.serve()
    log.info("runner %s ended", registered.runner_id)


def _end_if_hanging(work: Slots) -> None:
    while not work.hangs():
        time.sleep(0.1)
    log.error("the runner ends without signing off, for the database does not answer")
    logging.shutdown()
    os._exit(StorageLost.exit_code)


name_variables(runner)


def main() -> None:
    """Entry point of the `runqueue-runner` command."""
    sys.exit(run(runner))


if __name__ == "__main__":
    main()
