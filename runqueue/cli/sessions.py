"""Commands about sessions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from runqueue.cli import render
from runqueue.cli.base import db_option, for_each, open_queue

if TYPE_CHECKING:
    from runqueue.reading import SessionSummary

LISTED = ("session_id", "status", "runs", "agent_name", "hostname", "project_dir", "age")


@click.group()
def sessions() -> None:
    """List, show, move, bind and delete sessions."""


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


@sessions.command()
@click.argument("session_id", metavar="SESSION")
@click.option("--hostname", metavar="HOST", help="The host on which it is to live.")
@click.option("--project-dir", metavar="DIR", help="The directory of the runner there.")
@click.option("--executor-type", metavar="TYPE", help="The kind of agent there.")
@click.option("--clear", is_flag=True, help="No home: the next start binds it anew.")
@render.output_option
@db_option
def rehome(session_id: str, output: str, **home: Any) -> None:
    """Move a session's home, or clear it; its waiting runs follow.

    What is not given stays as it is, and "" demands nothing. A working directory that lies in the
    old --project-dir moves along. Refused while a run of the session is active.
    """
    from runqueue import why

    moved = open_queue().rehome(session_id, **home)
    if output != "table":
        render.emit_one({**moved.session.as_dict(), "runs": moved.runs}, output, key="session_id")
        return
    places, _ = why.home_of(moved.session, [])
    told = " ".join(f"{key}={value}" for key, value in places.items()) or "none"
    render.echo(f"{session_id} home {told}; {moved.runs} waiting runs follow")
    if moved.forgotten:
        render.echo(f"its executor session id was {moved.forgotten}", err=True)


@sessions.command()
@click.argument("ids", metavar="[SESSION] EXECUTOR_SESSION_ID", nargs=-1, required=True)
@db_option
def bind(ids: tuple[str, ...]) -> None:
    """Record the agent framework's own id of a session, for its later runs.

    They have it in RUNQUEUE_EXECUTOR_SESSION_ID. Within a run its own session is meant when none
    is given. An empty id forgets what was recorded.
    """
    if len(ids) > 2:
        raise click.UsageError("give at most a session and the framework's id of it")
    session_id = ids[0] if len(ids) == 2 else os.environ.get("RUNQUEUE_SESSION_ID")
    if not session_id:
        raise click.UsageError("which session? give its id, or call this from within a run")
    open_queue().bind_session(session_id, ids[-1])
    render.echo(f"{session_id} {ids[-1] or 'bound to nothing'}")
