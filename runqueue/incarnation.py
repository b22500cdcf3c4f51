"""Telling a process from the one that bore the same runner id before it.

An incarnation names the boot and the process, so that on the same machine a successor can see
that its predecessor is dead and need not wait for its lease to run out.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Final

NONE: Final = "none"
UNKNOWN: Final = "unknown"


def current() -> str:
    """Return a text that no other process, and no other runner of this one, has."""
    return f"{_machine()}/{os.getpid()}/{_began(os.getpid())}/{secrets.token_hex(4)}"


def is_dead(incarnation: str) -> bool:
    """Whether a process is known to have ended; False when that cannot be seen from here."""
    machine, _, rest = incarnation.rpartition("/")[0].partition("/")
    pid, _, began = rest.partition("/")
    if machine != _machine() or not pid.isdigit() or not began:
        return False
    return _began(int(pid)) not in (began, UNKNOWN)


def _began(pid: int) -> str:
    """When a process began, NONE when it has ended, UNKNOWN when that cannot be seen."""
    try:
        # Ticks since the boot. psutil's create_time() is wall time: it moves with the clock.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return NONE if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if sys.platform == "linux":
            # Of another user's process there may be nothing to see (hidepid, ProtectProc).
            return UNKNOWN if _is_there(pid) else NONE
    except OSError:
        return UNKNOWN
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return NONE
    except psutil.Error:
        return UNKNOWN


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _machine() -> str:
    """This boot and this namespace of process ids: where a pid means the same process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{os.uname().nodename}:{os.uname().sysname}"
