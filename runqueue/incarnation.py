"""Telling a process from the one that bore the same runner id before it.

An incarnation names the boot and the process, so that on the same machine a successor can see
that its predecessor is dead and need not wait for its lease to run out.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def current() -> str:
    """Return a text that no other process, and no other runner of this one, has."""
    import psutil

    process = psutil.Process()
    return f"{_machine()}/{process.pid}/{process.create_time():.2f}/{secrets.token_hex(4)}"


def is_dead(incarnation: str) -> bool:
    """Whether a process is known to have ended; False when that cannot be seen from here."""
    import psutil

    machine, _, rest = incarnation.rpartition("/")[0].partition("/")
    pid, _, created = rest.partition("/")
    if machine != _machine() or not pid.isdigit() or not created:
        return False
    try:
        process = psutil.Process(int(pid))
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        return f"{process.create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _machine() -> str:
    """This boot and this namespace of process ids: where a pid means the same process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{os.uname().nodename}:{os.uname().sysname}"
