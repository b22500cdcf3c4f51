"""Commands that install the services and remove them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from runqueue.cli import render
from runqueue.errors import ConfigurationError

if TYPE_CHECKING:
    from runqueue.systemd.install import Step

user_option = click.option("--user", is_flag=True, help="The services of one person, without root.")
dry_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")

NEXT = """\
next:
  systemctl{user} enable --now runqueued
  runqueue status --check
and for a runner, here called NAME:
  install -m {mode} {settings}/runner.env.example {settings}/runner-NAME.env
  and say there what is executed, then:
  systemctl{user} enable --now runqueue-runner@NAME"""
FOR_SYSTEM = """\
whoever is to use the queue with `runqueue`, or is another runner's user:
  usermod --append --groups runqueue USER"""
FOR_USER = """\
services of yours end with your session, unless once: loginctl enable-linger"""
STAYS = {
    False: "what stays is data: /var/lib/runqueue, /var/lib/runqueue-runner, and the users and "
    "the group who own them",
    True: "what stays is data: the queue's database",
}


@click.group()
def systemd() -> None:
    """Install daemon and runners as services of systemd, and remove them."""


@systemd.command()
@user_option
@dry_option
@click.option("--now", is_flag=True, help="Also enable and start the daemon.")
@click.option("--force", is_flag=True, help="Write files anew that were changed by hand.")
def install(user: bool, dry_run: bool, now: bool, force: bool) -> None:
    """Install the services of this installation, or bring them to its version.

    Says first what it does, and then what to do next. Settings that are there are kept.
    """
    from runqueue.systemd.install import to_install

    _check_rights(user, dry_run)
    steps = to_install(user=user, force=force, now=now)
    _do(steps, dry_run)
    where = os.path.dirname(_settings_path(user))
    told = NEXT.format(
        user=" --user" if user else "",
        settings=where,
        mode="600" if user else "640 -g runqueue",
    )
    render.echo_lines(f"{told}\n{FOR_USER if user else FOR_SYSTEM}")


@systemd.command()
@user_option
@dry_option
@click.option("--force", is_flag=True, help="Also remove units that were changed by hand.")
def uninstall(user: bool, dry_run: bool, force: bool) -> None:
    """Stop the services, and remove exactly the files that `install` wrote.

    Says first what it does. Runners drain; the database, changed settings and users stay.
    """
    from runqueue.systemd.install import to_uninstall

    _check_rights(user, dry_run)
    steps = to_uninstall(user=user, force=force)
    if not steps:
        render.echo("nothing is installed here")
        return
    _do(steps, dry_run)
    render.echo(STAYS[user])


def _do(steps: Sequence[Step], dry_run: bool) -> None:
    for step in steps:
        render.echo(f"would {step}" if dry_run else step)
    if not dry_run:
        for step in steps:
            step.do()


def _check_rights(user: bool, dry_run: bool) -> None:
    if not (user or dry_run) and os.geteuid() != 0:
        raise ConfigurationError("only root installs services of the machine; see --user")


def _settings_path(user: bool) -> str:
    from runqueue.settings import ENV_FILE, user_file

    return str(user_file(os.environ)) if user else ENV_FILE


COMMANDS = (systemd,)
