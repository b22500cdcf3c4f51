"""The demonstration: a real daemon and real runners, on a new database, doing real work.

It shows what a queue promises and checks that it happened. The prompts are shell scripts and
the agents are `sh`, at work on the package's own files.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runqueue.models import Run
from runqueue.queue import Queue, connect
from runqueue.states import RunType, Status

LIMIT: Final = 25.0
"""Seconds after which the demonstration has failed."""
WORK_DIR: Final = Path(__file__).parent

RUNNERS: Final = {
    "reader": ("--executor-type", "reader", "--tag", "count", "--slots", "2"),
    "writer": ("--executor-type", "writer", "--tag", "report", "--slots", "2"),
}

COUNT = "wc -l *.py | tail -1"
STUBBORN = "(trap '' TERM; setsid sleep 600) & trap '' TERM; sleep 600; sleep 600"
OPEN = 'echo "session $RUNQUEUE_SESSION_ID begins"; sleep 1'
RESUME = 'echo "$RUNQUEUE_RUN_TYPE: the longest file is"; wc -l *.py | sort -n | tail -2 | head -1'
STEP = 'echo "step of $RUNQUEUE_RUN_ID"; sleep 1'


@dataclass
class Scene:
    """One promise, the runs that show it, and whether it was kept."""

    title: str
    check: Callable[[list[Run]], bool]
    run_ids: list[str] = field(default_factory=list)


def main(keep: Path | None = None) -> int:
    """Show everything; return 0 when all of it happened, else 1."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="runqueue-demo-") as directory:
        path = keep.absolute() if keep else Path(directory) / "demo.db"
        queue = connect(f"sqlite:///{path}")
        try:
            with _processes(queue.store.url, Path(directory)):
                scenes = _play(queue, console)
            return _conclude(queue, scenes, console)
        finally:
            queue.close()


@contextmanager
def _processes(url: str, logs: Path) -> Iterator[None]:
    daemon = ("runqueue.cli.daemon", "--lease", "5", "--stop-grace", "3")
    commands = [daemon] + [
        (
            "runqueue.cli.runner",
            *("--runner-id", name, "--stop-grace", "1", "--drain", "0"),
            *("--project-dir", str(WORK_DIR), *options, "--", "sh"),
        )
        for name, options in RUNNERS.items()
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for module, *options in commands:
            with (logs / f"{module}-{len(started)}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, "--db", url, *options],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _play(queue: Queue, console: Console) -> list[Scene]:
    scenes = [
        Scene("routed by its demands, and completed", _was_routed),
        Scene("nobody can serve it: fails at its timeout", _has_expired),
        Scene("stopped while running, and confirmed", _was_stopped),
        Scene("session resumed on the runner that holds it", _was_resumed),
        Scene("two runs of one session, one after the other", _took_turns),
    ]
    routed, nobody, stopped, resumed, turns = scenes
    add = queue.enqueue
    routed.run_ids = [add(COUNT, demands={"tags": ["count"]}).run_id]
    nobody.run_ids = [add(COUNT, demands={"tags": ["quantum"]}, timeout=4).run_id]
    stopped.run_ids = [add(STUBBORN, demands={"tags": ["report"]}).run_id]
    first = add(OPEN, demands={"tags": ["report"]})
    resumed.run_ids = [first.run_id]
    story = _Story(queue, scenes, console)
    with story:
        story.until(lambda: queue.get(first.run_id).is_terminal)
        resumed.run_ids.append(add(RESUME, session_id=first.session_id).run_id)
        turns.run_ids = [add(STEP, session_id=first.session_id).run_id for _ in range(2)]
        story.until(lambda: queue.get(stopped.run_ids[0]).status == Status.RUNNING)
        queue.stop(stopped.run_ids[0], reason="the demonstration asks for it")
        story.until(lambda: all(run.is_terminal for run in queue.find()))
    return scenes


class _Story:
    """Shows the runs as they change: a live table on a terminal, else a line a change."""

    def __init__(self, queue: Queue, scenes: list[Scene], console: Console) -> None:
        self._queue = queue
        self._scenes = scenes
        self._console = console
        self._deadline = time.monotonic() + LIMIT
        self._began = time.monotonic()
        self._told: dict[str, Any] = {}
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def until(self, condition: Callable[[], bool]) -> None:
        """Show what happens until the condition holds or the demonstration's time is over."""
        while True:
            is_met = condition()
            self._show()
            if is_met or time.monotonic() > self._deadline:
                return
            time.sleep(0.1)

    def _show(self) -> None:
        if self._console.is_terminal:
            self._live.update(_table(self._queue, self._scenes))
            return
        for scene in self._scenes:
            for run_id in scene.run_ids:
                run = self._queue.get(run_id)
                if self._told.get(run_id) != run.status:
                    self._told[run_id] = run.status
                    seconds = time.monotonic() - self._began
                    owner = f" on {run.runner_id}" if run.runner_id else ""
                    print(f"{seconds:5.1f} s  {run_id}  {run.status}{owner}", flush=True)


_COLOURS: Final = {
    Status.PENDING: "yellow",
    Status.COMPLETED: "green",
    Status.FAILED: "red",
    Status.STOPPED: "magenta",
}


def _table(queue: Queue, scenes: list[Scene], *, judged: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "WHAT", "RUN", "STATUS", "RUNNER", "OUTCOME"):
        table.add_column(column, overflow="fold" if column == "RUN" else "ellipsis")
    for scene in scenes:
        runs = [queue.get(run_id) for run_id in scene.run_ids]
        mark = Text("")
        if judged:
            kept = _is_kept(scene, runs)
            mark = Text("ok" if kept else "NO", style="green" if kept else "bold red")
        for number, run in enumerate(runs):
            outcome = (run.result or run.error or "").strip().replace("\n", " / ")
            table.add_row(
                mark if number == 0 else "",
                scene.title if number == 0 else "",
                run.run_id,
                Text(run.status.value, style=_COLOURS.get(run.status, "cyan")),
                run.runner_id or "",
                Text(outcome),
            )
    return table


def _conclude(queue: Queue, scenes: list[Scene], console: Console) -> int:
    width = console.width if console.is_terminal else 200
    Console(width=width).print(_table(queue, scenes, judged=True))
    broken = [
        scene.title
        for scene in scenes
        if not _is_kept(scene, [queue.get(run_id) for run_id in scene.run_ids])
    ]
    for title in broken:
        print(f"this did not happen: {title}", file=sys.stderr)
    return 1 if broken else 0


def _is_kept(scene: Scene, runs: list[Run]) -> bool:
    return bool(runs) and scene.check(runs)


def _was_routed(runs: list[Run]) -> bool:
    run = runs[0]
    return (run.status, run.runner_id) == (Status.COMPLETED, "reader") and bool(run.result)


def _has_expired(runs: list[Run]) -> bool:
    return runs[0].status == Status.FAILED and 'tags ["quantum"]' in (runs[0].error or "")


def _was_stopped(runs: list[Run]) -> bool:
    # A stop that the daemon only presumes leaves a reason; one that the runner confirms none.
    run = runs[0]
    return run.status == Status.STOPPED and run.started_at is not None and run.error is None


def _was_resumed(runs: list[Run]) -> bool:
    first, second = runs[0], runs[-1]
    return (
        len(runs) == 2
        and {first.status, second.status} == {Status.COMPLETED}
        and second.type == RunType.RESUME_SESSION.value
        and first.runner_id == second.runner_id == "writer"
    )


def _took_turns(runs: list[Run]) -> bool:
    first, second = runs
    return (
        {first.status, second.status} == {Status.COMPLETED}
        and first.completed_at is not None
        and second.started_at is not None
        and first.completed_at <= second.started_at
    )
