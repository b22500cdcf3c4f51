"""Commands about runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runqueue import ids
from runqueue.cli import render
from runqueue.cli.base import Duration, Pairs, db_option, for_each, gather, interrupt, open_queue
from runqueue.cli.family import family_options
from runqueue.errors import IllegalMove, InvalidRun, RunNotFound, WaitTimeout
from runqueue.settings import MAX_PROMPT, Settings, tree_limits
from runqueue.states import Actor, ExecutionMode, Status

if TYPE_CHECKING:
    from runqueue.models import Run
    from runqueue.queue import Queue

LISTED = ("run_id", "status", "agent_name", "session_id", "runner_id", "age", "error")
AT_WORK = (*LISTED[:-1], "silent", "error")
"""What is listed when an agent is at work."""
NOT_COMPLETED = 5
IDS_LIMIT = 64 * 1024 * 1024


stop_on_interrupt_option = click.option(
    "--stop-on-interrupt",
    "stops",
    is_flag=True,
    help="Stop the run when the wait is interrupted (SIGINT, SIGTERM, SIGHUP); else it goes on.",
)


@click.command()
@click.argument("prompt")
@click.option("--agent", "agent_name", metavar="NAME", help="The agent's blueprint.")
@click.option("--project-dir", metavar="DIR", help="The directory to work in.")
@click.option("--session", "session_id", metavar="ID", help="Resume this session.")
@click.option("--parent", "parent_session_id", metavar="ID", help="The parent's session.")
@click.option(
    "--mode",
    "execution_mode",
    type=click.Choice([mode.value for mode in ExecutionMode]),
    default=ExecutionMode.SYNC.value,
    show_default=True,
)
@click.option("--tag", "tags", multiple=True, help="A tag that the runner must have.")
@click.option(
    "--demand",
    "demands",
    multiple=True,
    type=Pairs(),
    metavar="KEY=VALUE",
    help="A property that the runner must have; hostname, project_dir and executor_type too.",
)
@click.option(
    "--timeout",
    type=Duration(),
    help="Fail unless claimed in time. Default: 5m with demands, else never.",
)
@click.option("--priority", type=int, default=0, help="Higher goes first.")
@click.option("--run-id", metavar="ID", help="Choose the id; the same run twice is one run.")
@click.option(
    "--max-prompt",
    type=click.IntRange(1),
    default=MAX_PROMPT,
    show_default=True,
    help="Refuse a prompt of more bytes.",
)
@family_options
@click.option("--wait", "is_awaited", is_flag=True, help="Wait for the end; print the result.")
@stop_on_interrupt_option
@render.output_option
@db_option
def enqueue(
    prompt: str,
    tags: tuple[str, ...],
    demands: tuple[tuple[str, str], ...],
    max_prompt: int,
    is_awaited: bool,
    stops: bool,
    output: str,
    **keywords: Any,
) -> int:
    """Add a run for PROMPT (- reads it from standard input) and print its id.

    It starts a new session, or resumes the one given.
    """
    if stops and not is_awaited:
        raise click.UsageError("--stop-on-interrupt is about the wait; give --wait too")
    for option, given in (("--parent", "parent_session_id"), ("--session", "session_id")):
        if keywords[given] == "":  # a variable that is not set: not to be a tree without limits
            raise click.UsageError(f"{option} is empty; give a session's id, or leave it out")
    wanted = gather(demands)
    if tags:
        wanted["tags"] = [*tags, *_listed(wanted.get("tags"))]
    elif "tags" in wanted:
        wanted["tags"] = _listed(wanted["tags"])
    text = _read_text("the prompt", max_prompt) if prompt == "-" else prompt
    if keywords["project_dir"]:  # the runner's own directory is another one
        keywords["project_dir"] = str(Path(keywords["project_dir"]).absolute())
    config = Settings(max_prompt=max_prompt, **tree_limits())
    queue = open_queue(create=True, settings=config)
    if not is_awaited:
        run = queue.enqueue(text, demands=wanted, **keywords)
        _print_ids([run], output)
        _say_if_nobody_is_told(run)
        return 0
    if stops and not keywords["run_id"]:
        # Known before it is there: an interruption in the very enqueue must find it.
        keywords["run_id"] = ids.new_run_id()
    with _interruptible(queue, keywords["run_id"], stops):
        run = queue.enqueue(text, demands=wanted, **keywords)
        render.echo(run.run_id, err=True)
        _say_if_nobody_is_told(run)
        return _await(queue, run.run_id, None, output, last_attempt=True)


def _say_if_nobody_is_told(run: Run) -> None:
    is_callback = run.execution_mode == ExecutionMode.ASYNC_CALLBACK.value
    if is_callback and run.parent_session_id is None:
        text = f"nobody is told of the end of run {run.run_id}: give its --parent for a callback"
        render.echo(text, err=True)


@contextmanager
def _interruptible(queue: Queue, run_id: str, stops: bool) -> Iterator[None]:
    """Stop a run when the wait for it is interrupted, if that is wanted."""
    if not stops:
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        try:
            # Of a run that was retried meanwhile, the attempt that is waited for.
            last = queue.attempts(run_id)[-1].run_id
            run = queue.stop(last, reason="the wait was interrupted", actor=Actor.OPERATOR)
            render.echo(f"{run.run_id} {run.status}", err=True)
        except (RunNotFound, IllegalMove):  # there is nothing to stop, or nothing any more
            pass
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _read_text(what: str, limit: int) -> str:
    # A giant is not read to its end to be refused; what is cut here is over the limit as it is.
    data: bytes = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise InvalidRun(f"{what} on standard input: over the limit of {limit:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRun(f"{what} on standard input: not UTF-8 text") from None


def _print_ids(runs: Sequence[Run], output: str) -> None:
    """New runs are printed as their ids, fit for $(...), unless JSON is asked for."""
    output = "id" if output == "table" else output
    if len(runs) == 1:
        render.emit_one(_row(runs[0]), output, key="run_id")
    else:
        render.emit([_row(run) for run in runs], output, key="run_id", columns=LISTED)


def _row(run: Run) -> dict[str, Any]:
    row = run.as_dict()
    row.pop("waiting", None)  # how the database keeps order, not what a run is
    return row


def _await(
    queue: Queue, run_id: str, timeout: float | None, output: str, *, last_attempt: bool = False
) -> int:
    try:
        run = queue.wait(run_id, timeout, last_attempt=last_attempt)
    except WaitTimeout as error:
        render.echo(f"Error: {error}", err=True)
        return NOT_COMPLETED
    if output != "table":
        render.emit_one(_row(run), output, key="run_id")
    elif run.result:
        render.echo_lines(run.result.rstrip("\n"))
    if run.status == Status.COMPLETED:
        return 0
    reason = f": {run.error}" if run.error else ""
    line = f"run {render.printable(run.run_id)} {run.status}{reason}"
    render.echo_lines(line, indent="  ", err=True)
    return NOT_COMPLETED


@click.command(name="list")
@click.option(
    "--status",
    "status",
    multiple=True,
    type=click.Choice([status.value for status in Status]),
    help="Only these; may be repeated.",
)
@click.option("--session", "session_id", metavar="ID")
@click.option("--runner", "runner_id", metavar="ID")
@click.option("--agent", "agent_name", metavar="NAME")
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="0: all.")
@render.output_option
@db_option
def list_runs(status: tuple[str, ...], limit: int, output: str, **filters: str | None) -> None:
    """List runs, the newest first.

    With runs at work among them the table says since when their agents have been silent.
    """
    from runqueue import reading, silence

    queue = open_queue()
    found = reading.find(
        queue.store,
        status=list(status) or None,
        limit=limit + 1 if limit else None,
        columns=(*reading.SUMMARY, "error"),
        **filters,
    )
    shown = found[:limit] if limit else found
    now = queue.now()
    heard = silence.of_runs(queue.store, shown, now=now)
    is_at_work = any(one.silent_for is not None for one in heard.values())
    render.emit(
        [{**_row(run), "last_output_at": heard[run.run_id].at} for run in shown],
        output,
        key="run_id",
        columns=AT_WORK if is_at_work else LISTED,
        shown=lambda row: {
            **_listing(row, now),
            "silent": render.age(heard[row["run_id"]].silent_for),
        },
    )
    if len(shown) < len(found):
        click.echo(f"(the newest {limit}; --limit 0 shows all)", err=True)


def _listing(row: Mapping[str, Any], now: str) -> dict[str, Any]:
    from runqueue.models import seconds_between

    error = row["error"]
    return {
        **row,
        "age": render.age(seconds_between(row["created_at"], now)),
        "error": error if error is None or len(error) <= 100 else f"{error[:99]}…",
    }


@click.command()
@click.argument("run_id", metavar="RUN")
@render.output_option
@db_option
def show(run_id: str, output: str) -> None:
    """Show everything about a run, and when its agent was last heard of."""
    from runqueue import silence

    queue = open_queue()
    run = _get(queue, run_id)
    heard = silence.of_run(queue.store, run, now=queue.now())
    row = {**_row(run), "last_output_at": heard.at}
    if output == "table" and heard.silent_for is not None:
        row["silence"] = str(heard)
    render.emit_one(row, output, key="run_id")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--timeout", type=Duration(), help="Give up after this long; the run goes on.")
@stop_on_interrupt_option
@render.output_option
@db_option
def wait(run_id: str, timeout: float | None, stops: bool, output: str) -> int:
    """Wait until a run has ended; print its result.

    Exits with 5 when it did not complete.
    """
    queue = open_queue()
    run_id = _get(queue, run_id).run_id
    with _interruptible(queue, run_id, stops):
        return _await(queue, run_id, timeout, output)


@click.command()
@click.argument("run_id", metavar="RUN")
@render.output_option
@db_option
def why(run_id: str, output: str) -> None:
    """Explain why a run is where it is."""
    queue = open_queue()
    explanation = queue.why(_get(queue, run_id).run_id)
    if output == "table":
        render.echo(explanation.summary)
        for detail in explanation.details:
            render.echo(f"  {detail}")
    else:
        row = explanation._asdict()
        row["status"] = str(explanation.status)
        render.emit_one(row, output, key="run_id")


@click.command()
@click.argument("run_id", metavar="RUN")
@render.output_option
@db_option
def timeline(run_id: str, output: str) -> None:
    """Show what happened to a run, and who did it; of one that was retried, to each attempt."""
    queue = open_queue()
    attempts = queue.attempts(_get(queue, run_id).run_id)
    rows = []
    for one in attempts:
        for event in queue.timeline(one.run_id):
            row = event.as_dict()
            row.pop("event_id", None)
            rows.append(row)
    columns = ("at", "status", "actor", "detail")
    render.emit(
        rows, output, key="run_id", columns=("run_id", *columns) if attempts[1:] else columns
    )


def _get(queue: Queue, run_id: str) -> Run:
    """Return the run of an id, or of the only id that begins so."""
    from runqueue import reading

    try:
        return queue.get(run_id)
    except RunNotFound:
        is_beginning = run_id.startswith("run_") and len(run_id) > len("run_")
        ids = reading.ids_beginning(queue.store, run_id) if is_beginning else []
        if len(ids) > 1:
            raise InvalidRun(
                f"{run_id[:40]} begins more than one run id; give more of it"
            ) from None
        if not ids:
            raise
        return queue.get(ids[0])


def member(queue: Queue, one: str) -> str:
    """Return what names a tree: a session's id, or the whole id of a run."""
    if one.startswith("ses_"):
        return one
    try:
        return _get(queue, one).run_id
    except RunNotFound:
        return one  # a session that somebody gave another kind of id, or nothing


def _ids(given: Iterable[str]) -> list[str]:
    ids: list[str] = []
    for one in given:
        ids += _read_text("the ids", IDS_LIMIT).split() if one == "-" else [one]
    return ids


def _id_and_status(run: Run) -> str:
    return f"{run.run_id} {run.status}"


def _for_each(
    given: Sequence[str],
    act: Callable[[Queue, str], Iterable[Run]],
    output: str,
    *,
    plain: Callable[[Run], str] = _id_and_status,
    is_one: bool = False,
) -> int:
    """Act on each id, and print the runs that come of it as they come; as JSON, all at the end.

    That is one value then: of one id its run if `is_one`, else a list.
    """
    queue = open_queue()
    ids = _ids(given)
    moved: list[Run] = []

    def act_on(one: str) -> None:
        for run in act(queue, one):
            moved.append(run)
            if output == "table":
                render.echo(plain(run))
            elif output != "json":
                render.emit_one(_row(run), output, key="run_id")

    code = for_each(ids, act_on)
    if output == "json":
        rows = [_row(run) for run in moved]
        if not (is_one and len(ids) == 1):
            render.emit(rows, output, key="run_id", columns=LISTED)
        elif rows:
            render.emit_one(rows[0], output, key="run_id")
    return code


@click.command()
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@click.option("--reason", help="Kept in the timeline.")
@click.option("--wait", "is_awaited", is_flag=True, help="Wait until it has ended.")
@click.option(
    "--tree",
    "is_tree",
    is_flag=True,
    help="Stop all of its tree, parents and children; RUN may be a session.",
)
@click.option("--below", is_flag=True, help="With --tree: only its session and those below.")
@render.output_option
@db_option
def stop(
    run_ids: tuple[str, ...],
    reason: str | None,
    is_awaited: bool,
    is_tree: bool,
    below: bool,
    output: str,
) -> int:
    """Stop runs: their processes are ended; a pending run is cancelled.

    RUN may be - to read ids from standard input.
    """
    if below and not is_tree:
        raise click.UsageError("--below is for --tree")
    if is_tree:
        return _stop_trees(run_ids, reason, is_awaited, below, output)

    def act(queue: Queue, run_id: str) -> Iterator[Run]:
        run = queue.stop(_get(queue, run_id).run_id, reason=reason, actor=Actor.OPERATOR)
        yield queue.wait(run.run_id) if is_awaited else run

    return _for_each(run_ids, act, output, is_one=True)


def _stop_trees(
    given: Sequence[str], reason: str | None, is_awaited: bool, below: bool, output: str
) -> int:
    def act(queue: Queue, one: str) -> Iterator[Run]:
        runs = queue.stop_tree(member(queue, one), below=below, reason=reason, actor=Actor.OPERATOR)
        for run in runs:
            yield queue.wait(run.run_id) if is_awaited else run
        if not runs:
            render.echo(f"nothing of the tree of {one} is at work", err=True)

    return _for_each(given, act, output)


@click.command()
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@render.output_option
@db_option
def release(run_ids: tuple[str, ...], output: str) -> int:
    """Give claimed runs that were not started back to be claimed again."""

    def act(queue: Queue, run_id: str) -> Iterator[Run]:
        yield queue.release(_get(queue, run_id).run_id, actor=Actor.OPERATOR)

    return _for_each(run_ids, act, output, is_one=True)


@click.command()
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@render.output_option
@db_option
def retry(run_ids: tuple[str, ...], output: str) -> int:
    """Add new runs with the content of ones that have ended; print their ids."""

    def act(queue: Queue, run_id: str) -> Iterator[Run]:
        yield queue.retry(_get(queue, run_id).run_id, actor=Actor.OPERATOR)

    return _for_each(run_ids, act, output, plain=lambda run: run.run_id, is_one=True)


COMMANDS = (enqueue, list_runs, show, wait, why, timeline, stop, release, retry)
