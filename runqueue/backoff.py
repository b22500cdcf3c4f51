"""How long to wait for a database that is away before it is tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

BACK_OFF: Final = (0.1, 5.0)
"""Shortest and longest pause, in seconds, between two tries while the database is away."""


def pauses() -> Iterator[float]:
    """Yield ever longer random pauses, in seconds, so that those who wait do not come at once."""
    longest = BACK_OFF[0]
    while True:
        yield random.uniform(BACK_OFF[0], longest)
        longest = min(2 * longest, BACK_OFF[1])
