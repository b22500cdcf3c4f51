"""What a check of an installation finds: how it is, what was seen, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """What one check has found; each part is a sentence without a full stop."""

    level: Level
    seen: str
    advice: str = ""
    """What to do; empty when all is well, or when what was seen says it."""
    exit_code: int = 0
    """What a command ends with because of it, where that is more than a failure."""


Check = tuple[str, Callable[[], Finding]]
"""What is looked at, in a word, and the look."""

MIB: Final = 1024 * 1024


def ok(seen: str) -> Finding:
    return Finding("ok", seen)


def warn(seen: str, advice: str) -> Finding:
    return Finding("warn", seen, advice)


def fail(seen: str, advice: str = "", *, exit_code: int = 0) -> Finding:
    return Finding("fail", seen, advice, exit_code)


def mib(size: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / MIB:,.1f} MiB" if size < 10 * MIB else f"{size / MIB:,.0f} MiB"
