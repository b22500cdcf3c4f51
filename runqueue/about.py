"""Which run, session and runner the lines that a thread logs are about.

Whoever works for a run says so once; a log's handler adds it to every line that is logged
meanwhile, also by modules that know nothing of logs' fields.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_everywhere: dict[str, str] = {}
_here = threading.local()


def everywhere(**fields: str) -> None:
    """Say what every line of this process is about."""
    _everywhere.update(fields)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Say what the lines of this thread are about meanwhile."""
    before = getattr(_here, "fields", {})
    _here.fields = {**before, **fields}
    try:
        yield
    finally:
        _here.fields = before


def fields() -> dict[str, str]:
    """Return what a line that is logged now, in this thread, is about."""
    return {**_everywhere, **getattr(_here, "fields", {})}
