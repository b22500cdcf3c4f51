"""How much of a processor idle processes use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import psutil

from benchmarks.processes import Worker

SETTLE: Final = 1.0
"""Seconds in which processes come to rest."""


def share_of_core(workers: Sequence[Worker], seconds: float) -> float:
    """Return the percentage of one core that each worker uses on average."""
    processes = [psutil.Process(worker.pid) for worker in workers]
    time.sleep(min(SETTLE, seconds))
    before, began = sum(map(_used, processes)), time.monotonic()
    time.sleep(seconds)
    used = sum(map(_used, processes)) - before
    return 100 * used / (time.monotonic() - began) / len(processes)


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
