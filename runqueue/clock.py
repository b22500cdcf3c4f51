"""The one clock and the one format of time.

A time is text: UTC, 27 characters, always six decimals and `Z`, so that the order of the text
is the order of time in every index and comparison. SQL never asks the database's own clock
for a stored time; every function that needs the time is given it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Final

Clock = Callable[[], datetime]

FOREVER: Final = "9999-12-31T23:59:59.999999Z"
"""The last time that the format can express."""

_SHAPE = re.compile(
    r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d(?:\.(\d{1,6}))?(?:Z|\+00:00)", re.ASCII
)


def system_clock() -> datetime:
    """Return the host's time."""
    return datetime.now(timezone.utc)


def to_text(moment: datetime) -> str:
    """Return a time as text.

    Raises ValueError for a datetime without a time zone: what it means depends on the host.
    """
    if moment.tzinfo is not timezone.utc:
        if moment.tzinfo is None:
            raise ValueError("a datetime without a time zone is ambiguous; use an aware one")
        moment = moment.astimezone(timezone.utc)
    # strftime's %Y does not pad years before 1000 on every platform; isoformat does.
    return moment.isoformat(timespec="microseconds")[:26] + "Z"


def from_text(text: str) -> datetime:
    """Return the datetime of a stored time, also of one with fewer decimals or `+00:00`.

    Raises ValueError for any other shape.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time in UTC: {text[:40]!r}")
    fraction = (match[1] or "").ljust(6, "0")
    return datetime.fromisoformat(f"{text[:19]}.{fraction}+00:00")


def shift(text: str, seconds: float) -> str:
    """Return the time `seconds` after `text`, held inside what the format can express."""
    try:
        return to_text(from_text(text) + timedelta(seconds=seconds))
    except OverflowError:
        return FOREVER if seconds > 0 else to_text(datetime.min.replace(tzinfo=timezone.utc))


def seconds_between(earlier: str, later: str) -> float:
    """Return the seconds from one stored time to another."""
    return (from_text(later) - from_text(earlier)).total_seconds()


def is_duration(value: object) -> bool:
    """Whether a value is a finite, non-negative number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value) and value >= 0
    except OverflowError:  # a whole number that no float can hold
        return False
