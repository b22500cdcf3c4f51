"""Commands about trees of sessions, and the options of whoever adds a run to one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runqueue.cli import render
from runqueue.cli.base import Duration, db_option, open_queue
from runqueue.states import ExecutionMode

if TYPE_CHECKING:
    from runqueue.trees import Tree

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--retries",
        type=click.IntRange(0, 100),
        default=0,
        show_default=True,
        help="Execute it again so often, if it fails in a way that its runner says is retryable.",
    ),
    click.option("--retry-delay", type=Duration(), default=0.0, help="Time before each retry."),
    click.option("--retry-lost", is_flag=True, help="Also when its runner is lost, once."),
    click.option(
        "--max-depth",
        type=click.IntRange(0),
        help="Levels of children below its session; narrower than what is set or inherited.",
    ),
    click.option(
        "--max-children",
        type=click.IntRange(0),
        help="Live children of its session, and of each below it; likewise.",
    ),
    click.option(
        "--max-tree-runs",
        type=click.IntRange(1),
        help="Runs of its session and of all below it; likewise.",
    ),
)


def family_options(command: F) -> F:
    """Options of `enqueue`: retries, and the limits of the run's tree."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("one", metavar="RUN|SESSION")
@render.output_option
@db_option
def tree(one: str, output: str) -> None:
    """Show the tree of sessions that a run or a session belongs to: parents and children."""
    from runqueue.cli.runs import member

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
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
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
