"""Commands about runners."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from runqueue.cli import render
from runqueue.cli.base import db_option, for_each, open_queue
from runqueue.errors import RunnerNotFound

if TYPE_CHECKING:
    from runqueue.queue import Queue
    from runqueue.reading import RunnerSummary

LISTED = ("runner_id", "state", "active", "hostname", "executor_type", "tags", "heartbeat")


@click.group()
def runners() -> None:
    """List, show, drain and remove runners."""


def _row(summary: RunnerSummary) -> dict[str, Any]:
    row = summary.runner.as_dict()
    for name in ("tags", "properties"):
        with suppress(ValueError):  # of a damaged file; `db check` tells of it
            row[name] = json.loads(row[name])
    if not summary.is_alive:
        row["state"] = "dead"
    return {**row, "is_alive": summary.is_alive, "active": summary.active}


def _find(queue: Queue, runner_id: str | None = None) -> list[dict[str, Any]]:
    from runqueue import reading

    found = reading.runners(queue.store, now=queue.now(), runner_id=runner_id)
    return [_row(summary) for summary in found]


@runners.command(name="list")
@render.output_option
@db_option
def list_runners(output: str) -> None:
    """List registered runners, dead ones too."""
    from runqueue.models import seconds_between

    queue = open_queue()
    now = queue.now()
    render.emit(
        _find(queue),
        output,
        key="runner_id",
        columns=LISTED,
        shown=lambda row: {
            **row,
            # Whoever wrote the row by hand may have written any JSON.
            "tags": " ".join(map(str, row["tags"]))
            if isinstance(row["tags"], list)
            else row["tags"],
            "heartbeat": f"{render.age(seconds_between(row['heartbeat_at'], now))} ago",
        },
    )


@runners.command()
@click.argument("runner_id", metavar="RUNNER")
@render.output_option
@db_option
def show(runner_id: str, output: str) -> None:
    """Show a runner and what it has to offer."""
    rows = _find(open_queue(), runner_id)
    if not rows:
        raise RunnerNotFound(f"runner {runner_id[:128]} is not registered")
    render.emit_one(rows[0], output, key="runner_id")


@runners.command()
@click.argument("runner_ids", metavar="RUNNER...", nargs=-1, required=True)
@db_option
def drain(runner_ids: tuple[str, ...]) -> int:
    """Let runners finish what they have, claim nothing more, and end."""
    from runqueue import retention

    queue = open_queue()

    def act(runner_id: str) -> None:
        retention.drain_runner(queue.store, runner_id)
        render.echo(f"{runner_id} draining")

    return for_each(runner_ids, act)


@runners.command()
@click.argument("runner_ids", metavar="RUNNER...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also a live one, which then ends its agents.")
@db_option
def remove(runner_ids: tuple[str, ...], force: bool) -> int:
    """Forget dead runners and resolve their runs."""
    from runqueue import retention

    queue = open_queue()

    def act(runner_id: str) -> None:
        swept = retention.remove_runner(queue.store, runner_id, now=queue.now(), force=force)
        done = ", ".join(f"{count} runs {name}" for name, count in swept._asdict().items() if count)
        render.echo(f"{runner_id} removed" + (f": {done}" if done else ""))

    return for_each(runner_ids, act)
