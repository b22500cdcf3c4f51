"""The command that says whether the installation is right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from runqueue.cli import render
from runqueue.cli.base import db_option

if TYPE_CHECKING:
    from runqueue.doctor import Line

COLUMNS = ("level", "check", "seen", "advice")
WIDTH = 13


@click.command()
@render.output_option
@db_option
def doctor(output: str) -> int:
    """Say whether the installation is right, and what to do where it is not.

    Looks at versions, settings, the database and its place or server, and at who is alive, and
    changes nothing. What is not looked at is whether all runs are consistent: db check does that.

    The exit code is 0 when nothing failed, 1 when something did, 75 when the database cannot be
    reached, and 78 when it cannot be used.
    """
    from runqueue import doctor

    lines = doctor.examine(click.get_current_context().meta.get("db"))
    if output == "table":
        lines = _show(lines)
    found = list(lines)
    if output != "table":
        rows = [{name: getattr(line, name) for name in COLUMNS} for line in found]
        render.emit(rows, output, key="check", columns=COLUMNS)
    failed = [line for line in found if line.level == "fail"]
    if failed:
        # The worst, for a script that keeps standard output.
        worst = max(failed, key=lambda line: line.exit_code)
        more = f"; {len(failed) - 1} more checks failed" if failed[1:] else ""
        render.echo(f"Error: {worst.check}: {worst.seen}{more}", err=True)
    return max((line.exit_code or 1 for line in failed), default=0)


def _show(lines: Iterable[Line]) -> Iterator[Line]:
    """Print each line when it is there: the next may be of a server that does not answer."""
    for line in lines:
        advice = f"; {line.advice}" if line.advice else ""
        render.echo(f"{line.level:<4}  {line.check:<{WIDTH}} {line.seen}{advice}")
        yield line
