"""The command that shows trees of sessions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from runqueue.cli import render
from runqueue.cli.base import db_option, open_queue
from runqueue.cli.runs import member
from runqueue.states import ExecutionMode

if TYPE_CHECKING:
    from runqueue.trees import Tree


@click.command()
@click.argument("one", metavar="RUN|SESSION")
@render.output_option
@db_option
def tree(one: str, output: str) -> None:
    """Show the tree of sessions that a run or a session belongs to: parents and children."""
    queue = open_queue()
    found = queue.tree(member(queue, one))
    if output == "table":
        _draw(found, marked=one)
        return
    rows = [_row(node) for node in found.walk()]
    render.emit(rows, output, key="session_id", columns=())


def _row(node: Tree) -> dict[str, Any]:
    runs = [run.as_dict() for run in node.runs]
    for run in runs:
        run.pop("session_id", None)
        run["status"] = str(run["status"])
    return {
        "session_id": node.session.session_id,
        "parent_session_id": node.session.parent_session_id,
        "depth": node.depth,
        "status": node.status,
        "agent_name": node.session.agent_name,
        "tree_limits": json.loads(node.session.tree_limits or "null"),
        "runs": runs,
    }


UNCUT = 1_000_000
"""Columns that no line of a tree needs."""


def _draw(found: Tree, marked: str) -> None:
    import sys

    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree as Drawing

    def label(node: Tree) -> Text:
        name = f" {node.session.agent_name}" if node.session.agent_name else ""
        return line(f"{node.session.session_id} {node.status}{name}", node.session.session_id)

    def line(text: str, one: str) -> Text:
        # What a run contains must not be taken for markup, nor reach the terminal raw.
        return Text(render.printable(text), style="bold" if one == marked else "")

    drawing = Drawing(label(found))
    branches = {found.session.session_id: drawing}
    for node in found.walk():
        branch = branches[node.session.session_id]
        for run in node.runs:
            branch.add(line(_told(run), run.run_id))
        for child in node.children:
            branches[child.session.session_id] = branch.add(label(child))
    # Away from a terminal nothing is cut: whoever reads it may be a script.
    width = None if sys.stdout.isatty() else UNCUT
    console = Console(file=sys.stdout, highlight=False, width=width)
    console.print(drawing)


def _told(run: Any) -> str:
    parts = [run.run_id, str(run.status)]
    if run.attempt:
        parts.append(f"attempt {run.attempt}")
    if run.tells:
        parts.append(f"tells of {run.tells}")
    if run.execution_mode == ExecutionMode.ASYNC_CALLBACK.value:
        parts.append(_whom_it_tells(run.callback_run_id))
    return " ".join(parts)


def _whom_it_tells(callback_run_id: str | None) -> str:
    if callback_run_id is None:
        return "will tell its parent"
    if callback_run_id == "none":
        return "tells nobody"
    return f"told its parent by {callback_run_id}"
