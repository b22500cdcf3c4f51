"""Under which conditions a figure was measured; without them it means nothing."""

from __future__ import annotations

import os
import platform
import sqlite3
from importlib import metadata
from typing import Any

import psutil

from benchmarks.places import Places

PACKAGES = {"sqlite": ("peewee",), "postgres": ("peewee", "psycopg")}


def machine() -> dict[str, Any]:
    """Return what holds for the whole measurement."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "runqueue": metadata.version("runqueue"),
    }


def of(kind: str, places: Places) -> dict[str, Any]:
    """Return what holds for the figures of one database, at this moment."""
    versions = {name: metadata.version(name) for name in PACKAGES[kind]}
    load = f"{os.getloadavg()[0]:.2f}"
    if kind == "sqlite":
        settings = {
            "SQLite": sqlite3.sqlite_version,
            "durability": "WAL, synchronous=FULL",
            "disk": _file_system(str(places.directory)),
        }
    else:
        shown = ("fsync", "full_page_writes", "synchronous_commit", "shared_buffers")
        values = {name: places.server.execute(f"SHOW {name}")[0][0] for name in shown}
        settings = {
            "PostgreSQL": places.server.execute("SHOW server_version")[0][0],
            "durability": ", ".join(f"{name}={value}" for name, value in values.items()),
            "disk": _file_system(str(places.server.directory)),
        }
    return {**settings, **versions, "cores": os.cpu_count(), "load before": load}


def load() -> str:
    return f"{os.getloadavg()[0]:.2f}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model n")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _file_system(path: str) -> str:
    """The kind of file system that a path is on: on one in memory, a sync costs nothing."""
    mounts = [part for part in psutil.disk_partitions(all=True) if path.startswith(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
