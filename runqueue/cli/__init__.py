"""The `runqueue` command: look at a queue and act on it."""

from __future__ import annotations

import sys

import click

from runqueue.cli import admin, doctor, runners, runs, sessions, systemd, top, trees
from runqueue.cli.base import CONTEXT, db_option, name_variables, run, version_option


@click.group(name="runqueue", context_settings=CONTEXT, no_args_is_help=True)
@db_option
@version_option
def cli() -> None:
    """A durable work queue for agent runs.

    Results go to standard output, everything else to standard error. Exit codes: 0 ok,
    1 failure, 2 usage, 3 not found, 4 wrong state, 5 the awaited run did not complete,
    75 database busy or unreachable, 78 bad configuration, 130 interrupted.
    """


for command in (
    *runs.COMMANDS,
    trees.tree,
    sessions.sessions,
    runners.runners,
    *admin.COMMANDS,
    doctor.doctor,
    top.top,
    *systemd.COMMANDS,
):
    cli.add_command(command)
name_variables(cli)


def main() -> None:
    """Entry point of the `runqueue` command."""
    sys.exit(run(cli))
