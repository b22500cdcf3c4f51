"""Commands about sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runqueue.cli import render
from runqueue.cli.base import db_option, for_each, open_queue

if TYPE_CHECKING:
    from runqueue.reading import SessionSummary

LISTED = ("session_id", "status", "runs", "agent_name", "hostname", "project_dir", "age")


@click.group()
def sessions() -> None:
    """List, show and delete sessions."""


def _row(summary: SessionSummary) -> dict[str, Any]:
    return {**summary.session.as_dict(), "status": summary.status, "runs": summary.runs}


@sessions.command(name="list")
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="0: all.")
@render.output_option
@db_option
def list_sessions(limit: int, output: str) -> None:
    """List sessions, the newest first."""
    from runqueue import reading
    from runqueue.models import seconds_between

    queue = open_queue()
    rows = [_row(summary) for summary in reading.sessions(queue.store, limit or None)]
    now = queue.now()
    render.emit(
        rows,
        output,
        key="session_id",
        columns=LISTED,
        shown=lambda row: {
            **row,
            "age": render.age(seconds_between(row["created_at"], now)),
        },
    )


@sessions.command()
@click.argument("session_id", metavar="SESSION")
@render.output_option
@db_option
def show(session_id: str, output: str) -> None:
    """Show a session: its status, its home, and whether a runner there is alive."""
    from runqueue import reading, why

    queue = open_queue()
    session = queue.session(session_id)
    row = _row(reading.summary_of(queue.store, session))
    home, there = why.home_of(session, why.live_runners(queue.store, queue.now()))
    row["home_runners"] = there
    if output == "table":
        places = " ".join(f"{key}={value}" for key, value in home.items())
        row["home"] = places or "none yet: the first start binds it"
        row["home_runners"] = ", ".join(there) or ("none alive" if home else None)
    render.emit_one(row, output, key="session_id")


@sessions.command()
@click.argument("session_ids", metavar="SESSION...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also with a run at work, which is then ended.")
@db_option
def delete(session_ids: tuple[str, ...], force: bool) -> int:
    """Delete sessions with all their runs."""
    queue = open_queue()

    def act(session_id: str) -> None:
        count = queue.delete_session(session_id, force=force)
        render.echo(f"{session_id} deleted with {count} runs")

    return for_each(session_ids, act)
