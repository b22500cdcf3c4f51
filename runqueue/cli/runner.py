"""The `runqueue-runner` command: a runner that executes a command for each run."""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from runqueue import settings
from runqueue._version import __version__
from runqueue.about import everywhere
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
from runqueue.cli.logs import configure, log_options
from runqueue.errors import ConfigurationError, StorageError, StorageLost

if TYPE_CHECKING:
    from runqueue.reread import Files
    from runqueue.runner import Runner
    from runqueue.slots import Slots
    from runqueue.systemd.notify import Manager

log = logging.getLogger("runqueue.runner")

LONGEST_START: Final = 3600.0
"""Seconds that a service manager is asked to wait at most for a migration."""
COMMAND: Final = "RUNQUEUE_COMMAND"
"""Where a service's settings say what is executed for each run."""
REGISTERING: Final = 60.0
"""Seconds that it is asked to wait at most for the registration, after what patience allows."""
SAY: Final = 5.0
"""Seconds between two words to a service manager."""


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
@click.option(
    "--patience",
    type=Duration(),
    help="End with 75 when the database has been away for so long and no run is at work.  "
    "[default: at the start at once, then never]",
)
@log_options
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
    patience: float | None,
    log_level: str,
    log_format: str,
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
    from runqueue.backoff import patiently
    from runqueue.reread import Files
    from runqueue.slots import Slots
    from runqueue.systemd.notify import Manager

    if shutil.which(command[0]) is None:
        raise ConfigurationError(f"there is no command {command[0]!r} to execute")
    if project_dir is not None and not Path(project_dir).is_dir():
        raise ConfigurationError(f"the project directory {project_dir} does not exist")
    configure(log_level, log_format, "runqueue-runner")
    manager, files = Manager(), Files()
    config = settings.Settings(lease=lease, stop_grace=stop_grace)
    with manager.patient(LONGEST_START):
        queue = patiently(
            lambda: open_queue(create=True, settings=config),
            patience or 0.0,
            threading.Event(),
            _tell_waiting,
        )
    assert queue is not None  # nothing is at work yet: a signal ends the process, not the wait
    registered = queue.runner(
        runner_id,
        hostname=hostname,
        project_dir=project_dir,
        executor_type=executor_type,
        tags=tags,
        properties=gather(properties),
    )
    everywhere(runner_id=registered.runner_id)
    work = Slots(
        *(queue.store, registered, command),
        slots=slots,
        stop_grace=stop_grace,
        drain=drain,
        max_runtime=max_runtime,
        retry_exits=retry_exits,
        patience=patience,
    )
    shown = f"{queue.store.url}; slots: {slots}, tags: {' '.join(tags) or 'none'}"
    if _serve(work, registered, manager, shown, patience or 0.0):
        queue.close()
        _begin_anew(files)


def _serve(work: Slots, registered: Runner, manager: Manager, shown: str, patience: float) -> bool:
    """Serve until a signal ends it; return whether it is to begin anew then.

    Raises what registering raises when the patience for it is over, and what claiming does.
    """
    from runqueue.backoff import patiently
    from runqueue.signals import ENDING, on_signals

    told_to_end, reloads = threading.Event(), threading.Event()

    def end() -> None:
        told_to_end.set()
        work.shut_down()
        manager.stopping(work.status())
        for target in (_end_if_hanging, _beg_for_time):
            threading.Thread(target=target, args=(work, manager), daemon=True).start()

    def reload() -> None:
        # What is at work ends in its own time: nobody asked for its end.
        reloads.set()
        manager.reloading()
        log.info("runner %s drains, to begin anew", registered.runner_id)
        registered.drain()
        threading.Thread(target=_beg_for_time, args=(work, manager, True), daemon=True).start()

    acts: dict[int, Callable[[], None]] = dict.fromkeys(ENDING, end)
    if manager.is_there:
        acts[signal.SIGHUP] = reload
    # Before it is registered: whoever sees it there may send a signal at once.
    with on_signals(acts):
        with manager.patient(patience + REGISTERING):
            patiently(registered.open, patience, told_to_end, _tell_waiting)
        if not registered.is_open:  # it was told to end while it waited
            return False
        with registered:
            _work(work, registered, manager, shown)
    log.info("runner %s ended", registered.runner_id)
    return reloads.is_set() and not told_to_end.is_set()


def _work(work: Slots, registered: Runner, manager: Manager, shown: str) -> None:
    log.info("runner %s of version %s serves %s", registered.runner_id, __version__, shown)
    manager.ready(work.status())
    threading.Thread(target=_say, args=(work, manager), daemon=True).start()
    work.serve()


def _tell_waiting(error: StorageError) -> None:
    log.warning("the runner waits for its database: %s", error)


def _begin_anew(files: Files) -> NoReturn:
    """Become a new runner in the same process, by the settings as they are now."""
    arguments = sys.orig_argv
    try:
        changed = files.again()
        arguments = _arguments(sys.orig_argv, changed)
        log.info("begins anew; changed: %s", " ".join(changed) or "nothing")
    except (ConfigurationError, ValueError) as error:
        log.error("begins anew as it was, for the settings cannot be read: %s", error)
    logging.shutdown()
    os.execve(sys.executable, arguments, os.environ)  # noqa: S606 - itself


def _arguments(given: list[str], changed: list[str]) -> list[str]:
    """Return what this process is started with again, with the command that is wanted now.

    The manager put the words of the command there when it started the service, and will not
    again. Raises ValueError for a command whose quotes do not match.
    """
    command = shlex.split(os.environ.get(COMMAND, ""))
    if COMMAND not in changed or not command or "--" not in given:
        return given
    return [*given[: given.index("--") + 1], *command]


def _say(work: Slots, manager: Manager) -> None:
    said = ""
    while manager.is_there:
        if (status := work.status()) != said:
            manager.status(status)
            said = status
        time.sleep(SAY)


def _beg_for_time(work: Slots, manager: Manager, for_ever: bool = False) -> None:
    """Have the manager wait for as long as runs may take, which the unit does not know."""
    with manager.patient(math.inf if for_ever else work.ends_within):
        while True:
            time.sleep(SAY)


def _end_if_hanging(work: Slots, _: Manager) -> None:
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
