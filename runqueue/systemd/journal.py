"""Whether what a process says goes to systemd's journal."""

from __future__ import annotations

import os
from typing import Any


def is_journal(stream: Any) -> bool:
    """Whether a stream is the one that systemd connected to the journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
