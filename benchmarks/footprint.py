"""Footprint: memory of daemon and runner, idle and after many runs, and how soon they start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Final

import psutil

import runqueue
from benchmarks.figures import Bar, Section, Spread
from benchmarks.places import Place, Places
from benchmarks.processes import LONG, Worker, when_told
from benchmarks.sizes import Sizes

MEMORY: Final = 60.0
"""MiB, of each process."""
GROWTH: Final = 4.0
"""MiB that are noise: pages that the allocator keeps, caches that have filled."""
HELP: Final = 100.0
"""Milliseconds of `runqueue --help`."""
BATCH: Final = 500
SETTLE: Final = 2.5
"""Seconds after which the daemon has ticked and the runner waits."""


def execute_all(pipe: Connection, url: str, warm: int, number: int) -> None:
    """In a worker: execute runs; tell once `warm` and once `number` were executed."""
    with runqueue.connect(url) as queue, queue.runner("footprint") as runner:
        when_told(pipe, runner.drain)
        pipe.send("ready")
        for done, claim in enumerate(runner, 1):
            with claim:
                pass
            if done in (warm, number):
                pipe.send(done)


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    section = Section(
        "footprint",
        kind,
        "Footprint",
        ("what", "idle", "after the first runs", f"after {sizes.executed:,} runs"),
    )
    with places.empty(kind) as place:
        runqueue.connect(place.url).close()
        for who, (idle, warm, after) in _memory(place, sizes).items():
            section.rows.append((f"{who}, resident MiB", idle, warm, after))
            section.bars.append(Bar(f"{who} after all runs, MiB", after, MEMORY))
            section.bars.append(
                Bar(f"{who}, growth since the first runs, MiB", after - warm, GROWTH)
            )
        starts = Spread.of(_start_of_daemon(place) for _ in range(sizes.startups))
    helps = Spread.of(_help() for _ in range(sizes.startups))
    section.rows.append(("daemon: start until its first tick, ms", starts, None, None))
    section.rows.append(("runqueue --help, ms", helps, None, None))
    section.bars.append(Bar("runqueue --help, ms", helps.median, HELP))
    yield section


def _memory(place: Place, sizes: Sizes) -> dict[str, tuple[float, float, float]]:
    """Return the memory of daemon and runner: idle, after some runs, and after all."""
    number = sizes.executed
    warm = max(1, number // 10)
    with runqueue.connect(place.url) as queue, ExitStack() as stack:
        daemon = _daemon(place)
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        runner = stack.enter_context(Worker(execute_all, place.url, warm, number))
        runner.hear()
        time.sleep(min(SETTLE, sizes.idle))
        looks = [(_resident(daemon.pid), _resident(runner.pid))]
        left = number
        for target in (warm, number):
            while number - left < target:
                batch = min(BATCH, target - (number - left))
                queue.enqueue_many({"prompt": "nothing to do"} for _ in range(batch))
                left -= batch
            runner.hear(LONG + target / 50)
            looks.append((_resident(daemon.pid), _resident(runner.pid)))
    (daemon_idle, runner_idle), (daemon_warm, runner_warm), (daemon_after, runner_after) = looks
    return {
        "daemon": (daemon_idle, daemon_warm, daemon_after),
        "runner": (runner_idle, runner_warm, runner_after),
    }


def _daemon(place: Place) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "runqueue.cli.daemon", "--db", place.url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    )


def _start_of_daemon(place: Place) -> float:
    """Return the milliseconds from the daemon's start until it expires a run that is due."""
    with runqueue.connect(place.url) as queue:
        run = queue.enqueue("to expire", demands={"tags": ["none has it"]}, timeout=0)
        began = time.monotonic()
        daemon = _daemon(place)
        try:
            queue.wait(run.run_id, timeout=LONG)
            return (time.monotonic() - began) * 1000
        finally:
            daemon.terminate()
            daemon.wait()


def _help() -> float:
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "runqueue", "--help"],
        stdout=subprocess.DEVNULL,
        check=True,
        env=_environment(),
    )
    return (time.monotonic() - began) * 1000


def _environment() -> dict[str, str]:
    """The caller's environment, without settings that would change the figures.

    That is runqueue's, and the one by which Python would compile every module anew.
    """
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("RUNQUEUE_") and key != "PYTHONDONTWRITEBYTECODE"
    }


def _resident(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20
