"""The ids of sessions and runs."""

from __future__ import annotations

import os
import re
from typing import Final

from runqueue.errors import InvalidRun

RUN_ID: Final = re.compile(r"run_[0-9a-f]{12}")


def new_run_id() -> str:
    return f"run_{os.urandom(6).hex()}"


def new_session_id() -> str:
    return f"ses_{os.urandom(6).hex()}"


def check_run_id(run_id: object) -> str:
    """Return a run id that a caller chose. Raises InvalidRun when it is not one."""
    if not isinstance(run_id, str) or RUN_ID.fullmatch(run_id) is None:
        raise InvalidRun(f"{str(run_id)[:40]!r} is not a run id: run_ and 12 hexadecimal digits")
    return run_id
